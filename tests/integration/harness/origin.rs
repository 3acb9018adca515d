//! Servers that the guests of a test send requests to.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::eventually;

/// Starts a server that answers every connection with `answer`, or never if `answer` is empty. Returns the server's
/// origin.
pub async fn canned(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("there is a free port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                if answer.is_empty() {
                    std::future::pending::<()>().await;
                }
                // The client may close the connection before it has read the whole answer.
                let _ = stream.write_all(answer).await;
            });
        }
    });
    format!("http://{address}")
}

/// Starts a server that answers every connection with `head`, and spaces without end behind it. Returns the server's
/// origin.
pub async fn endless(head: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("there is a free port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let mut sent = stream.write_all(head).await;
                while sent.is_ok() {
                    sent = stream.write_all(&[b' '; 4096]).await;
                }
            });
        }
    });
    format!("http://{address}")
}

/// A server whose paths say what it does:
///
/// | path | |
/// |---|---|
/// | `/text` | `a text` |
/// | `/big?mb=N` | so many megabytes |
/// | `/drip?ms=N` | three lines, so many milliseconds apart |
/// | `/silent` | never answers |
/// | `/sink?ms=N` | receives a body, after so many milliseconds, and answers with its length |
/// | `/echo` | receives a body, and answers with it |
/// | `/early/STATUS/HOW` | answers at once, then reads the body (`reads`), does not (`ignores`), or closes the connection (`closes`) |
pub struct Origin {
    /// `http://127.0.0.1:…`
    pub url: String,
    seen: Arc<Seen>,
}

/// A body that the server has received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub bytes: u64,
    /// Whether the body has ended as one that is complete.
    pub whole: bool,
    /// The header `content-length`.
    pub declared: Option<u64>,
}

#[derive(Default)]
struct Seen {
    /// Bytes of bodies, of those that have not ended, too.
    bytes: AtomicU64,
    received: Mutex<Vec<Received>>,
    heads: Mutex<Vec<hyper::HeaderMap>>,
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

impl Origin {
    pub async fn start() -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        let seen = Arc::new(Seen::default());
        let shared = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let seen = Arc::clone(&shared);
                let service = hyper::service::service_fn(move |request| {
                    let seen = Arc::clone(&seen);
                    async move { Ok::<_, Infallible>(answer(&seen, request).await) }
                });
                let serving = hyper::server::conn::http1::Builder::new()
                    .half_close(true)
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(serving);
            }
        });
        Origin {
            url: format!("http://{address}"),
            seen,
        }
    }

    /// How many bytes of bodies have arrived.
    pub fn bytes(&self) -> u64 {
        self.seen.bytes.load(SeqCst)
    }

    /// The headers of the requests.
    pub fn heads(&self) -> Vec<hyper::HeaderMap> {
        self.seen.heads.lock().clone()
    }

    /// The bodies that have ended. Waits until there are `count`.
    pub async fn received(&self, count: usize) -> Vec<Received> {
        eventually("the ends of uploads", async || {
            let received = self.seen.received.lock().clone();
            match received.len() >= count {
                true => Ok(received),
                false => Err(received),
            }
        })
        .await
    }
}

impl Seen {
    /// Receives a body.
    async fn receive(&self, request: Request<Incoming>) -> (Received, Vec<Bytes>) {
        let (head, mut body) = request.into_parts();
        let declared = head.headers.get("content-length");
        let declared = declared.and_then(|text| text.to_str().ok()?.parse().ok());
        let (mut bytes, mut pieces) = (0, Vec::new());
        let whole = loop {
            match body.frame().await {
                None => break true,
                Some(Err(_)) => break false,
                Some(Ok(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    bytes += data.len() as u64;
                    self.bytes.fetch_add(data.len() as u64, SeqCst);
                    if head.uri.path() == "/echo" {
                        pieces.push(data);
                    }
                }
            }
        };
        let received = Received {
            bytes,
            whole,
            declared,
        };
        self.received.lock().push(received.clone());
        (received, pieces)
    }
}

async fn answer(seen: &Arc<Seen>, request: Request<Incoming>) -> Answer {
    seen.heads.lock().push(request.headers().clone());
    let number = request.uri().query().and_then(|query| {
        let (_, number) = query.split_once('=')?;
        number.parse::<u64>().ok()
    });
    let number = number.unwrap_or(0);
    let path = request.uri().path().to_owned();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    match segments[..] {
        ["text"] => text("a text"),
        ["big"] => {
            let piece = Bytes::from(vec![b'x'; 64 << 10]);
            pieces(futures::stream::iter(
                (0..number * 16).map(move |_| piece.clone()),
            ))
        }
        ["drip"] => pieces(futures::stream::iter(0..3).then(move |line| async move {
            let wait = if line == 0 { 0 } else { number };
            tokio::time::sleep(Duration::from_millis(wait)).await;
            Bytes::from(format!("line {line}\n"))
        })),
        ["sink"] => {
            tokio::time::sleep(Duration::from_millis(number)).await;
            let (received, _) = seen.receive(request).await;
            text(&format!("{} bytes", received.bytes))
        }
        ["echo"] => {
            let (_, body) = seen.receive(request).await;
            pieces(futures::stream::iter(body))
        }
        ["early", status, how] => {
            match how {
                "reads" => {
                    let seen = Arc::clone(seen);
                    tokio::spawn(async move { seen.receive(request).await });
                }
                "ignores" => {
                    tokio::spawn(async move {
                        std::future::pending::<()>().await;
                        drop(request);
                    });
                }
                _ => drop(request),
            }
            let mut early = text("an early answer");
            *early.status_mut() = status.parse().expect("it is a status");
            if how == "closes" {
                let close = "close".parse().expect("it is a value");
                early.headers_mut().insert("connection", close);
            }
            early
        }
        _ => std::future::pending().await,
    }
}

fn text(text: &str) -> Answer {
    Response::new(Full::new(Bytes::from(text.to_owned())).boxed())
}

fn pieces(pieces: impl futures::Stream<Item = Bytes> + Send + Sync + 'static) -> Answer {
    let frames = pieces.map(|piece| Ok(Frame::data(piece)));
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    let kind = "text/x-pieces".parse().expect("it is a value");
    response.headers_mut().insert("content-type", kind);
    response
}
