//! A component of WASI 0.2 that answers every request with `Hello, World!`.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

struct Hello;

wasip2::http::proxy::export!(Hello);

impl Guest for Hello {
    fn handle(_: IncomingRequest, outparam: ResponseOutparam) {
        let headers = Fields::from_list(&[
            (
                "content-type".to_owned(),
                b"text/plain; charset=utf-8".to_vec(),
            ),
            ("content-length".to_owned(), b"13".to_vec()),
        ])
        .expect("the headers are valid");
        let response = OutgoingResponse::new(headers);
        let body = response.body().expect("the body is taken once");
        ResponseOutparam::set(outparam, Ok(response));

        let stream = body.write().expect("the stream is taken once");
        // The client may have disconnected.
        let _ = stream.blocking_write_and_flush(b"Hello, World!");
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}
