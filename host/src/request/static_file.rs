//! Requests for static files. A file is read on a blocking thread, into memory that is drawn from the request's
//! account.

use std::sync::Arc;

use futures::TryStreamExt as _;
use http::Response;
use http::request::Parts;
use http_body_util::{BodyExt as _, Either, Full, StreamBody};
use hyper::body::Frame;

use crate::app::App;
use crate::budget::Account;
use crate::http::message::ResponseBody;
use crate::http::middleware::Builtin;
use crate::http::static_files::{self, Content, StaticFiles, WHOLE_BYTES};
use crate::telemetry::error::Failure;

/// Answers with a file. Fails with 404 when there is no such file.
pub(super) async fn answer(
    app: &App,
    files: &Arc<StaticFiles>,
    (parts, account): (&Parts, &Arc<Account>),
    params: Vec<(String, String)>,
) -> Result<Response<ResponseBody>, Failure> {
    // An encoded slash (`%2F`) is a part of a name, not a separator. No file has a name with a slash, so the file is
    // missing.
    let mount = app.config.static_files.as_ref();
    let mount = mount.map_or(1, |files| files.mount.split('/').count());
    let mut names = parts.uri.path().split('/').skip(mount);
    if names.any(|name| name.contains("%2F")) {
        return Err(static_files::missing());
    }
    let (files, method, headers) = (
        Arc::clone(files),
        parts.method.clone(),
        parts.headers.clone(),
    );
    let path = params
        .into_iter()
        .next()
        .map_or_else(String::new, |(_, path)| path);
    // This is enough for a file that is read as a whole, and for the pieces of a larger file.
    let room = account.draw(WHOLE_BYTES)?;
    let builtins = app.config.builtins.clone();
    let read = tokio::task::spawn_blocking(move || {
        let response = files.respond(&method, &path, &headers)?;
        let compression = builtins.iter().find_map(|builtin| match &**builtin {
            Builtin::Compression(compression) => Some(compression),
            _ => None,
        });
        Ok::<_, Failure>(match compression {
            Some(compression) => compression.file(&files, (&method, &path, &headers), response),
            None => response,
        })
    });
    let response = read
        .await
        .map_err(|error| Failure::host(format!("reading a static file: {error}")))??;
    let (head, content) = response.into_parts();
    let body = match content {
        Content::Whole(bytes) => {
            let room = room.cut_to(bytes.capacity() as u64);
            Either::Left(Full::new(room.hold(bytes)))
        }
        Content::Shared(bytes) => Either::Left(Full::new(bytes)),
        Content::Open(file, length) => {
            let pieces = static_files::pieces(file, length, FILE_PIECE);
            let frame = move |piece| {
                let _reading = &room;
                Frame::data(piece)
            };
            Either::Right(StreamBody::new(pieces.map_ok(frame)).boxed())
        }
    };
    Ok(Response::from_parts(head, body))
}

/// The size of the pieces in which a large file is read, and how many pieces of it are in memory at the same time: one
/// that tokio reads, one that the stream has room for, one that is cut into frames and one that waits for the client.
const FILE_PIECE: usize = 64 << 10;
const FILE_PIECES: u64 = 4;
const _: () = assert!(FILE_PIECES * FILE_PIECE as u64 <= WHOLE_BYTES);
