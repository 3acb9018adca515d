//! Tests of transactions on a real SQLite file: random steps compared with a model, and single cases.

mod copies;

use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use proptest::prelude::*;

use super::*;
use crate::config;
use crate::database::{ErrorKind, Value};
use crate::threads::deadline::Ended;

const READS: Access = Access {
    read_only: true,
    no_reader: false,
    no_writer: false,
};

struct Fixture {
    _folder: tempfile::TempDir,
    database: Database,
    deadline: Arc<Deadline>,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture::named("default")
    }

    fn named(name: &str) -> Fixture {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = config::SqliteFile {
            file: folder.path().join("test.db"),
            readers: 2,
            busy_timeout: Duration::from_millis(200),
            synchronous: config::Synchronous::Normal,
            transaction_max_bytes: 128 << 20,
        };
        let config = config::Database {
            name: name.into(),
            storage: config::Storage::Sqlite(file),
            migrations: None,
            queue_max: 100,
            acquire_timeout: Duration::from_millis(200),
            value_max_bytes: 1 << 20,
        };
        let database = Database::open(&config).expect("a new database");
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

    fn on(&self) -> (&Database, &Arc<Deadline>) {
        (&self.database, &self.deadline)
    }

    async fn insert(&self, transaction: &Member, face: Face, n: i64) -> Result<u64, Error> {
        let statement = Statement {
            params: vec![Value::Integer(n)],
            ..execute("insert into t (n) values ($1)")
        };
        let ran = turn(transaction, self.on()).await?.run(face, statement);
        Ok(ran.await?.changed)
    }

    /// The numbers in the table as other connections see it.
    async fn committed(&self) -> Vec<i64> {
        let all = query("select n from t order by n");
        let read = self.database.run(Face::Async, &self.deadline, READS, all);
        let number = |row: Vec<Value>| match row[..] {
            [Value::Integer(n)] => n,
            ref other => panic!("{other:?}"),
        };
        let table = read.await.expect("reading works").table;
        table.rows.into_iter().map(number).collect()
    }

    /// Checks that the connection that writes is free, and that no transaction is open on it.
    async fn assert_clean(&self) {
        let lease = self.database.lease(&self.deadline, false).await;
        assert!(!lease.expect("the writer is free").in_transaction());
    }
}

fn query(sql: &str) -> Statement {
    Statement {
        sql: sql.to_owned(),
        params: vec![],
        rows_max: Some(1 << 24),
    }
}

fn execute(sql: &str) -> Statement {
    Statement {
        rows_max: None,
        ..query(sql)
    }
}

fn new(atomic: bool) -> Member {
    let options = Options {
        atomic,
        ..Options::default()
    };
    Transaction::new(options).first_member()
}

/// A view that this function calls.
fn called(caller: &Member) -> Member {
    caller.call(Options::default()).expect("the caller runs")
}

/// What a view can do with its transaction. `Commit`, `Rollback` and `Abandon` end the innermost level that the view
/// has begun.
#[derive(Debug, Clone)]
enum Step {
    Insert,
    InsertAgain,
    Publish,
    Begin,
    Commit,
    Rollback,
    Abandon,
    SetRollback,
    Pin,
    Unpin,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    use Step::{
        Abandon, Begin, Commit, Insert, InsertAgain, Pin, Publish, Rollback, SetRollback, Unpin,
    };
    let step = prop_oneof![
        8 => Just(Insert),
        2 => Just(InsertAgain),
        4 => Just(Publish),
        6 => Just(Begin),
        4 => Just(Commit),
        2 => Just(Rollback),
        2 => Just(Abandon),
        1 => Just(SetRollback),
        1 => Just(Pin),
        1 => Just(Unpin),
    ];
    prop::collection::vec(step, 0..40)
}

/// What was done in one level, according to [`Model`].
#[derive(Default, Clone)]
struct Done {
    inserted: Vec<i64>,
    published: Vec<i64>,
    poisoned: bool,
}

impl Done {
    fn add(&mut self, inner: Done) {
        self.inserted.extend(inner.inserted);
        self.published.extend(inner.published);
    }
}

#[derive(Default)]
struct Model {
    /// The levels that are open, the outermost first.
    open: Vec<Done>,
    marked: bool,
    kept: Done,
}

impl Model {
    fn here(&mut self) -> &mut Done {
        self.open.last_mut().unwrap_or(&mut self.kept)
    }

    fn poisoned(&self) -> bool {
        self.open.last().is_some_and(|level| level.poisoned)
    }

    /// Ends the innermost level. Returns whether its changes are kept.
    fn end(&mut self, keep: bool) -> bool {
        let level = self.open.pop().expect("a level is open");
        let marked = self.open.is_empty() && std::mem::take(&mut self.marked);
        let kept = keep && !level.poisoned && !marked;
        if kept {
            self.here().add(level);
        }
        kept
    }
}

/// Runs the steps on a transaction and on [`Model`]. Both must agree on what is in the database afterwards, on which
/// effects were released, and on the result of each step.
async fn check(face: Face, atomic: bool, steps: &[Step], keep: bool) {
    let fixture = Fixture::new();
    let transaction = new(atomic);
    let sent = Arc::new(Mutex::new(Vec::new()));
    let mut model = Model::default();
    if atomic {
        model.open.push(Done::default());
    }
    let (mut levels, mut pins) = (Vec::new(), Vec::new());
    let mut next = 0;
    for step in steps {
        next += 1;
        match step {
            Step::Insert if model.open.is_empty() && pins.is_empty() => {}
            Step::Insert => {
                let inserted = fixture.insert(&transaction, face, next).await;
                match (model.poisoned(), inserted) {
                    (true, Err(error)) => assert_eq!(error.kind, ErrorKind::Poisoned),
                    (false, Ok(1)) => model.here().inserted.push(next),
                    (_, other) => panic!("{other:?}"),
                }
            }
            Step::InsertAgain => {
                let Some(known) = model.open.iter().flat_map(|level| &level.inserted).next() else {
                    continue;
                };
                let inserted = fixture.insert(&transaction, face, *known).await;
                let kind = inserted.expect_err("the number is taken").kind;
                match model.poisoned() {
                    true => assert_eq!(kind, ErrorKind::Poisoned),
                    false => assert_eq!(kind, ErrorKind::Unique),
                }
                model.here().poisoned = true;
            }
            Step::Publish => {
                let sent = Arc::clone(&sent);
                assert!(transaction.effect(Box::new(move || sent.lock().push(next)), None));
                model.here().published.push(next);
            }
            Step::Begin => {
                let begun = begin_on(&transaction, fixture.on()).await;
                match begun {
                    Ok(level) if !model.poisoned() => {
                        levels.push(level);
                        model.open.push(Done::default());
                    }
                    Err(error) if model.poisoned() => assert_eq!(error.kind, ErrorKind::Poisoned),
                    other => panic!("{other:?}"),
                }
            }
            Step::Commit => {
                let Some(level) = levels.pop() else { continue };
                let committed = transaction.commit(face, level).await;
                assert_eq!(committed.is_ok(), model.end(true), "{committed:?}");
            }
            Step::Rollback => {
                let Some(level) = levels.pop() else { continue };
                let undone = transaction.rollback(face, level).await;
                undone.expect("it rolls back");
                model.end(false);
            }
            Step::Abandon => {
                let Some(level) = levels.pop() else { continue };
                transaction.abandon(level);
                model.end(false);
            }
            Step::SetRollback => {
                transaction.set_rollback();
                model.marked |= !model.open.is_empty();
            }
            Step::Pin => match pin_on(&transaction, fixture.on()).await {
                Ok(pin) if !model.poisoned() => pins.push(pin),
                Err(error) if model.poisoned() => assert_eq!(error.kind, ErrorKind::Poisoned),
                other => panic!("{other:?}"),
            },
            Step::Unpin => {
                if let Some(pin) = pins.pop() {
                    transaction.transaction().unpin(pin);
                }
            }
        }
    }
    let finished = transaction.transaction().finish(face, keep).await;
    if atomic {
        model.open.truncate(1);
        let poisoned = model.poisoned();
        let marked = model.marked;
        let kept = model.end(keep);
        assert_eq!(finished.is_err(), keep && poisoned && !marked, "R9");
        let fate = finished.unwrap_or(Fate::RolledBack);
        assert_ne!(
            fate,
            if kept {
                Fate::RolledBack
            } else {
                Fate::Committed
            }
        );
    } else {
        finished.expect("what is still open is undone");
    }
    let Done {
        inserted,
        published,
        ..
    } = model.kept;
    assert_eq!(fixture.committed().await, sorted(inserted), "R7, R9");
    assert_eq!(sorted(sent.lock().clone()), sorted(published), "R10");
    fixture.assert_clean().await;
}

fn sorted(mut numbers: Vec<i64>) -> Vec<i64> {
    numbers.sort_unstable();
    numbers
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn r7_r9_r10_it_does_what_the_model_does(steps in steps(), atomic: bool, keep: bool, sync: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let face = if sync { Face::Sync } else { Face::Async };
        runtime.block_on(check(face, atomic, &steps, keep));
    }
}

#[tokio::test]
async fn r8_joined_statements_are_serialised_in_the_order_they_were_issued() {
    let fixture = Fixture::new();
    let transaction = new(true);
    let all = (1..=50).map(|n| fixture.insert(&transaction, Face::Async, n));
    for done in futures::future::join_all(all).await {
        assert_eq!(done.expect("it is inserted"), 1);
    }
    let all = query("select group_concat(n, ' ') from (select n from t order by rowid)");
    let turn = turn(&transaction, fixture.on()).await;
    let ran = turn.expect("it has begun").run(Face::Async, all).await;
    let table = ran.expect("it is read").table;
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
            .transaction()
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
    let transaction = new(true);
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
    let transaction = new(true);
    fixture
        .insert(&transaction, Face::Async, 1)
        .await
        .expect("it is inserted");
    // The caller of this statement waits for 1 ms and is dropped while the statement runs.
    let slow = "insert into t with recursive r(n) as (select 100 union all select n + 1 from r where n < 50000) select n from r";
    let cancelled = async {
        let turn = turn(&transaction, fixture.on()).await?;
        turn.run(Face::Async, execute(slow)).await
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
        .transaction()
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
    let transaction = new(true);
    fixture
        .insert(&transaction, Face::Async, 1)
        .await
        .expect("it is inserted");
    let endless =
        "with recursive r(n) as (select 1 union all select n + 1 from r) select max(n) from r";
    let query = async {
        let turn = turn(&transaction, fixture.on()).await?;
        turn.run(Face::Async, query(endless)).await
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
            .transaction()
            .finish(Face::Async, false)
            .await
            .expect("it ends"),
        Fate::RolledBack
    );
}

#[tokio::test]
async fn one_transaction_is_on_one_database() {
    let (one, other) = (Fixture::new(), Fixture::named("other"));
    let transaction = new(true);
    one.insert(&transaction, Face::Async, 1)
        .await
        .expect("it begins here");
    for refused in [
        turn(&transaction, other.on()).await.err(),
        begin_on(&transaction, other.on()).await.err(),
    ] {
        let error = refused.expect("it is elsewhere");
        assert!(
            error
                .message
                .contains("on the database `default`, so a statement on `other`"),
            "{}",
            error.message
        );
    }
}

#[tokio::test]
async fn levels_end_from_the_inside_out() {
    let fixture = Fixture::new();
    let transaction = new(false);
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

/// Nobody can tell which statement belongs to which level, so nothing is kept, and every further call gets an error.
#[tokio::test]
async fn r8_levels_that_overlap_are_undone_together() {
    for (atomic, abandon) in [(false, false), (false, true), (true, false), (true, true)] {
        let fixture = Fixture::new();
        let transaction = new(atomic);
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
        // The guest still believes the second level to be open: nothing that it does there may run outside of a
        // transaction.
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
                .transaction()
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

/// After some errors, SQLite rolls the whole transaction back. What the guest then does in its block must not run
/// outside of a transaction.
#[tokio::test]
async fn r9_a_lost_transaction_stays_lost_until_its_block_ends() {
    let fixture = Fixture::new();
    let transaction = new(false);
    let level = begin(&transaction, &fixture).await;
    fixture
        .insert(&transaction, Face::Async, 1)
        .await
        .expect("it is inserted");
    let turn = turn(&transaction, fixture.on()).await;
    let undoing = execute("insert or rollback into t (n) values (1)");
    let ran = turn.expect("it has begun").run(Face::Async, undoing).await;
    assert_eq!(
        ran.expect_err("the number is taken").kind,
        ErrorKind::Unique
    );
    let error = fixture
        .insert(&transaction, Face::Async, 2)
        .await
        .expect_err("it is lost");
    assert_eq!(error.kind, ErrorKind::Poisoned);
    transaction
        .rollback(Face::Async, level)
        .await
        .expect("it is what happened");
    assert!(
        turn_now(&transaction, &fixture)
            .await
            .expect("a new start")
            .is_none()
    );
    assert_eq!(fixture.committed().await, [] as [i64; 0]);
}

/// A statement that is issued while a block ends waits for that end, and then runs outside of any transaction.
#[tokio::test]
async fn a_statement_that_waited_for_the_end_runs_outside() {
    let fixture = Fixture::new();
    let transaction = new(false);
    let level = begin(&transaction, &fixture).await;
    let (committed, turn) = tokio::join!(
        transaction.commit(Face::Async, level),
        turn_now(&transaction, &fixture)
    );
    committed.expect("it commits");
    assert!(turn.expect("all is well").is_none());
}

/// A function that has not noticed yet that its request is over must not write outside of the transaction, which was
/// rolled back.
#[tokio::test]
async fn r9_nothing_goes_by_outside_when_the_scope_is_over() {
    let fixture = Fixture::new();
    for atomic in [true, false] {
        let transaction = new(atomic);
        let finished = transaction.transaction().finish(Face::Async, false).await;
        finished.expect("nothing can fail");
        let late = turn_now(&transaction, &fixture).await;
        assert_eq!(late.err().map(|error| error.kind), Some(ErrorKind::Aborted));
        let begun = begin_on(&transaction, fixture.on()).await;
        assert_eq!(
            begun.err().map(|error| error.kind),
            Some(ErrorKind::Aborted)
        );
    }
}

#[tokio::test]
async fn a_begin_that_is_cancelled_or_fails_leaves_no_transaction() {
    let fixture = Fixture::new();
    let transaction = new(false);
    let soon = Duration::from_micros(50);
    for _ in 0..50 {
        // The level may or may not have begun by then.
        let begun = tokio::time::timeout(soon, begin_on(&transaction, fixture.on())).await;
        if let Ok(Ok(level)) = begun {
            transaction.abandon(level);
        }
    }
    drop(transaction.transaction.state.lock().await);
    let taken = fixture.database.lease(&fixture.deadline, false).await;
    let taken = taken.expect("nobody has it");
    let level = begin(&transaction, &fixture).await;
    let error = fixture
        .insert(&transaction, Face::Async, 1)
        .await
        .expect_err("the writer is taken");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(transaction.transaction().unavailable());
    drop(taken);
    fixture
        .insert(&transaction, Face::Async, 1)
        .await
        .expect("it begins later");
    transaction.abandon(level);
    assert!(
        turn_now(&transaction, &fixture)
            .await
            .expect("all is well")
            .is_none()
    );
    fixture.assert_clean().await;
}

/// A view that gives up waiting for its commit must not leave the level open, because later levels would then be
/// savepoints in it that never commit.
#[tokio::test]
async fn r9_an_end_that_is_cancelled_is_undone() {
    let fixture = Fixture::new();
    let transaction = new(false);
    let first = begin(&transaction, &fixture).await;
    fixture
        .insert(&transaction, Face::Async, 1)
        .await
        .expect("it is inserted");
    // Takes the lock of the state, so that the commit has to wait.
    let turn = Arc::clone(&transaction.transaction.state)
        .lock_owned()
        .await;
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
        .transaction()
        .finish(Face::Async, true)
        .await
        .expect("it ends");
    assert_eq!(
        fixture.committed().await,
        [2],
        "what was said to be committed stays"
    );
}

async fn begin_on(member: &Member, on: (&Database, &Arc<Deadline>)) -> Result<Level, Error> {
    let begun = member.begin(on, std::future::ready(Ok(()))).await;
    begun.map(|(level, ())| level)
}

async fn pin_on(member: &Member, on: (&Database, &Arc<Deadline>)) -> Result<Pin, Error> {
    let pinned = member.pin(on, std::future::ready(Ok(()))).await;
    pinned.map(|(pin, ())| pin)
}
async fn begin(transaction: &Member, fixture: &Fixture) -> Level {
    begin_on(transaction, fixture.on())
        .await
        .expect("it begins")
}

async fn turn_now(transaction: &Member, fixture: &Fixture) -> Result<Option<Turn>, Error> {
    transaction
        .turn(fixture.on(), std::future::ready(Ok(())))
        .await
}

async fn turn(transaction: &Member, on: (&Database, &Arc<Deadline>)) -> Result<Turn, Error> {
    let turn = transaction.turn(on, std::future::ready(Ok(()))).await;
    Ok(turn?.expect("a transaction is open"))
}

#[tokio::test]
async fn r9_a_poisoned_scope_is_rolled_back_whatever_its_view_makes_of_it() {
    let fixture = Fixture::new();
    let transaction = new(true);
    for n in [1, 2] {
        let inserted = fixture.insert(&transaction, Face::Async, n).await;
        inserted.expect("it is inserted");
    }
    let again = fixture.insert(&transaction, Face::Async, 1).await;
    again.expect_err("the number is taken");
    let error = fixture
        .insert(&transaction, Face::Async, 3)
        .await
        .expect_err("it is poisoned");
    assert_eq!(error.kind, ErrorKind::Poisoned);
    assert!(error.message.contains("UNIQUE"), "{}", error.message);
    let finished = transaction.transaction().finish(Face::Async, true).await;
    let error = finished.expect_err("a success would be a lie");
    assert!(error.message.contains("UNIQUE"), "{}", error.message);
    assert_eq!(fixture.committed().await, [] as [i64; 0]);
    fixture.assert_clean().await;
}

#[tokio::test]
async fn r10_effects_are_released_in_order_after_the_commit() {
    let fixture = Fixture::new();
    let transaction = new(true);
    let sent = Arc::new(Mutex::new(Vec::new()));
    let send = |n: i64| {
        let sent = Arc::clone(&sent);
        transaction.effect(Box::new(move || sent.lock().push(n)), None)
    };
    assert!(send(1));
    let level = begin(&transaction, &fixture).await;
    assert!(send(2));
    fixture
        .insert(&transaction, Face::Async, 1)
        .await
        .expect("it is inserted");
    transaction
        .commit(Face::Async, level)
        .await
        .expect("it commits");
    assert!(send(3));
    let level = begin(&transaction, &fixture).await;
    assert!(send(4));
    transaction
        .rollback(Face::Async, level)
        .await
        .expect("it rolls back");
    assert_eq!(*sent.lock(), [] as [i64; 0], "nothing is committed yet");
    let fate = transaction.transaction().finish(Face::Async, true).await;
    assert_eq!(fate.expect("it commits"), Fate::Committed);
    assert_eq!(*sent.lock(), [1, 2, 3]);
    assert!(!send(5), "the scope is over");
    assert_eq!(*sent.lock(), [1, 2, 3]);
}

#[tokio::test]
async fn a_level_that_runs_nothing_needs_no_connection() {
    let fixture = Fixture::new();
    let taken = fixture.database.lease(&fixture.deadline, false).await;
    let taken = taken.expect("nobody has it");
    let transaction = new(false);
    let (outer, inner) = (
        begin(&transaction, &fixture).await,
        begin(&transaction, &fixture).await,
    );
    for level in [inner, outer] {
        let committed = transaction.commit(Face::Async, level).await;
        committed.expect("there is nothing to commit");
    }
    let fate = transaction.transaction().finish(Face::Async, true).await;
    assert_eq!(fate.expect("it ends"), Fate::None);
    drop(taken);
}

#[tokio::test]
async fn a_read_only_scope_refuses_to_write() {
    for atomic in [false, true] {
        let fixture = Fixture::new();
        let options = Options {
            atomic,
            read_only: true,
            isolation: None,
        };
        let transaction = Transaction::new(options).first_member();
        let write = execute("insert into t (n) values (1)");
        let ran = match turn_now(&transaction, &fixture).await.expect("all is well") {
            Some(turn) => turn.run(Face::Async, write).await,
            None => {
                let (database, deadline) = fixture.on();
                database.run(Face::Async, deadline, READS, write).await
            }
        };
        let error = ran.expect_err("it writes");
        assert_eq!(error.kind, ErrorKind::Denied);
        assert!(
            error.message.contains("the view is read-only"),
            "{}",
            error.message
        );
    }
}

/// R11: what statements change in the session of a pinned connection is gone when the pin ends.
#[tokio::test]
async fn r11_a_pinned_connection_may_be_changed_and_is_replaced() {
    for atomic in [false, true] {
        let fixture = Fixture::new();
        let transaction = new(atomic);
        let pin = pin_on(&transaction, fixture.on())
            .await
            .expect("it is free");
        for sql in [
            "create temp table kept (n)",
            "insert into kept values (1)",
            "pragma case_sensitive_like = on",
        ] {
            let turn = turn(&transaction, fixture.on())
                .await
                .expect("it is pinned");
            let ran = turn.run(Face::Async, execute(sql)).await;
            ran.unwrap_or_else(|error| panic!("{sql}: {}", error.message));
        }
        for sql in ["attach 'x' as y", "commit", "pragma journal_mode = delete"] {
            let level = begin(&transaction, &fixture).await;
            let turn = turn(&transaction, fixture.on())
                .await
                .expect("it is pinned");
            let ran = turn.run(Face::Async, execute(sql)).await;
            assert_eq!(ran.expect_err(sql).kind, ErrorKind::Denied);
            transaction.abandon(level);
        }
        transaction.transaction().unpin(pin);
        transaction
            .transaction()
            .finish(Face::Async, true)
            .await
            .expect("it ends");
        let mut lease = fixture
            .database
            .lease(&fixture.deadline, false)
            .await
            .expect("it is free");
        let temporary = query("select count(*) from sqlite_temp_schema");
        let outcome = lease.run(&[], &temporary, false).await.expect("it is read");
        assert!(matches!(outcome.table.rows[0][0], Value::Integer(0)));
    }
}

/// A call that a guest has in flight, or a pin, level or turn that it has.
enum Piece<'a> {
    Pinning(BoxFuture<'a, Result<Pin, Error>>),
    Beginning(BoxFuture<'a, Result<Level, Error>>),
    Turning(BoxFuture<'a, Result<Option<Turn>, Error>>),
    Pin(Pin),
    Level(Level),
    Turn(#[expect(dead_code, reason = "has the lock while it exists")] Turn),
}

impl Piece<'_> {
    /// Drops the piece in the way in which the bindings of a guest drop it.
    fn drop_in(self, member: &Member) {
        match self {
            Piece::Pin(pin) => member.transaction().unpin(pin),
            Piece::Level(level) => member.abandon(level),
            Piece::Turn(_) | Piece::Pinning(_) | Piece::Beginning(_) | Piece::Turning(_) => {}
        }
    }

    /// Polls a call in flight. Returns what the call has become, or none if it has failed or holds nothing.
    fn polled(self) -> Option<Self> {
        fn next<'a, T>(
            poll: Poll<Result<T, Error>>,
            ready: impl FnOnce(T) -> Option<Piece<'a>>,
            pending: impl FnOnce() -> Piece<'a>,
        ) -> Option<Piece<'a>> {
            match poll {
                Poll::Ready(made) => made.ok().and_then(ready),
                Poll::Pending => Some(pending()),
            }
        }
        match self {
            Piece::Pinning(mut waits) => next(
                waits
                    .as_mut()
                    .poll(&mut std::task::Context::from_waker(Waker::noop())),
                |pin| Some(Piece::Pin(pin)),
                || Piece::Pinning(waits),
            ),
            Piece::Beginning(mut waits) => next(
                waits
                    .as_mut()
                    .poll(&mut std::task::Context::from_waker(Waker::noop())),
                |level| Some(Piece::Level(level)),
                || Piece::Beginning(waits),
            ),
            Piece::Turning(mut waits) => next(
                waits
                    .as_mut()
                    .poll(&mut std::task::Context::from_waker(Waker::noop())),
                |turn| turn.map(Piece::Turn),
                || Piece::Turning(waits),
            ),
            made => Some(made),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Move {
    Pin,
    Begin,
    Turn,
    Poll(usize),
    Drop(usize),
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// R13: whatever is dropped, and whenever, the connection is given back before the transaction ends.
    #[test]
    fn r13_what_is_dropped_in_any_order_gives_the_connection_back(
        moves in proptest::collection::vec(prop_oneof![
            Just(Move::Pin),
            Just(Move::Begin),
            Just(Move::Turn),
            (0..8usize).prop_map(Move::Poll),
            (0..8usize).prop_map(Move::Poll),
            (0..8usize).prop_map(Move::Drop),
        ], 1..40)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let fixture = Fixture::new();
            let member = new(false);
            let mut pieces = Vec::new();
            for step in moves {
                match step {
                    Move::Pin => pieces.push(Piece::Pinning(pin_on(&member, fixture.on()).boxed())),
                    Move::Begin => pieces.push(Piece::Beginning(begin_on(&member, fixture.on()).boxed())),
                    Move::Turn => pieces.push(Piece::Turning(member.turn(fixture.on(), std::future::ready(Ok(()))).boxed())),
                    Move::Poll(_) | Move::Drop(_) if pieces.is_empty() => {}
                    Move::Poll(at) => {
                        let at = at % pieces.len();
                        if let Some(piece) = pieces.remove(at).polled() {
                            pieces.insert(at, piece);
                        }
                    }
                    Move::Drop(at) => {
                        let at = at % pieces.len();
                        pieces.remove(at).drop_in(&member);
                    }
                }
            }
            for piece in pieces {
                piece.drop_in(&member);
            }
            fixture.assert_clean().await;
        });
    }
}

/// R9: a function that is given up before it begins, perhaps because its worker was busy, does not make the transaction
/// that it was called in roll back, and never begins.
#[tokio::test]
async fn r9_what_was_given_up_before_it_began_never_begins() {
    let caller = new(true);
    let [given_up, runs] = [(); 2].map(|()| called(&caller));
    given_up.give_up();
    assert!(!given_up.begins());
    let marked = || caller.transaction().effects.must_roll_back(Level::WHOLE);
    assert!(marked().is_none());
    assert!(runs.begins());
    runs.give_up();
    assert!(marked().is_some());
}

/// R9: a function that is given up takes along those that it has called, also when one of them runs on another thread
/// and does not know yet: it calls no other view, runs no statement, commits nothing, and sends nothing.
#[tokio::test]
async fn r9_what_is_given_up_takes_along_what_it_called() {
    let fixture = Fixture::new();
    for atomic in [true, false] {
        let request = new(atomic);
        let caller = called(&request);
        let last = caller.next();
        assert!(caller.begins() && last.begins());
        let never = called(&last);
        let level = begin(&last, &fixture).await;
        let inserted = fixture.insert(&last, Face::Async, 1).await;
        inserted.expect("it is inserted");
        caller.give_up();
        assert!(!never.begins());
        assert!(last.call(Options::default()).is_err());
        let kind = |error: Option<Error>| error.map(|error| error.kind);
        let late = turn_now(&last, &fixture).await;
        assert_eq!(kind(late.err()), Some(ErrorKind::Aborted));
        let begun = begin_on(&last, fixture.on()).await;
        assert_eq!(kind(begun.err()), Some(ErrorKind::Aborted));
        let committed = last.commit(Face::Async, level).await;
        assert_eq!(kind(committed.err()), Some(ErrorKind::Aborted));
        assert!(!last.effect(Box::new(|| panic!("its level is gone")), None));
        drop((never, last, caller));
        let finished = request.transaction().finish(Face::Async, false).await;
        finished.expect("nothing can fail");
        fixture.assert_clean().await;
        assert!(fixture.committed().await.is_empty());
    }
}

/// R13: a statement whose connection comes free when its request has ended already does not run.
#[tokio::test]
async fn r13_no_statement_begins_after_the_end_of_its_request() {
    let fixture = Fixture::new();
    let over = Arc::new(Deadline::new(Instant::now()));
    let access = Access {
        read_only: false,
        ..READS
    };
    for face in [Face::Async, Face::Sync] {
        let insert = execute("insert into t (n) values (1)");
        let ran = fixture.database.run(face, &over, access, insert).await;
        let kind = ran.err().map(|error| error.kind);
        assert_eq!(kind, Some(ErrorKind::Aborted), "{face:?}");
    }
    assert!(fixture.committed().await.is_empty());
}

/// R13: a transaction that is given up while a statement runs gives its connection back when the statement ends.
#[tokio::test]
async fn r13_what_is_given_up_during_a_statement_gives_its_connection_back() {
    let fixture = Fixture::new();
    let member = new(false);
    begin(&member, &fixture).await;
    let inserted = fixture.insert(&member, Face::Async, 1).await;
    inserted.expect("it is inserted");
    let running = turn(&member, fixture.on()).await.expect("it is its turn");
    member.transaction().give_up();
    drop(running);
    fixture.assert_clean().await;
    assert!(fixture.committed().await.is_empty());
}

/// R10: a commit that runs while its view is given up still releases its effects.
#[tokio::test]
async fn r10_a_commit_is_told_also_when_its_view_was_given_up_meanwhile() {
    let fixture = Fixture::new();
    let member = new(false);
    let level = begin(&member, &fixture).await;
    let inserted = fixture.insert(&member, Face::Async, 1).await;
    inserted.expect("it is inserted");
    let told = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&told);
    assert!(member.effect(Box::new(move || tell.store(true, SeqCst)), None));
    let mut committing = member.commit(Face::Async, level).boxed();
    let mut context = std::task::Context::from_waker(Waker::noop());
    let committed = match committing.as_mut().poll(&mut context) {
        // On a fast disk, the commit may be over already.
        Poll::Ready(committed) => committed,
        Poll::Pending => {
            member.transaction().give_up();
            committing.await
        }
    };
    committed.expect("it is committed");
    assert_eq!(fixture.committed().await, [1]);
    assert!(told.load(SeqCst));
}

/// R9: a failure rolls back the transaction in which it happens, and not the transaction of another member.
#[tokio::test]
async fn r9_a_failure_undoes_the_transaction_that_it_happened_in() {
    let fixture = Fixture::new();
    let around = new(false);
    let view = around.next();
    let first = begin(&around, &fixture).await;
    let inserted = fixture.insert(&around, Face::Async, 1).await;
    inserted.expect("it is inserted");
    // The level that `view` begins waits for the end of `first`. A view that `view` calls now belongs to the waiting
    // level.
    let mut beginning = begin_on(&view, fixture.on()).boxed();
    let polled = beginning
        .as_mut()
        .poll(&mut std::task::Context::from_waker(Waker::noop()));
    assert!(polled.is_pending());
    let called = called(&view);
    assert!(called.begins());
    called.end(true).expect("the level is there");
    let committed = around.commit(Face::Async, first).await;
    committed.expect("nothing in it has failed");
    let second = beginning.await.expect("its turn has come");
    let inserted = fixture.insert(&view, Face::Async, 2).await;
    inserted.expect("it is inserted");
    let committed = view.commit(Face::Async, second).await;
    committed.expect_err("a view that was called in it has failed");
    assert_eq!(fixture.committed().await, [1]);

    let outer = begin(&around, &fixture).await;
    around.set_rollback();
    let inner = begin(&around, &fixture).await;
    around.set_rollback();
    around
        .commit(Face::Async, inner)
        .await
        .expect("it is a savepoint");
    let committed = around.commit(Face::Async, outer).await;
    committed.expect_err("it is not to be kept");
}

/// R9: `set-rollback` in a level marks the whole transaction, also when the level in which that level was asked for has
/// been given up meanwhile.
#[tokio::test]
async fn r9_a_mark_passes_a_level_that_was_given_up() {
    let fixture = Fixture::new();
    let member = new(true);
    let inserted = fixture.insert(&member, Face::Async, 1).await;
    inserted.expect("it is inserted");
    let turn = turn_now(&member, &fixture).await.expect("it is free");
    let mut first = begin_on(&member, fixture.on()).boxed();
    waits(&mut first).await;
    let mut second = begin_on(&member, fixture.on()).boxed();
    waits(&mut second).await;
    drop(first);
    drop(turn);
    let second = second.await.expect("it begins");
    member.set_rollback();
    let released = member.commit(Face::Async, second).await;
    released.expect("it is a savepoint");
    let finished = member.transaction().finish(Face::Async, true).await;
    assert_eq!(finished, Ok(Fate::RolledBack));
    assert!(fixture.committed().await.is_empty());
}

/// R4: a pin that gets no connection gives its permit back, so that the next pin can have it.
#[tokio::test]
async fn r4_a_pin_that_fails_keeps_no_room() {
    let fixture = Fixture::new();
    let options = Options {
        read_only: true,
        ..Options::default()
    };
    let member = Transaction::new(options).first_member();
    let mut taken = Vec::new();
    while let Ok(lease) = fixture.database.lease(&fixture.deadline, true).await {
        taken.push(lease);
    }
    let pinned = pin_on(&member, fixture.on()).await;
    pinned.expect_err("all connections are in use");
    drop(taken);
    let pinned = pin_on(&member, fixture.on()).await;
    pinned.expect("there is room");
}

/// Polls a call once. The call must wait for something.
async fn waits<F: Future + Unpin>(call: &mut F) {
    let polled = std::future::poll_fn(|context| Poll::Ready(call.poll_unpin(context)));
    assert!(polled.await.is_pending(), "it waits for the level");
}

#[tokio::test]
async fn r8_the_end_of_a_level_is_told_also_when_nobody_waits_for_it() {
    let fixture = Fixture::new();
    for keep in [true, false] {
        let member = new(false);
        let other = member.next();
        let level = begin(&member, &fixture).await;
        let inserted = fixture.insert(&member, Face::Async, 1).await;
        inserted.expect("it is inserted");
        let mut begins = Box::pin(begin_on(&other, fixture.on()));
        waits(&mut begins).await;
        let mut end = Box::pin(async {
            match keep {
                true => member.commit(Face::Async, level).await,
                false => member.rollback(Face::Async, level).await,
            }
        });
        // Polled once and dropped, so that the level ends without a caller. On a fast disk, it may have ended already.
        let _polled = std::future::poll_fn(|context| Poll::Ready(end.poll_unpin(context))).await;
        drop(end);
        let begun = tokio::time::timeout(Duration::from_secs(5), begins).await;
        let begun = begun.expect("it is told that the level has ended");
        let rolled_back = other.rollback(Face::Async, begun.expect("it begins")).await;
        rolled_back.expect("it ends");
        fixture
            .database
            .run(
                Face::Async,
                &fixture.deadline,
                Access::default(),
                execute("delete from t"),
            )
            .await
            .expect("it is empty again");
    }
}

#[tokio::test]
async fn r4_a_pin_that_outlives_its_level_has_room_of_its_own() {
    let fixture = Fixture::new();
    for known in [true, false] {
        let options = Options {
            read_only: true,
            ..Options::default()
        };
        let member = Transaction::new(options).first_member();
        let level = begin(&member, &fixture).await;
        if known {
            let turn = turn(&member, fixture.on()).await.expect("its turn");
            let read = turn.run(Face::Async, query("select 1")).await;
            read.expect("it reads");
        }
        let pin = pin_on(&member, fixture.on()).await.expect("there is room");
        member.abandon(level);
        let other = fixture.database.try_pin_permit(true);
        other.expect_err("the pin has the one place that there is");
        member.transaction().unpin(pin);
        let other = fixture.database.try_pin_permit(true);
        other.expect("the place is given back");
    }
}

/// The called view must not wait for the level to begin: the level may wait for the worker that the view is on.
#[tokio::test]
async fn r8_a_view_that_is_called_in_a_level_which_has_not_begun_is_told_so() {
    let fixture = Fixture::new();
    let member = new(false);
    let other = member.next();
    let level = begin(&other, &fixture).await;
    let mut begins = Box::pin(begin_on(&member, fixture.on()));
    waits(&mut begins).await;
    let called = called(&member);
    let refused = fixture.insert(&called, Face::Async, 1).await;
    let refused = refused.expect_err("it does not wait");
    assert_eq!(refused.kind, ErrorKind::Denied);
    assert!(refused.message.contains("has not begun"), "{refused:?}");
    drop(begins);
    let refused = fixture.insert(&called, Face::Async, 1).await;
    let refused = refused.expect_err("there is no such level");
    assert!(refused.message.contains("has ended"), "{refused:?}");
    let ended = other.rollback(Face::Async, level).await;
    ended.expect("it ends");
    fixture.assert_clean().await;
}
