//! What a request did with its databases, for the development error page.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::error::Error;
use super::statement::short;
use crate::telemetry::report::Statement;

/// How many statements are kept; later ones are only counted.
const STATEMENTS_MAX: usize = 200;

/// The statements of one request in the order in which they ended.
#[derive(Debug, Default)]
pub struct Journal {
    kept: Option<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    statements: Vec<Statement>,
    more: u64,
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

    /// Takes note of a statement that is issued now; it is kept when its end is known.
    pub fn begin(&self, database: &str, sql: &str) -> Recording<'_> {
        let statement = self.kept.as_ref().map(|_| Statement {
            database: database.to_owned(),
            sql: short(sql),
            duration: Duration::ZERO,
            outcome: Ok(0),
        });
        Recording {
            journal: self,
            statement,
            since: Instant::now(),
        }
    }

    /// What was kept, and how many statements came after.
    pub fn statements(&self) -> (Vec<Statement>, u64) {
        match &self.kept {
            Some(kept) => {
                let kept = kept.lock();
                (kept.statements.clone(), kept.more)
            }
            None => (Vec::new(), 0),
        }
    }
}

/// A statement whose outcome is not known yet.
pub struct Recording<'a> {
    journal: &'a Journal,
    statement: Option<Statement>,
    since: Instant,
}

impl Recording<'_> {
    /// The statement has ended: with so many rows, or an error.
    pub fn end(self, outcome: Result<u64, &Error>) {
        let (Some(mut statement), Some(kept)) = (self.statement, &self.journal.kept) else {
            return;
        };
        let mut kept = kept.lock();
        if kept.statements.len() >= STATEMENTS_MAX {
            kept.more += 1;
            return;
        }
        statement.duration = self.since.elapsed();
        statement.outcome = outcome.map_err(|error| error.message.clone());
        kept.statements.push(statement);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_so_many_and_counts_the_rest() {
        let journal = Journal::recording();
        for n in 0..STATEMENTS_MAX as u64 + 3 {
            journal.begin("default", "select  1").end(Ok(n));
        }
        let (statements, more) = journal.statements();
        assert_eq!((statements.len(), more), (STATEMENTS_MAX, 3));
        assert_eq!(statements[0].sql, "select 1");
        Journal::off().begin("default", "select 1").end(Ok(1));
    }
}
