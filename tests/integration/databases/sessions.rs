//! Changes of a session that the guard cannot see in the statement: none reaches the next borrower (R11).

use amphi::database::{Access, ErrorKind, Failed, Value};

use super::{Fixture, atomic, pin_on, query, show, text};
use crate::harness::postgres::Postgres;

/// A query for everything of a session that the next borrower could notice, except for the session's process id.
const STATE: &str = "select pg_catalog.concat_ws(' ', current_user, session_user, \
    (select pg_catalog.string_agg(name || '=' || setting, ',') from pg_catalog.pg_settings \
     where source = 'session' and name not in ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable')), \
    (select pg_catalog.count(*) from pg_catalog.pg_locks where locktype = 'advisory' and pid = pg_catalog.pg_backend_pid()), \
    (select pg_catalog.count(*) from pg_catalog.pg_listening_channels()), \
    (select pg_catalog.count(*) from pg_catalog.pg_class where relnamespace = pg_catalog.pg_my_temp_schema()), \
    (select pg_catalog.count(*) from pg_catalog.pg_cursors where name not like ''), \
    (select pg_catalog.count(*) from pg_catalog.pg_prepared_statements where from_sql))";

const READ: &str = "select a from plain where a > $1";

/// A function that changes its session in every way there is. It also changes which table the name `plain` means in the
/// session.
const EVIL: &str = "create function evil() returns integer language plpgsql volatile as $$ begin \
    perform set_config('search_path', 'public, elsewhere', false); \
    perform set_config('role', 'mallory', false); \
    perform set_config('work_mem', '123kB', false); perform pg_advisory_lock(7); \
    execute 'set role none'; \
    create temp table if not exists plain (a integer); insert into pg_temp.plain values (7); \
    execute 'listen news'; return 1; end $$";

impl Fixture {
    async fn all(&self, statements: &[&str]) {
        for sql in statements {
            self.table(sql, &[]).await;
        }
    }

    async fn state(&self) -> String {
        show(&self.one(STATE, &[]).await)
    }

    /// Runs [`READ`] some times, whether it succeeds or not.
    async fn read(&self) {
        for _ in 0..4 {
            let _ = self.run(READ, &[Value::Integer(0)]).await;
        }
    }
}

async fn prepared() -> Fixture {
    let fixture = Fixture::new(1).await;
    // Roles are shared by all databases of a server, so another test may have created the role already.
    let role = "do $$ begin create role mallory; exception when duplicate_object then null; when unique_violation then null; end $$";
    let tables = [
        role,
        "create schema elsewhere",
        "create table elsewhere.plain (a integer)",
        "insert into elsewhere.plain values (666)",
        "create table plain (a integer)",
        "insert into plain values (1)",
    ];
    fixture.all(&tables).await;
    fixture.read().await;
    fixture
}

/// A plain read begins to call functions, because its table becomes a view, or gets a policy, an index or statistics,
/// or because a schema that is earlier in the search path gets a view of the same name. In each case, the next borrower
/// finds nothing of what the functions did.
#[tokio::test]
async fn r11_what_a_read_calls_leaves_nothing_however_it_came_to_be_called() {
    let swap = "alter table plain rename to kept; create view plain as select evil() as a";
    let done = format!("do $$ begin {swap}; end $$");
    let called = format!(
        "create function swap() returns integer language plpgsql as $$ begin {swap}; return 1; end $$"
    );
    let fired = format!(
        "create function fired() returns trigger language plpgsql as $$ begin {swap}; return new; end $$"
    );
    let immutable = "create function odd(integer) returns integer language plpgsql immutable as $$ begin \
        perform set_config('work_mem', '123kB', false); perform pg_advisory_lock(7); return 1; end $$";
    let ways: [(&str, Vec<&str>); 9] = [
        (
            "view",
            vec![
                "alter table plain rename to kept",
                "create view plain as select evil() as a",
            ],
        ),
        ("block", vec![&done]),
        ("function", vec![&called, "select swap()"]),
        (
            "trigger",
            vec![
                "create table other (a integer)",
                &fired,
                "create trigger fired before insert on other for each row execute function fired()",
                "insert into other values (1)",
            ],
        ),
        (
            "earlier schema",
            vec![
                "create schema amphi",
                "create view amphi.plain as select evil() as a",
            ],
        ),
        (
            "policy",
            vec![
                "alter table plain enable row level security",
                "alter table plain force row level security",
                "create policy odd on plain using (evil() = 1)",
            ],
        ),
        (
            "index",
            vec![immutable, "create index on plain (odd(a), odd(1))"],
        ),
        (
            "partial index",
            vec![immutable, "create index on plain (a) where odd(1) = a"],
        ),
        (
            "statistics",
            vec![
                immutable,
                "create statistics odd on odd(a), odd(a + 1) from plain",
                "analyze plain",
            ],
        ),
    ];
    for (way, statements) in ways {
        let fixture = prepared().await;
        let before = fixture.state().await;
        fixture.table(EVIL, &[]).await;
        // The host confirms the table of the read just before the change.
        fixture.read().await;
        let (last, first) = statements.split_last().expect("there are some");
        fixture.all(first).await;
        fixture.read().await;
        fixture.table(last, &[]).await;
        for _ in 0..4 {
            let _ = fixture.run(READ, &[Value::Integer(0)]).await;
            assert_eq!(fixture.state().await, before, "{way}");
        }
    }
}

/// The search path of this database has user-defined operators and casts before the server's own. Whatever they change
/// in a session is gone for the next borrower.
#[tokio::test]
async fn r11_operators_and_casts_that_are_somebodys_leave_nothing() {
    let locks = "create operator evil.> (leftarg = integer, rightarg = integer, function = pg_catalog.pg_try_advisory_lock)";
    let function = "create function evil.more(integer, integer) returns boolean language plpgsql as $$ begin \
        perform pg_catalog.set_config('work_mem', '123kB', false); return true; end $$";
    let operator =
        "create operator evil.> (leftarg = integer, rightarg = integer, function = evil.more)";
    let cast = "create function evil.to_number(evil.mine) returns integer language plpgsql as $$ begin \
        perform pg_catalog.set_config('work_mem', '123kB', false); return 2; end $$";
    for statements in [
        vec![locks],
        vec![function, operator],
        vec![
            "create type evil.mine as enum ('a')",
            cast,
            "create cast (evil.mine as integer) with function evil.to_number(evil.mine) as implicit",
            "alter table plain add column b evil.mine default 'a'",
        ],
    ] {
        let on_server = Postgres::shared().database().await;
        on_server
            .execute(
                "create schema evil; create table plain (a integer); insert into plain values (1)",
            )
            .await;
        for sql in &statements {
            on_server.execute(sql).await;
        }
        let name = on_server
            .url()
            .rsplit('/')
            .next()
            .expect("it has one")
            .to_owned();
        on_server
            .execute(&format!(
                "alter database {name} set search_path = evil, pg_catalog, public"
            ))
            .await;
        let fixture = Fixture::on(&on_server.url(), 1).await;
        let before = fixture.state().await;
        let read = match statements.len() {
            4 => "select a from plain where a < b",
            _ => "select a from plain where a > 0",
        };
        for _ in 0..6 {
            fixture.table(read, &[]).await;
            assert_eq!(fixture.state().await, before, "{statements:?}");
        }
    }
}

/// Settings that could hinder the cleaning of a session (timeouts, read-only, the search path) do not hinder it.
#[tokio::test]
async fn r11_settings_do_not_keep_a_connection_from_being_cleaned() {
    let fixture = prepared().await;
    let before = fixture.state().await;
    for (name, value) in [
        ("statement_timeout", "40"),
        ("lock_timeout", "1"),
        ("idle_session_timeout", "60000"),
        ("idle_in_transaction_session_timeout", "1"),
        ("default_transaction_read_only", "on"),
        ("default_transaction_isolation", "serializable"),
        ("session_replication_role", "replica"),
        ("client_encoding", "LATIN1"),
        ("client_min_messages", "error"),
        ("row_security", "off"),
        ("search_path", "elsewhere"),
        ("standard_conforming_strings", "off"),
        ("role", "mallory"),
        ("session_authorization", "mallory"),
        ("mine.own", "1"),
    ] {
        let block = format!("do $$ begin perform set_config('{name}', '{value}', false); end $$");
        fixture.table(&block, &[]).await;
        assert_eq!(fixture.state().await, before, "{name}");
        fixture.read().await;
    }
    for block in [
        "do $$ begin execute 'declare held cursor with hold for select 1'; end $$",
        "do $$ begin execute 'listen a'; execute 'listen b'; end $$",
        "do $$ begin perform pg_advisory_lock(1), pg_advisory_lock_shared(2, 3); end $$",
        "do $$ begin execute 'create temp table t as select 1'; end $$",
        "do $$ begin execute 'set session authorization mallory'; end $$",
        "do $$ begin execute 'prepare mine as select 1'; end $$",
        "do $$ begin perform set_config('statement_timeout', '1', false); end $$",
    ] {
        fixture.table(block, &[]).await;
        assert_eq!(fixture.state().await, before, "{block}");
    }
}

/// When the host's prepared statements are deallocated, the host prepares them again, and no request fails.
#[tokio::test]
async fn r11_statements_that_were_forgotten_are_prepared_again() {
    let fixture = prepared().await;
    let pid = "select pg_backend_pid()";
    for block in [
        "do $$ begin execute 'deallocate all'; end $$",
        "do $$ begin execute 'discard plans'; execute 'deallocate all'; end $$",
        // This block deallocates only one prepared statement.
        "do $$ begin execute (select 'deallocate ' || min(name) from pg_prepared_statements where not from_sql); end $$",
    ] {
        let first = show(&fixture.one(pid, &[]).await);
        fixture.table(block, &[]).await;
        for _ in 0..3 {
            let read = fixture.one(READ, &[Value::Integer(0)]).await;
            assert_eq!(show(&read), "integer 1", "{block}");
        }
        assert_ne!(show(&fixture.one(pid, &[]).await), first, "{block}");
        // After that, a statement in a transaction on a pinned connection runs, too.
        let transaction = atomic();
        let pin = pin_on(&transaction, fixture.on_it())
            .await
            .expect("it is free");
        fixture
            .within(&transaction, "select a from plain")
            .await
            .expect("it is read");
        transaction.transaction().unpin(pin);
        transaction
            .transaction()
            .finish(amphi::database::Face::Async, true)
            .await
            .expect("it ends");
    }
    // A request that deallocates the statements itself goes on with the same connection, outside a transaction and in
    // one.
    let mut lease = (fixture.database.lease(&fixture.deadline, false).await).expect("it is free");
    let select = query("select a from plain", &[]);
    for begin in [&[][..], &["begin".to_owned()]] {
        for sql in [
            "select a from plain",
            "do $$ begin execute 'deallocate all'; end $$",
        ] {
            lease
                .run(&[], &query(sql, &[]), false)
                .await
                .map_err(Failed::into_error)
                .expect("it runs");
        }
        lease.set_in_transaction(!begin.is_empty());
        let ran = lease
            .run(begin, &select, false)
            .await
            .map_err(Failed::into_error);
        assert_eq!(ran.expect("it is prepared again").table.rows.len(), 1);
    }
}

/// A statement whose transaction cannot begin is not run: neither the first time, nor once the statement is prepared.
#[tokio::test]
async fn r9_a_statement_whose_transaction_cannot_begin_does_not_run() {
    let fixture = prepared().await;
    let insert = query("insert into plain values (2)", &[]);
    for before in [
        vec!["savepoint a".to_owned()],
        vec![
            "begin".to_owned(),
            "savepoint a".to_owned(),
            "rollback to b".to_owned(),
        ],
        vec!["begin isolation level nonsense".to_owned()],
    ] {
        for known in [false, true] {
            let mut lease =
                (fixture.database.lease(&fixture.deadline, false).await).expect("it is free");
            if known {
                let undone = query("insert into plain select 3 where false", &[]);
                assert!(lease.run(&[], &undone, false).await.is_ok());
                assert!(lease.run(&[], &insert, false).await.is_ok());
                let delete = query("delete from plain where a = 2", &[]);
                assert!(lease.run(&[], &delete, false).await.is_ok());
            }
            lease.set_in_transaction(true);
            let ran = lease.run(&before, &insert, false).await;
            assert!(matches!(ran, Err(Failed::Before(_))), "{before:?}: {ran:?}");
            drop(lease);
            let count = fixture
                .one("select count(*) from plain where a = 2", &[])
                .await;
            assert_eq!(show(&count), "integer 0", "{before:?}");
        }
    }
}

/// Another client cancels whatever runs on the server: statements that are reported as failed have changed nothing.
#[tokio::test]
async fn r9_whatever_a_neighbour_cancels_is_done_or_not() {
    let fixture = prepared().await;
    let neighbour = Fixture::on(&fixture.url(), 1).await;
    let cancel = "select pg_cancel_backend(pid) from pg_stat_activity \
        where datname = current_database() and pid <> pg_backend_pid()";
    let cancelling = async {
        loop {
            let _ = neighbour.run(cancel, &[]).await;
        }
    };
    let working = async {
        let mut told = 0;
        for _ in 0..300 {
            let transaction = atomic();
            let ran = fixture
                .within(&transaction, "insert into plain values (5)")
                .await;
            let ended = transaction
                .transaction()
                .finish(amphi::database::Face::Async, ran.is_ok())
                .await;
            told += i64::from(ran.is_ok() && ended.is_ok());
        }
        told
    };
    let told = tokio::select! {
        told = working => told,
        () = cancelling => unreachable!("it has no end"),
    };
    let count = fixture
        .one("select count(*) from plain where a = 5", &[])
        .await;
    assert_eq!(show(&count), format!("integer {told}"));
}

/// Domains and composite types that are nested too deep are refused.
#[tokio::test]
async fn r5_types_nested_deep_are_refused() {
    let fixture = Fixture::new(1).await;
    let domains = "do $$ begin execute 'create domain d0 as integer'; for i in 1..3000 loop \
        execute format('create domain d%s as d%s', i, i - 1); end loop; end $$";
    let composites = "do $$ begin execute 'create type c0 as (a integer)'; for i in 1..400 loop \
        execute format('create type c%s as (a c%s)', i, i - 1); end loop; end $$";
    fixture.all(&[domains, composites]).await;
    for (sql, passes) in [
        ("select ($1::d20)::integer", true),
        ("select ($1::d100)::integer", false),
        ("select ($1::d200)::integer", false),
        ("select ($1::d400)::integer", false),
        ("select ($1::d3000)::integer", false),
        ("select ($1::c5)::text", true),
        ("select ($1::c400)::text", false),
    ] {
        for _ in 0..2 {
            let ran = fixture.run(sql, &[Value::Null]).await;
            match ran {
                Ok(_) => assert!(passes, "{sql}"),
                Err(error) => {
                    assert!(
                        !passes && error.kind == ErrorKind::Statement,
                        "{sql}: {}",
                        error.message
                    );
                    assert!(error.message.contains("nested"), "{sql}: {}", error.message);
                }
            }
        }
    }
    assert_eq!(
        show(&fixture.one("select $1::text", &[text("a")]).await),
        "text a"
    );
}

/// What the server sends is bounded before it is kept.
#[tokio::test]
async fn what_is_too_large_never_arrives() {
    let fixture = Fixture::new(1).await;
    let pid = "select pg_backend_pid()";
    for sql in [
        "select repeat('x', 300000000)",
        "select repeat('x', 1048000), repeat('x', 1048000), repeat('x', 1048000)",
        "select repeat('x', 3000000) from generate_series(1, 1000000)",
        "select 10::numeric ^ 100000 from generate_series(1, 1000000)",
        "select array_agg(10::numeric ^ 100000) from generate_series(1, 10000)",
        "select array_agg(chr(1)) from generate_series(1, 200000)",
    ] {
        let error = fixture.error(sql, &[]).await;
        assert_eq!(error.kind, ErrorKind::TooLarge, "{sql}: {}", error.message);
        fixture.one(pid, &[]).await;
    }
    // Rows that the caller does not want are not read, so that their size does not matter.
    let mut unwanted = query(
        "select repeat('x', 3000000) from generate_series(1, 20)",
        &[],
    );
    unwanted.rows_max = None;
    let ran = fixture.database.run(
        amphi::database::Face::Async,
        &fixture.deadline,
        Access::default(),
        unwanted,
    );
    assert!(ran.await.is_ok());
    for sql in [
        "do $$ begin raise exception '%', repeat('ü', 30000000); end $$",
        "do $$ begin raise exception 'a' using detail = repeat('ü', 3000000), hint = repeat('ü', 3000000); end $$",
    ] {
        let error = fixture.error(sql, &[]).await;
        assert!(
            error.message.len() < 20_000,
            "{} bytes",
            error.message.len()
        );
    }
    for sql in [
        "do $$ begin for i in 1..20000 loop raise notice '%', repeat('x', 1000); end loop; end $$",
        "do $$ begin raise notice '%', repeat('x', 100000000); end $$",
        "do $$ begin perform set_config('search_path', repeat('a', 3000000), false); end $$",
    ] {
        fixture.table(sql, &[]).await;
    }
    fixture.one(pid, &[]).await;
}

/// For the server, a plain read of a table is one statement: the host checks the table only once a second, and does not
/// clean the session after the read.
#[tokio::test]
async fn a_plain_read_costs_nothing_beside_itself() {
    let on_server = Postgres::shared().database().await;
    on_server
        .execute("create table plain (a integer primary key); insert into plain values (1)")
        .await;
    on_server.log_statements().await;
    let fixture = Fixture::on(&on_server.url(), 1).await;
    fixture.read().await;
    let mark = on_server.mark();
    let (since, reads) = (std::time::Instant::now(), 200);
    for _ in 0..reads {
        fixture.one(READ, &[Value::Integer(0)]).await;
    }
    // The log has the statements in order. When this later statement of another session has run, the log has all
    // earlier statements.
    on_server.count("select 1::bigint").await;
    let ran = on_server.logged(mark);
    let checks = usize::try_from(since.elapsed().as_secs()).expect("it is short") + 2;
    let others = ran.iter().filter(|logged| logged.sql != READ).count();
    assert_eq!(ran.len() - others, reads);
    assert!(
        others <= checks,
        "{others} other statements, {:?}",
        since.elapsed()
    );
}
