//! Migrations of a SQLite file.

use std::fs::File as OsFile;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Context as _, bail};
use rusqlite::fallible_iterator::FallibleIterator as _;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{Batch, Connection};

use super::files::{File, REFINERY};
use super::{Applied, HISTORY, REFINERY_HISTORY, pending};
use crate::config::SqliteFile;

/// The records; none if there is no file or no table of records.
pub(super) fn applied(sqlite: &SqliteFile) -> anyhow::Result<Vec<Applied>> {
    if !sqlite.file.is_file() {
        return Ok(Vec::new());
    }
    read(&open(sqlite)?)
}

/// Applies the files that are not applied yet.
pub(super) fn migrate(
    sqlite: &SqliteFile,
    files: &[File],
    tell: &mut dyn FnMut(&File),
) -> anyhow::Result<()> {
    if let Some(folder) = sqlite.file.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("making the folder {}", folder.display()))?;
    }
    let _lock = locked(&sqlite.file)?;
    let applied = read(&open(sqlite)?)?;
    for file in pending(files, &applied)? {
        // Each file has a connection of its own, so that no file changes the session of the next one.
        apply(&mut open(sqlite)?, file)?;
        tell(file);
    }
    Ok(())
}

fn open(sqlite: &SqliteFile) -> anyhow::Result<Connection> {
    let open = || {
        let connection = Connection::open(&sqlite.file)?;
        connection.busy_timeout(sqlite.busy_timeout)?;
        Ok(connection)
    };
    let opened: rusqlite::Result<_> = open();
    opened.with_context(|| format!("opening {}", sqlite.file.display()))
}

/// Locks the database against other hosts that migrate it, until the returned file is closed.
fn locked(database: &Path) -> anyhow::Result<OsFile> {
    let mut path = database.as_os_str().to_owned();
    path.push("-migrating");
    let path = Path::new(&path);
    let lock =
        OsFile::create(path).with_context(|| format!("making the lock file {}", path.display()))?;
    lock.lock()
        .with_context(|| format!("waiting for the lock of {}", path.display()))?;
    Ok(lock)
}

fn read(connection: &Connection) -> anyhow::Result<Vec<Applied>> {
    let (table, columns) = match () {
        () if connection.table_exists(None, HISTORY)? => {
            (HISTORY, "version, name, checksum, applied_at")
        }
        () if connection.table_exists(None, REFINERY_HISTORY)? => (
            REFINERY_HISTORY,
            "version, name, 'refinery:' || checksum, applied_on",
        ),
        () => return Ok(Vec::new()),
    };
    let read = || {
        let sql = format!("select {columns} from main.{table} order by version");
        let mut statement = connection.prepare(&sql)?;
        let rows = statement.query_map((), |row| {
            Ok(Applied {
                version: row.get(0)?,
                name: row.get(1)?,
                checksum: row.get(2)?,
                at: row.get(3)?,
            })
        })?;
        rows.collect::<rusqlite::Result<Vec<_>>>()
    };
    read().with_context(|| format!("reading the table `{table}` of applied migrations"))
}

/// Makes the table of records, with the records of Amphi 0.1.0 if there are any.
fn make_history(connection: &Connection) -> rusqlite::Result<()> {
    if connection.table_exists(None, HISTORY)? {
        return Ok(());
    }
    connection.execute_batch(&format!(
        "create table main.{HISTORY} (version integer primary key, name text not null, checksum text not null, applied_at text not null)"
    ))?;
    if connection.table_exists(None, REFINERY_HISTORY)? {
        connection.execute_batch(&format!(
            "insert into main.{HISTORY} select version, name, '{REFINERY}' || checksum, applied_on from main.{REFINERY_HISTORY};
            drop table main.{REFINERY_HISTORY}"
        ))?;
    }
    Ok(())
}

fn record(connection: &Connection, file: &File) -> rusqlite::Result<()> {
    make_history(connection)?;
    connection.execute(
        &format!(
            "insert into main.{HISTORY} values ($1, $2, $3, strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))"
        ),
        (file.version, &file.name, file.checksum()),
    )?;
    Ok(())
}

fn apply(connection: &mut Connection, file: &File) -> anyhow::Result<()> {
    let recording = || format!("{}: recording that it was applied", file.path.display());
    if !file.in_transaction {
        run(connection, file)?;
        if !connection.is_autocommit() {
            bail!(
                "{}: a transaction that it began is still open at its end: end it with `commit` (what it changed is undone)",
                file.path.display()
            );
        }
        return record(connection, file).with_context(recording);
    }
    connection.execute_batch("begin immediate")?;
    let refused = Arc::new(AtomicBool::new(false));
    let noting = Arc::clone(&refused);
    connection.authorizer(Some(move |context: AuthContext<'_>| {
        match ends_transaction_or_has_no_effect(&context) {
            false => Authorization::Allow,
            true => {
                noting.store(true, Relaxed);
                Authorization::Deny
            }
        }
    }))?;
    let ran = run(connection, file);
    connection.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
    // When a statement fails, dropping the connection rolls back what is open.
    ran?;
    if connection.is_autocommit() {
        bail!(
            "{}: its transaction was ended on the way, so it is not known what of it was applied",
            file.path.display()
        );
    }
    record(connection, file).with_context(recording)?;
    let committed = connection.execute_batch("commit");
    committed.map_err(|error| file.error(file.sql.len(), &format!("its commit failed: {error}")))
}

/// What the authorizer refuses in a file that is applied in a transaction: statements that end the transaction, and
/// pragmas that have no effect within one.
fn ends_transaction_or_has_no_effect(context: &AuthContext<'_>) -> bool {
    match context.action {
        AuthAction::Transaction { .. } => true,
        AuthAction::Pragma {
            pragma_name,
            pragma_value: Some(_),
        } => ["foreign_keys", "journal_mode"]
            .iter()
            .any(|name| pragma_name.eq_ignore_ascii_case(name)),
        _ => false,
    }
}

/// Runs the statements of a file, one after the other.
fn run(connection: &Connection, file: &File) -> anyhow::Result<()> {
    let sql = &file.sql;
    let mut batch = Batch::new(connection, sql);
    let mut end = 0;
    loop {
        let start = end + blanks(&sql[end..]);
        let mut statement = match batch.next() {
            Ok(Some(statement)) => statement,
            Ok(None) => return Ok(()),
            Err(error) => return Err(wrong(file, start, &error)),
        };
        // The text that SQLite has compiled begins at the end of the last statement and ends with this one.
        end += statement.expanded_sql().map_or(0, |text| text.len());
        end = sql.floor_char_boundary(end);
        if statement.parameter_count() > 0 {
            return Err(file.error(
                start,
                "the statement has a parameter (`?` or `$1`), and a migration gives no values: write the value itself",
            ));
        }
        let mut rows = statement.raw_query();
        loop {
            match rows.next() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => return Err(wrong(file, start, &error)),
            }
        }
    }
}

/// The place and the text of SQLite's error.
fn wrong(file: &File, start: usize, error: &rusqlite::Error) -> anyhow::Error {
    let (at, sentence) = match error {
        rusqlite::Error::SqlInputError {
            msg, sql, offset, ..
        } => {
            let rest = file.sql.len().saturating_sub(sql.len());
            let at = usize::try_from(*offset).map_or(start, |offset| rest + offset);
            (at, msg.clone())
        }
        rusqlite::Error::SqliteFailure(_, Some(message)) => (start, message.clone()),
        other => (start, other.to_string()),
    };
    let statement = &file.sql[start.min(file.sql.len())..];
    let sentence = match (&*sentence, first_word(statement)) {
        ("not authorized", word) if word.eq_ignore_ascii_case("pragma") => {
            "this pragma has no effect within a transaction, and migrations run in one: write `-- amphi: no-transaction` as the file's first line, with a transaction of its own around what is to be done wholly or not at all".to_owned()
        }
        ("not authorized", word) => format!(
            "`{word}` was refused: the file runs in a transaction that also records it. Take it out, with the statement that belongs to it; or write `-- amphi: no-transaction` as the file's first line"
        ),
        (said, _) if said.contains("within a transaction") => {
            format!("{sentence}: write `-- amphi: no-transaction` as the file's first line")
        }
        _ => sentence,
    };
    file.error(at, &sentence)
}

fn first_word(sql: &str) -> &str {
    let end = sql.find(|c: char| !c.is_ascii_alphabetic());
    &sql[..end.unwrap_or(sql.len())]
}

/// The number of bytes that blanks, comments and lone semicolons take before a statement.
fn blanks(sql: &str) -> usize {
    let mut rest = sql;
    loop {
        let trimmed = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == ';');
        rest = match () {
            () if trimmed.starts_with("--") => trimmed.find('\n').map_or("", |end| &trimmed[end..]),
            () if trimmed.starts_with("/*") => {
                trimmed.find("*/").map_or("", |end| &trimmed[end + 2..])
            }
            () => return sql.len() - trimmed.len(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(sql: &str, in_transaction: bool) -> (Connection, Result<(), String>) {
        let mut connection = Connection::open_in_memory().expect("SQLite opens");
        let file = File {
            version: 1,
            name: "a".to_owned(),
            path: "V1__a.sql".into(),
            sql: sql.to_owned(),
            in_transaction,
        };
        let ran = apply(&mut connection, &file).map_err(|error| format!("{error:#}"));
        (connection, ran)
    }

    fn refused(sql: &str) -> String {
        ran(sql, true).1.expect_err(sql)
    }

    #[test]
    fn transactions_are_the_hosts() {
        for sql in [
            "create table a (a);\ncommit;",
            "create table a (a);\n/* hm */ COMMIT;\nbegin;",
            "create table a (a);\nend;",
            "create table a (a);\nrollback;",
            "create table a (a);\nbegin;",
        ] {
            let error = refused(sql);
            assert!(error.contains("V1__a.sql:2: "), "{error}");
            assert!(error.contains("was refused"), "{error}");
        }
        let error = refused("\n\npragma foreign_keys = off;");
        assert!(error.contains("V1__a.sql:3: this pragma"), "{error}");
        assert!(refused("vacuum").contains("no-transaction"));
        let (_, savepoint) = ran(
            "savepoint a; create table a (a); release a; pragma user_version = 3;",
            true,
        );
        assert_eq!(savepoint, Ok(()));
    }

    #[test]
    fn errors_have_their_line() {
        for (sql, part) in [
            (
                "create table a (a);\n\n-- x\ninsert into b values (1);",
                "V1__a.sql:4: no such table: b",
            ),
            (
                "create table a (a not null);\ninsert into a\n values (null);",
                "V1__a.sql:2: NOT NULL",
            ),
            (
                "create table a (a);\r\nselect\r\n'ä', ,;",
                "V1__a.sql:3: near",
            ),
            (
                "select 1;\nselect ?;",
                "V1__a.sql:2: the statement has a parameter",
            ),
        ] {
            let error = refused(sql);
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_file_without_a_transaction_may_have_its_own() {
        let sql = "create table a (a);\npragma foreign_keys = off;\nbegin;\ninsert into a values (1);\ncommit;\nvacuum;";
        assert_eq!(ran(sql, false).1, Ok(()));
        let (_, open) = ran(
            "create table a (a); begin; insert into a values (1);",
            false,
        );
        assert!(open.expect_err("it is open").contains("still open"));
    }

    #[test]
    fn triggers_and_texts_have_semicolons() {
        let sql = "create table a (a);\ncreate trigger t after insert on a begin\n update a set a = ';'; select 1; end;\ninsert into a values ('x;--y');";
        assert_eq!(ran(sql, true).1, Ok(()));
    }
}
