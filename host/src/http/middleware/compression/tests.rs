//! Which responses are compressed, in which encoding, and that they decode to the original.

use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder, ZstdDecoder};
use http::Request;
use proptest::prelude::*;

use super::*;
use crate::budget;
use tokio::io::AsyncReadExt as _;

fn compression() -> Compression {
    Compression {
        encodings: vec![Encoding::Br, Encoding::Zstd, Encoding::Gzip],
        min_bytes: 100,
        files: FileCache::new(0),
    }
}

fn whole(content_type: &'static str, body: impl Into<Bytes>) -> Response<ResponseBody> {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    let value = HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

fn page() -> Response<ResponseBody> {
    whole(
        "text/html; charset=utf-8",
        "<p>The same again. ".repeat(100),
    )
}

fn after(accept: &str, mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    let request = Request::builder().header(header::ACCEPT_ENCODING, accept);
    let request = request.body(()).expect("a request").into_parts().0;
    let account = budget::process().unpaid();
    let head = RequestHead {
        request: &request,
        id: "7",
        peer: ([127, 0, 0, 1], 1).into(),
        client: [127, 0, 0, 1].into(),
        user: None,
        account: &account,
    };
    compression().after(head, &mut response);
    response
}

fn encoding(response: &Response<ResponseBody>) -> Option<&str> {
    let encoding = response.headers().get(header::CONTENT_ENCODING)?;
    Some(encoding.to_str().expect("it is text"))
}

/// The body of a response as a client reads it.
async fn read(response: Response<ResponseBody>) -> Vec<u8> {
    let encoding = encoding(&response).map(str::to_owned);
    let body = response
        .into_body()
        .collect()
        .await
        .expect("it is whole")
        .to_bytes();
    let mut plain = Vec::new();
    let read = match encoding.as_deref() {
        Some("br") => BrotliDecoder::new(&body[..]).read_to_end(&mut plain).await,
        Some("zstd") => ZstdDecoder::new(&body[..]).read_to_end(&mut plain).await,
        Some("gzip") => GzipDecoder::new(&body[..]).read_to_end(&mut plain).await,
        _ => return body.to_vec(),
    };
    read.expect("it can be decompressed");
    plain
}

#[test]
fn clients_get_the_encoding_they_would_rather_have() {
    let chosen = |accept: &str| encoding(&after(accept, page())).map(str::to_owned);
    assert_eq!(chosen("gzip, deflate, br, zstd").as_deref(), Some("br"));
    assert_eq!(chosen("gzip, br;q=0.9").as_deref(), Some("gzip"));
    assert_eq!(chosen("gzip, br;q=0").as_deref(), Some("gzip"));
    assert_eq!(chosen("x-gzip").as_deref(), Some("gzip"));
    assert_eq!(chosen("*").as_deref(), Some("br"));
    assert_eq!(chosen("br;q=0, *").as_deref(), Some("zstd"));
    assert_eq!(chosen("identity, gzip;q=0.5"), None);
    assert_eq!(chosen("identity;q=0.5, gzip"), Some("gzip".into()));
    assert_eq!(chosen("deflate"), None);
    assert_eq!(chosen(""), None);
}

#[test]
fn caches_are_told_in_either_case() {
    for accept in ["gzip", "", "identity"] {
        let response = after(accept, page());
        assert_eq!(response.headers()[header::VARY], "accept-encoding");
    }
    let small = after("gzip", whole("text/html", "small"));
    assert!(!small.headers().contains_key(header::VARY));
}

#[test]
fn what_does_not_become_better_stays() {
    let with = |name, value| {
        let mut response = page();
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
        response
    };
    let status = |status| {
        let mut response = page();
        *response.status_mut() = status;
        response
    };
    let body = || "again ".repeat(100);
    for (why, response) in [
        ("small", whole("text/html", "x".repeat(99))),
        ("an image", whole("image/png", body())),
        ("an archive", whole("application/zip", body())),
        ("a stream of events", whole("text/event-stream", body())),
        ("encoded", with(header::CONTENT_ENCODING, "zstd")),
        ("a part", with(header::CONTENT_RANGE, "bytes 0-9/100")),
        ("a part", status(StatusCode::PARTIAL_CONTENT)),
        ("fixed", with(header::CACHE_CONTROL, "public, No-Transform")),
        (
            "of no type",
            Response::new(Either::Left(Full::new(body().into()))),
        ),
    ] {
        let before = (
            response.headers().clone(),
            response.body().size_hint().exact(),
        );
        let response = after("gzip, br, zstd", response);
        let after = (
            response.headers().clone(),
            response.body().size_hint().exact(),
        );
        assert_eq!(before, after, "{why}");
    }
}

#[tokio::test]
async fn a_small_body_has_a_length_and_a_weak_tag() {
    let mut response = page();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, 1900.into());
    headers.insert(header::ETAG, HeaderValue::from_static("\"a\""));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let response = after("gzip", response);
    assert!(!response.headers().contains_key(header::CONTENT_LENGTH));
    assert!(!response.headers().contains_key(header::ACCEPT_RANGES));
    assert_eq!(response.headers()[header::ETAG], "W/\"a\"");
    let length = response.body().size_hint().exact().expect("it is known");
    assert!(length < 200, "{length}");
    assert_eq!(
        read(response).await,
        "<p>The same again. ".repeat(100).as_bytes()
    );
}

/// A 304 has the headers that the full response would have had.
#[test]
fn what_is_not_modified_is_told_like_what_is() {
    let not_modified = |left_out: Option<(&'static str, u64)>, cache_control: &'static str| {
        let mut response = Response::new(Either::Left(Full::default()));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        let headers = response.headers_mut();
        headers.insert(header::ETAG, HeaderValue::from_static("\"a\""));
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static(cache_control),
        );
        if let Some((content_type, length)) = left_out {
            response.extensions_mut().insert(Unmodified {
                content_type: Some(HeaderValue::from_static(content_type)),
                length: Some(length),
            });
        }
        response
    };
    let html = Some(("text/html", 5000));
    for (accept, left_out, cache, tag, varies) in [
        ("gzip", html, "no-cache", "W/\"a\"", true),
        ("identity", html, "no-cache", "\"a\"", true),
        ("gzip", Some(("text/html", 5)), "no-cache", "\"a\"", false),
        (
            "gzip",
            Some(("image/png", 5000)),
            "no-cache",
            "\"a\"",
            false,
        ),
        ("gzip", html, "no-transform", "\"a\"", false),
        ("gzip", None, "no-cache", "W/\"a\"", true),
    ] {
        let response = after(accept, not_modified(left_out, cache));
        assert_eq!(
            response.headers()[header::ETAG],
            tag,
            "{accept} {left_out:?}"
        );
        let told = response.headers().contains_key(header::VARY);
        assert_eq!(told, varies, "{accept} {left_out:?}");
        assert!(!response.headers().contains_key(header::CONTENT_ENCODING));
    }
}

#[tokio::test]
async fn the_answer_to_head_tells_no_length() {
    let mut response = whole("text/css", "");
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, 5000.into());
    let response = after("gzip", response);
    assert_eq!(encoding(&response), Some("gzip"));
    assert!(!response.headers().contains_key(header::CONTENT_LENGTH));
    assert_eq!(response.body().size_hint().exact(), None);
    assert!(read_raw(response).await.is_empty());
}

async fn read_raw(response: Response<ResponseBody>) -> Bytes {
    let body = response.into_body().collect().await;
    body.expect("it is whole").to_bytes()
}

#[tokio::test]
async fn what_is_streamed_arrives_while_it_is_made() {
    for name in ["br", "zstd", "gzip"] {
        let (sender, receiver) = futures::channel::mpsc::unbounded::<io::Result<Frame<Bytes>>>();
        let body = Either::Right(BoxBody::new(StreamBody::new(receiver)));
        let mut response = whole("text/plain", "");
        *response.body_mut() = body;
        let mut response = after(name, response);
        assert_eq!(encoding(&response), Some(name));
        let frame = Frame::data("first ".repeat(20).into());
        sender.unbounded_send(Ok(frame)).expect("it is read");
        let first = response.body_mut().frame();
        let first = tokio::time::timeout(std::time::Duration::from_secs(5), first).await;
        let first = first
            .expect("the end is not waited for")
            .expect("a frame")
            .expect("data");
        assert!(
            first.into_data().is_ok_and(|data| !data.is_empty()),
            "{name}"
        );
        drop(sender);
        read_raw(response).await;
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_whole() {
    let broken = [
        Ok(Frame::data(Bytes::from("a".repeat(1000)))),
        Err(io::Error::other("the disk")),
    ];
    let mut response = whole("text/plain", "");
    *response.body_mut() = Either::Right(BoxBody::new(StreamBody::new(stream::iter(broken))));
    let response = after("gzip", response);
    response
        .into_body()
        .collect()
        .await
        .expect_err("it is not whole");
}

#[tokio::test]
async fn other_requests_get_their_turn() {
    let body: Vec<u8> = (0..1_000_000_u32)
        .flat_map(|n| (n / 7).to_le_bytes())
        .collect();
    let response = after("br", whole("text/plain", body.clone()));
    let turns = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&turns);
    let other = tokio::spawn(async move {
        loop {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(read(response).await, body);
    other.abort();
    let turns = turns.load(std::sync::atomic::Ordering::Relaxed);
    assert!(turns >= body.len() / (64 << 10), "{turns}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn it_is_the_same_inside(
        seed in prop::collection::vec(any::<u8>(), 1..300),
        times in 1..2000_usize,
        accept in prop::sample::select(vec!["br", "zstd", "gzip"]),
    ) {
        let body = seed.repeat(times);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let response = after(accept, whole("text/plain", body.clone()));
        prop_assert_eq!(encoding(&response).is_some(), body.len() >= 100);
        prop_assert_eq!(runtime.block_on(read(response)), body);
    }
}
