//! The limits on one statement of SQLite: every limit that SQLite has, and the size of values.
//!
//! SQLite checks the interrupt flag where its virtual machine jumps. It does not check it within one instruction, or
//! between two instructions that follow each other. So the work between two checks is bounded here: by the number of
//! instructions, the number of function calls, and the size of the values that they work on. The more of these a
//! statement has, the smaller its values may be ([`values_max`]), so that the product stays below a second.

use rusqlite::Connection;
use rusqlite::limits::Limit;

use super::super::statement::STATEMENT_BYTES_MAX;
use super::search::Words;

/// Bytes of stack for every thread that runs statements (see `threads` in CONFIGURATION.md). With the limits below, the
/// deepest statements of the hostile corpus take less than 700 KiB; with SQLite's own defaults they take 2.5 MiB.
pub const STACK_BYTES: usize = 4 << 20;

/// The longest pattern of LIKE and GLOB.
pub(super) const PATTERN_BYTES_MAX: usize = 10_000;

/// Every limit of SQLite, except for the length of values, which [`super::Handle`] sets for each statement.
const LIMITS: &[(Limit, i32)] = &[
    (Limit::SQLITE_LIMIT_SQL_LENGTH, STATEMENT_BYTES_MAX as i32),
    // 2,000 result columns are SQLite's own default; the index of a column has 16 bits.
    (Limit::SQLITE_LIMIT_COLUMN, 2_000),
    // About 550 bytes of stack for each level.
    (Limit::SQLITE_LIMIT_EXPR_DEPTH, 500),
    // Entries of the parser's stack, which is on the heap. But the tree that the parser builds (subqueries in FROM) is
    // walked by recursion, which takes the thread's stack.
    (Limit::SQLITE_LIMIT_PARSER_DEPTH, 1_000),
    (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 250),
    // SQLite doubles its memory for instructions, so the limit is in effect 172,032 instructions.
    (Limit::SQLITE_LIMIT_VDBE_OP, 250_000),
    (Limit::SQLITE_LIMIT_FUNCTION_ARG, 100),
    (Limit::SQLITE_LIMIT_ATTACHED, 0),
    // The host replaces LIKE and GLOB (`functions`). This limit is for SQLite's own LIKE and GLOB, where SQLite calls
    // them internally.
    (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 100),
    (Limit::SQLITE_LIMIT_VARIABLE_NUMBER, 32_766),
    // About 1.5 KiB of stack for each level when the statement is compiled. Cascading foreign keys have the same limit.
    (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 100),
    // Sorting must not start threads.
    (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    // Tables, indexes, views and triggers.
    (Limit::SQLITE_LIMIT_SCHEMA, 10_000),
    (Limit::SQLITE_LIMIT_TRIGGER_STEPS, 1_000),
];

/// Sets all [`LIMITS`] on a connection.
pub(super) fn set(connection: &Connection) -> rusqlite::Result<()> {
    (LIMITS.iter()).try_for_each(|(limit, max)| connection.set_limit(*limit, *max).map(drop))
}

/// What a compiled statement may do between two checks of the interrupt flag.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// Calls of SQLite's own functions that read or make whole values.
    pub(super) calls: u32,
    /// Calls of functions whose time grows with the square of a value.
    pub(super) quadratic: u32,
    /// Memory of the compiled program, in bytes.
    pub(super) program_bytes: u64,
    /// Whether the statement writes to a virtual table.
    pub(super) indexes_text: bool,
    /// Whether the statement marks the matches of a full-text search.
    pub(super) highlights: bool,
}

/// The most bytes that all calls of a statement may work on together. The slowest functions that are counted (JSON)
/// take 10 ns for each byte, so the calls take at most a second.
const CALL_BYTES: u64 = 100_000_000;
/// Two values of this size keep a quadratic function busy for about half a second.
const QUADRATIC_BYTES: u64 = 64 << 10;
/// The largest product of a program's memory and the size of its values. An instruction takes about 200 bytes of
/// memory, operands included, and 1.5 ns for each byte that it copies, so all instructions take about a second at most.
const PROGRAM_BYTES: u64 = 160_000_000_000;
/// The longest search that `search` allows takes less than a second in one text of this size.
const INDEXED_BYTES: u64 = 512 << 10;
/// `highlight` copies its whole result for each mark that it adds. With the longest marks that `search` allows, that
/// takes a second for one text of this size.
const HIGHLIGHTED_BYTES: u64 = 64 << 10;
/// Values of this size are always allowed, unless quadratic functions work on them. In theory, a statement with the
/// most instructions could then take seconds.
const VALUES_MIN: u64 = 64 << 10;

/// The most bytes of a text or blob that a statement may have, read or make.
pub(super) fn values_max(configured: u64, weight: Weight) -> u64 {
    let Weight {
        calls,
        quadratic,
        program_bytes,
        indexes_text,
        highlights,
    } = weight;
    let mut max = configured;
    max = max.min(CALL_BYTES / u64::from(calls.max(1)));
    max = max.min(PROGRAM_BYTES / program_bytes.max(1));
    if indexes_text {
        max = max.min(INDEXED_BYTES);
    }
    if highlights {
        max = max.min(HIGHLIGHTED_BYTES);
    }
    max = max.max(VALUES_MIN.min(configured));
    if quadratic > 0 {
        max = max.min(QUADRATIC_BYTES / u64::from(quadratic.isqrt()));
    }
    max
}

/// The number of calls of slow functions in the definition of a table or index: in checks, generated columns and
/// indexed expressions. These functions run when the table is written to, but the authorizer does not see them.
pub(super) fn calls(definition: &str) -> u32 {
    let slow = Words(definition).filter(|word| {
        let name = word.trim_matches(['"', '`', '[', ']']).to_ascii_lowercase();
        name.starts_with("json") || name.starts_with("->") || SLOW.contains(&name.as_str())
    });
    u32::try_from(slow.count()).unwrap_or(u32::MAX)
}

/// Functions that definitions may call and that read or make whole values. A column of the same name counts, too.
const SLOW: &[&str] = &[
    "char",
    "date",
    "datetime",
    "format",
    "hex",
    "julianday",
    "length",
    "lower",
    "ltrim",
    "printf",
    "quote",
    "rtrim",
    "soundex",
    "strftime",
    "substr",
    "substring",
    "time",
    "timediff",
    "trim",
    "unhex",
    "unicode",
    "unistr",
    "unistr_quote",
    "unixepoch",
    "upper",
    "zeroblob",
];

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIGURED: u64 = 16 << 20;

    #[test]
    fn large_statements_have_small_values() {
        let of = |weight| values_max(CONFIGURED, weight);
        let plain = Weight {
            program_bytes: 4_000,
            ..Weight::default()
        };
        assert_eq!(of(plain), CONFIGURED);
        assert_eq!(of(Weight { calls: 5, ..plain }), CONFIGURED);
        assert_eq!(
            of(Weight {
                calls: 100,
                ..plain
            }),
            1_000_000
        );
        assert_eq!(
            of(Weight {
                calls: 60_000,
                ..plain
            }),
            VALUES_MIN
        );
        assert_eq!(
            of(Weight {
                quadratic: 4,
                ..plain
            }),
            QUADRATIC_BYTES / 2
        );
        assert_eq!(
            of(Weight {
                program_bytes: 160_000,
                ..plain
            }),
            1_000_000
        );
        assert_eq!(
            of(Weight {
                indexes_text: true,
                ..plain
            }),
            INDEXED_BYTES
        );
        // The configured limit is never exceeded.
        assert_eq!(
            values_max(
                1_000,
                Weight {
                    indexes_text: true,
                    ..plain
                }
            ),
            1_000
        );
    }

    #[test]
    fn definitions_call_functions() {
        let table = "create table t (a text, b as (upper(a)), check (json_valid(a) and a -> '$.b' = \"hex\"(a)))";
        assert_eq!(calls(table), 4);
        assert_eq!(
            calls("create table t (a varchar(20) references u (id), b text)"),
            0
        );
    }

    #[test]
    fn every_limit_of_sqlite_is_set() {
        let connection = Connection::open_in_memory().expect("it opens");
        set(&connection).expect("they are taken");
        for (limit, max) in LIMITS {
            assert_eq!(
                connection.limit(*limit).expect("it is known"),
                *max,
                "{limit:?}"
            );
        }
        // SQLite numbers its limits from 0, and this limit is the last one. Only `LENGTH` is not listed.
        let last = Limit::SQLITE_LIMIT_TRIGGER_STEPS as usize;
        assert_eq!(LIMITS.len(), last);
    }
}
