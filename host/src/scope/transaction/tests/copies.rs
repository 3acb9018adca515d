//! Copies of requests: whatever they do is undone, and the request goes on in their transaction.

use super::*;

fn options(read_only: bool) -> Options {
    Options {
        atomic: true,
        read_only,
        ..Options::default()
    }
}

fn copy() -> Member {
    Transaction::copy(options(false), false).first_member()
}

/// A request that goes on in the transaction that the copy has left.
async fn request(copy: &Member, fixture: &Fixture) -> Member {
    let request = Transaction::compared(options(false));
    let parked = copy.transaction().parked().await;
    let parked = parked.expect("the copy has left its transaction");
    assert!(request.share(parked, &fixture.deadline).await);
    request.first_member()
}

async fn end(member: &Member, face: Face, keep: bool) -> Fate {
    let ended = member.transaction().finish(face, keep).await;
    ended.expect("it ends")
}

async fn random(face: Face, steps: &[Step], keep: bool) {
    let fixture = Fixture::new();
    let copy = copy();
    let mut levels = Vec::new();
    for (next, step) in (0..).zip(steps) {
        match step {
            Step::Insert | Step::InsertAgain => drop(fixture.insert(&copy, face, next).await),
            Step::Publish => {
                let publish: Effect = Box::new(|| panic!("a copy's effects never run"));
                let what = copy.describe(|| Described::new("event".to_owned(), b""));
                let _ = copy.effect(publish, what);
            }
            Step::Begin => levels.extend(begin_on(&copy, fixture.on()).await),
            Step::Commit => {
                if let Some(level) = levels.pop() {
                    drop(copy.commit(face, level).await);
                }
            }
            Step::Rollback => {
                if let Some(level) = levels.pop() {
                    drop(copy.rollback(face, level).await);
                }
            }
            Step::Abandon => {
                if let Some(level) = levels.pop() {
                    copy.abandon(level);
                }
            }
            Step::SetRollback => copy.set_rollback(),
            Step::Pin | Step::Unpin => {
                let pinned = pin_on(&copy, fixture.on()).await;
                assert_eq!(pinned.expect_err("it cannot").kind, ErrorKind::Denied);
            }
        }
    }
    drop(copy.transaction().finish(face, keep).await);
    let request = Transaction::compared(options(false));
    if let Some(parked) = copy.transaction().parked().await {
        assert!(request.share(parked, &fixture.deadline).await);
    }
    let request = request.first_member();
    let inserted = fixture.insert(&request, face, 1).await;
    inserted.expect("the copy has left nothing");
    let published = Arc::new(AtomicBool::new(false));
    let publish = Arc::clone(&published);
    assert!(request.effect(Box::new(move || publish.store(true, SeqCst)), None));
    assert_eq!(end(&request, face, true).await, Fate::Committed);
    assert!(published.load(SeqCst));
    assert_eq!(fixture.committed().await, [1]);
    fixture.assert_clean().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_is_left_of_a_copy(steps in steps(), keep: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(random(Face::Async, &steps, keep));
        runtime.block_on(random(Face::Sync, &steps, keep));
    }
}

#[tokio::test]
async fn a_request_goes_on_in_the_transaction_of_its_copy() {
    for face in [Face::Sync, Face::Async] {
        let fixture = Fixture::new();
        let copy = copy();
        let inserted = fixture.insert(&copy, face, 1).await;
        assert_eq!(inserted.expect("it is inserted"), 1);
        assert_eq!(
            end(&copy, face, true).await,
            Fate::Committed,
            "it would have been"
        );
        assert_eq!(copy.transaction().wrote().len(), 1);
        let request = request(&copy, &fixture).await;
        // The copy's transaction is open, so nobody else can write between the two.
        let writer = fixture.database.lease(&fixture.deadline, false).await;
        assert!(writer.is_err(), "the writer is not free");
        let inserted = fixture.insert(&request, face, 1).await;
        inserted.expect("the number is free again");
        assert_eq!(end(&request, face, true).await, Fate::Committed);
        assert_eq!(request.transaction().was_shared().await, Compared::Same);
        assert_eq!(fixture.committed().await, [1]);
        fixture.assert_clean().await;
    }
}

#[tokio::test]
async fn a_request_on_another_database_does_not_wait_for_its_copy() {
    let (fixture, other) = (Fixture::new(), Fixture::named("other"));
    let copy = copy();
    let inserted = fixture.insert(&copy, Face::Async, 1).await;
    inserted.expect("it is inserted");
    end(&copy, Face::Async, true).await;
    let request = request(&copy, &fixture).await;
    let inserted = other.insert(&request, Face::Async, 1).await;
    inserted.expect("the copy decides nothing");
    fixture.assert_clean().await;
    assert_eq!(end(&request, Face::Async, true).await, Fate::Committed);
    assert_eq!(request.transaction().was_shared().await, Compared::Apart);
    assert!(fixture.committed().await.is_empty());
    assert_eq!(other.committed().await, [1]);
}

#[tokio::test]
async fn what_nobody_goes_on_with_is_given_back() {
    let fixture = Fixture::new();
    for keep in [true, false] {
        let copy = copy();
        let inserted = fixture.insert(&copy, Face::Async, 1).await;
        inserted.expect("it is inserted");
        end(&copy, Face::Async, keep).await;
        let request = request(&copy, &fixture).await;
        assert_eq!(end(&request, Face::Async, keep).await, Fate::None);
        fixture.assert_clean().await;
    }
    let copy = copy();
    let inserted = fixture.insert(&copy, Face::Async, 1).await;
    inserted.expect("it is inserted");
    copy.transaction().give_up();
    fixture.assert_clean().await;
    assert!(fixture.committed().await.is_empty());
}

#[tokio::test]
async fn a_copied_view_that_is_read_only_writes_nothing() {
    let fixture = Fixture::new();
    let copy = Transaction::copy(options(false), true).first_member();
    let refused = fixture.insert(&copy, Face::Async, 1).await;
    assert_eq!(refused.expect_err("it reads only").kind, ErrorKind::Denied);
}
