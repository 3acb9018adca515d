//! Request bodies that the host keeps, and that views read in pieces or as a whole.

use amphi_sdk::prelude::*;
use amphi_sdk::testing::{App, post};

#[view(post, "/sync")]
fn sum(cx: &Context, body: BodyReader) -> Result<String> {
    let (length, mut chunks, mut sum) = (body.len(), 0, 0_u64);
    for chunk in cx.chunks(body) {
        chunks += 1;
        sum += chunk?.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    }
    Ok(format!("{length} {chunks} {sum}"))
}

#[view(post, "/async")]
async fn sum_async(cx: &Context, body: BodyReader) -> Result<String> {
    let (length, mut count, mut sum) = (body.len(), 0, 0_u64);
    let mut chunks = cx.chunks(body);
    while let Some(chunk) = chunks.next().await? {
        count += 1;
        sum += chunk.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    }
    Ok(format!("{length} {count} {sum}"))
}

#[view(post, "/sync/whole")]
fn length(Body(bytes): Body) -> String {
    bytes.len().to_string()
}

#[view(post, "/async/whole")]
async fn length_async(Json(text): Json<String>) -> String {
    text.len().to_string()
}

#[test]
fn a_large_body_is_read_in_pieces() {
    let app = App::new().spool_over(1000);
    let body = vec![1; 600_000];
    assert_eq!(
        app.call::<sum>(post("/sync").with_body(body.clone()))
            .text(),
        "600000 3 600000"
    );
    assert_eq!(
        app.call::<sum_async>(post("/async").with_body(body)).text(),
        "600000 3 600000"
    );
}

#[test]
fn a_small_body_is_one_piece_and_an_empty_one_none() {
    let app = App::new().spool_over(1000);
    assert_eq!(
        app.call::<sum>(post("/sync").with_body("ab")).text(),
        "2 1 195"
    );
    assert_eq!(
        app.call::<sum_async>(post("/async").with_body("ab")).text(),
        "2 1 195"
    );
    assert_eq!(app.call::<sum>(post("/sync")).text(), "0 0 0");
    assert_eq!(app.call::<sum_async>(post("/async")).text(), "0 0 0");
}

#[test]
fn a_large_body_is_there_whole_for_those_who_want_it() {
    let app = App::new().spool_over(1000);
    assert_eq!(
        app.call::<length>(post("/sync/whole").with_body(vec![1; 600_000]))
            .text(),
        "600000"
    );
    let text = "x".repeat(600_000);
    assert_eq!(
        app.call::<length_async>(post("/async/whole").json(&text))
            .text(),
        "600000"
    );
}
