//! Migrations of a PostgreSQL database.
//!
//! One connection holds an advisory lock, in a transaction that stays open until the end. Other connections run the
//! files. So the lock also holds while a file runs without a transaction, and when a pooler is in between. A host that
//! does not get the lock asks for it again and again. It does not wait in a statement, because `create index
//! concurrently` of the other host would wait for that statement.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures::TryStreamExt as _;
use tokio_postgres::error::ErrorPosition;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::super::postgres::{self, Alone, SqlStatement};
use super::files::{File, REFINERY};
use super::{Applied, HISTORY, REFINERY_HISTORY, pending};
use crate::config::PostgresServer;

/// The number of the lock is "amphi" in ASCII, so that it does not clash with locks of other programs.
const TRY_LOCK: &str = "select pg_catalog.pg_try_advisory_xact_lock(418447911017)";
const LOCK_POLL: Duration = Duration::from_millis(100);

/// Time limits of the server must not end the transaction that holds the lock. Settings that the server does not have
/// are left out.
const NO_TIME_LIMITS: &str = "select pg_catalog.set_config(name, '0', true) from pg_catalog.pg_settings \
    where name in ('idle_in_transaction_session_timeout', 'statement_timeout', 'transaction_timeout')";

/// The table of records: its schema and its name.
struct History {
    schema: String,
    table: &'static str,
}

/// The records; none if there is no table of records.
pub(super) async fn applied(server: &PostgresServer) -> anyhow::Result<Vec<Applied>> {
    let session = postgres::connect_alone(server).await?;
    match find(&session).await? {
        Some(history) => read(&session, &history).await,
        None => Ok(Vec::new()),
    }
}

/// Applies the files that are not applied yet.
pub(super) async fn migrate(
    server: &PostgresServer,
    files: &[File],
    tell: &mut dyn FnMut(&File),
) -> anyhow::Result<()> {
    let _lock = locked(server).await?;
    let known = postgres::connect_alone(server).await?;
    let applied = match find(&known).await? {
        Some(history) => read(&known, &history).await?,
        None => Vec::new(),
    };
    let pending = pending(files, &applied)?;
    // All files are parsed first: nothing is applied when one of them has a statement that a migration must not have.
    let statements = (pending.iter())
        .map(|file| statements(file))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if !pending.is_empty() {
        make_history(&known).await?;
    }
    let history = find(&known).await?;
    drop(known);
    for (file, statements) in pending.into_iter().zip(statements) {
        let history = history
            .as_ref()
            .context("the table of applied migrations is gone")?;
        // Each file has a connection of its own, so that no file changes the session of the next one.
        let session = postgres::connect_alone(server).await?;
        apply(&session, file, &statements, history).await?;
        tell(file);
    }
    Ok(())
}

/// Waits for the advisory lock on migrations, and returns the connection that holds it.
async fn locked(server: &PostgresServer) -> anyhow::Result<Alone> {
    let keeper = postgres::connect_alone(server).await?;
    let mut told = false;
    loop {
        // With a stricter isolation, the transaction would keep a snapshot, and `create index concurrently` would wait
        // for the end of the transaction.
        let begin = format!("begin isolation level read committed; {NO_TIME_LIMITS}");
        keeper.batch_execute(&begin).await?;
        let answer = first_row(&keeper, TRY_LOCK).await?;
        if answer.and_then(|row| row.get(0).map(|locked| locked == "t")) == Some(true) {
            return Ok(keeper);
        }
        keeper.batch_execute("rollback").await?;
        if !told {
            tracing::info!("waiting for another host that migrates");
            told = true;
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
}

async fn rows(client: &Client, sql: &str) -> anyhow::Result<Vec<SimpleQueryRow>> {
    let messages = client.simple_query(sql).await?;
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    };
    Ok(messages.into_iter().filter_map(row).collect())
}

async fn first_row(client: &Client, sql: &str) -> anyhow::Result<Option<SimpleQueryRow>> {
    Ok(rows(client, sql).await?.into_iter().next())
}

/// The table of records that the search path finds.
async fn find(client: &Client) -> anyhow::Result<Option<History>> {
    for table in [HISTORY, REFINERY_HISTORY] {
        let sql = format!(
            "select pg_catalog.quote_ident(n.nspname) from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = pg_catalog.to_regclass('{table}')"
        );
        if let Some(schema) = first_row(client, &sql)
            .await?
            .as_ref()
            .and_then(|row| row.get(0))
        {
            return Ok(Some(History {
                schema: schema.to_owned(),
                table,
            }));
        }
    }
    Ok(None)
}

async fn read(client: &Client, history: &History) -> anyhow::Result<Vec<Applied>> {
    let History { schema, table } = history;
    let columns = match *table {
        HISTORY => "version, name, checksum, applied_at",
        _ => "version, name, 'refinery:' || checksum, applied_on",
    };
    let sql = format!("select {columns} from {schema}.{table} order by version");
    let of_row = |row: SimpleQueryRow| {
        Some(Applied {
            version: row.get(0)?.parse().ok()?,
            name: row.get(1)?.to_owned(),
            checksum: row.get(2)?.to_owned(),
            at: row.get(3).unwrap_or_default().to_owned(),
        })
    };
    let rows = rows(client, &sql).await;
    let records = rows.and_then(|rows| {
        let records: Option<Vec<_>> = rows.into_iter().map(of_row).collect();
        records.ok_or_else(|| anyhow!("a record in it cannot be read"))
    });
    records.with_context(|| format!("the table {schema}.{table} of applied migrations"))
}

/// Makes the table of records, with the records of Amphi 0.1.0 if there are any.
async fn make_history(client: &Client) -> anyhow::Result<()> {
    let sql = match find(client).await? {
        Some(History { table: HISTORY, .. }) => return Ok(()),
        Some(History { schema, table }) => format!(
            "create table {schema}.{HISTORY} (version bigint primary key, name text not null, checksum text not null, applied_at text not null);
            insert into {schema}.{HISTORY} select version, name, '{REFINERY}' || checksum, applied_on from {schema}.{table};
            drop table {schema}.{table};"
        ),
        None => format!(
            "create table {HISTORY} (version bigint primary key, name text not null, checksum text not null, applied_at text not null);"
        ),
    };
    let made = client.batch_execute(&format!("begin; {sql} commit")).await;
    made.map_err(|error| {
        anyhow!(
            "making the table `{HISTORY}`, in which is recorded what was applied: {}",
            said(&error)
        )
    })
}

/// The statements of a file.
///
/// # Errors
/// When a statement must not be in a migration.
fn statements(file: &File) -> anyhow::Result<Vec<SqlStatement<'_>>> {
    let statements = postgres::statements(&file.sql);
    let statements = statements
        .map_err(|what| file.error(file.sql.len(), &format!("the file ends within {what}")))?;
    for statement in &statements {
        let first = statement.word(0);
        let refused = match &*first {
            "begin" | "start" | "commit" | "end" | "abort" => true,
            "rollback" => !(1..3).any(|index| statement.word(index) == "to"),
            "prepare" => statement.word(1) == "transaction",
            _ => false,
        };
        if refused {
            let why = match file.in_transaction {
                true => {
                    "the file runs in a transaction that also records it. Take it out, with the statement that belongs to it; or write `-- amphi: no-transaction` as the file's first line and give each such part a file of its own"
                }
                false => {
                    "the file says `-- amphi: no-transaction`, so each of its statements is on its own. What is to be done wholly or not at all belongs in a file without that line"
                }
            };
            return Err(file.error(statement.start, &format!("`{first}` was refused: {why}")));
        }
        if first == "copy" && ["stdin", "stdout"].iter().any(|word| statement.has(word)) {
            return Err(file.error(
                statement.start,
                "`copy` was refused: its data does not travel with a statement. Write `insert` (`pg_dump --inserts` does)",
            ));
        }
    }
    Ok(statements)
}

async fn apply(
    client: &Client,
    file: &File,
    statements: &[SqlStatement<'_>],
    history: &History,
) -> anyhow::Result<()> {
    let History { schema, .. } = history;
    // The session is reset before the record is written, so that settings that the file has changed do not affect the
    // record.
    let record = format!(
        "{}; insert into {schema}.{HISTORY} values ({}, '{}', '{}', pg_catalog.to_char(pg_catalog.now() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'))",
        postgres::RESET,
        file.version,
        file.name,
        file.checksum()
    );
    if file.in_transaction {
        client.batch_execute("begin").await?;
    }
    // When a statement fails, the connection is closed, which rolls back what is open.
    for statement in statements {
        run(client, statement.text).await.map_err(|error| {
            let (at, sentence) = wrong(statement, &error);
            file.error(at, &sentence)
        })?;
    }
    let recorded = client.batch_execute(&record).await;
    recorded.map_err(|error| {
        let path = file.path.display();
        anyhow!("{path}: recording that it was applied: {}", said(&error))
    })?;
    if file.in_transaction {
        let committed = client.batch_execute("commit").await;
        committed.map_err(|error| {
            let sentence = format!("its commit failed: {}", said(&error));
            file.error(file.sql.len(), &sentence)
        })?;
    }
    Ok(())
}

/// Runs a single statement and drops its rows. The extended protocol refuses a text with two statements.
async fn run(client: &Client, sql: &str) -> Result<(), tokio_postgres::Error> {
    let none: [(&(dyn tokio_postgres::types::ToSql + Sync), _); 0] = [];
    let rows = client.query_typed_raw(sql, none).await?;
    rows.try_for_each(|_| std::future::ready(Ok(()))).await
}

/// The place and the text of the server's error.
fn wrong(statement: &SqlStatement<'_>, error: &tokio_postgres::Error) -> (usize, String) {
    let Some(db) = error.as_db_error() else {
        return (statement.start, said(error));
    };
    let offset = match db.position() {
        Some(ErrorPosition::Original(place)) => {
            let place = usize::try_from(*place).unwrap_or(1).saturating_sub(1);
            statement
                .text
                .char_indices()
                .nth(place)
                .map_or(0, |(at, _)| at)
        }
        _ => 0,
    };
    let more = match db.code().code() {
        // The server's name of this error is `active_sql_transaction`.
        "25001" => ": write `-- amphi: no-transaction` as the file's first line",
        _ => "",
    };
    (statement.start + offset, format!("{}{more}", said(error)))
}

fn said(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => postgres::sentence(said),
        None => format!("{:#}", anyhow!("{error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(sql: &str, in_transaction: bool) -> Option<String> {
        let file = File {
            version: 1,
            name: "a".to_owned(),
            path: "V1__a.sql".into(),
            sql: sql.to_owned(),
            in_transaction,
        };
        statements(&file).err().map(|error| error.to_string())
    }

    #[test]
    fn transactions_are_the_hosts() {
        for sql in [
            "create table a ();\ncommit",
            "create table a ();\n/* ; */ COMMIT work;",
            "select 'a;b';\nstart transaction;",
            "select $$;$$;\nrollback;",
            "select 1;\nprepare transaction 'a';",
            "select 1;\nend;",
        ] {
            for in_transaction in [true, false] {
                let error = refused(sql, in_transaction).unwrap_or_else(|| panic!("{sql}"));
                assert!(error.starts_with("V1__a.sql:2: "), "{error}");
            }
        }
        for sql in [
            "savepoint a; rollback to a; rollback work to savepoint a;",
            "create function f() returns int begin atomic select 1; select case when true then 1 end; end; select 1",
            "create or replace procedure p() language plpgsql as $$ begin commit; end $$",
            "do $$ begin null; end $$; prepare a as select 1;",
        ] {
            assert_eq!(refused(sql, true), None, "{sql}");
        }
        assert!(refused("copy a from stdin;\n1\n\\.\n", true).is_some_and(|e| e.contains("copy")));
        assert!(refused("select 1;\n/* ", true).is_some_and(|e| e.contains("a comment")));
    }
}
