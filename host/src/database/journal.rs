//! What a request did with its databases, for the development error page.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Error, short};

/// How many statements are kept; later ones are only counted.
const ENTRIES_MAX: usize = 200;

/// The statements of one request in the order in which they ended.
#[derive(Debug, Default)]
pub struct Journal {
    kept: Option<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    entries: Vec<Entry>,
    more: usize,
}

/// One statement.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The database it went to.
    pub database: String,
    /// Enough of it to recognise it by.
    pub sql: String,
    /// From asking for it to its outcome, the wait for a connection with it.
    pub took: Duration,
    /// How many rows it returned or changed, or why it failed.
    pub outcome: Result<u64, String>,
}

impl Journal {
    /// A journal that keeps what happens.
    pub fn recording() -> Journal {
        Journal {
            kept: Some(Mutex::default()),
        }
    }

    /// A journal that keeps nothing and costs nothing.
    pub fn off() -> Journal {
        Journal::default()
    }

    /// Begins an entry for a statement that is issued now; it is kept when its end is known.
    pub fn begin(&self, database: &str, sql: &str) -> Recording<'_> {
        let entry = self.kept.as_ref().map(|_| Entry {
            database: database.to_owned(),
            sql: short(sql),
            took: Duration::ZERO,
            outcome: Ok(0),
        });
        Recording {
            journal: self,
            entry,
            since: Instant::now(),
        }
    }

    /// What was kept, and how many statements came after.
    pub fn entries(&self) -> (Vec<Entry>, usize) {
        match &self.kept {
            Some(kept) => {
                let kept = kept.lock();
                (kept.entries.clone(), kept.more)
            }
            None => (Vec::new(), 0),
        }
    }
}

/// A statement whose outcome is not known yet.
pub struct Recording<'a> {
    journal: &'a Journal,
    entry: Option<Entry>,
    since: Instant,
}

impl Recording<'_> {
    /// The statement has ended: with so many rows, or an error.
    pub fn end(self, outcome: Result<u64, &Error>) {
        let (Some(mut entry), Some(kept)) = (self.entry, &self.journal.kept) else {
            return;
        };
        let mut kept = kept.lock();
        if kept.entries.len() >= ENTRIES_MAX {
            kept.more += 1;
            return;
        }
        entry.took = self.since.elapsed();
        entry.outcome = outcome.map_err(|error| error.message.clone());
        kept.entries.push(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_so_many_and_counts_the_rest() {
        let journal = Journal::recording();
        for n in 0..ENTRIES_MAX as u64 + 3 {
            journal.begin("default", "select  1").end(Ok(n));
        }
        let (entries, more) = journal.entries();
        assert_eq!((entries.len(), more), (ENTRIES_MAX, 3));
        assert_eq!(entries[0].sql, "select 1");
        Journal::off().begin("default", "select 1").end(Ok(1));
    }
}
