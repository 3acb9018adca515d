//! What the views of outbound requests do, in both modes.

use amphi_sdk::http::ErrorKind;
use amphi_sdk::prelude::*;

/// The target of a request, and what to do with it.
#[derive(Deserialize)]
pub struct Target {
    pub url: String,
    /// The length of an upload, in pieces of 64 KiB.
    #[serde(default)]
    pub pieces: usize,
    /// The length that an upload declares.
    pub declared: Option<u64>,
    /// How an upload ends.
    #[serde(default)]
    pub end: String,
    /// How many responses are held, or further requests are sent.
    #[serde(default)]
    pub count: usize,
    /// The time limit of the request.
    pub timeout_ms: Option<u64>,
}

static PIECE: [u8; 64 << 10] = [b'x'; 64 << 10];

/// The kind and the sentence of an error.
pub fn told(result: Result<String>) -> String {
    result.unwrap_or_else(|error| {
        let kind = error
            .http_kind()
            .map_or("other".to_owned(), |kind: ErrorKind| format!("{kind:?}"));
        format!("{kind}: {}", error.detail().unwrap_or_default())
    })
}

/// Reads a response to its end.
#[both]
pub async fn download(cx: &Context, target: Target) -> Result<String> {
    let mut request = cx.http().get(&target.url);
    if let Some(ms) = target.timeout_ms {
        request = request.timeout(Duration::from_millis(ms));
    }
    let mut response = request.stream().await?;
    let (mut bytes, mut pieces) = (0, 0);
    loop {
        match response.read().await {
            Ok(Some(piece)) => {
                bytes += piece.len();
                pieces += 1;
            }
            Ok(None) => break,
            Err(error) => {
                // The end must not be taken for a good one later.
                response.read().await.expect_err("the error stays");
                return Err(error.with_detail(format!("after {bytes} bytes")));
            }
        }
    }
    let after = response.read().await?;
    let size = if pieces > 1 { "pieces" } else { "one piece" };
    Ok(format!(
        "{} {bytes} bytes in {size}{}",
        response.status.as_u16(),
        after.map_or("", |_| " and more after the end")
    ))
}

/// Passes a response on to the client, from the function of a stream, after `count` further requests there.
#[both]
pub async fn proxy(cx: &Context, target: Target) -> Result<Response> {
    let mut response = cx.http().get(&target.url).stream().await?;
    let status = response.status;
    let kind = response
        .headers
        .get("content-type")
        .unwrap_or("none")
        .to_owned();
    let body = cx.stream(async move |cx, out| {
        for _ in 0..target.count {
            let one_more = cx.http().get(&target.url).send().await;
            let one_more = told(one_more.and_then(|response| response.text()));
            out.write(one_more + "\n").await?;
        }
        while let Some(piece) = response.read().await? {
            out.write(piece).await?;
        }
        Ok(())
    });
    (status, body.with_header("x-type", kind)).into_response()
}

/// Passes its body on to a server, and the server's response to the client.
#[both]
pub async fn pass(cx: &Context, target: Target, body: BodyReader) -> Result<Response> {
    let request = cx.http().post(&target.url);
    let mut upload = match body.length() {
        Some(length) => request.upload_sized(length).await?,
        None => request.upload().await?,
    };
    let mut chunks = cx.chunks(body);
    while let Some(chunk) = chunks.try_next().await? {
        upload.write(chunk).await?;
    }
    let mut response = upload.finish().await?;
    let status = response.status;
    let body = cx.stream(async move |_, out| {
        while let Some(piece) = response.read().await? {
            out.write(piece).await?;
        }
        Ok(())
    });
    (status, body).into_response()
}

/// Writes an upload, and ends it as the target says.
#[both]
pub async fn upload(cx: &Context, target: Target) -> Result<String> {
    let mut request = cx.http().put(&target.url).header("x-upload", "yes");
    if let Some(ms) = target.timeout_ms {
        request = request.timeout(Duration::from_millis(ms));
    }
    let mut upload = match target.declared {
        Some(length) => request.upload_sized(length).await?,
        None => request.upload().await?,
    };
    for _ in 0..target.pieces {
        upload.write(PIECE.as_slice()).await?;
    }
    match &*target.end {
        "" => {}
        "drop" => return Ok("dropped".to_owned()),
        "error" => return Err(Error::internal("the view fails on purpose")),
        "panic" => panic!("the view panics on purpose"),
        "spin" => loop {
            std::hint::black_box(());
        },
        // Reads a response that never comes.
        "wait" => {
            cx.http()
                .get(format!("{}/silent", target.url))
                .send()
                .await?;
        }
        "ignore" => {
            let much = vec![b'x'; 1 << 20];
            let first = upload.write(&much).await;
            let second = upload.write("more").await;
            let finished = upload.finish().await;
            let failures = [first.err(), second.err(), finished.err()];
            let lines = failures.map(|error| told(Err(error.expect("it failed"))) + "\n");
            return Ok(lines.concat());
        }
        other => unreachable!("{other}"),
    }
    let mut response = upload.finish().await?;
    let mut text = Vec::new();
    while let Some(piece) = response.read().await? {
        text.extend(piece);
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(format!("{} {text}", response.status.as_u16()))
}

/// Holds responses or, without a count, an upload, and sends one more request.
#[both]
pub async fn hold(cx: &Context, target: Target) -> Result<String> {
    let (mut responses, mut uploads) = (Vec::new(), Vec::new());
    for _ in 0..target.count {
        match &*target.end {
            "uploads" => uploads.push(cx.http().put(&target.url).upload().await?),
            _ => responses.push(cx.http().get(&target.url).stream().await?),
        }
    }
    let one_more = cx.http().get(&target.url).send().await;
    let one_more = told(one_more.and_then(|response| response.text()));
    drop((responses, uploads));
    let later = cx.http().get(&target.url).send().await?;
    Ok(format!("{one_more}\n{}", later.text()?))
}

/// Reads the beginning of some responses, and sends requests afterwards.
#[both]
pub async fn abandon(cx: &Context, target: Target) -> Result<String> {
    let mut texts = String::new();
    for _ in 0..target.count {
        let mut response = cx
            .http()
            .get(format!("{}/big?mb=1", target.url))
            .stream()
            .await?;
        response.read().await?.expect("it has a beginning");
        drop(response);
        let text = cx.http().get(format!("{}/text", target.url)).send().await?;
        texts += &text.text()?;
    }
    Ok(texts)
}
