//! A component of WASI 0.3 that answers every request with `Hello, World!`.

use wasip3::exports::http::handler::Guest;
use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::{wit_bindgen, wit_future, wit_stream};

struct Hello;

wasip3::http::service::export!(Hello);

impl Guest for Hello {
    async fn handle(_: Request) -> Result<Response, ErrorCode> {
        let headers = Fields::from_list(&[
            (
                "content-type".to_owned(),
                b"text/plain; charset=utf-8".to_vec(),
            ),
            ("content-length".to_owned(), b"13".to_vec()),
        ])
        .expect("the headers are valid");
        let (mut body, reader) = wit_stream::new();
        let (_, trailers) = wit_future::new(|| Ok(None));
        let (response, _) = Response::new(headers, Some(reader), trailers);
        wit_bindgen::spawn_local(async move {
            body.write_all(b"Hello, World!".to_vec()).await;
        });
        Ok(response)
    }
}
