//! The state machine against a model, on a real SQLite file.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::config;
use crate::deadline::Ended;

struct Fixture {
    _folder: tempfile::TempDir,
    database: Arc<Sqlite>,
    deadline: Arc<Deadline>,
}

impl Fixture {
    fn new() -> Fixture {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let database = Sqlite::open(&config::Database {
            name: "default".into(),
            sqlite: folder.path().join("test.db"),
            migrations: None,
            readers: 2,
            value_max_bytes: 1 << 20,
            busy_timeout: Duration::from_millis(200),
            acquire_timeout: Duration::from_millis(200),
        })
        .expect("a new database");
        let connection =
            rusqlite::Connection::open(folder.path().join("test.db")).expect("opening it again");
        connection
            .execute_batch("create table t (n integer primary key)")
            .expect("a new table");
        let deadline = Arc::new(Deadline::new(Instant::now() + Duration::from_secs(20)));
        Fixture {
            _folder: folder,
            database,
            deadline,
        }
    }

    fn on(&self) -> (&Arc<Sqlite>, &Arc<Deadline>) {
        (&self.database, &self.deadline)
    }

    async fn insert(&self, transaction: &Transaction, face: Face, n: i64) -> Result<u64, Error> {
        let sql = "insert into t (n) values (?)".to_owned();
        turn(transaction, face, self.on())
            .await?
            .execute(face, sql, vec![Value::Integer(n)])
            .await
    }

    /// What anybody else sees.
    async fn committed(&self) -> Vec<i64> {
        let lease = self
            .database
            .reader(&self.deadline)
            .await
            .expect("a reader");
        let Ok(Tried::Done(table)) = lease.query("select n from t order by n", &[], 1 << 24) else {
            panic!("reading works")
        };
        let number = |row: Vec<Value>| match row[..] {
            [Value::Integer(n)] => n,
            ref other => panic!("{other:?}"),
        };
        table.rows.into_iter().map(number).collect()
    }

    /// The connection that writes is free, and nothing is open on it.
    async fn assert_clean(&self) {
        let lease = self
            .database
            .writer(&self.deadline)
            .await
            .expect("the writer is free");
        assert!(!lease.in_transaction());
    }
}

/// What a view can do with its transaction. Levels are named by how deep they are when used.
#[derive(Debug, Clone)]
enum Step {
    Insert,
    InsertAgain,
    Begin,
    Commit,
    Rollback,
    Abandon,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    use Step::{Abandon, Begin, Commit, Insert, InsertAgain, Rollback};
    let step = prop_oneof![
        4 => Just(Insert),
        1 => Just(InsertAgain),
        3 => Just(Begin),
        2 => Just(Commit),
        1 => Just(Rollback),
        1 => Just(Abandon),
    ];
    prop::collection::vec(step, 0..30)
}

/// Runs the steps and the same on a stack of lists; both must agree on what is in the database afterwards.
async fn check(face: Face, atomic: bool, steps: &[Step], keep: bool) {
    let fixture = Fixture::new();
    let transaction = Transaction::new(atomic);
    let mut levels = Vec::new();
    let mut done: Vec<i64> = Vec::new();
    // The values of each open level, the outermost first; an atomic scope has one from the start.
    let mut open: Vec<Vec<i64>> = if atomic { vec![Vec::new()] } else { Vec::new() };
    let mut next = 0;
    for step in steps {
        match step {
            Step::Insert | Step::InsertAgain if open.is_empty() => {}
            Step::Insert => {
                next += 1;
                fixture
                    .insert(&transaction, face, next)
                    .await
                    .expect("a new number");
                open.last_mut().expect("a level is open").push(next);
            }
            Step::InsertAgain => {
                let Some(known) = open.iter().flatten().next() else {
                    continue;
                };
                let error = fixture
                    .insert(&transaction, face, *known)
                    .await
                    .expect_err("the number is taken");
                assert_eq!(error.kind, ErrorKind::Constraint);
            }
            Step::Begin => {
                levels.push(
                    transaction
                        .begin(face, fixture.on())
                        .await
                        .expect("it begins"),
                );
                open.push(Vec::new());
            }
            Step::Commit => {
                let Some(level) = levels.pop() else { continue };
                transaction.commit(face, level).await.expect("it commits");
                let values = open.pop().expect("the level is open");
                open.last_mut().unwrap_or(&mut done).extend(values);
            }
            Step::Rollback | Step::Abandon => {
                let Some(level) = levels.pop() else { continue };
                match step {
                    Step::Rollback => transaction
                        .rollback(face, level)
                        .await
                        .expect("it rolls back"),
                    _ => transaction.abandon(level),
                }
                open.pop();
            }
        }
    }
    let fate = transaction.finish(face, keep).await.expect("it ends");
    if keep && atomic {
        done.extend(open.first().into_iter().flatten());
        assert_ne!(fate, Fate::RolledBack);
    }
    done.sort_unstable();
    assert_eq!(fixture.committed().await, done, "R7, R9");
    fixture.assert_clean().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn r7_r9_it_does_what_the_model_does(steps in steps(), atomic: bool, keep: bool, sync: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let face = if sync { Face::Sync } else { Face::Async };
        runtime.block_on(check(face, atomic, &steps, keep));
    }
}

#[tokio::test]
async fn r8_joined_statements_are_serialised_in_the_order_they_were_issued() {
    let fixture = Fixture::new();
    let transaction = Transaction::new(true);
    let all = (1..=50).map(|n| fixture.insert(&transaction, Face::Async, n));
    for done in futures::future::join_all(all).await {
        assert_eq!(done.expect("it is inserted"), 1);
    }
    let sql = "select group_concat(n, ' ') from (select n from t order by rowid)".to_owned();
    let table = turn(&transaction, Face::Async, fixture.on())
        .await
        .expect("it has begun")
        .query(Face::Async, sql, vec![], 1 << 20)
        .await
        .expect("it is read");
    let expected = (1..=50)
        .map(|n: i64| n.to_string())
        .collect::<Vec<_>>()
        .join(" ");
    assert!(matches!(&table.rows[0][0], Value::Text(order) if *order == expected));
    assert_eq!(
        fixture.committed().await,
        [] as [i64; 0],
        "nobody else sees it yet"
    );
    assert_eq!(
        transaction
            .finish(Face::Async, true)
            .await
            .expect("it commits"),
        Fate::Committed
    );
    assert_eq!(fixture.committed().await.len(), 50);
}

#[tokio::test]
async fn r13_a_scope_that_is_dropped_leaves_nothing() {
    let fixture = Fixture::new();
    let transaction = Transaction::new(true);
    fixture
        .insert(&transaction, Face::Async, 1)
        .await
        .expect("it is inserted");
    drop(transaction);
    fixture.assert_clean().await;
    assert_eq!(fixture.committed().await, [] as [i64; 0]);
}

#[tokio::test]
async fn a_caller_that_is_cancelled_does_not_tear_the_transaction() {
    let fixture = Fixture::new();
    let transaction = Transaction::new(true);
    fixture
        .insert(&transaction, Face::Async, 1)
        .await
        .expect("it is inserted");
    // Polled once, so that the statement is on its way, and dropped.
    let slow = "insert into t with recursive r(n) as (select 100 union all select n + 1 from r where n < 50000) select n from r";
    let cancelled = async {
        let turn = turn(&transaction, Face::Async, fixture.on()).await?;
        turn.execute(Face::Async, slow.to_owned(), vec![]).await
    };
    assert!(
        tokio::time::timeout(Duration::from_millis(1), cancelled)
            .await
            .is_err()
    );
    fixture
        .insert(&transaction, Face::Async, 2)
        .await
        .expect("it comes after the other one");
    transaction
        .finish(Face::Async, true)
        .await
        .expect("it commits");
    assert_eq!(
        fixture.committed().await.len(),
        2 + 49_901,
        "the statement was finished"
    );
}

#[tokio::test]
async fn r15_a_statement_ends_with_its_request() {
    let fixture = Fixture::new();
    let transaction = Transaction::new(true);
    fixture
        .insert(&transaction, Face::Async, 1)
        .await
        .expect("it is inserted");
    let endless =
        "with recursive r(n) as (select 1 union all select n + 1 from r) select max(n) from r";
    let query = async {
        let turn = turn(&transaction, Face::Async, fixture.on()).await?;
        turn.query(Face::Async, endless.to_owned(), vec![], 1 << 20)
            .await
    };
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        fixture.deadline.cancel(Ended::Disconnected);
    };
    let (error, ()) = tokio::join!(query, cancel);
    assert_eq!(
        error.expect_err("it was interrupted").kind,
        ErrorKind::Aborted
    );
    assert_eq!(
        transaction
            .finish(Face::Async, false)
            .await
            .expect("it ends"),
        Fate::RolledBack
    );
}

#[tokio::test]
async fn one_transaction_is_on_one_database() {
    let (one, other) = (Fixture::new(), Fixture::new());
    let transaction = Transaction::new(true);
    one.insert(&transaction, Face::Async, 1)
        .await
        .expect("it begins here");
    let renamed = Sqlite::open(&config::Database {
        name: "other".into(),
        ..other.database.config().clone()
    })
    .expect("it opens");
    let error = turn(&transaction, Face::Async, (&renamed, &one.deadline))
        .await
        .err()
        .expect("it is elsewhere");
    assert!(
        error
            .message
            .contains("on the database `default`, so a statement on `other`"),
        "{}",
        error.message
    );
}

#[tokio::test]
async fn levels_end_from_the_inside_out() {
    let fixture = Fixture::new();
    let transaction = Transaction::new(false);
    let (outer, inner) = (
        begin(&transaction, &fixture).await,
        begin(&transaction, &fixture).await,
    );
    transaction
        .commit(Face::Async, inner)
        .await
        .expect("it commits");
    transaction
        .commit(Face::Async, outer)
        .await
        .expect("it commits");
    let error = transaction
        .commit(Face::Async, outer)
        .await
        .expect_err("it is over");
    assert!(
        error.message.contains("has ended already"),
        "{}",
        error.message
    );
    assert!(
        turn_now(&transaction, &fixture)
            .await
            .expect("all is well")
            .is_none()
    );
}

/// Nobody can tell whose statements were whose, so nothing is kept, and everybody is told so.
#[tokio::test]
async fn r8_levels_that_overlap_are_undone_together() {
    for (atomic, abandon) in [(false, false), (false, true), (true, false), (true, true)] {
        let fixture = Fixture::new();
        let transaction = Transaction::new(atomic);
        let (first, second) = (
            begin(&transaction, &fixture).await,
            begin(&transaction, &fixture).await,
        );
        fixture
            .insert(&transaction, Face::Async, 1)
            .await
            .expect("it is inserted");
        match abandon {
            true => transaction.abandon(first),
            false => {
                let error = transaction
                    .commit(Face::Async, first)
                    .await
                    .expect_err("they overlap");
                assert!(error.message.contains("overlapped"), "{}", error.message);
            }
        }
        // The second one does not know yet: nothing it does may run outside.
        let error = fixture
            .insert(&transaction, Face::Async, 2)
            .await
            .expect_err("it is lost");
        assert!(error.message.contains("overlapped"), "{}", error.message);
        let error = transaction
            .commit(Face::Async, second)
            .await
            .expect_err("it is lost");
        assert!(error.message.contains("overlapped"), "{}", error.message);
        if atomic {
            transaction
                .finish(Face::Async, true)
                .await
                .expect_err("a success would be a lie");
        } else {
            assert!(
                turn_now(&transaction, &fixture)
                    .await
                    .expect("a new start")
                    .is_none()
            );
            let third = begin(&transaction, &fixture).await;
            fixture
                .insert(&transaction, Face::Async, 3)
                .await
                .expect("it is inserted");
            transaction
                .commit(Face::Async, third)
                .await
                .expect("it commits");
        }
        let kept: &[i64] = if atomic { &[] } else { &[3] };
        assert_eq!(fixture.committed().await, kept);
        fixture.assert_clean().await;
    }
}

/// SQLite undoes everything after some errors; what the guest then does in the block must not run outside of it.
#[tokio::test]
async fn r9_a_lost_transaction_stays_lost_until_its_block_ends() {
    let fixture = Fixture::new();
    let transaction = Transaction::new(false);
    let level = begin(&transaction, &fixture).await;
    fixture
        .insert(&transaction, Face::Async, 1)
        .await
        .expect("it is inserted");
    let turn = turn(&transaction, Face::Async, fixture.on())
        .await
        .expect("it has begun");
    let sql = "insert or rollback into t (n) values (1)".to_owned();
    turn.execute(Face::Async, sql, vec![])
        .await
        .expect_err("the number is taken");
    let error = fixture
        .insert(&transaction, Face::Async, 2)
        .await
        .expect_err("it is lost");
    assert_eq!(error.kind, ErrorKind::Constraint);
    transaction
        .rollback(Face::Async, level)
        .await
        .expect_err("it is lost");
    assert!(
        turn_now(&transaction, &fixture)
            .await
            .expect("a new start")
            .is_none()
    );
    assert_eq!(fixture.committed().await, [] as [i64; 0]);
}

/// A statement that was issued while a block was ending waits for it, and then runs outside.
#[tokio::test]
async fn a_statement_that_waited_for_the_end_runs_outside() {
    let fixture = Fixture::new();
    let transaction = Transaction::new(false);
    let level = begin(&transaction, &fixture).await;
    let (committed, turn) = tokio::join!(
        transaction.commit(Face::Async, level),
        turn_now(&transaction, &fixture)
    );
    committed.expect("it commits");
    assert!(turn.expect("all is well").is_none());
}

#[tokio::test]
async fn a_begin_that_is_cancelled_or_fails_leaves_no_transaction() {
    let fixture = Fixture::new();
    let transaction = Transaction::new(false);
    let soon = Duration::from_micros(50);
    for _ in 0..50 {
        // Whether it has begun by then or not.
        let begun = tokio::time::timeout(soon, transaction.begin(Face::Async, fixture.on())).await;
        if let Ok(Ok(level)) = begun {
            transaction.abandon(level);
        }
    }
    drop(transaction.state.lock().await);
    let taken = fixture.database.writer(&fixture.deadline).await;
    let taken = taken.expect("nobody has it");
    transaction
        .begin(Face::Async, fixture.on())
        .await
        .expect_err("the writer is taken");
    drop(taken);
    assert!(
        turn_now(&transaction, &fixture)
            .await
            .expect("all is well")
            .is_none()
    );
    fixture.assert_clean().await;
}

/// A view that gives up waiting for its commit must not leave a level behind that swallows later ones.
#[tokio::test]
async fn r9_an_end_that_is_cancelled_is_undone() {
    let fixture = Fixture::new();
    let transaction = Transaction::new(false);
    let first = begin(&transaction, &fixture).await;
    fixture
        .insert(&transaction, Face::Async, 1)
        .await
        .expect("it is inserted");
    // Somebody else's turn, so that the commit has to wait.
    let turn = Arc::clone(&transaction.state).lock_owned().await;
    let commit = transaction.commit(Face::Async, first);
    assert!(
        tokio::time::timeout(Duration::from_millis(5), commit)
            .await
            .is_err()
    );
    drop(turn);
    let second = begin(&transaction, &fixture).await;
    fixture
        .insert(&transaction, Face::Async, 2)
        .await
        .expect("it is inserted");
    transaction
        .commit(Face::Async, second)
        .await
        .expect("it commits");
    assert_eq!(fixture.committed().await, [2]);
    transaction
        .finish(Face::Async, true)
        .await
        .expect("it ends");
    assert_eq!(
        fixture.committed().await,
        [2],
        "what was said to be committed stays"
    );
}

async fn begin(transaction: &Transaction, fixture: &Fixture) -> Level {
    transaction
        .begin(Face::Async, fixture.on())
        .await
        .expect("it begins")
}

async fn turn_now(transaction: &Transaction, fixture: &Fixture) -> Result<Option<Turn>, Error> {
    transaction.turn(Face::Async, fixture.on()).await
}

async fn turn(
    transaction: &Transaction,
    face: Face,
    on: (&Arc<Sqlite>, &Arc<Deadline>),
) -> Result<Turn, Error> {
    Ok(transaction
        .turn(face, on)
        .await?
        .expect("a transaction is open"))
}
