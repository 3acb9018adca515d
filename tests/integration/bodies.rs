//! Request bodies of every size, and responses without one.

use reqwest::Body;

use crate::harness::{App, Mode, Reply, guests};

const SIZES: &str =
    "[server]\nbody_inline_bytes = 1000\nbody_memory_bytes = 100000\nbody_max_bytes = 3000000";

fn sample(length: usize) -> Vec<u8> {
    (0..length)
        .map(|index| (index * 7 + index / 251) as u8)
        .collect()
}

fn sum(body: &[u8]) -> u64 {
    body.iter().fold(0, |sum: u64, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
    })
}

/// A body without a length, sent in chunks.
fn chunked(body: &[u8]) -> Body {
    let pieces: Vec<Result<Vec<u8>, std::io::Error>> =
        body.chunks(7919).map(|piece| Ok(piece.to_vec())).collect();
    Body::wrap_stream(futures::stream::iter(pieces))
}

/// Bodies of three kinds (handed over with the request, kept by the host in memory, kept by the host in a file) are
/// sent with a length and in chunks, and read as a whole and piece by piece.
async fn bodies_arrive_as_they_were_sent(mode: Mode) {
    let server = App::new(SIZES).serve().await;
    for length in [
        0, 1, 999, 1000, 1001, 99_999, 100_000, 100_001, 1_048_576, 2_999_999, 3_000_000,
    ] {
        let body = sample(length);
        let expected = format!("{length} {} ", sum(&body));
        for path in ["whole", "digest"] {
            let path = format!("/{mode}/{path}");
            let reply = server.post(&path, body.clone()).await;
            assert!(
                reply.ok().starts_with(&expected),
                "{path} of {length}: {}",
                reply.text()
            );
            let reply = server.post(&path, chunked(&body)).await;
            assert!(
                reply.ok().starts_with(&expected),
                "{path} of {length} in chunks: {}",
                reply.text()
            );
        }
    }
    server.assert_baseline().await;
}
both_modes!(bodies_arrive_as_they_were_sent);

async fn a_large_body_is_read_in_pieces(mode: Mode) {
    let server = App::new(SIZES).serve().await;
    let reply = server
        .post(&format!("/{mode}/digest"), sample(3_000_000))
        .await;
    let pieces: u32 = reply
        .ok()
        .rsplit(' ')
        .next()
        .and_then(|text| text.parse().ok())
        .expect("it says how many");
    assert!(pieces > 5, "{}", reply.text());
    server.assert_baseline().await;
}
both_modes!(a_large_body_is_read_in_pieces);

async fn a_body_over_the_limit_is_413(mode: Mode) {
    let server = App::new(SIZES).serve().await;
    let body = sample(3_000_001);
    let mark = server.log.mark();
    let reply = Reply::maybe(
        server
            .request("POST", &format!("/{mode}/whole"))
            .body(chunked(&body)),
    )
    .await;
    // The server may close the connection before all of the body is sent.
    if let Ok(reply) = reply {
        assert_eq!(reply.status, 413);
        assert!(
            reply.text().contains("more than 3000000 bytes"),
            "{}",
            reply.text()
        );
    }
    let lines = server.log.requests(mark, 1).await;
    assert_eq!(lines[0].number("status"), 413, "{lines:#?}");
    server.assert_baseline().await;
}
both_modes!(a_body_over_the_limit_is_413);

/// A body that does not fit into the view's memory is refused with 413, not with 500.
async fn a_body_that_does_not_fit_the_memory_is_413(mode: Mode) {
    let server = App::new("limits.memory_mb = 6\nserver.body_max_bytes = 20000000")
        .serve()
        .await;
    let reply = server
        .post(&format!("/{mode}/whole"), sample(16 << 20))
        .await;
    assert_eq!(reply.status, 413, "{}", reply.text());
    let reply = server
        .post(&format!("/{mode}/digest"), sample(16 << 20))
        .await;
    assert!(reply.ok().starts_with("16777216 "), "{}", reply.text());
    server.assert_baseline().await;
}
both_modes!(a_body_that_does_not_fit_the_memory_is_413);

async fn forms_are_checked(mode: Mode) {
    let server = App::new("").serve().await;
    let submit = async |kind: &str, body: &'static [u8]| {
        Reply::of(
            server
                .request("POST", &format!("/{mode}/submit"))
                .header("content-type", kind)
                .body(body),
        )
        .await
    };
    let form = "application/x-www-form-urlencoded";
    assert_eq!(
        submit(form, b"name=Zo%C3%AB+A&age=7").await.ok(),
        "Zoë A is 7"
    );
    assert_eq!(
        submit(&format!("{form}; charset=UTF-8"), b"name=a&age=7")
            .await
            .ok(),
        "a is 7"
    );
    assert_eq!(submit(form, b"name=%ff&age=7").await.status, 400);
    assert_eq!(submit(form, b"name=\xff&age=7").await.status, 400);
    assert_eq!(submit(form, b"name=%C3&age=7").await.status, 400);
    assert_eq!(submit(form, b"name=a").await.status, 422);
    assert_eq!(submit(form, b"name=a&age=old").await.status, 422);
    assert_eq!(submit(form, b"name=a&age=700").await.status, 422);
    assert_eq!(submit(form, b"").await.status, 422);
    assert_eq!(submit(form, b"&&&===&%&name").await.status, 422);
    assert_eq!(submit("text/plain", b"name=a&age=7").await.status, 415);
    server.assert_baseline().await;
}
both_modes!(forms_are_checked);

/// A called view can read the client's body only if each caller passed that body on. The host says how long the body
/// is, whatever length the caller claims.
async fn a_called_view_reads_the_clients_body_only_when_it_was_passed_on(mode: Mode) {
    let component = guests::misfit(&format!("{mode}_courier"));
    let module = format!("{SIZES}\n[modules.courier]\npath = {component:?}\nsubrequests = true");
    let server = App::new(&module).serve().await;
    for (how, length, expected) in [
        ("send?own", 5000, "spooled 5000, read 5000"),
        ("send?other", 5000, "bytes 2, read 0"),
        ("send?other-own", 5000, "bytes 0, read 0"),
        ("send?own", 7, "bytes 0, read 0"),
        ("read", 5000, "spooled 5000, read 5000"),
        ("read", 7, "bytes 7, read 0"),
    ] {
        let path = format!("/{mode}/{how}");
        let reply = server.post(&path, sample(length)).await;
        assert_eq!(reply.ok(), expected, "{how} of {length}");
    }
    server.assert_baseline().await;
}
both_modes!(a_called_view_reads_the_clients_body_only_when_it_was_passed_on);
