//! The statements of a request, recorded for the development error page.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::error::Error;
use super::statement::short;
use crate::telemetry::report::Statement;

/// The most statements that are recorded. Further statements are only counted.
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
    /// A journal that records.
    pub fn recording() -> Journal {
        Journal {
            kept: Some(Mutex::default()),
        }
    }

    /// A journal that records nothing and costs nothing.
    pub fn off() -> Journal {
        Journal::default()
    }

    /// Notes a statement that starts now. It is recorded when it ends.
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

    /// The recorded statements, and the number of those that were only counted.
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

/// A statement that has not ended yet.
pub struct Recording<'a> {
    journal: &'a Journal,
    statement: Option<Statement>,
    since: Instant,
}

impl Recording<'_> {
    /// Records the end of the statement: its number of rows, or its error.
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
