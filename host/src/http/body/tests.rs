//! A received body reads back as it was sent, from memory and from a file.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use futures::StreamExt as _;
use http_body_util::{Full, StreamBody};
use hyper::body::Frame;
use proptest::prelude::*;

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

/// A body whose pieces are there at once, and that counts how many of them have been taken.
fn pieces(
    pieces: Vec<Frame<Bytes>>,
) -> (
    impl Body<Data = Bytes, Error = io::Error> + Send + 'static,
    Arc<AtomicUsize>,
) {
    let taken = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&taken);
    let pieces = futures::stream::iter(pieces).map(move |piece| {
        counting.fetch_add(1, SeqCst);
        Ok::<_, io::Error>(piece)
    });
    (StreamBody::new(pieces), taken)
}

fn arriving(
    body: impl Body<Data = Bytes, Error = io::Error> + Send + 'static,
    account: &Arc<Account>,
) -> Arc<Arriving> {
    let limits = Server::default().body_limits();
    let arriving = Arriving::new(body, &limits, account);
    arriving.unwrap_or_else(|failure| panic!("it may arrive: {failure}"))
}

/// Has the tasks of this runtime run until they wait.
async fn settle() {
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_sync_guest_finds_what_has_arrived_and_no_more_than_is_paid_for() {
    const PIECE: usize = 10_000;
    let account = Account::root(u64::MAX);
    let frames = (0..100).map(|_| Frame::data(vec![7; PIECE].into()));
    let (body, taken) = pieces(frames.collect());
    let body = arriving(body, &account);
    settle().await;
    assert_eq!(taken.load(SeqCst), 0, "nobody has asked for it");
    assert_eq!(account.used(), 0);
    let mut read = (body.read(Mode::Sync, Some(0), u32::MAX).await)
        .expect("it can be read")
        .len();
    settle().await;
    assert_eq!(account.used(), read_ahead::BYTES);
    let ahead = taken.load(SeqCst) * PIECE - read;
    assert!(
        ahead > PIECE && ahead as u64 <= read_ahead::BYTES / 4 + PIECE as u64,
        "{ahead} bytes have been received ahead"
    );
    while read < 100 * PIECE {
        let piece = body.read(Mode::Sync, Some(read as u64), u32::MAX).await;
        let piece = piece.expect("it can be read").len();
        assert!(piece > 0, "the end after {read} bytes");
        read += piece;
        settle().await;
    }
    assert_eq!(taken.load(SeqCst), 100);
    drop(body);
    settle().await;
    assert_eq!(account.used(), 0);
}

#[tokio::test]
async fn a_body_that_nobody_reads_any_more_is_not_received_any_more() {
    let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
    let kept = futures::stream::unfold(sender, |kept| async {
        std::future::pending::<()>().await;
        Some((Ok::<_, io::Error>(Frame::data(Bytes::new())), kept))
    });
    let account = Account::root(u64::MAX);
    let body = arriving(StreamBody::new(kept), &account);
    let waiting = body.read(Mode::Sync, Some(0), 10);
    let waited = tokio::time::timeout(Duration::from_millis(20), waiting).await;
    waited.expect_err("nothing arrives");
    drop(body);
    let dropped = tokio::time::timeout(Duration::from_secs(20), receiver).await;
    dropped
        .expect("the body is dropped")
        .expect_err("nothing was sent");
    assert_eq!(account.used(), 0);
}

#[tokio::test]
async fn without_memory_a_sync_guest_reads_piece_by_piece() {
    let account = Account::root(read_ahead::BYTES - 1);
    let (body, taken) = pieces(vec![Frame::data("ab".into()), Frame::data("cd".into())]);
    let body = arriving(body, &account);
    for (offset, text) in [(0, "ab"), (2, "cd"), (4, "")] {
        let read = body.read(Mode::Sync, Some(offset), 10).await;
        assert_eq!(read.expect("it can be read"), text);
        settle().await;
        assert_eq!(taken.load(SeqCst), 2.min(1 + offset as usize / 2));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whoever reads, in pieces of whichever size: the bytes, the trailers and the error come once, and in order.
    #[test]
    fn a_body_that_arrives_is_read_as_it_was(
        sizes in prop::collection::vec(0_usize..300_000, 0..8),
        reads in prop::collection::vec((any::<bool>(), 1_u32..200_000), 1..20),
        breaks in any::<bool>(),
    ) {
        let mut next = 0_u32;
        let mut fill = |size: usize| {
            let bytes = (0..size).map(|_| {
                next = next.wrapping_add(1);
                (next * 7 / 5) as u8
            });
            bytes.collect::<Vec<u8>>()
        };
        let data: Vec<Vec<u8>> = sizes.into_iter().map(&mut fill).collect();
        let all = data.concat();
        let trailers = HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("x"))]);
        let frames = data.into_iter().map(|data| Ok(Frame::data(data.into())));
        let last = match breaks {
            true => Err(io::Error::other("it breaks")),
            false => Ok(Frame::trailers(trailers.clone())),
        };
        let frames: Vec<io::Result<Frame<Bytes>>> = frames.chain([last]).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (back, end, had) = runtime.block_on(async {
            let account = Account::root(u64::MAX);
            let body = arriving(StreamBody::new(futures::stream::iter(frames)), &account);
            let mut back = Vec::new();
            let mut reads = reads.into_iter().cycle();
            let end = loop {
                let (is_sync, max) = reads.next().expect("it goes on forever");
                let mode = if is_sync { Mode::Sync } else { Mode::Async };
                match body.read(mode, Some(back.len() as u64), max).await {
                    Ok(piece) if piece.is_empty() => break None,
                    Ok(piece) => back.extend_from_slice(&piece),
                    Err(error) => break Some(error.to_string()),
                }
            };
            (back, end, RequestBody::Arriving(body).trailers().await)
        });
        prop_assert!(back == all, "{} bytes of {}", back.len(), all.len());
        prop_assert_eq!(end, breaks.then(|| "the body broke off: it breaks".to_owned()));
        prop_assert_eq!(had, (!breaks).then_some(trailers));
    }
}
