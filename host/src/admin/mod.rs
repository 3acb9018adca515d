//! The admin API: what runs at a place, and changes of it (`amphi deploy` and its like). `api.rs` lists the requests.
//!
//! It has its own address, or a socket in the file system; it shares nothing with the connections of clients but the
//! process.

mod access;
pub mod api;
mod audit;
mod converge;
mod deployer;
mod fleet;
mod judge;
mod progress;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures::stream;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

use crate::config::{AdminAddress, Scope};
use crate::telemetry::error::cut;
use crate::telemetry::log::escaped_line;
use crate::telemetry::recent;
use access::{Refusal, Who};
use api::{Deploying, Line, Source, Uploaded};
use audit::Entry;
pub use deployer::Deployer;
pub use fleet::Fleet;
use progress::Progress;

/// The most connections. A further one ends the oldest that has not shown yet that it may use the API, so nobody who may
/// not can keep others out; or it waits.
const CONNECTIONS: usize = 32;
/// The most of them that follow the log, and so do not end by themselves.
const FOLLOWERS: usize = 8;
/// The most artifacts that are uploaded, or fetched from registries, at once: each may take `artifact_max_mb` twice on the disk.
const UPLOADS: usize = 2;
/// How long a request's head, or more of its body, may take; and how long a client may read nothing of an answer.
const TIME: Duration = Duration::from_secs(30);
/// The most bytes that are kept of a request's head.
const HEAD_BYTES: usize = 64 << 10;
/// The most bytes of a request's body that is JSON.
const JSON_BYTES: usize = 64 << 10;
/// How much is read of the body of a request that is refused, and for how long at most.
const LINGER_BYTES: usize = 64 << 20;
const LINGER: Duration = Duration::from_secs(5);
/// The most bytes of a path in the audit log.
const PATH_BYTES: usize = 200;

type Body = BoxBody<Bytes, Infallible>;

/// Sockets that listen for requests to the admin API.
pub enum Listener {
    /// On a port.
    Tcp(std::net::TcpListener),
    /// In the file system.
    Unix(std::os::unix::net::UnixListener),
}

impl Listener {
    /// Binds the address.
    ///
    /// # Errors
    /// When it is taken, or not allowed.
    pub fn bind(address: &AdminAddress) -> anyhow::Result<Listener> {
        let context = || format!("cannot listen on {address} (`listen` of `[deploy]`)");
        Ok(match address {
            AdminAddress::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address).with_context(context)?;
                listener.set_nonblocking(true)?;
                Listener::Tcp(listener)
            }
            AdminAddress::Unix(path) => {
                // What a host that was killed has left would be in the way. Only a socket that nobody listens on any more
                // refuses connections; one of another user's host says that it may not be used.
                let is_socket =
                    fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket());
                let connected = is_socket.then(|| std::os::unix::net::UnixStream::connect(path));
                if let Some(Err(error)) = connected
                    && error.kind() == io::ErrorKind::ConnectionRefused
                {
                    fs::remove_file(path).with_context(context)?;
                }
                // It is never open to others, not even between two calls.
                let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
                let listener = std::os::unix::net::UnixListener::bind(path);
                rustix::process::umask(umask);
                let listener = listener.with_context(context)?;
                listener.set_nonblocking(true)?;
                Listener::Unix(listener)
            }
        })
    }

    /// The address, with the port that the system chose for port 0.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<AdminAddress> {
        Ok(match self {
            Listener::Tcp(listener) => AdminAddress::Tcp(listener.local_addr()?),
            Listener::Unix(listener) => {
                let path = listener.local_addr()?;
                AdminAddress::Unix(
                    path.as_pathname()
                        .unwrap_or(std::path::Path::new(""))
                        .to_owned(),
                )
            }
        })
    }
}

/// Answers requests until `stop`.
///
/// # Errors
/// When the listener cannot be used.
pub async fn serve(
    deployer: Arc<Deployer>,
    listener: Listener,
    stop: CancellationToken,
) -> io::Result<()> {
    recent::keep();
    let rooms = Arc::new(Rooms::new(deployer));
    let serve_all = async {
        match listener {
            Listener::Tcp(listener) => {
                let listener = TcpListener::from_std(listener)?;
                loop {
                    match listener.accept().await {
                        Ok((stream, peer)) => {
                            let from = (peer.to_string(), None);
                            rooms.enter(stream, from).await;
                        }
                        Err(error) => wait_after(&error).await,
                    }
                }
            }
            Listener::Unix(listener) => {
                let listener = UnixListener::from_std(listener)?;
                loop {
                    match listener.accept().await {
                        Ok((stream, _)) => {
                            let from = ("unix".to_owned(), Some(user(&stream)));
                            rooms.enter(stream, from).await;
                        }
                        Err(error) => wait_after(&error).await,
                    }
                }
            }
        }
    };
    tokio::select! {
        ended = serve_all => ended,
        () = stop.cancelled() => Ok(()),
    }
}

/// What connections share.
struct Rooms {
    deployer: Arc<Deployer>,
    connections: Arc<Semaphore>,
    followers: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    /// The connections that have not had a request yet which its sender may make, the oldest first, with what ends them.
    strangers: Mutex<VecDeque<(u64, CancellationToken)>>,
}

impl Rooms {
    fn new(deployer: Arc<Deployer>) -> Rooms {
        Rooms {
            deployer,
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            followers: Arc::new(Semaphore::new(FOLLOWERS)),
            uploads: Arc::new(Semaphore::new(UPLOADS)),
            strangers: Mutex::default(),
        }
    }

    /// Serves a connection as soon as there is room for it.
    async fn enter(
        self: &Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        from: (String, Option<String>),
    ) {
        if self.connections.available_permits() == 0
            && let Some((_, oldest)) = self.strangers.lock().pop_front()
        {
            oldest.cancel();
        }
        let permit = Arc::clone(&self.connections).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Relaxed);
        let ended = CancellationToken::new();
        let mut strangers = self.strangers.lock();
        strangers.push_back((number, ended.clone()));
        drop(strangers);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            tokio::select! {
                () = connection(&this, stream, from, number) => {}
                () = ended.cancelled() => {}
            }
            this.is_known(number);
            drop(permit);
        });
    }

    /// Notes that the connection of this number is not one to be ended for others.
    fn is_known(&self, number: u64) {
        self.strangers.lock().retain(|(it, _)| *it != number);
    }
}

async fn wait_after(error: &io::Error) {
    tracing::warn!(%error, "a connection to the admin API could not be accepted");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Who has connected, as the system knows it.
fn user(stream: &UnixStream) -> String {
    let uid = stream.peer_cred().map(|it| it.uid());
    uid.map_or_else(|_| "uid ?".to_owned(), |uid| format!("uid {uid}"))
}

async fn connection(
    rooms: &Arc<Rooms>,
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    (peer, local): (String, Option<String>),
    number: u64,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let api = Api {
            deployer: Arc::clone(&rooms.deployer),
            rooms: Arc::clone(rooms),
            number,
            peer: peer.clone(),
            local: local.clone(),
        };
        async move { Ok::<_, Infallible>(api.answer(request).await) }
    });
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(TIME));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(TIME)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to the admin API ended with an error");
    }
}

/// One request to the API.
struct Api {
    deployer: Arc<Deployer>,
    rooms: Arc<Rooms>,
    /// The number of its connection.
    number: u64,
    peer: String,
    local: Option<String>,
}

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Status,
    Versions,
    Logs,
    Upload,
    Deploy,
    Promote,
    RollBack,
}

impl Action {
    fn of(method: &Method, path: &str) -> Result<Action, Refusal> {
        let (wanted, action) = match path {
            "/v1/status" => (Method::GET, Action::Status),
            "/v1/versions" => (Method::GET, Action::Versions),
            "/v1/logs" => (Method::GET, Action::Logs),
            "/v1/artifacts" => (Method::POST, Action::Upload),
            "/v1/deploy" => (Method::POST, Action::Deploy),
            "/v1/promote" => (Method::POST, Action::Promote),
            "/v1/rollback" => (Method::POST, Action::RollBack),
            _ => {
                let sentence = "the admin API has no such path: it has /v1/status, /v1/versions, /v1/logs, /v1/artifacts, /v1/deploy, /v1/promote, /v1/rollback";
                return Err(Refusal::new(StatusCode::NOT_FOUND, sentence));
            }
        };
        match *method == wanted {
            true => Ok(action),
            false => Err(Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{path} is for {wanted}"),
            )),
        }
    }

    fn scope(self) -> Scope {
        match self {
            Action::Status | Action::Versions | Action::Logs => Scope::Read,
            Action::Promote | Action::RollBack => Scope::Switch,
            Action::Upload | Action::Deploy => Scope::Deploy,
        }
    }
}

impl Api {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, mut body) = request.into_parts();
        let mut who = None;
        let answered = self.act(&parts, &mut body, &mut who).await;
        if answered.is_err() {
            let _ = tokio::time::timeout(LINGER, read_away(&mut body)).await;
        }
        answered.unwrap_or_else(|refusal| {
            let asked = format!("{} {}", parts.method, parts.uri.path());
            let asked = escaped_line(&cut(asked, PATH_BYTES));
            let entry = Entry {
                who: who.as_ref().map(|who| &*who.name),
                peer: &self.peer,
                sentence: &refusal.sentence,
                ..Entry::new(&asked, "refused")
            };
            if let Err(error) = self.deployer.audit.write(&entry) {
                tracing::error!("the audit log cannot be written: {error}");
            }
            let line = Line::Failed(refusal.sentence.clone());
            let mut response = json(refusal.status, &line);
            refusal.add_headers(&mut response);
            response
        })
    }

    async fn act(
        &self,
        parts: &Parts,
        body: &mut Incoming,
        known: &mut Option<Who>,
    ) -> Result<Response<Body>, Refusal> {
        let deployer = &self.deployer;
        let action = Action::of(&parts.method, parts.uri.path());
        // Whoever may not use the API learns nothing of it.
        let needed = action.as_ref().map_or(Scope::Read, |action| action.scope());
        let tokens = &deployer.place.deploy.tokens;
        let local = self.local.as_deref();
        let who = access::check(tokens, local, &parts.headers, needed, &self.peer)?;
        self.rooms.is_known(self.number);
        *known = Some(who.clone());
        let action = action?;
        let generation = generation(&parts.headers)?;
        Ok(match action {
            Action::Status => json(StatusCode::OK, &deployer.status().await),
            Action::Versions => json(StatusCode::OK, &deployer.versions()),
            Action::Logs if parts.uri.query() == Some("follow") => {
                let place = Arc::clone(&self.rooms.followers).try_acquire_owned();
                logs(Some(place.map_err(|_| {
                    full(format!(
                        "{FOLLOWERS} others follow the log already, as many as may"
                    ))
                })?))
            }
            Action::Logs => logs(None),
            Action::Upload => {
                deployer.refresh().await;
                deployer.is_current(generation)?;
                let place = self.rooms.uploads.try_acquire();
                let _place = place.map_err(|_| no_place_for_artifact())?;
                let uploaded = self.upload(&parts.headers, body).await?;
                let entry = Entry {
                    digest: Some(uploaded.digest),
                    ..Entry::new("upload", "done")
                };
                if let Err(error) = deployer.audit.of(&who, entry) {
                    tracing::error!("the audit log cannot be written: {error}");
                }
                json(StatusCode::CREATED, &uploaded)
            }
            Action::Deploy => {
                let wanted: Deploying = read(body).await?;
                let (progress, lines) = Progress::new();
                // Tasks of their own: they end whether or not somebody waits for them.
                match wanted.source.clone() {
                    Source::Digest(digest) => {
                        let about = (Some(digest), Some(&*wanted.from));
                        let change = deployer.begin(&who, "deploy", about, generation).await?;
                        let deployer = Arc::clone(deployer);
                        let wanted = (digest, wanted);
                        tokio::spawn(
                            async move { deployer.deploy(change, wanted, &progress).await },
                        );
                    }
                    Source::Reference(text) => {
                        deployer.refresh().await;
                        deployer.is_current(generation)?;
                        let place = Arc::clone(&self.rooms.uploads).try_acquire_owned();
                        let place = place.map_err(|_| no_place_for_artifact())?;
                        let deployer = Arc::clone(deployer);
                        let wanted = (text, wanted);
                        tokio::spawn(async move {
                            let pulled =
                                deployer.pull_and_deploy(&who, wanted, generation, &progress);
                            pulled.await;
                            drop(place);
                        });
                    }
                }
                follow(lines)
            }
            Action::Promote => {
                let change = {
                    let about = (deployer.candidate(), None);
                    deployer.begin(&who, "promote", about, generation).await?
                };
                let (progress, lines) = Progress::new();
                let deployer = Arc::clone(deployer);
                tokio::spawn(async move { deployer.promote(change, &progress).await });
                follow(lines)
            }
            Action::RollBack => {
                let to: api::GoingBack = read(body).await?;
                let change = {
                    let about = (to.to, None);
                    deployer.begin(&who, "rollback", about, generation).await?
                };
                let (progress, lines) = Progress::new();
                let deployer = Arc::clone(deployer);
                tokio::spawn(async move { deployer.roll_back(change, to, &progress).await });
                follow(lines)
            }
        })
    }

    /// Takes the file of an artifact.
    async fn upload(&self, headers: &HeaderMap, body: &mut Incoming) -> Result<Uploaded, Refusal> {
        let max = self.deployer.place.deploy.artifact_max_bytes;
        let too_large = || {
            Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!(
                    "the artifact is larger than {} MB (`artifact_max_mb` of `[deploy]`)",
                    max >> 20
                ),
            )
        };
        let length = headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|it| it.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > max) {
            return Err(too_large());
        }
        let failed = |error: anyhow::Error| {
            Refusal::new(
                StatusCode::INSUFFICIENT_STORAGE,
                format!("the artifact could not be kept: {error:#}"),
            )
        };
        let incoming = self.deployer.incoming().await.map_err(failed)?;
        let path = incoming.path().join("app.amphi");
        let file = tokio::fs::File::create(&path).await;
        let mut file = file.map_err(|error| failed(error.into()))?;
        let mut received = 0;
        while let Some(frame) = tokio::time::timeout(TIME, body.frame()).await.transpose() {
            let broken = |why: String| {
                let sentence = format!("the artifact has not arrived: {why}");
                Refusal::new(StatusCode::BAD_REQUEST, sentence)
            };
            let frame = frame
                .map_err(|_| broken(format!("nothing came within {TIME:?}")))?
                .map_err(|error| broken(error.to_string()))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            received += data.len() as u64;
            if received > max {
                return Err(too_large());
            }
            let written = file.write_all(&data).await;
            written.map_err(|error| failed(error.into()))?;
        }
        file.flush().await.map_err(|error| failed(error.into()))?;
        drop(file);
        let added = self.deployer.add_uploaded(&path).await;
        let digest = added.map_err(|error| {
            Refusal::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                format!("the artifact is refused: {error:#}"),
            )
        })?;
        Ok(Uploaded { digest })
    }
}

/// The generation that a request names.
fn generation(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let Some(value) = headers.get(header::IF_MATCH) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    let number = text
        .trim()
        .strip_prefix('"')
        .and_then(|it| it.strip_suffix('"'));
    match number.and_then(|number| number.parse().ok()) {
        Some(number) => Ok(Some(number)),
        None => Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "`if-match` is the generation in quotes, e.g. `if-match: \"17\"`",
        )),
    }
}

/// Reads a body that is JSON. An empty one has every field's default.
async fn read<T: DeserializeOwned>(body: &mut Incoming) -> Result<T, Refusal> {
    let wrong = |sentence: String| Refusal::new(StatusCode::BAD_REQUEST, sentence);
    if body
        .size_hint()
        .upper()
        .is_some_and(|most| most > JSON_BYTES as u64)
    {
        let sentence = format!("the body has more than {JSON_BYTES} bytes");
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, sentence));
    }
    let whole = tokio::time::timeout(TIME, Limited::new(body, JSON_BYTES).collect()).await;
    let whole = whole
        .map_err(|_| wrong(format!("the body has not arrived within {TIME:?}")))?
        .map_err(|error| wrong(format!("the body could not be read: {error}")))?
        .to_bytes();
    let text: &[u8] = if whole.is_empty() { b"{}" } else { &whole };
    serde_json::from_slice(text)
        .map_err(|error| wrong(format!("the body is not what is wanted here: {error}")))
}

/// Reads what is left of a refused request's body. A client that still sends would not read the answer.
async fn read_away(body: &mut Incoming) {
    let mut left = LINGER_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            return;
        }
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let mut text = serde_json::to_vec(value).expect("it is plain data");
    text.push(b'\n');
    respond(status, "application/json", Full::from(text).boxed())
}

/// The lines about a change, as they come.
fn follow(lines: mpsc::Receiver<Line>) -> Response<Body> {
    let lines = stream::unfold(lines, |mut lines| async move {
        let line = lines.recv().await?;
        let mut text = serde_json::to_vec(&line).expect("it is plain data");
        text.push(b'\n');
        Some((Ok(Frame::data(Bytes::from(text))), lines))
    });
    let body = BoxBody::new(StreamBody::new(lines));
    respond(StatusCode::OK, "application/x-ndjson", body)
}

fn no_place_for_artifact() -> Refusal {
    full(format!(
        "{UPLOADS} other artifacts are arriving: try again when they are there"
    ))
}

fn full(sentence: String) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, sentence)
}

/// The log: what is kept of it, and then, for a follower, what comes.
fn logs(follower: Option<OwnedSemaphorePermit>) -> Response<Body> {
    let state = (recent::Reader::default(), follower);
    let lines = stream::unfold(state, |(mut reader, follower)| async move {
        let piece = match follower {
            Some(_) => reader.wait().await,
            None => reader.read(),
        };
        let piece = (!piece.is_empty()).then_some(piece)?;
        Some((Ok(Frame::data(piece)), (reader, follower)))
    });
    let body = BoxBody::new(StreamBody::new(lines));
    respond(StatusCode::OK, "text/plain; charset=utf-8", body)
}

fn respond(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let response = Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, kind)
        .header(header::CACHE_CONTROL, "no-store");
    response.body(body).expect("the headers are valid")
}
