//! A component as Spin's documentation tells people to write them, of `wasi:http` 0.3. Spin runs it, too.

use spin_sdk::http::body::IncomingBodyExt as _;
use spin_sdk::http::{FullBody, IntoResponse, Request, Response, Result, StatusCode};
use spin_sdk::http_service;

#[http_service]
async fn handle(request: Request) -> Result<impl IntoResponse> {
    let path = request.uri().path().to_owned();
    let (status, body) = if path.ends_with("/hello") {
        (StatusCode::OK, "Hello from spin-sdk\n".into())
    } else if path.ends_with("/echo") {
        (StatusCode::OK, request.into_body().bytes().await?)
    } else {
        (StatusCode::NOT_FOUND, "no such path\n".into())
    };
    let mut response = Response::new(FullBody::new(body));
    *response.status_mut() = status;
    Ok(response)
}
