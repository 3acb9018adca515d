//! A received body reads back as it was sent, from memory and from a file.

use proptest::prelude::*;

use http_body_util::Full;

use super::*;
use crate::config::Server;

async fn received(body: Vec<u8>, limits: &BodyLimits) -> Result<Vec<u8>, StatusCode> {
    let account = Account::root(u64::MAX);
    match receive(Full::<Bytes>::from(body), limits, &account).await {
        Ok(Received::Inline(bytes)) => Ok(bytes),
        Ok(Received::Kept(RequestBody::Arriving(_))) => unreachable!("it was received"),
        Ok(Received::Kept(RequestBody::Spooled(kept))) => {
            let mut all = Vec::new();
            loop {
                let piece = kept.read(all.len() as u64, 1000).expect("it can be read");
                if piece.is_empty() {
                    assert_eq!(all.len() as u64, kept.length());
                    return Ok(all);
                }
                all.extend(piece);
            }
        }
        Err(failure) => Err(failure.status),
    }
}

/// Receives a body of this many bytes. Returns it, and the bytes that it has drawn from the account.
async fn drawn_for(body: usize, account: &Arc<Account>) -> (Received, u64) {
    let before = account.used();
    let limits = Server::default().body_limits();
    let body = Full::<Bytes>::from(vec![7; body]);
    let received = receive(body, &limits, account).await;
    let received = received.unwrap_or_else(|failure| panic!("it is received: {failure}"));
    (received, account.used() - before)
}

#[tokio::test]
async fn bodies_are_drawn_from_the_budget_and_go_to_files_when_it_is_tight() {
    const MB: u64 = 1 << 20;
    let root = Account::root(64 * MB);
    let account = root.connection().request().expect("there is room");
    let (kept, drawn) = drawn_for(300_000, &account).await;
    assert!(matches!(kept, Received::Kept(_)));
    assert!((300_000..600_000).contains(&drawn), "{drawn}");
    drop(kept);
    let others = root.draw(40 * MB).expect("there is room");
    let (in_file, drawn) = drawn_for(300_000, &account).await;
    assert!(drawn <= 64 << 10, "a file needs a buffer: {drawn}");
    let Received::Kept(RequestBody::Spooled(in_file)) = in_file else {
        panic!("it is too large to be handed over at once")
    };
    assert!(in_file.read_memory(0, 1).is_none());
    assert_eq!(in_file.read(299_999, 10).expect("it can be read"), [7]);
    // A small body stays in memory, because it takes less memory than the buffer of a file.
    let (small, _) = drawn_for(1000, &account).await;
    assert!(matches!(small, Received::Inline(_)));
    let _rest = root.draw(root_left(&root, 64 * MB)).expect("there is room");
    let full = Full::<Bytes>::from(vec![7; 300_000]);
    let refused = receive(full, &Server::default().body_limits(), &account).await;
    let refused = refused.err().expect("there is no memory even for a file");
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.detail.contains("`memory_budget_mb`"), "{refused}");
    drop((in_file, small, account, others, _rest));
    assert_eq!(root.used(), 0);
}

fn root_left(root: &Account, max: u64) -> u64 {
    max - root.used()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_body_comes_back_as_it_was_wherever_it_was_kept(body in prop::collection::vec(any::<u8>(), 0..4000)) {
        let mut limits = Server::default().body_limits();
        (limits.inline_bytes, limits.memory_bytes, limits.max_bytes) = (500, 1500, 3000);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let back = runtime.block_on(received(body.clone(), &limits));
        if body.len() > 3000 {
            prop_assert_eq!(back, Err(StatusCode::PAYLOAD_TOO_LARGE));
        } else {
            prop_assert_eq!(back, Ok(body));
        }
    }
}
