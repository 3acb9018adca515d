//! Middleware of `wasi:http` 0.3, which does what the header `x-do` says.

wit_bindgen::generate!({
    path: "src/next.wit",
    world: "next",
    with: {
        "wasi:http/types@0.3.2": wasip3::http::types,
        "wasi:http/handler@0.3.2": generate,
    },
});

use wasi::http::handler::handle as next;
use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::{spawn_local, wit_future, wit_stream};
use wit_bindgen::{FutureReader, StreamReader, StreamResult};

/// How a body ends.
type End = Result<Option<Fields>, ErrorCode>;

struct Component;

wasip3::http::service::export!(Component);

impl wasip3::exports::http::handler::Guest for Component {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let how = request.get_headers().get("x-do").pop();
        let how = String::from_utf8(how.unwrap_or_default()).expect("it is a word");
        match &*how {
            // Without the rest of the chain.
            "stop" => Ok(whole("stopped\n")),
            "trap-before" => panic!("a trap before the next handler, on purpose"),
            "trap-after" => {
                next(request).await?;
                panic!("a trap after the next handler, on purpose")
            }
            // The response is changed while it comes.
            "upper" => Ok(upper(next(request).await?, None)),
            "trap-middle" => Ok(upper(next(request).await?, Some(1))),
            // It is read as a whole, before the answer.
            "collect" => {
                let (contents, _) = body_of(next(request).await?);
                let bytes = read_all(contents).await;
                Ok(whole(format!("{} bytes\n", bytes.len())))
            }
            // The response is not wanted.
            "replace" => {
                next(request).await?;
                Ok(whole("replaced\n"))
            }
            // The body of the request is changed.
            "request" => next(upper_request(request)).await,
            "twice" => {
                let again = copy(&request);
                next(request).await?;
                next(again).await
            }
            // An error is told as a page.
            "catch" => match next(request).await {
                Ok(response) => Ok(response),
                Err(error) => Ok(whole(format!("caught {error:?}\n"))),
            },
            _ => next(request).await,
        }
    }
}

fn end() -> FutureReader<End> {
    wit_future::new(|| Ok(None)).1
}

fn whole(text: impl Into<Vec<u8>>) -> Response {
    let text = text.into();
    let (mut body, contents) = wit_stream::new();
    spawn_local(async move {
        body.write_all(text).await;
    });
    Response::new(Fields::new(), Some(contents), end()).0
}

fn body_of(response: Response) -> (StreamReader<u8>, FutureReader<End>) {
    let (_, read) = wit_future::new(|| Ok(()));
    Response::consume_body(response, read)
}

/// The next bytes of a body, if there are any.
async fn read(body: &mut StreamReader<u8>) -> Option<Vec<u8>> {
    let (result, bytes) = body.read(Vec::with_capacity(65_536)).await;
    let more = !bytes.is_empty() || matches!(result, StreamResult::Complete(_));
    more.then_some(bytes)
}

async fn read_all(mut body: StreamReader<u8>) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(bytes) = read(&mut body).await {
        all.extend(bytes);
    }
    all
}

/// A response with the same head, and the body in capital letters. `pieces`: after so many, there is a trap.
fn upper(response: Response, pieces: Option<usize>) -> Response {
    let status = response.get_status_code();
    let headers = response.get_headers();
    let fields = Fields::from_list(&headers.copy_all()).expect("the host takes them");
    let (mut incoming, ended) = body_of(response);
    let (mut body, contents) = wit_stream::new();
    let (end, trailers) = wit_future::new(|| Ok(None));
    spawn_local(async move {
        let mut number = 0;
        while let Some(bytes) = read(&mut incoming).await {
            if !body.write_all(bytes.to_ascii_uppercase()).await.is_empty() {
                break;
            }
            number += 1;
            if pieces == Some(number) {
                panic!("a trap in the middle of the answer, on purpose");
            }
        }
        drop(body);
        let _ = end.write(ended.await).await;
    });
    let (response, _sent) = Response::new(fields, Some(contents), trailers);
    response.set_status_code(status).expect("it was one");
    response
}

fn copy(request: &Request) -> Request {
    let fields = Fields::from_list(&request.get_headers().copy_all()).expect("the host takes them");
    let (copy, _sent) = Request::new(fields, None, end(), None);
    same_target(request, &copy);
    copy
}

fn same_target(from: &Request, to: &Request) {
    let set = to
        .set_method(&from.get_method())
        .and_then(|()| to.set_scheme(from.get_scheme().as_ref()))
        .and_then(|()| to.set_authority(from.get_authority().as_deref()))
        .and_then(|()| to.set_path_with_query(from.get_path_with_query().as_deref()));
    set.expect("they were good");
}

/// The request with its body in capital letters.
fn upper_request(request: Request) -> Request {
    let headers = request.get_headers().copy_all();
    let fields = Fields::from_list(&headers).expect("the host takes them");
    let (mut body, contents) = wit_stream::new();
    let (copy, _sent) = Request::new(fields, Some(contents), end(), None);
    same_target(&request, &copy);
    let (_, taken) = wit_future::new(|| Ok(()));
    let (mut incoming, _) = Request::consume_body(request, taken);
    spawn_local(async move {
        while let Some(bytes) = read(&mut incoming).await {
            if !body.write_all(bytes.to_ascii_uppercase()).await.is_empty() {
                break;
            }
        }
    });
    copy
}
