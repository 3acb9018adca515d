//! Clients that make the host keep memory: many of them, each within the limits for one request.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::join_all;
use h2::client::SendRequest;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::Server;
use super::server::client_http2;

/// Connections of an attack, kept open until this is dropped.
#[derive(Default)]
pub struct Held {
    streams: Vec<TcpStream>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Sends a part of a body on each of `clients` connections, and keeps the connections open.
pub async fn unfinished_bodies(server: &Server, path: &str, clients: usize, bytes: usize) -> Held {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n",
        bytes + 1
    );
    let begun = (0..clients).map(async |_| {
        let mut stream = TcpStream::connect(server.address).await.ok()?;
        stream.write_all(head.as_bytes()).await.ok()?;
        // The host may refuse the body while it is sent.
        let body = vec![b'x'; bytes];
        let sent = stream.write_all(&body);
        let _ = tokio::time::timeout(Duration::from_secs(5), sent).await;
        Some(stream)
    });
    let mut held = Held::default();
    held.streams = join_all(begun).await.into_iter().flatten().collect();
    held
}

/// Does the same as [`unfinished_bodies`], on the streams of a few HTTP/2 connections.
pub fn unfinished_streams(
    server: &Server,
    path: &str,
    (connections, streams): (usize, usize),
    bytes: usize,
) -> Held {
    let mut held = Held::default();
    for _ in 0..connections {
        let client = client_http2();
        for _ in 0..streams {
            let begun = futures::stream::iter([Ok::<_, std::io::Error>(vec![b'x'; bytes])]);
            let body = reqwest::Body::wrap_stream(begun.chain(futures::stream::pending()));
            let request = client.post(server.url(path)).body(body);
            held.tasks.push(tokio::spawn(async move {
                // The connection stays open, whatever the answer.
                let _answer = request.send().await;
                std::future::pending::<()>().await;
            }));
        }
    }
    held
}

/// Requests a page on each stream of some HTTP/2 connections, and accepts only one byte of each response. Returns the
/// connections, still open, and the statuses.
pub async fn slow_readers(
    server: &Server,
    (method, path, encoding): (&'static str, &str, &'static str),
    (connections, streams): (usize, usize),
) -> (Held, Vec<u16>) {
    let mut held = Held::default();
    let mut answers = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(server.address).await;
        let stream = stream.expect("the server accepts connections");
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(1)
            .max_concurrent_reset_streams(0);
        let Ok((client, connection)) = builder.handshake::<_, Bytes>(stream).await else {
            continue;
        };
        held.tasks.push(tokio::spawn(async move {
            let _ = connection.await;
        }));
        for _ in 0..streams {
            let request = hyper::Request::builder()
                .method(method)
                .uri(server.url(path));
            let request = request.header("accept-encoding", encoding).body(());
            answers.push(one_byte(client.clone(), request.expect("it is a request")));
        }
    }
    let (mut statuses, mut kept) = (Vec::new(), Vec::new());
    for (status, body) in join_all(answers).await.into_iter().flatten() {
        statuses.push(status);
        kept.push(body);
    }
    held.tasks.push(tokio::spawn(async move {
        let _kept = kept;
        std::future::pending::<()>().await;
    }));
    (held, statuses)
}

async fn one_byte(
    client: SendRequest<Bytes>,
    request: hyper::Request<()>,
) -> Option<(u16, h2::RecvStream)> {
    let mut client = client.ready().await.ok()?;
    let (response, _) = client.send_request(request, true).ok()?;
    let answered = tokio::time::timeout(Duration::from_secs(10), response).await;
    let (head, body) = answered.ok()?.ok()?.into_parts();
    Some((head.status.as_u16(), body))
}
