//! A component as wstd's documentation tells people to write them, of `wasi:http` 0.2.

use wstd::http::{Body, Error, Request, Response, StatusCode};

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let path = request.uri().path();
    if path.ends_with("/hello") {
        return Ok(Response::new("Hello from wstd\n".into()));
    }
    if path.ends_with("/echo") {
        return Ok(Response::new(request.into_body()));
    }
    let mut response = Response::new("no such path\n".into());
    *response.status_mut() = StatusCode::NOT_FOUND;
    Ok(response)
}
