//! A component of `wasi:http` 0.3 that does, by the last segment of the path, all that a host has to cope with.

#[path = "../../target.rs"]
mod target;

wit_bindgen::generate!({
    path: "../../../../guest-sdk/wit",
    world: "amphi:view/imports",
    generate_all,
});

use amphi::view::database_async as database;
use amphi::view::database_types::Value;
use futures::future::{join, join_all};
use target::{Target, hex, parts, spin};
use wasip3::cli::stdout;
use wasip3::clocks::monotonic_clock;
use wasip3::http::client;
use wasip3::http::types::{ErrorCode, Fields, Method, Request, RequestOptions, Response, Scheme};
use wasip3::random::random;
use wasip3::{spawn_local, wit_future, wit_stream};
use wit_bindgen::{FutureReader, FutureWriter, StreamReader, StreamResult, StreamWriter};

/// How a body ends.
type End = Result<Option<Fields>, ErrorCode>;

struct Component;

wasip3::http::service::export!(Component);

impl wasip3::exports::http::handler::Guest for Component {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let target = Target::new(request.get_path_with_query());
        match target.name() {
            "hello" => text("Hello from wasi:http 0.3\n"),
            "headers" => headers(&request),
            "status" => status(&target),
            "declares" => declares(&target),
            "nap" => {
                std::thread::sleep(std::time::Duration::from_millis(target.number("ms", 0)));
                text("slept\n")
            }
            "env" => env(),
            "random" => text(hex(&random::get_random_bytes(16))),
            "count" => count(),
            "print" => print(&target).await,
            "sleep" => {
                sleep(&target).await;
                text("slept\n")
            }
            "concurrent" => {
                join_all((0..target.number("n", 5)).map(|_| sleep(&target))).await;
                text("slept\n")
            }
            "echo" => echo(request),
            "pass" => pass(request),
            "spares" => spares(&target).await,
            "own-body" => own_body(&target).await,
            "told" => told(),
            "upload" => upload(request).await,
            "trailers" => trailers(request).await,
            "drip" => drip(target),
            "big" => big(target.number("mb", 1) << 20),
            "endless" => big(u64::MAX),
            "huge-headers" => huge_headers(&target),
            "many-headers" => many_headers(&target),
            "hoard" => hoard(&target),
            "outbound" => outbound(&target, None).await,
            "outbound-post" => outbound(&target, Some(request)).await,
            "outbound-body" => outbound_body(&target).await,
            "outbound-many" => outbound_many(&target).await,
            "rows" => text(insert(&target).await),
            "rows-late" => rows_late(target),
            "rows-fail" => {
                insert(&target).await;
                let how = target.text("how").to_owned();
                fail(&how, target)
            }
            other => {
                let how = other.to_owned();
                fail(&how, target)
            }
        }
    }
}

/// The ways to break the contract, and to fail. With `ms` in the query, some time passes before the failure, so that
/// the client may have a part of the answer by then.
fn fail(how: &str, target: Target) -> Result<Response, ErrorCode> {
    match how {
        "trap-before" => panic!("a trap before the answer, on purpose"),
        "trap-middle" => answer(200, &[], async move |body| {
            write(body, "the first half\n").await;
            sleep(&target).await;
            panic!("a trap in the middle of the answer, on purpose")
        }),
        "trap-after" => then(target, || panic!("a trap after the answer, on purpose")),
        "length-short" => declared(target, b"12345"),
        "length-long" => declared(target, b"123456789012345"),
        // Nobody ever says how the body ends: the one who would waits for ever, or has forgotten it.
        "no-finish" => answer(200, &[], async |body| {
            write(body, "the whole answer\n").await;
            monotonic_clock::wait_for(u64::MAX).await;
            Ok(None)
        }),
        "no-finish-leaked" => {
            let (response, mut body, end) = begin(200, &[]);
            std::mem::forget(end);
            spawn_local(async move {
                write(&mut body, "the whole answer\n").await;
                sleep(&target).await;
            });
            Ok(response)
        }
        "end-error" => answer(200, &[], async move |body| {
            write(body, "the first half\n").await;
            sleep(&target).await;
            let why = "an error in the middle of the answer, on purpose";
            Err(ErrorCode::InternalError(Some(why.into())))
        }),
        "spin" => spin(),
        "spin-after" => then(target, || spin()),
        "error-code" => {
            let why = "an error on purpose";
            Err(ErrorCode::InternalError(Some(why.into())))
        }
        "500" => whole(500, &[], "a failure on purpose\n"),
        _ => whole(404, &[], "no such path\n"),
    }
}

/// An answer, and what writes its body and says how it ends.
fn begin(status: u16, headers: &[(&str, &str)]) -> (Response, StreamWriter<u8>, FutureWriter<End>) {
    let (body, contents) = wit_stream::new();
    let (end, trailers) = wit_future::new(|| Ok(None));
    (respond(status, headers, contents, trailers), body, end)
}

/// An answer with the body that `write` writes, once the head is out.
fn answer(
    status: u16,
    headers: &[(&str, &str)],
    write: impl AsyncFnOnce(&mut StreamWriter<u8>) -> End + 'static,
) -> Result<Response, ErrorCode> {
    let (response, mut body, end) = begin(status, headers);
    spawn_local(async move {
        let how = write(&mut body).await;
        drop(body);
        // An error: nobody wants to know any more.
        let _ = end.write(how).await;
    });
    Ok(response)
}

fn respond(
    status: u16,
    headers: &[(&str, &str)],
    contents: StreamReader<u8>,
    trailers: FutureReader<End>,
) -> Response {
    let fields = Fields::new();
    for (name, value) in headers {
        fields
            .append(name, value.as_bytes())
            .expect("the host takes this header");
    }
    let (response, _sent) = Response::new(fields, Some(contents), trailers);
    response
        .set_status_code(status)
        .expect("the host takes this status");
    response
}

/// Returns whether somebody still reads the body.
async fn write(body: &mut StreamWriter<u8>, bytes: impl Into<Vec<u8>>) -> bool {
    body.write_all(bytes.into()).await.is_empty()
}

fn whole(
    status: u16,
    headers: &[(&str, &str)],
    text: impl Into<Vec<u8>>,
) -> Result<Response, ErrorCode> {
    let text = text.into();
    answer(status, headers, async move |body| {
        write(body, text).await;
        Ok(None)
    })
}

fn text(text: impl Into<Vec<u8>>) -> Result<Response, ErrorCode> {
    let headers = [("content-type", "text/plain; charset=utf-8")];
    whole(200, &headers, text)
}

/// Answers, and does this when the answer is complete.
fn then(target: Target, after: impl FnOnce() + 'static) -> Result<Response, ErrorCode> {
    let (response, mut body, end) = begin(200, &[]);
    spawn_local(async move {
        write(&mut body, "the whole answer\n").await;
        drop(body);
        let _ = end.write(Ok(None)).await;
        sleep(&target).await;
        after();
    });
    Ok(response)
}

/// Answers with these bytes, and says that they are ten.
fn declared(target: Target, bytes: &'static [u8]) -> Result<Response, ErrorCode> {
    answer(200, &[("content-length", "10")], async move |body| {
        write(body, bytes).await;
        sleep(&target).await;
        Ok(None)
    })
}

/// What the guest gets to see of the request, but for its body.
fn headers(request: &Request) -> Result<Response, ErrorCode> {
    let told = format!(
        "method: {:?}\ntarget: {:?}\nscheme: {:?}\nauthority: {:?}\n",
        request.get_method(),
        request.get_path_with_query(),
        request.get_scheme(),
        request.get_authority(),
    );
    text(told + &lines(&request.get_headers()))
}

fn lines(fields: &Fields) -> String {
    let line = |(name, value): (String, Vec<u8>)| format!("{name}={}\n", value.escape_ascii());
    fields.copy_all().into_iter().map(line).collect()
}

fn status(target: &Target) -> Result<Response, ErrorCode> {
    let code = target.number("code", 200) as u16;
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(Fields::new(), None, trailers);
    match response.set_status_code(code) {
        Ok(()) => Ok(response),
        Err(()) => text("no such status\n"),
    }
}

/// A head that declares the length of a body, and no body.
fn declares(target: &Target) -> Result<Response, ErrorCode> {
    let code = target.number("code", 200) as u16;
    let length = target.number("length", 100).to_string();
    answer(code, &[("content-length", &length)], async |_| Ok(None))
}

fn env() -> Result<Response, ErrorCode> {
    text(format!(
        "variables: {:?}\narguments: {:?}\nfolders: {}\n",
        std::env::vars().collect::<Vec<_>>(),
        std::env::args().collect::<Vec<_>>(),
        u8::from(std::fs::read_dir("/").is_ok()),
    ))
}

/// How many requests this instance has had.
fn count() -> Result<Response, ErrorCode> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static REQUESTS: AtomicU32 = AtomicU32::new(0);
    let before = REQUESTS.fetch_add(1, Ordering::Relaxed);
    text(format!("{}\n", before + 1))
}

async fn print(target: &Target) -> Result<Response, ErrorCode> {
    println!("printed {}", target.text("text"));
    eprintln!("complained {}", target.text("text"));
    for part in ["a line ", "in three ", "parts\n"] {
        // A handle of its own for each.
        let (mut writer, output) = wit_stream::new();
        let written = stdout::write_via_stream(output);
        write(&mut writer, part).await;
        drop(writer);
        written.await.expect("the host takes output");
    }
    text("printed\n")
}

async fn sleep(target: &Target) {
    monotonic_clock::wait_for(target.number("ms", 0) * 1_000_000).await;
}

/// The body of a request, and what tells how it ends.
fn body_of(request: Request) -> (StreamReader<u8>, FutureReader<End>) {
    let (_, read) = wit_future::new(|| Ok(()));
    Request::consume_body(request, read)
}

/// The next bytes of a body, if there are any.
async fn read(body: &mut StreamReader<u8>) -> Option<Vec<u8>> {
    let (result, bytes) = body.read(Vec::with_capacity(65_536)).await;
    let more = !bytes.is_empty() || matches!(result, StreamResult::Complete(_));
    more.then_some(bytes)
}

/// Sends the body back as it is read.
fn echo(request: Request) -> Result<Response, ErrorCode> {
    let (mut incoming, end) = body_of(request);
    answer(200, &[], async move |body| {
        while let Some(bytes) = read(&mut incoming).await {
            if !write(body, bytes).await {
                return Ok(None);
            }
        }
        end.await.map(|_trailers| None)
    })
}

/// Makes the body of the request that of the answer, without reading it.
fn pass(request: Request) -> Result<Response, ErrorCode> {
    let (incoming, end) = body_of(request);
    Ok(respond(200, &[], incoming, end))
}

/// Makes answers that it drops while their bodies are being written, and then one that it gives.
async fn spares(target: &Target) -> Result<Response, ErrorCode> {
    for _ in 0..target.number("n", 1) {
        let never_given = answer(200, &[], async |body| {
            while write(body, "nobody reads this\n").await {}
            Ok(None)
        });
        sleep(target).await;
        drop(never_given);
    }
    text("the answer\n")
}

/// Reads the body of an answer that it has made, and gives it in another.
async fn own_body(target: &Target) -> Result<Response, ErrorCode> {
    let bytes = target.number("bytes", 10);
    let made = answer(200, &[], async move |body| {
        write(body, vec![b'x'; bytes as usize]).await;
        Ok(None)
    })?;
    sleep(target).await;
    let (_, read_whole) = wit_future::new(|| Ok(()));
    let (mut body, end) = Response::consume_body(made, read_whole);
    let mut length = 0;
    while let Some(bytes) = read(&mut body).await {
        length += bytes.len();
    }
    end.await?;
    text(format!("{length} bytes\n"))
}

/// Prints what it is told of the sending of its answer.
fn told() -> Result<Response, ErrorCode> {
    let (mut body, contents) = wit_stream::new();
    let (end, trailers) = wit_future::new(|| Ok(None));
    let (response, sent) = Response::new(Fields::new(), Some(contents), trailers);
    spawn_local(async move {
        write(&mut body, "told").await;
        drop(body);
        let _ = end.write(Ok(None)).await;
        println!("told: {:?}", sent.await);
    });
    Ok(response)
}

async fn upload(request: Request) -> Result<Response, ErrorCode> {
    let (mut incoming, end) = body_of(request);
    let mut length = 0;
    while let Some(bytes) = read(&mut incoming).await {
        length += bytes.len();
    }
    end.await?;
    text(format!("{length} bytes\n"))
}

/// Tells the trailers of the request, and sends some.
async fn trailers(request: Request) -> Result<Response, ErrorCode> {
    let (mut incoming, end) = body_of(request);
    while read(&mut incoming).await.is_some() {}
    let received = received_trailers(end).await;
    answer(200, &[("trailer", "x-sum")], async move |body| {
        write(body, received).await;
        let sent = Fields::new();
        sent.append("x-sum", b"42")
            .expect("the host takes this header");
        Ok(Some(sent))
    })
}

async fn received_trailers(end: FutureReader<End>) -> String {
    match end.await {
        Ok(Some(fields)) => lines(&fields),
        Ok(None) => "none\n".into(),
        Err(error) => format!("{error:?}\n"),
    }
}

/// Lines, with some time before each.
fn drip(target: Target) -> Result<Response, ErrorCode> {
    answer(200, &[], async move |body| {
        for line in 1..=target.number("n", 3) {
            sleep(&target).await;
            if !write(body, format!("line {line}\n")).await {
                break;
            }
        }
        Ok(None)
    })
}

/// Inserts a row when the head of the answer is out, and tells how many there are.
fn rows_late(target: Target) -> Result<Response, ErrorCode> {
    answer(200, &[], async move |body| {
        write(body, "begun\n").await;
        sleep(&target).await;
        write(body, insert(&target).await).await;
        Ok(None)
    })
}

fn big(length: u64) -> Result<Response, ErrorCode> {
    const PIECE: u64 = 65_536;
    answer(200, &[], async move |body| {
        let mut left = length;
        while left > 0 {
            let now = left.min(PIECE);
            if !write(body, vec![b'.'; now as usize]).await {
                break;
            }
            left -= now;
        }
        Ok(None)
    })
}

fn huge_headers(target: &Target) -> Result<Response, ErrorCode> {
    let value = "x".repeat(target.number("kb", 100) as usize * 1024);
    whole(200, &[("x-huge", &value)], "huge\n")
}

fn many_headers(target: &Target) -> Result<Response, ErrorCode> {
    let names: Vec<String> = (0..target.number("n", 300))
        .map(|index| format!("x-{index}"))
        .collect();
    let headers: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "1")).collect();
    whole(200, &headers, "many\n")
}

/// Holds `n` resources of a kind, each with a text of `bytes`.
fn hoard(target: &Target) -> Result<Response, ErrorCode> {
    let text_of_it = "x".repeat(target.number("bytes", 50_000) as usize);
    let (mut fields, mut requests, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..target.number("n", 1_000) {
        let made = Fields::new();
        match target.text("what") {
            "fields" => {
                let appended = made.append("x-much", text_of_it.as_bytes());
                appended.expect("the list is short enough");
                fields.push(made);
            }
            "authorities" => {
                let (end, trailers) = wit_future::new(|| Ok(None));
                let (request, sent) = Request::new(made, None, trailers, None);
                let set = request.set_authority(Some(&text_of_it));
                set.expect("an authority may be as long");
                requests.push(request);
                ends.push((end, sent));
            }
            what => panic!("no kind of resources: {what}"),
        }
    }
    let held = fields.len() + requests.len();
    drop((fields, requests));
    text(format!("held {held}\n"))
}

/// Sends GET, or POST with the body of this request, and passes the answer on.
async fn outbound(target: &Target, incoming: Option<Request>) -> Result<Response, ErrorCode> {
    match fetch(target, incoming).await {
        Err(error) => refused(&error),
        Ok(response) => {
            let status = response.get_status_code();
            let (_, read) = wit_future::new(|| Ok(()));
            let (contents, end) = Response::consume_body(response, read);
            Ok(respond(status, &[], contents, end))
        }
    }
}

fn refused(error: &ErrorCode) -> Result<Response, ErrorCode> {
    whole(502, &[], format!("{error:?}\n"))
}

async fn fetch(target: &Target, incoming: Option<Request>) -> Result<Response, ErrorCode> {
    let (method, contents, trailers) = match incoming {
        Some(incoming) => {
            let (contents, trailers) = body_of(incoming);
            (Method::Post, Some(contents), trailers)
        }
        None => (Method::Get, None, wit_future::new(|| Ok(None)).1),
    };
    send(target, &method, Fields::new(), contents, trailers).await
}

/// Sends a request to the URL, with the time limits in the query, in milliseconds.
async fn send(
    target: &Target,
    method: &Method,
    fields: Fields,
    contents: Option<StreamReader<u8>>,
    trailers: FutureReader<End>,
) -> Result<Response, ErrorCode> {
    let url = parts(target.text("url"));
    let (scheme, authority, path) = url.ok_or(ErrorCode::HttpRequestUriInvalid)?;
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => Scheme::Other(other.into()),
    };
    let limit = |key| Some(target.number(key, 60_000) * 1_000_000);
    let options = RequestOptions::new();
    let set = options
        .set_connect_timeout(limit("connect"))
        .and_then(|()| options.set_first_byte_timeout(limit("first")))
        .and_then(|()| options.set_between_bytes_timeout(limit("between")));
    set.expect("the host takes these limits");
    let (request, _sent) = Request::new(fields, contents, trailers, Some(options));
    let set = request
        .set_method(method)
        .and_then(|()| request.set_scheme(Some(&scheme)))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(path)));
    set.map_err(|()| ErrorCode::HttpRequestUriInvalid)?;
    client::send(request).await
}

/// Posts `write` bytes of which `declare` are declared, or else trailers. Passes the answer on, and tells its trailers.
async fn outbound_body(target: &Target) -> Result<Response, ErrorCode> {
    let declared = target.text("declare");
    let headers = match declared.is_empty() {
        true => [("trailer", "x-sum"), ("te", "trailers, deflate")].as_slice(),
        false => &[("content-length", declared)],
    };
    let fields = Fields::new();
    for (name, value) in headers {
        fields
            .append(name, value.as_bytes())
            .expect("the host takes this header");
    }
    let (mut body, contents) = wit_stream::new();
    let (end, trailers) = wit_future::new(|| Ok(None));
    let sent = declared.is_empty().then(|| {
        let sent = Fields::new();
        sent.append("x-sum", b"42")
            .expect("the host takes this header");
        sent
    });
    let length = target.number("write", 10) as usize;
    let writing = async move {
        write(&mut body, vec![b'x'; length]).await;
        drop(body);
        // An error: nobody wants to know any more.
        let _ = end.write(Ok(sent)).await;
    };
    let sending = send(target, &Method::Post, fields, Some(contents), trailers);
    let (response, ()) = join(sending, writing).await;
    let response = match response {
        Ok(response) => response,
        Err(error) => return refused(&error),
    };
    let (_, read_to) = wit_future::new(|| Ok(()));
    let status = response.get_status_code();
    let (mut incoming, end) = Response::consume_body(response, read_to);
    answer(status, &[], async move |body| {
        while let Some(bytes) = read(&mut incoming).await {
            write(body, bytes).await;
        }
        write(
            body,
            format!("\ntrailers: {}", received_trailers(end).await),
        )
        .await;
        Ok(None)
    })
}

/// Sends `n` requests, one after another, and reads the answers when all are there.
async fn outbound_many(target: &Target) -> Result<Response, ErrorCode> {
    let mut responses = Vec::new();
    for _ in 0..target.number("n", 1) {
        match fetch(target, None).await {
            Ok(response) => responses.push(response),
            Err(error) => return refused(&error),
        }
    }
    sleep(target).await;
    let mut length = 0;
    for response in responses {
        let (_, read_to) = wit_future::new(|| Ok(()));
        let (mut incoming, end) = Response::consume_body(response, read_to);
        while let Some(bytes) = read(&mut incoming).await {
            length += bytes.len();
        }
        end.await?;
    }
    text(format!("{length} bytes\n"))
}

/// Inserts a row, and tells how many there are.
async fn insert(target: &Target) -> String {
    let tag = Value::Text(target.text("tag").into());
    let sql = "insert into rows (tag) values (?)";
    if let Err(error) = database::execute("default".into(), sql.into(), vec![tag]).await {
        return format!("{:?}: {}\n", error.kind, error.message);
    }
    let sql = "select count(*) from rows";
    match database::query("default".into(), sql.into(), Vec::new()).await {
        Ok(table) => match table.rows.first().and_then(|row| row.first()) {
            Some(Value::Integer(count)) => format!("{count} rows\n"),
            other => format!("{other:?}\n"),
        },
        Err(error) => format!("{:?}: {}\n", error.kind, error.message),
    }
}
