//! What hostile SQL is told.

use std::time::{Duration, Instant};

use super::*;
use crate::config::{Storage, Synchronous};
use crate::database::{Table, Value};

struct Fixture {
    _folder: tempfile::TempDir,
    database: Arc<Sqlite>,
    deadline: Arc<Deadline>,
}

impl Fixture {
    fn new() -> Fixture {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = SqliteFile {
            file: folder.path().join("test.db"),
            readers: 1,
            busy_timeout: Duration::from_millis(200),
            synchronous: Synchronous::Normal,
        };
        let config = Config {
            name: "default".into(),
            storage: Storage::Sqlite(file.clone()),
            migrations: None,
            queue_max: 100,
            acquire_timeout: Duration::from_millis(200),
            value_max_bytes: 1 << 20,
        };
        let database = Sqlite::open(&config, &file);
        let deadline = Arc::new(Deadline::new(Instant::now() + Duration::from_secs(20)));
        Fixture {
            _folder: folder,
            database: database.expect("a new database"),
            deadline,
        }
    }

    /// Runs a statement as a view's would be run outside a transaction.
    async fn run(&self, sql: &str, params: &[Value]) -> Result<Table, Error> {
        let statement = Statement {
            sql: sql.to_owned(),
            params: params.to_vec(),
            rows_max: Some(10_000),
        };
        let ran = (self.database).run(Face::Async, &self.deadline, Access::default(), statement);
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
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
