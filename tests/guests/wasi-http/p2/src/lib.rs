//! A component of `wasi:http` 0.2 that does, by the last segment of the path, all that a host has to cope with.

#[path = "../../target.rs"]
mod target;

wit_bindgen::generate!({
    path: "../../../../guest-sdk/wit",
    world: "amphi:view/imports",
    generate_all,
});

use amphi::view::database;
use amphi::view::database_types::Value;
use target::{Target, hex, parts, spin};
use wasip2::cli::environment;
use wasip2::cli::stdout::get_stdout;
use wasip2::clocks::monotonic_clock;
use wasip2::filesystem::preopens;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, FutureIncomingResponse, IncomingBody, IncomingRequest, IncomingResponse,
    Method, OutgoingBody, OutgoingRequest, OutgoingResponse, RequestOptions, ResponseOutparam,
    Scheme,
};
use wasip2::io::streams::{InputStream, OutputStream, StreamError};
use wasip2::random::random;

struct Component;

wasip2::http::proxy::export!(Component);

impl wasip2::exports::http::incoming_handler::Guest for Component {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = Target::new(request.path_with_query());
        match target.name() {
            "hello" => Answer::text(out, "Hello from wasi:http 0.2\n"),
            "headers" => headers(&request, out),
            "status" => status(&target, out),
            "declares" => declares(&target, out),
            "nap" => {
                std::thread::sleep(std::time::Duration::from_millis(target.number("ms", 0)));
                Answer::text(out, "slept\n");
            }
            "env" => env(out),
            "random" => Answer::text(out, &hex(&random::get_random_bytes(16))),
            "count" => count(out),
            "print" => print(&target, out),
            "sleep" => {
                sleep(&target);
                Answer::text(out, "slept\n");
            }
            "echo" => echo(&request, out),
            "upload" => upload(&request, out),
            "trailers" => trailers(&request, out),
            "drip" => drip(&target, out),
            "big" => big(target.number("mb", 1) << 20, out),
            "endless" => big(u64::MAX, out),
            "huge-headers" => huge_headers(&target, out),
            "many-headers" => many_headers(&target, out),
            "hoard" => hoard(&target, out),
            "outbound" => outbound(&target, None, out),
            "outbound-post" => outbound(&target, Some(&request), out),
            "outbound-body" => outbound_body(&target, out),
            "outbound-many" => outbound_many(&target, out),
            "rows" => Answer::text(out, &insert(&target)),
            "rows-late" => rows_late(&target, out),
            "rows-fail" => {
                insert(&target);
                fail(target.text("how"), &target, out);
            }
            other => fail(other, &target, out),
        }
    }
}

/// The ways to break the contract, and to fail. With `ms` in the query, some time passes before the failure, so that
/// the client may have a part of the answer by then.
fn fail(how: &str, target: &Target, out: ResponseOutparam) {
    match how {
        "trap-before" => panic!("a trap before the answer, on purpose"),
        "trap-middle" => {
            let answer = Answer::begin(out, 200, &[]);
            let _ = answer.write("the first half\n");
            sleep(target);
            panic!("a trap in the middle of the answer, on purpose");
        }
        "trap-after" => {
            Answer::text(out, "the whole answer\n");
            sleep(target);
            panic!("a trap after the answer, on purpose");
        }
        "length-short" => declared(target, out, b"12345"),
        "length-long" => declared(target, out, b"123456789012345"),
        // Dropping the parameter is one way of never using it, forgetting it another.
        "noset" => drop(out),
        "noset-leaked" => std::mem::forget(out),
        "no-finish" => drop(unfinished(target, out)),
        "no-finish-leaked" => std::mem::forget(unfinished(target, out)),
        "spin" => spin(),
        "spin-after" => {
            Answer::text(out, "the whole answer\n");
            sleep(target);
            spin();
        }
        "error-code" => {
            let error = ErrorCode::InternalError(Some("an error on purpose".into()));
            ResponseOutparam::set(out, Err(error));
        }
        "500" => Answer::whole(out, 500, &[], "a failure on purpose\n"),
        _ => Answer::whole(out, 404, &[], "no such path\n"),
    }
}

/// An answer whose head is out, and whose body is being written.
struct Answer {
    stream: OutputStream,
    body: OutgoingBody,
}

impl Answer {
    fn begin(out: ResponseOutparam, status: u16, headers: &[(&str, &str)]) -> Answer {
        let fields = Fields::new();
        for (name, value) in headers {
            fields
                .append(name, value.as_bytes())
                .expect("the host takes this header");
        }
        let response = OutgoingResponse::new(fields);
        response
            .set_status_code(status)
            .expect("the host takes this status");
        let body = response.body().expect("nobody has taken the body");
        ResponseOutparam::set(out, Ok(response));
        let stream = body.write().expect("nobody has taken the stream");
        Answer { stream, body }
    }

    /// An error: nobody reads the body any more.
    fn write(&self, bytes: impl AsRef<[u8]>) -> Result<(), StreamError> {
        let mut pieces = bytes.as_ref().chunks(4096);
        pieces.try_for_each(|piece| self.stream.blocking_write_and_flush(piece))
    }

    fn finish(self, trailers: Option<Fields>) {
        drop(self.stream);
        // An error: there were fewer bytes than the head says.
        let _ = OutgoingBody::finish(self.body, trailers);
    }

    fn whole(out: ResponseOutparam, status: u16, headers: &[(&str, &str)], text: &str) {
        let answer = Answer::begin(out, status, headers);
        let _ = answer.write(text);
        answer.finish(None);
    }

    fn text(out: ResponseOutparam, text: &str) {
        Answer::whole(
            out,
            200,
            &[("content-type", "text/plain; charset=utf-8")],
            text,
        );
    }
}

/// Answers with these bytes, and says that they are ten.
fn declared(target: &Target, out: ResponseOutparam, bytes: &[u8]) {
    let answer = Answer::begin(out, 200, &[("content-length", "10")]);
    let _ = answer.write(bytes);
    sleep(target);
    answer.finish(None);
}

/// Answers, and does not say that the body has ended.
fn unfinished(target: &Target, out: ResponseOutparam) -> OutgoingBody {
    let answer = Answer::begin(out, 200, &[]);
    let _ = answer.write("the whole answer\n");
    sleep(target);
    answer.body
}

/// What the guest gets to see of the request, but for its body.
fn headers(request: &IncomingRequest, out: ResponseOutparam) {
    let mut text = format!(
        "method: {:?}\ntarget: {:?}\nscheme: {:?}\nauthority: {:?}\n",
        request.method(),
        request.path_with_query(),
        request.scheme(),
        request.authority(),
    );
    text.push_str(&lines(&request.headers()));
    Answer::text(out, &text);
}

fn lines(fields: &Fields) -> String {
    let line = |(name, value): (String, Vec<u8>)| format!("{name}={}\n", value.escape_ascii());
    fields.entries().into_iter().map(line).collect()
}

fn status(target: &Target, out: ResponseOutparam) {
    let code = target.number("code", 200) as u16;
    let response = OutgoingResponse::new(Fields::new());
    match response.set_status_code(code) {
        Ok(()) => Answer::begin(out, code, &[]).finish(None),
        Err(()) => Answer::text(out, "no such status\n"),
    }
}

/// A head that declares the length of a body, and no body.
fn declares(target: &Target, out: ResponseOutparam) {
    let code = target.number("code", 200) as u16;
    let length = target.number("length", 100).to_string();
    Answer::begin(out, code, &[("content-length", &length)]).finish(None);
}

fn env(out: ResponseOutparam) {
    let text = format!(
        "variables: {:?}\narguments: {:?}\nfolders: {}\n",
        environment::get_environment(),
        environment::get_arguments(),
        preopens::get_directories().len(),
    );
    Answer::text(out, &text);
}

/// How many requests this instance has had.
fn count(out: ResponseOutparam) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static REQUESTS: AtomicU32 = AtomicU32::new(0);
    let before = REQUESTS.fetch_add(1, Ordering::Relaxed);
    Answer::text(out, &format!("{}\n", before + 1));
}

fn print(target: &Target, out: ResponseOutparam) {
    println!("printed {}", target.text("text"));
    eprintln!("complained {}", target.text("text"));
    for part in ["a line ", "in three ", "parts\n"] {
        // A handle of its own for each.
        let written = get_stdout().blocking_write_and_flush(part.as_bytes());
        written.expect("the host takes output");
    }
    Answer::text(out, "printed\n");
}

fn sleep(target: &Target) {
    monotonic_clock::subscribe_duration(target.number("ms", 0) * 1_000_000).block();
}

/// Hands each piece of a body to `each`, until that refuses one.
fn read(body: &IncomingBody, mut each: impl FnMut(Vec<u8>) -> Result<(), StreamError>) {
    let stream: InputStream = body.stream().expect("nobody has taken the stream");
    while let Ok(piece) = stream.blocking_read(65_536) {
        if each(piece).is_err() {
            return;
        }
    }
}

fn echo(request: &IncomingRequest, out: ResponseOutparam) {
    let body = request.consume().expect("nobody has taken the body");
    let answer = Answer::begin(out, 200, &[]);
    read(&body, |piece| answer.write(piece));
    answer.finish(None);
}

fn upload(request: &IncomingRequest, out: ResponseOutparam) {
    let body = request.consume().expect("nobody has taken the body");
    let mut length = 0;
    read(&body, |piece| {
        length += piece.len();
        Ok(())
    });
    Answer::text(out, &format!("{length} bytes\n"));
}

/// Tells the trailers of the request, and sends some.
fn trailers(request: &IncomingRequest, out: ResponseOutparam) {
    let body = request.consume().expect("nobody has taken the body");
    read(&body, |_| Ok(()));
    let received = received_trailers(body);
    let answer = Answer::begin(out, 200, &[("trailer", "x-sum")]);
    let _ = answer.write(received);
    let sent = Fields::new();
    sent.append("x-sum", b"42")
        .expect("the host takes this header");
    answer.finish(Some(sent));
}

/// The trailers of a body that was read.
fn received_trailers(body: IncomingBody) -> String {
    let future = IncomingBody::finish(body);
    future.subscribe().block();
    match future.get() {
        Some(Ok(Ok(Some(fields)))) => lines(&fields),
        Some(Ok(Ok(None))) => "none\n".into(),
        other => format!("{other:?}\n"),
    }
}

/// Lines, with some time before each.
fn drip(target: &Target, out: ResponseOutparam) {
    let answer = Answer::begin(out, 200, &[]);
    for line in 1..=target.number("n", 3) {
        sleep(target);
        if answer.write(format!("line {line}\n")).is_err() {
            return;
        }
    }
    answer.finish(None);
}

/// Inserts a row when the head of the answer is out, and tells how many there are.
fn rows_late(target: &Target, out: ResponseOutparam) {
    let answer = Answer::begin(out, 200, &[]);
    if answer.write("begun\n").is_err() {
        return;
    }
    sleep(target);
    if answer.write(insert(target)).is_ok() {
        answer.finish(None);
    }
}

/// Writes as programs do that do not block in the stream: as much as there is room for, then waits for more room.
fn big(length: u64, out: ResponseOutparam) {
    const PIECE: &[u8] = &[b'.'; 65_536];
    let answer = Answer::begin(out, 200, &[]);
    let ready = answer.stream.subscribe();
    let mut left = length;
    while left > 0 {
        ready.block();
        let Ok(room) = answer.stream.check_write() else {
            return;
        };
        let now = room.min(left).min(PIECE.len() as u64) as usize;
        if answer.stream.write(&PIECE[..now]).is_err() {
            return;
        }
        left -= now as u64;
    }
    if answer.stream.blocking_flush().is_ok() {
        drop(ready);
        answer.finish(None);
    }
}

fn huge_headers(target: &Target, out: ResponseOutparam) {
    let value = "x".repeat(target.number("kb", 100) as usize * 1024);
    Answer::whole(out, 200, &[("x-huge", &value)], "huge\n");
}

fn many_headers(target: &Target, out: ResponseOutparam) {
    let names: Vec<String> = (0..target.number("n", 300))
        .map(|index| format!("x-{index}"))
        .collect();
    let headers: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "1")).collect();
    Answer::whole(out, 200, &headers, "many\n");
}

/// Holds `n` resources of a kind, each with a text of `bytes`.
fn hoard(target: &Target, out: ResponseOutparam) {
    let text = "x".repeat(target.number("bytes", 50_000) as usize);
    let (mut fields, mut requests) = (Vec::new(), Vec::new());
    for _ in 0..target.number("n", 1_000) {
        let made = Fields::new();
        match target.text("what") {
            "fields" => {
                let appended = made.append("x-much", text.as_bytes());
                appended.expect("the list is short enough");
                fields.push(made);
            }
            "authorities" => {
                let request = OutgoingRequest::new(made);
                let set = request.set_authority(Some(&text));
                set.expect("an authority may be as long");
                requests.push(request);
            }
            "bodies" => {
                let request = OutgoingRequest::new(made);
                drop(request.body().expect("nobody has taken it"));
                requests.push(request);
            }
            what => panic!("no kind of resources: {what}"),
        }
    }
    let held = fields.len() + requests.len();
    drop((fields, requests));
    Answer::text(out, &format!("held {held}\n"));
}

/// Sends GET, or POST with the body of this request, and passes the answer on.
fn outbound(target: &Target, body_of: Option<&IncomingRequest>, out: ResponseOutparam) {
    match fetch(target, body_of) {
        Err(error) => refused(&error, out),
        Ok(response) => {
            let body = response.consume().expect("nobody has taken the body");
            let answer = Answer::begin(out, response.status(), &[]);
            read(&body, |piece| answer.write(piece));
            answer.finish(None);
        }
    }
}

fn refused(error: &ErrorCode, out: ResponseOutparam) {
    Answer::whole(out, 502, &[], &format!("{error:?}\n"));
}

/// A request to the URL.
fn request_to(target: &Target, fields: Fields) -> Result<OutgoingRequest, ErrorCode> {
    let url = parts(target.text("url"));
    let (scheme, authority, path) = url.ok_or(ErrorCode::HttpRequestUriInvalid)?;
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => Scheme::Other(other.into()),
    };
    let request = OutgoingRequest::new(fields);
    let set = request
        .set_scheme(Some(&scheme))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(path)));
    set.map_err(|()| ErrorCode::HttpRequestUriInvalid)?;
    Ok(request)
}

/// Sends a request with the time limits in the query, in milliseconds. What answers comes later.
fn send(target: &Target, request: OutgoingRequest) -> Result<FutureIncomingResponse, ErrorCode> {
    let limit = |key| Some(target.number(key, 60_000) * 1_000_000);
    let options = RequestOptions::new();
    let set = options
        .set_connect_timeout(limit("connect"))
        .and_then(|()| options.set_first_byte_timeout(limit("first")))
        .and_then(|()| options.set_between_bytes_timeout(limit("between")));
    set.expect("the host takes these limits");
    outgoing_handler::handle(request, Some(options))
}

fn wait(response: &FutureIncomingResponse) -> Result<IncomingResponse, ErrorCode> {
    response.subscribe().block();
    let answered = response.get().expect("it is ready");
    answered.expect("nobody has taken the answer")
}

fn fetch(
    target: &Target,
    body_of: Option<&IncomingRequest>,
) -> Result<IncomingResponse, ErrorCode> {
    let request = request_to(target, Fields::new())?;
    if body_of.is_some() {
        let set = request.set_method(&Method::Post);
        set.map_err(|()| ErrorCode::HttpRequestMethodInvalid)?;
    }
    let to = request.body().expect("nobody has taken the body");
    let response = send(target, request)?;
    if let Some(incoming) = body_of {
        let from = incoming.consume().expect("nobody has taken the body");
        let stream = to.write().expect("nobody has taken the stream");
        let answer = Answer { stream, body: to };
        read(&from, |piece| answer.write(piece));
        answer.finish(None);
    } else {
        OutgoingBody::finish(to, None)?;
    }
    wait(&response)
}

/// Posts `write` bytes of which `declare` are declared, or else trailers. Passes the answer on, and tells its trailers.
fn outbound_body(target: &Target, out: ResponseOutparam) {
    match post(target) {
        Err(error) => refused(&error, out),
        Ok(response) => {
            let body = response.consume().expect("nobody has taken the body");
            let answer = Answer::begin(out, response.status(), &[]);
            read(&body, |piece| answer.write(piece));
            let _ = answer.write(format!("\ntrailers: {}", received_trailers(body)));
            answer.finish(None);
        }
    }
}

fn post(target: &Target) -> Result<IncomingResponse, ErrorCode> {
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
    let request = request_to(target, fields)?;
    request
        .set_method(&Method::Post)
        .expect("the host takes this method");
    let body = request.body().expect("nobody has taken the body");
    let response = send(target, request)?;
    let stream = body.write().expect("nobody has taken the stream");
    // An error: it is more than what is declared.
    let _ = stream.blocking_write_and_flush(&vec![b'x'; target.number("write", 10) as usize]);
    drop(stream);
    let trailers = declared.is_empty().then(|| {
        let sent = Fields::new();
        sent.append("x-sum", b"42")
            .expect("the host takes this header");
        sent
    });
    OutgoingBody::finish(body, trailers)?;
    wait(&response)
}

/// Sends `n` requests, one after another, and reads the answers when all are there.
fn outbound_many(target: &Target, out: ResponseOutparam) {
    let responses: Result<Vec<IncomingResponse>, ErrorCode> = (0..target.number("n", 1))
        .map(|_| fetch(target, None))
        .collect();
    match responses {
        Err(error) => refused(&error, out),
        Ok(responses) => {
            sleep(target);
            let mut length = 0;
            for response in &responses {
                let body = response.consume().expect("nobody has taken the body");
                read(&body, |piece| {
                    length += piece.len();
                    Ok(())
                });
            }
            Answer::text(out, &format!("{length} bytes\n"));
        }
    }
}

/// Inserts a row, and tells how many there are.
fn insert(target: &Target) -> String {
    let tag = Value::Text(target.text("tag").into());
    let told = database::execute("default", "insert into rows (tag) values (?)", &[tag])
        .and_then(|_| database::query("default", "select count(*) from rows", &[]));
    match told {
        Ok(table) => match table.rows.first().and_then(|row| row.first()) {
            Some(Value::Integer(count)) => format!("{count} rows\n"),
            other => format!("{other:?}\n"),
        },
        Err(error) => format!("{:?}: {}\n", error.kind, error.message),
    }
}
