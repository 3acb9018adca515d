//! The host's database layer without a server: values, connections, and how connections are cleaned.

mod hostile;
mod sessions;
mod way;

use std::sync::Arc;
use std::time::{Duration, Instant};

use amphi::config;
use amphi::database::{
    Access, Database, Error, ErrorKind, Face, Isolation, Outcome, Statement, Stream, Streamed,
    Table, Value,
};
use amphi::scope::transaction::{Fate, Level, Member, Pin, Transaction};
use amphi::threads::deadline::{Deadline, Ended};
use amphi::view::Options;

use crate::harness::eventually;
use crate::harness::postgres::{self, Postgres, Stop};

/// The access of a statement in a read-only view.
const READS: Access = Access {
    read_only: true,
    no_reader: false,
    no_writer: false,
};

/// A PostgreSQL database, opened as the host opens it.
struct Fixture {
    /// The database on the server. Dropping it ends the host's sessions in it by force.
    on_server: Option<postgres::Database>,
    database: Database,
    deadline: Arc<Deadline>,
}

impl Fixture {
    async fn new(connections: usize) -> Fixture {
        let on_server = Postgres::shared().database().await;
        let opened = Fixture::on(&on_server.url(), connections).await;
        Fixture {
            on_server: Some(on_server),
            ..opened
        }
    }

    async fn on(url: &str, connections: usize) -> Fixture {
        let config = config::Database {
            name: "main".into(),
            storage: config::Storage::Postgres(Box::new(config::PostgresServer {
                url: url.parse().expect("a URL"),
                connections,
                connect_timeout: Duration::from_secs(10),
                ca_file: None,
            })),
            migrations: None,
            queue_max: 100,
            acquire_timeout: Duration::from_secs(10),
            value_max_bytes: 1 << 20,
        };
        // A database is opened on a thread that may block, in the tests as in the host.
        let opened = tokio::task::spawn_blocking(move || Database::open(&config)).await;
        Fixture {
            on_server: None,
            database: opened.expect("no panic").expect("it can be reached"),
            deadline: Arc::new(Deadline::new(Instant::now() + Duration::from_secs(60))),
        }
    }

    fn url(&self) -> String {
        let on_server = self.on_server.as_ref();
        on_server.expect("it has a database of its own").url()
    }

    async fn run(&self, sql: &str, params: &[Value]) -> Result<Outcome, Error> {
        let run = (self.database).run(
            Face::Async,
            &self.deadline,
            Access::default(),
            query(sql, params),
        );
        run.await
    }

    async fn table(&self, sql: &str, params: &[Value]) -> Table {
        let ran = self.run(sql, params).await;
        ran.unwrap_or_else(|error| panic!("{sql}: {}", error.message))
            .table
    }

    async fn one(&self, sql: &str, params: &[Value]) -> Value {
        let mut table = self.table(sql, params).await;
        table.rows.pop().expect("a row").pop().expect("a value")
    }

    async fn error(&self, sql: &str, params: &[Value]) -> Error {
        let ran = self.run(sql, params).await;
        ran.err().unwrap_or_else(|| panic!("{sql} ran"))
    }

    /// Opens a result of `thousands` × 1,000 rows, to be read in pieces.
    async fn pieces(&self, thousands: u64, read_only: bool) -> Stream {
        let sql = format!(
            "select n, repeat('x', 100) from generate_series(1, 1000) n, generate_series(1, {thousands}) m"
        );
        let (deadline, statement) = (&self.deadline, query(&sql, &[]));
        let access = Access {
            read_only,
            ..Access::default()
        };
        let stream = (self.database).stream(Face::Async, deadline, access, statement);
        match stream.await {
            Ok(Streamed::Pieces(stream)) => stream,
            Ok(Streamed::Whole(_)) => panic!("it comes in pieces"),
            Err(error) => panic!("{}", error.message),
        }
    }

    fn on_it(&self) -> (&Database, &Arc<Deadline>) {
        (&self.database, &self.deadline)
    }

    async fn within(&self, transaction: &Member, sql: &str) -> Result<Outcome, Error> {
        let turn = transaction
            .turn(self.on_it(), std::future::ready(Ok(())))
            .await?;
        let turn = turn.expect("a transaction is open");
        turn.run(Face::Async, query(sql, &[])).await
    }
}

fn query(sql: &str, params: &[Value]) -> Statement {
    Statement {
        sql: sql.to_owned(),
        params: params.to_vec(),
        rows_max: Some(1 << 20),
    }
}

async fn begin_on(member: &Member, on: (&Database, &Arc<Deadline>)) -> Result<Level, Error> {
    let begun = member.begin(on, std::future::ready(Ok(()))).await;
    begun.map(|(level, ())| level)
}

async fn pin_on(member: &Member, on: (&Database, &Arc<Deadline>)) -> Result<Pin, Error> {
    let pinned = member.pin(on, std::future::ready(Ok(()))).await;
    pinned.map(|(pin, ())| pin)
}

fn atomic() -> Member {
    Transaction::new(Options {
        atomic: true,
        ..Options::default()
    })
    .first_member()
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// A value as text, for comparing.
fn show(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Integer(number) => format!("integer {number}"),
        Value::Real(number) => format!("real {number}"),
        Value::Text(text) => format!("text {text}"),
        Value::Blob(bytes) => format!("blob {bytes:?}"),
    }
}

#[tokio::test]
async fn every_type_has_one_form_in_both_directions() {
    let fixture = Fixture::new(1).await;
    for sql in [
        "create type mood as enum ('fine', 'so-so')",
        "create domain small as integer check (value < 100)",
    ] {
        fixture.table(sql, &[]).await;
    }
    for (ty, value) in [
        ("smallint", Value::Integer(-7)),
        ("integer", Value::Integer(1 << 30)),
        ("bigint", Value::Integer(i64::MIN)),
        ("oid", Value::Integer(4_000_000_000)),
        ("real", Value::Real(0.5)),
        ("double precision", Value::Real(-1.0e300)),
        ("numeric", text("-12345678901234567890.000123456789")),
        ("numeric(10, 2)", text("0.50")),
        ("numeric", text("100000000")),
        ("numeric", text("NaN")),
        ("text", text("grün {}\"\\")),
        ("varchar(10)", text("a")),
        ("char(3)", text("abc")),
        ("name", text("n")),
        ("mood", text("so-so")),
        ("small", Value::Integer(7)),
        ("bytea", Value::Blob(vec![0, 255, 7])),
        ("boolean", Value::Integer(1)),
        ("boolean", Value::Integer(0)),
        ("uuid", text("0190b5a5-6a0b-7c3e-8f00-0123456789ab")),
        ("date", text("2026-11-21")),
        ("date", text("0001-01-01")),
        ("time", text("04:05:06.789")),
        ("timestamp", text("2026-11-21T04:05:06.789012")),
        ("timestamp", text("1999-12-31T23:59:59.999999")),
        ("timestamptz", text("2026-11-21T04:05:06Z")),
        ("timestamp", text("infinity")),
        ("interval", text("P1Y2M3DT4H5M6.7S")),
        ("interval", text("P-1DT-1.5S")),
        ("json", text("{\"a\": [1, null]}")),
        ("jsonb", text("{\"a\": [1, null]}")),
        ("integer[]", text("[1,null,-3]")),
        ("integer[]", text("[]")),
        ("integer[][]", text("[[1,2],[3,4]]")),
        (
            "text[]",
            text("[\"a\\\"b\\\\\",\"\",null,\"{x}\",\"null\"]"),
        ),
        ("boolean[]", text("[true,false,null]")),
        ("numeric[]", text("[\"1.10\",\"-0.001\"]")),
        ("uuid[]", text("[\"0190b5a5-6a0b-7c3e-8f00-0123456789ab\"]")),
        ("timestamptz[]", text("[\"2026-11-21T04:05:06Z\"]")),
        ("jsonb[]", text("[{\"a\": 1},\"x\",null]")),
        ("bytea[]", text("[\"\\\\x00ff\"]")),
        ("mood[]", text("[\"fine\"]")),
        ("double precision[]", text("[0.5,\"NaN\"]")),
        ("integer", Value::Null),
        ("text[]", Value::Null),
    ] {
        let sql = format!("select $1::{ty} as v");
        let returned = fixture.one(&sql, std::slice::from_ref(&value)).await;
        assert_eq!(show(&returned), show(&value), "{ty}");
    }
    // Parameters that the host converts.
    for (sql, value, expected) in [
        ("select $1::integer", text("7"), "integer 7"),
        ("select $1::text", Value::Integer(7), "text 7"),
        ("select $1::double precision", Value::Integer(7), "real 7"),
        ("select $1::numeric", Value::Real(0.25), "text 0.25"),
        ("select $1::integer", Value::Real(2.0), "integer 2"),
        ("select $1::bytea", text("a\0b"), "blob [97, 0, 98]"),
        (
            "select $1::timestamptz",
            text("2026-11-21 05:05:06+01"),
            "text 2026-11-21T04:05:06Z",
        ),
        (
            "select $1::inet::text",
            text("127.0.0.1"),
            "text 127.0.0.1/32",
        ),
    ] {
        let returned = fixture.one(sql, &[value]).await;
        assert_eq!(show(&returned), expected, "{sql}");
    }
}

#[tokio::test]
async fn what_does_not_fit_is_explained() {
    let fixture = Fixture::new(1).await;
    for (sql, params, part) in [
        (
            "select $1::uuid",
            vec![text("abc")],
            "parameter 1 is the text `abc`, and the statement wants a value of the type `uuid`",
        ),
        (
            "select $1::int, $2::int",
            vec![Value::Integer(1), text("abc")],
            "parameter 2 does not fit",
        ),
        (
            "select $1::text",
            vec![Value::Blob(vec![1])],
            "a blob of 1 bytes",
        ),
        ("select $1::int[]", vec![text("{1,2}")], "as JSON text"),
        ("select $1::int", vec![], "1 parameters, and 0 were given"),
        (
            "select '127.0.0.1'::inet as address",
            vec![],
            "cast it to text (`address::text`)",
        ),
        ("selec 1", vec![], "syntax error"),
        ("select 1; select 2", vec![], "one call runs one statement"),
        ("", vec![], "empty"),
        ("select 'a\0b'", vec![], "the NUL character"),
        (
            "select $1::int, $2::text",
            vec![Value::Integer(1), text("a\0b")],
            "parameter 2 has the NUL character",
        ),
        (
            "select $1::jsonb[]",
            vec![text("[\"a\0b\"]")],
            "parameter 1 has the NUL character",
        ),
    ] {
        let error = fixture.error(sql, &params).await;
        let of_value = ["and the statement wants", "does not fit"];
        let kind = match of_value.iter().any(|part| error.message.contains(part)) {
            true => ErrorKind::DataType,
            false => ErrorKind::Statement,
        };
        assert_eq!(error.kind, kind, "{sql}: {}", error.message);
        assert!(error.message.contains(part), "{sql}: {}", error.message);
    }
}

/// After a plain read of a table, the session needs no cleaning. The session does need cleaning when a view has taken
/// the table's name, or when the table has a policy: both can call functions.
#[tokio::test]
async fn r11_what_looks_like_a_plain_read_is_not_believed() {
    let fixture = Fixture::new(1).await;
    let hidden = "U&\"set\\005fconfig\"('work_mem', '123kB', false) is not null";
    let state = "select current_setting('work_mem') || ' ' || pg_backend_pid()";
    let before = show(&fixture.one(state, &[]).await);
    let read = "select a from plain where a > $1";
    fixture.table("create table plain (a integer)", &[]).await;
    fixture.table("insert into plain values (1)", &[]).await;
    for _ in 0..5 {
        assert_eq!(
            show(&fixture.one(read, &[Value::Integer(0)]).await),
            "integer 1"
        );
    }
    let view = format!("create view plain as select 1 as a where {hidden}");
    let policy = format!("create policy odd on plain using ({hidden})");
    for sql in [
        "drop table plain",
        &view,
        "drop view plain",
        "create table plain (a integer)",
        "insert into plain values (1)",
        "alter table plain enable row level security",
        "alter table plain force row level security",
        &policy,
    ] {
        fixture.table(sql, &[]).await;
        for _ in 0..3 {
            // Between dropping and creating, there is no such table and the read fails.
            let _ = fixture.run(read, &[Value::Integer(0)]).await;
            assert_eq!(show(&fixture.one(state, &[]).await), before, "after {sql}");
        }
    }
}

/// Functions and triggers change the session without the guard seeing it: the next borrower finds a clean connection.
#[tokio::test]
async fn r11_functions_and_triggers_leave_nothing() {
    let fixture = Fixture::new(1).await;
    let dirty = "create function dirty() returns integer language plpgsql as $$ begin \
        perform set_config('work_mem', '123kB', false); perform pg_advisory_lock(7); \
        create temp table if not exists left_over (a integer); execute 'listen news'; \
        return 1; end $$";
    let trigger = "create function fired() returns trigger language plpgsql as $$ begin \
        perform set_config('work_mem', '123kB', false); return new; end $$";
    let hidden = "U&\"set\\005fconfig\"('work_mem', '123kB', false)";
    let view = format!("create view seen as select {hidden}");
    let overload = format!("create function lower(point) returns text return {hidden}");
    let operand = format!("create function operand(point, point) returns text return {hidden}");
    for sql in [
        dirty,
        trigger,
        "create table t (a integer)",
        "create trigger fired before insert on t for each row execute function fired()",
        &view,
        &overload,
        &operand,
        "create operator === (function = operand, leftarg = point, rightarg = point)",
    ] {
        fixture.table(sql, &[]).await;
    }
    let state = "select current_setting('work_mem') || ' ' || \
        (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()) || ' ' || \
        coalesce(to_regclass('pg_temp.left_over')::text, 'none') || ' ' || \
        (select count(*) from pg_listening_channels()) || ' ' || pg_backend_pid()";
    let before = show(&fixture.one(state, &[]).await);
    for sql in [
        "select dirty()",
        "insert into t values (1)",
        "do $$ begin perform dirty(); end $$",
        "select U&\"set\\005fconfig\"('work_mem', '123kB', false)",
        "select * from seen",
        "select lower(point '(1, 2)')",
        "select point '(1, 2)' === point '(1, 2)'",
    ] {
        fixture.table(sql, &[]).await;
        assert_eq!(show(&fixture.one(state, &[]).await), before, "{sql}");
        let transaction = atomic();
        let ran = fixture.within(&transaction, sql).await;
        ran.unwrap_or_else(|error| panic!("{sql}: {}", error.message));
        transaction
            .transaction()
            .finish(Face::Async, true)
            .await
            .expect("it commits");
        assert_eq!(show(&fixture.one(state, &[]).await), before, "{sql}");
    }
    // A statement that was prepared in SQL (by `prepare`) cannot be removed by itself, so the host replaces the
    // connection.
    fixture
        .table(
            "do $$ begin execute 'prepare mine as select 1'; end $$",
            &[],
        )
        .await;
    let count = "select count(*) from pg_prepared_statements where name = 'mine'";
    assert_eq!(show(&fixture.one(count, &[]).await), "integer 0");
}

#[tokio::test]
async fn r11_what_begins_or_ends_a_transaction_is_refused_behind_whatever_it_hides() {
    let fixture = Fixture::new(1).await;
    fixture.table("create table t (a integer)", &[]).await;
    for sql in ["; begin", ";;(begin)", " -- a\r;begin", "; commit"] {
        let error = fixture.error(sql, &[]).await;
        assert_eq!(error.kind, ErrorKind::Denied, "{sql}: {}", error.message);
        let transaction = atomic();
        let insert = "insert into t values (1)";
        let inserted = fixture.within(&transaction, insert).await;
        inserted.expect("it is inserted");
        let error = fixture.within(&transaction, sql).await;
        let error = error.expect_err("it is refused");
        assert_eq!(error.kind, ErrorKind::Denied, "{sql}: {}", error.message);
        drop(transaction);
        let count = fixture.one("select count(*) from t", &[]).await;
        assert_eq!(show(&count), "integer 0", "{sql}");
    }
    for sql in ["; begin; select 1", "select 1; begin", "select 1; commit"] {
        fixture.error(sql, &[]).await;
    }
}

#[tokio::test]
async fn r11_a_pinned_connection_is_replaced() {
    let fixture = Fixture::new(1).await;
    let pid = "select pg_backend_pid()";
    let before = show(&fixture.one(pid, &[]).await);
    for atomic in [false, true] {
        let transaction = Transaction::new(Options {
            atomic,
            ..Options::default()
        })
        .first_member();
        let pin = pin_on(&transaction, fixture.on_it())
            .await
            .expect("it is free");
        for sql in [
            "set work_mem = '123kB'",
            "create temp table kept (a integer)",
            "insert into kept values (1)",
            "prepare mine as select 1",
        ] {
            let ran = fixture.within(&transaction, sql).await;
            ran.unwrap_or_else(|error| panic!("{sql}: {}", error.message));
        }
        let setting = fixture
            .within(&transaction, "show work_mem")
            .await
            .expect("it is read");
        assert_eq!(show(&setting.table.rows[0][0]), "text 123kB");
        transaction.transaction().unpin(pin);
        transaction
            .transaction()
            .finish(Face::Async, true)
            .await
            .expect("it ends");
        assert_ne!(show(&fixture.one(pid, &[]).await), before);
        assert_eq!(show(&fixture.one("show work_mem", &[]).await), "text 4MB");
    }
}

#[tokio::test]
async fn r7_a_conflict_is_told_apart_and_the_isolation_is_the_views() {
    let fixture = Fixture::new(3).await;
    fixture.table("create table t (a integer)", &[]).await;
    let new = |isolation| {
        Transaction::new(Options {
            atomic: true,
            read_only: false,
            isolation: Some(isolation),
        })
        .first_member()
    };
    let committed = new(Isolation::ReadCommitted);
    let repeatable = new(Isolation::RepeatableRead);
    let (one, other) = (new(Isolation::Serializable), new(Isolation::Serializable));
    for (transaction, expected) in [
        (&committed, "text read committed"),
        (&repeatable, "text repeatable read"),
        (&one, "text serializable"),
    ] {
        let shown = fixture
            .within(transaction, "show transaction_isolation")
            .await;
        let shown = shown.expect("it is read");
        assert_eq!(show(&shown.table.rows[0][0]), expected);
        if !std::ptr::eq(transaction, &one) {
            transaction
                .transaction()
                .finish(Face::Async, true)
                .await
                .expect("it ends");
        }
    }
    for transaction in [&one, &other] {
        for sql in ["select count(*) from t", "insert into t values (1)"] {
            fixture.within(transaction, sql).await.expect("it runs");
        }
    }
    let fate = one.transaction().finish(Face::Async, true).await;
    assert_eq!(fate.expect("the first one wins"), Fate::Committed);
    assert!(!one.transaction().conflict());
    let error = other.transaction().finish(Face::Async, true).await;
    assert_eq!(error.expect_err("they conflict").kind, ErrorKind::Conflict);
    assert!(other.transaction().conflict());
}

#[tokio::test]
async fn r9_what_lasts_is_not_done_again() {
    let fixture = Fixture::new(3).await;
    fixture.table("create table t (a integer)", &[]).await;
    fixture.table("insert into t values (1)", &[]).await;
    let locking = atomic();
    let locked = fixture.within(&locking, "select a from t for update").await;
    locked.expect("it is free");
    let conflict = async |transaction: &Member| {
        let level = begin_on(transaction, fixture.on_it())
            .await
            .expect("it begins");
        let sql = "select a from t for update nowait";
        let error = fixture.within(transaction, sql).await;
        assert_eq!(error.expect_err("it is held").kind, ErrorKind::Conflict);
        let rolled_back = transaction.rollback(Face::Async, level).await;
        rolled_back.expect("it ends");
    };
    // What lasts here: an insertion on a pinned connection, outside a transaction.
    let transaction = Transaction::new(Options::default()).first_member();
    let pin = pin_on(&transaction, fixture.on_it())
        .await
        .expect("it is free");
    conflict(&transaction).await;
    assert!(transaction.transaction().conflict());
    let inserted = fixture.within(&transaction, "insert into t values (2)");
    inserted.await.expect("it is inserted");
    assert!(!transaction.transaction().conflict());
    transaction.transaction().unpin(pin);
    // What may last here: a commit whose answer is lost with the connection.
    let transaction = atomic();
    let pid = fixture
        .within(&transaction, "select pg_backend_pid()")
        .await;
    let pid = pid.expect("it is read").table.rows[0][0].clone();
    conflict(&transaction).await;
    assert!(transaction.transaction().conflict());
    let killed = "select pg_terminate_backend($1, 10000)";
    fixture.one(killed, &[pid]).await;
    let error = transaction.transaction().finish(Face::Async, true).await;
    let error = error.expect_err("the connection is lost");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{}", error.message);
    assert!(!transaction.transaction().conflict());
    drop(locking);
}

#[tokio::test]
async fn r9_read_only_means_that_nothing_is_written() {
    let fixture = Fixture::new(1).await;
    fixture.table("create table t (a integer)", &[]).await;
    for atomic in [false, true] {
        for sql in [
            "insert into t values (1)",
            "with x as (insert into t values (1) returning a) select * from x",
            "create table u (a integer)",
            "set transaction read write",
            "set local transaction_read_only = off",
            "set local \"transaction_read_only\" = off",
            "set local U&\"transaction\\005fread_only\" = off",
            "; set local transaction_read_only = off",
            "; commit",
        ] {
            let transaction = Transaction::new(Options {
                atomic,
                read_only: true,
                isolation: None,
            })
            .first_member();
            let ran = match transaction
                .turn(fixture.on_it(), std::future::ready(Ok(())))
                .await
                .expect("it is free")
            {
                Some(turn) => turn.run(Face::Async, query(sql, &[])).await,
                None => {
                    let deadline = &fixture.deadline;
                    let run = (fixture.database).run(Face::Async, deadline, READS, query(sql, &[]));
                    run.await
                }
            };
            let error = ran.err().unwrap_or_else(|| panic!("{sql} ran"));
            assert_eq!(error.kind, ErrorKind::Denied, "{sql}: {}", error.message);
            transaction
                .transaction()
                .finish(Face::Async, false)
                .await
                .expect("it ends");
        }
        let read = query("select count(*) from t", &[]);
        let read = (fixture.database)
            .run(Face::Async, &fixture.deadline, READS, read)
            .await;
        assert_eq!(show(&read.expect("it reads").table.rows[0][0]), "integer 0");
    }
}

#[tokio::test]
async fn r12_outside_of_a_transaction_statements_run_at_once() {
    let fixture = Fixture::new(3).await;
    let since = Instant::now();
    let slow = "select pg_backend_pid(), pg_sleep(0.3)";
    let all = futures::future::join_all((0..3).map(|_| fixture.table(slow, &[]))).await;
    let mut sessions: Vec<String> = all.iter().map(|table| show(&table.rows[0][0])).collect();
    sessions.sort();
    sessions.dedup();
    assert_eq!(sessions.len(), 3);
    assert!(since.elapsed() < Duration::from_millis(800));
}

#[tokio::test]
async fn r13_r15_a_statement_ends_with_its_request_and_its_connection_is_usable() {
    let fixture = Fixture::new(1).await;
    fixture.table("create table t (a integer)", &[]).await;
    for drops in [false, true] {
        let deadline = Arc::new(Deadline::new(Instant::now() + Duration::from_secs(30)));
        let transaction = atomic();
        let on = (&fixture.database, &deadline);
        let insert = query("insert into t values (1)", &[]);
        let turn = transaction
            .turn(on, std::future::ready(Ok(())))
            .await
            .expect("it is free")
            .expect("it is atomic");
        turn.run(Face::Async, insert).await.expect("it is inserted");
        let turn = transaction
            .turn(on, std::future::ready(Ok(())))
            .await
            .expect("it is free")
            .expect("it is atomic");
        let slow = turn.run(Face::Async, query("select pg_sleep(60)", &[]));
        let since = Instant::now();
        if drops {
            let soon = Duration::from_millis(100);
            assert!(tokio::time::timeout(soon, slow).await.is_err());
            deadline.cancel(Ended::Disconnected);
            drop(transaction);
        } else {
            let cancelled = async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                deadline.cancel(Ended::Disconnected);
            };
            let (ran, ()) = tokio::join!(slow, cancelled);
            assert_eq!(ran.expect_err("it is cancelled").kind, ErrorKind::Aborted);
            let fate = transaction.transaction().finish(Face::Async, false).await;
            assert_eq!(fate.expect("it ends"), Fate::RolledBack);
        }
        let count = fixture.one("select count(*) from t", &[]).await;
        assert_eq!(show(&count), "integer 0");
        assert!(since.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn results_have_a_limit_and_can_be_read_in_pieces() {
    let fixture = Fixture::new(1).await;
    for side in [300, 10_000] {
        let sql =
            format!("select 1 from generate_series(1, {side}) a, generate_series(1, {side}) b");
        let error = fixture.error(&sql, &[]).await;
        assert_eq!(error.kind, ErrorKind::TooLarge, "{}", error.message);
    }
    for read_only in [false, true] {
        let mut stream = fixture.pieces(50, read_only).await;
        let mut count = 0;
        while let Some(piece) = stream.pieces.recv().await {
            count += piece.expect("it is read").len();
        }
        assert_eq!((count, stream.columns.len()), (50_000, 2));
        // The result is not read to its end: the only connection is given back all the same.
        let mut stream = fixture.pieces(100_000, read_only).await;
        stream
            .pieces
            .recv()
            .await
            .expect("there are some")
            .expect("they are read");
        drop(stream);
        assert_eq!(show(&fixture.one("select 1", &[]).await), "integer 1");
    }
}

#[tokio::test]
async fn an_altered_table_does_not_break_what_was_prepared() {
    let fixture = Fixture::new(1).await;
    fixture.table("create table t (a integer)", &[]).await;
    fixture.table("insert into t values (1)", &[]).await;
    assert_eq!(fixture.table("select * from t", &[]).await.columns, ["a"]);
    fixture.table("alter table t add column b text", &[]).await;
    assert_eq!(
        fixture.table("select * from t", &[]).await.columns,
        ["a", "b"]
    );
}

#[tokio::test]
async fn r9_r13_a_server_that_restarts_is_found_again() {
    let mut server = Postgres::start();
    let on_server = server.database().await;
    let fixture = Fixture::on(&on_server.url(), 2).await;
    fixture.table("create table t (a integer)", &[]).await;
    for stop in [Stop::Fast, Stop::Crash] {
        let transaction = atomic();
        let inserted = fixture
            .within(&transaction, "insert into t values (1)")
            .await;
        inserted.expect("it is inserted");
        server.stop(stop);
        let error = fixture
            .within(&transaction, "insert into t values (2)")
            .await;
        let error = error.expect_err("the server is gone");
        assert_eq!(error.kind, ErrorKind::Unavailable, "{}", error.message);
        assert!(transaction.transaction().unavailable());
        let error = transaction.transaction().finish(Face::Async, true).await;
        assert_eq!(
            error.expect_err("nothing is kept").kind,
            ErrorKind::Unavailable
        );
        let error = fixture.error("select 1", &[]).await;
        assert_eq!(error.kind, ErrorKind::Unavailable, "{}", error.message);
        server.restart();
        eventually("statements run again", async || {
            let count = fixture.run("select count(*) from t", &[]).await;
            count.map(|outcome| assert_eq!(show(&outcome.table.rows[0][0]), "integer 0"))
        })
        .await;
    }
}

/// A function begins to write after the first rows of its statement have been read. The statement fails, because
/// otherwise it could end unfinished, with a part of its writes, when its reader leaves.
#[tokio::test]
async fn r9_a_statement_that_comes_to_write_after_its_first_rows_is_refused() {
    let fixture = Fixture::new(2).await;
    fixture.table("create table t (a integer)", &[]).await;
    let add = "create function add(n integer) returns integer language sql as 'insert into t values (n) returning a'";
    fixture.table(add, &[]).await;
    let sql = "select case when n > 5000 then add(n) else n end from generate_series(1, 6000) n";
    for _ in 0..2 {
        let (deadline, access) = (&fixture.deadline, Access::default());
        let stream = (fixture.database).stream(Face::Async, deadline, access, query(sql, &[]));
        let Ok(Streamed::Pieces(mut stream)) = stream.await else {
            panic!("it comes in pieces")
        };
        let (mut rows, mut last) = (0, None);
        while let Some(piece) = stream.pieces.recv().await {
            match piece {
                Ok(piece) => rows += piece.len(),
                Err(error) => last = Some(error),
            }
        }
        assert_eq!(rows, 5000);
        let error = last.expect("it is refused");
        assert!(error.message.contains("`query`"), "{}", error.message);
        assert_eq!(
            show(&fixture.one("select count(*) from t", &[]).await),
            "integer 0"
        );
    }
}

/// A statement that writes no row but has consequences, such as `pg_notify`, is committed when its rows are read.
#[tokio::test]
async fn r9_what_only_reads_commits_when_its_rows_are_read() {
    let fixture = Fixture::new(2).await;
    for _ in 0..2 {
        let (deadline, access) = (&fixture.deadline, Access::default());
        let sql = "select pg_current_xact_id()::text, pg_notify('news', '')::text";
        let statement = query(sql, &[]);
        let stream = (fixture.database).stream(Face::Async, deadline, access, statement);
        let Ok(Streamed::Pieces(mut stream)) = stream.await else {
            panic!("it comes in pieces")
        };
        let mut rows = Vec::new();
        while let Some(piece) = stream.pieces.recv().await {
            rows.extend(piece.expect("it is read"));
        }
        let id = rows[0][0].clone();
        let status = "select pg_xact_status($1::xid8)";
        assert_eq!(show(&fixture.one(status, &[id]).await), "text committed");
    }
}

/// The errors by which the server says that a prepared statement can no longer be used may also come from within a
/// procedure. The procedure may have committed by then, so the statement is not run again.
#[tokio::test]
async fn r9_what_may_have_committed_is_not_run_again() {
    for (code, message) in [
        ("26000", "prepared statement \"a\" does not exist"),
        ("XX000", "cache lookup failed for type 7"),
        ("42704", "type with OID 7 does not exist"),
    ] {
        let fixture = Fixture::new(1).await;
        fixture.table("create table t (a integer)", &[]).await;
        let body = format!(
            "begin insert into t values (1); commit; raise exception '{message}' using errcode = '{code}'; end"
        );
        let procedure = format!("create procedure bill() language plpgsql as $$ {body} $$");
        fixture.table(&procedure, &[]).await;
        for (expected, sql) in [
            ("integer 1", "call bill()".to_owned()),
            ("integer 2", format!("do $$ {body} $$")),
        ] {
            let error = fixture.error(&sql, &[]).await;
            assert!(error.message.contains(message), "{}", error.message);
            assert_ne!(error.kind, ErrorKind::Conflict, "{}", error.message);
            let count = fixture.one("select count(*) from t", &[]).await;
            assert_eq!(show(&count), expected, "{code} {sql}");
        }
    }
}

/// A parameter of a domain takes the same values as a parameter of the type that the domain is made of.
#[tokio::test]
async fn parameters_of_domains_are_those_of_the_type_below() {
    let fixture = Fixture::new(1).await;
    for sql in [
        "create domain raw as bytea",
        "create domain raw_again as raw",
        "create domain id as uuid",
        "create domain doc as jsonb",
        "create table t (a raw_again, b id, c doc[])",
    ] {
        fixture.table(sql, &[]).await;
    }
    let insert = "insert into t values ($1, $2, $3)";
    let id = text("0190b5a5-6a0b-7c3e-8f00-0123456789ab");
    let bytes = Value::Blob(vec![0, 255, 7]);
    let docs = text(r#"[{"a": [1]}, "x", [1, 2]]"#);
    fixture.table(insert, &[bytes, id.clone(), docs]).await;
    let text_of_bytes = text("a\\000\0b");
    let nothing = Value::Null;
    fixture
        .table(insert, &[text_of_bytes, id, nothing.clone()])
        .await;
    let read = fixture
        .table(
            "select a::bytea, array_length(c, 1) from t order by c nulls last",
            &[],
        )
        .await;
    assert_eq!(show(&read.rows[0][0]), "blob [0, 255, 7]");
    assert_eq!(show(&read.rows[0][1]), "integer 3");
    assert_eq!(show(&read.rows[1][0]), format!("blob {:?}", b"a\\000\0b"));
    for wrong in [text("abc"), Value::Integer(7)] {
        let error = fixture
            .error(insert, &[nothing.clone(), wrong, nothing.clone()])
            .await;
        assert_eq!(error.kind, ErrorKind::DataType, "{}", error.message);
        assert!(error.message.contains("parameter 2"), "{}", error.message);
    }
}
