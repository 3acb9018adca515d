//! Tests of hostile SQL, and of the errors that wrong SQL gets.

use std::time::{Duration, Instant};

use super::super::statement::{Table, Value};
use super::*;
use crate::config::{Storage, Synchronous};

struct Fixture {
    _folder: tempfile::TempDir,
    database: Arc<Sqlite>,
    deadline: Arc<Deadline>,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture::with(1 << 20)
    }

    fn with(value_max_bytes: u64) -> Fixture {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = SqliteFile {
            file: folder.path().join("test.db"),
            readers: 1,
            busy_timeout: Duration::from_millis(200),
            synchronous: Synchronous::Normal,
            transaction_max_bytes: 128 << 20,
        };
        let config = Config {
            name: "default".into(),
            storage: Storage::Sqlite(file.clone()),
            migrations: None,
            queue_max: 100,
            acquire_timeout: Duration::from_millis(200),
            value_max_bytes,
        };
        let database = Sqlite::open(&config, &file);
        let deadline = Arc::new(Deadline::new(Instant::now() + Duration::from_secs(20)));
        Fixture {
            _folder: folder,
            database: database.expect("a new database"),
            deadline,
        }
    }

    /// Runs a statement as if a view ran it outside of a transaction.
    async fn run(&self, sql: &str, params: &[Value]) -> Result<Table, Error> {
        self.run_until(&self.deadline, sql, params).await
    }

    async fn run_until(
        &self,
        deadline: &Arc<Deadline>,
        sql: &str,
        params: &[Value],
    ) -> Result<Table, Error> {
        let statement = Statement {
            sql: sql.to_owned(),
            params: params.to_vec(),
            rows_max: Some(10_000),
        };
        let ran = (self.database).run(Face::Async, deadline, Access::default(), statement);
        Ok(ran.await?.table)
    }

    #[track_caller]
    fn assert_refused(
        &self,
        runtime: &tokio::runtime::Runtime,
        sql: &str,
        params: &[Value],
        kind: ErrorKind,
        part: &str,
    ) {
        let error = runtime
            .block_on(self.run(sql, params))
            .err()
            .unwrap_or_else(|| panic!("{sql} ran"));
        assert_eq!(error.kind, kind, "{sql}: {}", error.message);
        assert!(error.message.contains(part), "{sql}: {}", error.message);
    }
}

#[test]
fn r11_statements_that_reach_beyond_the_database_are_refused_by_name() {
    let runtime = runtime();
    let fixture = Fixture::new();
    let file = fixture.database.file.file.with_file_name("other.db");
    let pointer = Value::Blob(vec![0x41; 8]);
    let text = |text: &str| Value::Text(text.into());
    for (sql, params, part) in [
        ("begin", vec![], "mark the view `atomic`"),
        ("commit", vec![], "mark the view `atomic`"),
        ("savepoint a", vec![], "mark the view `atomic`"),
        (
            "pragma journal_mode = delete",
            vec![],
            "`pragma journal_mode`",
        ),
        (
            "pragma writable_schema = on",
            vec![],
            "`pragma writable_schema`",
        ),
        (
            "attach ? as other",
            vec![text(&file.display().to_string())],
            "`attach`",
        ),
        (
            "vacuum into ?",
            vec![text(&file.display().to_string())],
            "`vacuum`",
        ),
        ("create temp table t (a)", vec![], "temporary table"),
        ("create table temp.t (a)", vec![], "temporary table"),
        (
            "select fts3_tokenizer(?)",
            vec![text("simple")],
            "`fts3_tokenizer`",
        ),
        (
            "select FTS3_Tokenizer('evil', ?)",
            vec![pointer],
            "reaches into the host",
        ),
        (
            "select load_extension(?)",
            vec![text("x")],
            "`load_extension`",
        ),
        (
            "create virtual table t using fts3tokenize('simple')",
            vec![],
            "`fts3tokenize`",
        ),
        ("create virtual table t using dbstat", vec![], "`dbstat`"),
        ("select last_insert_rowid()", vec![], "Use `returning`"),
        ("select changes()", vec![], "Use `returning`"),
    ] {
        fixture.assert_refused(&runtime, sql, &params, ErrorKind::Denied, part);
    }
    assert!(!file.exists());
}

#[test]
fn wrong_statements_are_explained() {
    let runtime = runtime();
    let fixture = Fixture::new();
    for (sql, part) in [
        ("", "empty"),
        ("-- nothing", "empty"),
        ("selec 1", "syntax error"),
        ("select * from nowhere", "no such table"),
        ("select 1; select 2", "one call runs one statement"),
        ("select ?", "1 parameters, and 0 were given"),
    ] {
        fixture.assert_refused(&runtime, sql, &[], ErrorKind::Statement, part);
    }
}

#[test]
fn what_is_too_large_is_never_held() {
    let runtime = runtime();
    let fixture = Fixture::new();
    for sql in [
        "select zeroblob(900000000)",
        "select hex(randomblob(400000000))",
        "select zeroblob(500000)",
        "with recursive r(n) as (select 1 union all select n + 1 from r limit 1000) select n from r",
    ] {
        fixture.assert_refused(&runtime, sql, &[], ErrorKind::TooLarge, "");
    }
    let long = format!("select '{}'", "x".repeat(300_000));
    let error = runtime
        .block_on(fixture.run(&long, &[]))
        .expect_err("it is too long");
    assert_eq!(error.kind, ErrorKind::TooLarge, "{}", error.message);
}

#[tokio::test]
async fn what_views_need_is_allowed() {
    let fixture = Fixture::new();
    for sql in [
        "create table t (a, b)",
        "create virtual table search using fts5(a)",
        "insert into search values ('the quick fox')",
        "insert into t values (1, json('[1]')) returning a",
        "select * from search where search match 'quick'",
        "pragma table_info(t)",
        "select name from pragma_table_info('t')",
        "explain query plan select * from t",
        "create index i on t (a)",
        "alter table t add column c",
    ] {
        if let Err(error) = fixture.run(sql, &[]).await {
            panic!("{sql}: {}", error.message);
        }
    }
}

/// Statements that would take minutes or hours.
const SLOW: &[&str] = &[
    "select instr(hex(zeroblob(8000000)), hex(zeroblob(4000000)) || '1')",
    "select length(replace(hex(zeroblob(8000000)), hex(zeroblob(4000000)) || '1', ''))",
    "select count(*) from n where replace(hex(zeroblob(800000)), '0', '12345') = n",
    "select length(trim(big, 'b' || big)) from long, n",
    "select big like '%' || substr(big, 1, 9000) || 'b' from long",
    "select big glob '*' || substr(big, 1, 9000) || 'b' from long",
    "select big glob replace(hex(zeroblob(3000)), '00', '*[a]') || 'b' from long",
    "select length(unhex(replace(big, 'a', 'z'), replace(big, 'a', 'y') || 'z')) from long, n",
    "select count(*) from n a, n b, n c, n d",
    "with recursive r(n) as (select 1 union all select n + 1 from r) select max(n) from r",
    "with recursive r(n) as (select 1 union all select n + 1 from r) select n from r order by hex(zeroblob(500000)) || n",
    "select sum(length(hex(zeroblob(8000000)))) from n",
    "select sum(length(quote(zeroblob(8000000)))) from n",
    "select sum(length(printf('%.*c', 16000000, 'x'))) from n",
    "select sum(length(printf('%16000000d', n))) from n",
    "select sum(length(randomblob(16000000))) from n",
    "select sum(length(upper(big))) from long, n",
    "select sum(length(big || n)) from long, n",
    "select sum(big = big || '') from long, n",
    "select group_concat(big) from long, n",
    "select string_agg(n, big) over (order by n rows between 3 preceding and current row) from long, n",
    "select sum(length(group_concat)) from (select group_concat(n, 'xxxx') over (order by n) as group_concat from n)",
    "select length(json_group_array(big)) from long, n, n",
    "select sum(json_valid('[' || rtrim(replace(hex(zeroblob(3000000)), '00', '1,'), ',') || ']')) from n",
    "select sum(length(fullkey)) from n, json_tree('[' || rtrim(replace(hex(zeroblob(3000000)), '00', '1,'), ',') || ']')",
    "select sum(length(json_patch(json, json))) from json, n, n",
    "select sum(length(json_pretty(replace(hex(zeroblob(900)), '00', '[') || replace(hex(zeroblob(900)), '00', ']'), big))) from long, n",
    "select sum(length(strftime(big))) from long, n",
    "select sum(length(concat_ws(big, a.n, b.n))) from long, n a, n b",
    "select max(n) over (order by n rows between unbounded preceding and unbounded following exclude ties) from (select a.n from n a, n b)",
    "select count(distinct a.n || b.n || c.n) from n a, n b, n c",
    "select sum(h) from (select length(highlight(docs, 0, '<strong>', '</strong>')) as h from docs, n where docs match 'a' limit 1000000)",
    "select count(*) from docs, n a, n b where docs match 'a + a + a'",
    "create table made as select a.n, hex(randomblob(1000)) as text from n a, n b, n c",
    "insert into n select a.n + b.n * 1000 + c.n * 1000000 from n a, n b, n c",
    "update long set big = (select max(a.n || b.n || c.n) from n a, n b, n c)",
    "delete from n where n in (select a.n from n a, n b, n c where a.n || b.n || c.n like '%x')",
    "insert into docs(docs) select 'integrity-check' from n a, n b, n c",
    "insert into checked select big from long",
];

/// R13: no statement holds a connection for more than one second after its time limit.
#[test]
fn r13_any_statement_ends_with_its_request() {
    let runtime = runtime();
    let fixture = Fixture::with(16 << 20);
    for sql in [
        "create table n (n integer primary key)",
        "insert into n with recursive r(n) as (select 1 union all select n + 1 from r limit 3000) select n from r",
        "create table long as select replace(hex(zeroblob(8000000)), '0', 'a') as big",
        "create table json as select '{' || group_concat('\"' || n || '\":1') || '}' as json from n",
        &format!(
            "create table checked (a check ({} >= 0))",
            vec!["json_valid('[' || a)"; 400].join(" + ")
        ),
        "create virtual table docs using fts5(text)",
        "insert into docs values (replace(hex(zeroblob(32000)), '00', 'a '))",
        "insert into docs values (replace(hex(zeroblob(250000)), '00', 'b '))",
    ] {
        let made = runtime.block_on(fixture.run(sql, &[]));
        made.unwrap_or_else(|error| panic!("{sql}: {}", error.message));
    }
    let limit = Duration::from_millis(400);
    let mut failed = Vec::new();
    for sql in SLOW {
        let try_it = || {
            let begin = Instant::now();
            let deadline = Arc::new(Deadline::new(begin + limit));
            let ended = runtime.block_on(fixture.run_until(&deadline, sql, &[]));
            let kind = ended.err().map(|error| (error.kind, error.message));
            (begin.elapsed(), kind)
        };
        let in_time = |took: &Duration| *took < limit + Duration::from_secs(1);
        let is_ended = |(kind, _): &(ErrorKind, String)| {
            matches!(kind, ErrorKind::Aborted | ErrorKind::TooLarge)
        };
        // A busy machine may spoil some of the tries.
        let mut tries = (0..3).map(|_| try_it());
        let good = tries.any(|(took, kind)| {
            println!("{took:>10.0?} {kind:?} {sql}");
            in_time(&took) && kind.as_ref().is_none_or(is_ended)
        });
        if !good {
            failed.push(sql);
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// A commit cannot be interrupted, so the bytes that it has to write are bounded.
#[test]
fn a_transaction_that_writes_too_much_is_ended() {
    let runtime = runtime();
    let fixture = Fixture::new();
    runtime
        .block_on(fixture.run("create table t (a)", &[]))
        .expect("it is made");
    let sql = "insert into t with recursive r(n) as (select 1 union all select n + 1 from r) select randomblob(500000) from r";
    fixture.assert_refused(
        &runtime,
        sql,
        &[],
        ErrorKind::TooLarge,
        "`transaction_max_bytes`",
    );
    let count = runtime.block_on(fixture.run("select count(*) from t", &[]));
    assert!(matches!(
        count.expect("it is read").rows[0][0],
        Value::Integer(0)
    ));
    runtime
        .block_on(fixture.run("insert into t values (1)", &[]))
        .expect("the connection is usable");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_stack_size(STACK_BYTES)
        .build()
        .expect("a runtime")
}
