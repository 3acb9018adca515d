//! Listening sockets, connections over HTTP/1.1 and HTTP/2, and the orderly end of the server.
//!
//! Each event loop is a thread with a runtime of its own; by default there is one for each core. A guest that computes
//! holds up only its own loop. A connection, with its requests, stays on one loop. A new connection goes to the loop
//! that has the fewest.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::host::Host;
use crate::budget;
use crate::config::{Config, Server as Limits};
use crate::database;
use crate::request::delivery;
use crate::request::socket::Upgrades;
use crate::telemetry::metrics::{GaugeGuard, METRICS};

mod activity;
mod connection;
mod descriptors;
mod socket;

/// The most connections that wait in the kernel until they are accepted, and the most that wait for their loop
/// afterwards.
const BACKLOG: i32 = 1024;
/// The pause after a connection could not be accepted, which happens when no file descriptor is left.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(50);
/// The most connections to the admin address. Further ones are closed.
const ADMIN_CONNECTIONS: usize = 64;
/// How long an admin connection may take to send a request, or to take more of a response.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes that are kept of a request to the admin address, or of unread responses.
const ADMIN_BUFFER_BYTES: usize = 64 << 10;
/// How long the loops may take to end after the last request has ended or was cancelled. Cancelled guests end at their
/// next host call or preemption point.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Listening sockets, on which nothing is served yet.
pub struct Sockets {
    listeners: Vec<TcpListener>,
    admin: Option<TcpListener>,
    connections_max: usize,
}

impl Sockets {
    /// Binds every address, and raises the limit on open files for the connections.
    ///
    /// # Errors
    /// When an address is taken or not allowed; the text names it. When the process may not open enough files.
    pub fn bind(config: &Config) -> anyhow::Result<Sockets> {
        let all: Vec<SocketAddr> = config.listen.iter().chain(&config.admin).copied().collect();
        let bind = |address: &SocketAddr, key| {
            bind(*address, &all).with_context(|| {
                format!("cannot listen on {address} ({key}): give it an address that is free")
            })
        };
        let listen = |address| bind(address, "`listen`, or `--listen`");
        Ok(Sockets {
            connections_max: descriptors::connections(config, ADMIN_CONNECTIONS)?,
            listeners: (config.listen.iter().map(listen)).collect::<anyhow::Result<_>>()?,
            admin: (config.admin.as_ref())
                .map(|address| bind(address, "`admin`, which `--listen` leaves as it is"))
                .transpose()?,
        })
    }

    /// The addresses, with the ports that the system chose for port 0.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.listeners.iter().map(TcpListener::local_addr).collect()
    }

    /// The admin address, with the port that the system chose for port 0.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn admin_address(&self) -> io::Result<Option<SocketAddr>> {
        self.admin.as_ref().map(TcpListener::local_addr).transpose()
    }
}

/// Binds one address of `all`. `[::]` accepts connections over IPv4, too, unless `all` has `0.0.0.0` with the same
/// port.
fn bind(address: SocketAddr, all: &[SocketAddr]) -> io::Result<TcpListener> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        let any_of_ipv4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
        socket.set_only_v6(all.contains(&any_of_ipv4))?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Serves until `stop`, then lets requests in flight finish, and cancels those that take too long.
///
/// # Errors
/// When a thread or a listener cannot be started, or the server cannot go on.
pub async fn serve(
    host: Arc<Host>,
    sockets: Sockets,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let config = host.app.load().config.clone();
    let limits = Arc::new(config.server);
    let end = CancellationToken::new();
    let open = TaskTracker::new();
    let loops = (0..config.async_views.loops)
        .map(|number| Loop::start(number, &host, &limits, &open, (&stop, &end)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let loops = Arc::new(loops);
    let permits = Arc::new(ConnectionPermits::new(sockets.connections_max));
    let listeners = sockets.listeners.into_iter();
    let listeners = listeners.map(tokio::net::TcpListener::from_std);
    let listeners = listeners.collect::<io::Result<Vec<_>>>()?;
    let closing = CancellationToken::new();
    let mut endless = JoinSet::new();
    endless.spawn(delivery::run(Arc::clone(&host)));
    endless.spawn(accept(
        listeners,
        Arc::clone(&loops),
        Arc::clone(&permits),
        closing.clone(),
    ));
    if let Some(admin) = sockets.admin {
        let admin = tokio::net::TcpListener::from_std(admin)?;
        endless.spawn(serve_admin(admin, stop.clone()));
    }
    let served = until_stopped(&mut endless, &stop).await;
    // Requests in flight may still send requests to the app itself, so a listener for those is made before the
    // addresses are closed.
    match own_listener(&host) {
        Ok(listener) => drop(tokio::spawn(accept_own(
            listener,
            Arc::clone(&loops),
            permits,
            end.clone(),
        ))),
        Err(error) => {
            tracing::warn!(%error, "requests in flight can send no further ones to the app itself");
        }
    }
    closing.cancel();
    let drain = Duration::from_millis(limits.drain_timeout_ms);
    tracing::info!(
        requests = METRICS.scopes.get(),
        drain_timeout_ms = limits.drain_timeout_ms,
        "stopping: no new connections, requests in flight may finish"
    );
    open.close();
    let all_idle = async {
        loop {
            open.wait().await;
            // Waits for the events that the last requests published. Subscribers may have sent requests to the app, so
            // `open` is checked again.
            host.events.idle().await;
            if open.is_empty() {
                return;
            }
        }
    };
    if tokio::time::timeout(drain, all_idle).await.is_err() {
        tracing::warn!(
            requests = METRICS.scopes.get(),
            events = host.events.in_flight(),
            "requests still in flight are cancelled, and events on their way are dropped: they took longer than `drain_timeout_ms`"
        );
        host.stopping.store(true, Relaxed);
    }
    end.cancel();
    let all_ended = futures::future::join_all(loops.iter().map(|each| each.ended.cancelled()));
    let _ = tokio::time::timeout(LAST_WAIT, all_ended).await;
    host.workers.close();
    served
}

/// Waits for `stop`. If one of the endless tasks ends before that, the process would look healthy and serve nothing. So
/// the server stops in order and returns an error, and whatever supervises the process can start another one.
async fn until_stopped(endless: &mut JoinSet<()>, stop: &CancellationToken) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        ended = endless.join_next() => {
            stop.cancel();
            let why = match ended {
                Some(Err(error)) => error.to_string(),
                _ => "an event loop's thread has ended".to_owned(),
            };
            bail!("the server cannot go on: {why}")
        }
    }
}

/// One event loop: a thread, its runtime and its connections.
struct Loop {
    incoming: mpsc::Sender<Connection>,
    connections: Arc<AtomicUsize>,
    /// Cancelled when the runtime of the loop has ended.
    ended: CancellationToken,
}

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    kind: Kind,
    counted: Counted,
}

/// Whose requests a connection may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Requests of anybody.
    Any,
    /// One request that the app sends to itself while the server is stopping.
    Own,
}

/// Counts a connection, for its loop and for the process, until dropped.
struct Counted {
    on_loop: Arc<AtomicUsize>,
    _permit: OwnedSemaphorePermit,
    _open: GaugeGuard,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.on_loop.fetch_sub(1, Relaxed);
    }
}

impl Loop {
    fn start(
        number: usize,
        host: &Arc<Host>,
        limits: &Arc<Limits>,
        open: &TaskTracker,
        (stop, end): (&CancellationToken, &CancellationToken),
    ) -> anyhow::Result<Loop> {
        let (incoming, connections) = mpsc::channel(BACKLOG as usize);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_stack_size(database::STACK_BYTES)
            .build()
            .context("an event loop")?;
        let ended = CancellationToken::new();
        let each = Loop {
            incoming,
            connections: Arc::default(),
            ended: ended.clone(),
        };
        // The guard cancels `ended` also when the loop panics.
        let ended = ended.drop_guard();
        let work = {
            let (host, limits) = (Arc::clone(host), Arc::clone(limits));
            let (stop, end, open) = (stop.clone(), end.clone(), open.clone());
            async move {
                // The loop runs until `end`, even if nothing is in flight on it: other loops may still use outbound
                // connections whose tasks run here, and hand over connections for requests of the app to itself.
                tokio::select! {
                    () = serve_connections(host, limits, connections, open, stop) => {}
                    () = end.cancelled() => {}
                }
            }
        };
        let run = move || {
            runtime.block_on(work);
            // Drops the tasks that are left, and with them the stores of the guests.
            runtime.shutdown_background();
            drop(ended);
        };
        std::thread::Builder::new()
            .name(format!("amphi-loop-{number}"))
            .spawn(run)
            .context("an event loop's thread")?;
        Ok(each)
    }
}

/// Permits for `connections_max` connections.
struct ConnectionPermits {
    free: Arc<Semaphore>,
    max: usize,
    /// Whether the lack of permits was logged. While the number of connections stays near the limit, the lack is logged
    /// once.
    full: AtomicBool,
}

impl ConnectionPermits {
    fn new(max: usize) -> ConnectionPermits {
        ConnectionPermits {
            free: Arc::new(Semaphore::new(max)),
            max,
            full: AtomicBool::new(false),
        }
    }

    async fn take(&self) -> OwnedSemaphorePermit {
        let free = self.free.available_permits();
        if free > self.max / 8 {
            self.full.store(false, Relaxed);
        } else if free == 0 && !self.full.swap(true, Relaxed) {
            METRICS.refused.with_label_values(&["connections"]).inc();
            tracing::warn!(
                connections_max = self.max,
                "`connections_max` connections are open: further ones wait until one closes"
            );
        }
        (Arc::clone(&self.free).acquire_owned().await).expect("the semaphore is never closed")
    }
}

/// Accepts connections on all addresses. A permit is taken before a connection is accepted, so that further connections
/// wait in the kernel. The permit is for any of the addresses, so an idle address holds none.
async fn accept(
    listeners: Vec<tokio::net::TcpListener>,
    loops: Arc<Vec<Loop>>,
    permits: Arc<ConnectionPermits>,
    stop: CancellationToken,
) {
    let mut turn = 0;
    loop {
        let permit = tokio::select! {
            permit = permits.take() => permit,
            () = stop.cancelled() => return,
        };
        let accepted = tokio::select! {
            accepted = accept_any(&listeners, &mut turn) => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok(connection) => {
                if !hand_over(&loops, connection, Kind::Any, permit).await {
                    return;
                }
            }
            Err(error) => out_of_descriptors(&error).await,
        }
    }
}

/// Listens on a local address, to which the app sends its requests to itself from now on, while it stops.
fn own_listener(host: &Host) -> anyhow::Result<tokio::net::TcpListener> {
    let app = host.app.load_full();
    let client = &app.services.http;
    let address = client.own_while_stopping();
    let listener = bind(address, &[]).with_context(|| format!("cannot listen on {address}"))?;
    client.set_own_while_stopping(listener.local_addr()?);
    Ok(tokio::net::TcpListener::from_std(listener)?)
}

/// Accepts the connections that the app makes to itself while it stops, until `end`.
async fn accept_own(
    listener: tokio::net::TcpListener,
    loops: Arc<Vec<Loop>>,
    permits: Arc<ConnectionPermits>,
    end: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = end.cancelled() => return,
        };
        let connection = match accepted {
            Ok(connection) => connection,
            Err(error) => {
                out_of_descriptors(&error).await;
                continue;
            }
        };
        tokio::select! {
            permit = permits.take() => drop(hand_over(&loops, connection, Kind::Own, permit).await),
            () = end.cancelled() => return,
        }
    }
}

async fn out_of_descriptors(error: &io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(OUT_OF_DESCRIPTORS).await;
}

/// Hands a connection to the loop that has the fewest. False: that loop has ended, and the connection is dropped.
async fn hand_over(
    loops: &[Loop],
    (stream, peer): (tokio::net::TcpStream, SocketAddr),
    kind: Kind,
    permit: OwnedSemaphorePermit,
) -> bool {
    let least = loops
        .iter()
        .min_by_key(|each| each.connections.load(Relaxed))
        .expect("there is at least one loop");
    // Takes the stream out of the runtime that accepted it. The loop registers the stream with its own runtime, so that
    // only the loop is woken for it.
    let Ok(stream) = stream.into_std() else {
        return true;
    };
    least.connections.fetch_add(1, Relaxed);
    let counted = Counted {
        on_loop: Arc::clone(&least.connections),
        _permit: permit,
        _open: GaugeGuard::new(&METRICS.connections),
    };
    let connection = Connection {
        stream,
        peer,
        kind,
        counted,
    };
    least.incoming.send(connection).await.is_ok()
}

/// Accepts the next connection, from each address in turn.
async fn accept_any(
    listeners: &[tokio::net::TcpListener],
    turn: &mut usize,
) -> io::Result<(tokio::net::TcpStream, SocketAddr)> {
    std::future::poll_fn(|cx| {
        for step in 0..listeners.len() {
            let number = (*turn + step) % listeners.len();
            if let Poll::Ready(accepted) = listeners[number].poll_accept(cx) {
                *turn = number + 1;
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    })
    .await
}

async fn serve_connections(
    host: Arc<Host>,
    limits: Arc<Limits>,
    mut incoming: mpsc::Receiver<Connection>,
    open: TaskTracker,
    stop: CancellationToken,
) {
    let protocols = Arc::new(connection::Protocols::new(&limits));
    while let Some(connection) = incoming.recv().await {
        let (host, limits, protocols, stop) = (
            Arc::clone(&host),
            Arc::clone(&limits),
            Arc::clone(&protocols),
            stop.clone(),
        );
        let tracker = open.clone();
        open.spawn(async move {
            let Connection {
                stream,
                peer,
                kind,
                counted,
            } = connection;
            let upgrades = Upgrades {
                open: tracker,
                stop,
                held: Arc::new(counted),
                into_stream: connection::into_stream,
            };
            if let Ok(stream) = tokio::net::TcpStream::from_std(stream) {
                let stream = (stream, peer, kind);
                connection::serve(host, &limits, &protocols, stream, upgrades).await;
            }
        });
    }
}

/// Serves health and metrics, on an address of their own.
async fn serve_admin(listener: tokio::net::TcpListener, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(ADMIN_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(OUT_OF_DESCRIPTORS).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            continue;
        };
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(|request: Request<Incoming>| async move {
                Ok::<_, Infallible>(admin(request.uri().path()))
            });
            let mut stream = TimeoutStream::new(stream);
            stream.set_write_timeout(Some(ADMIN_TIMEOUT));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(ADMIN_TIMEOUT)
                .max_buf_size(ADMIN_BUFFER_BYTES)
                .serve_connection(TokioIo::new(Box::pin(stream)), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an admin connection ended with an error");
            }
        });
    }
}

fn admin(path: &str) -> Response<Full<Bytes>> {
    let (status, body) = match path {
        "/metrics" => {
            let used = budget::process().used();
            METRICS.memory.set(i64::try_from(used).unwrap_or(i64::MAX));
            (StatusCode::OK, METRICS.render())
        }
        "/healthz" => (StatusCode::OK, "ok\n".to_owned()),
        _ => (
            StatusCode::NOT_FOUND,
            "There are /metrics and /healthz.\n".to_owned(),
        ),
    };
    let response = Response::builder().status(status).header(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    );
    response
        .body(Full::new(body.into()))
        .expect("the headers are valid")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn both_protocols_are_listened_on_with_one_port() {
        let free = TcpListener::bind("[::]:0").expect("a port is free");
        let port = free.local_addr().expect("it is bound").port();
        drop(free);
        let any_of_ipv6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let any_of_ipv4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        for all in [[any_of_ipv6, any_of_ipv4], [any_of_ipv4, any_of_ipv6]] {
            let bound = all.map(|address| bind(address, &all).expect("they do not overlap"));
            TcpStream::connect(local).expect("IPv4 is listened on");
            drop(bound);
        }
        let _bound = bind(any_of_ipv6, &[any_of_ipv6]).expect("the port is free");
        TcpStream::connect(local).expect("alone, it takes IPv4 as well");
    }

    #[tokio::test]
    async fn a_server_that_cannot_go_on_ends_in_order() {
        let stop = CancellationToken::new();
        let mut endless = JoinSet::new();
        endless.spawn(std::future::pending());
        endless.spawn(async { panic!("a bug of the host's") });
        let served = until_stopped(&mut endless, &stop).await;
        let error = served.expect_err("a task has ended").to_string();
        assert!(error.contains("a bug of the host's"), "{error}");
        assert!(stop.is_cancelled(), "requests in flight are drained");

        let stop = CancellationToken::new();
        let mut endless = JoinSet::new();
        endless.spawn(std::future::pending());
        stop.cancel();
        let served = until_stopped(&mut endless, &stop).await;
        served.expect("it was asked to stop");
    }

    /// Two connections are allowed, and three addresses are listened on: both connections may come over any one of
    /// them.
    #[tokio::test]
    async fn an_idle_address_takes_no_connection_from_the_others() {
        let mut listeners = Vec::new();
        for _ in 0..3 {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
            listeners.push(listener.expect("a port is free"));
        }
        let addresses: Vec<_> = (listeners.iter())
            .map(|listener| listener.local_addr().expect("it listens"))
            .collect();
        let (incoming, mut accepted) = mpsc::channel(8);
        let each = Loop {
            incoming,
            connections: Arc::default(),
            ended: CancellationToken::new(),
        };
        let stop = CancellationToken::new();
        let loops = Arc::new(vec![each]);
        let accepting = accept(
            listeners,
            loops,
            Arc::new(ConnectionPermits::new(2)),
            stop.clone(),
        );
        let accepting = tokio::spawn(accepting);
        let soon = Duration::from_secs(5);
        for address in &addresses {
            let mut clients = Vec::new();
            let mut open = Vec::new();
            for _ in 0..2 {
                let client = tokio::net::TcpStream::connect(address).await;
                clients.push(client.expect("the kernel accepts it"));
                let connection = tokio::time::timeout(soon, accepted.recv()).await;
                open.push(connection.expect("there is a permit").expect("it goes on"));
            }
            // A third connection waits until one closes.
            clients.push(
                tokio::net::TcpStream::connect(address)
                    .await
                    .expect("likewise"),
            );
            let third = tokio::time::timeout(Duration::from_millis(100), accepted.recv());
            assert!(third.await.is_err());
            open.pop();
            let third = tokio::time::timeout(soon, accepted.recv()).await;
            open.push(third.expect("there is a permit").expect("it goes on"));
        }
        stop.cancel();
        accepting.await.expect("it ends");
    }

    #[tokio::test]
    async fn being_full_is_told_once() {
        let told = || METRICS.refused.with_label_values(&["connections"]).get();
        let permits = Arc::new(ConnectionPermits::new(9));
        let before = told();
        let mut held = Vec::new();
        for _ in 0..9 {
            held.push(permits.take().await);
        }
        for _ in 0..20 {
            let waiting = tokio::spawn({
                let permits = Arc::clone(&permits);
                async move { permits.take().await }
            });
            tokio::task::yield_now().await;
            held.pop();
            held.push(waiting.await.expect("it came free"));
        }
        assert_eq!(told(), before + 1);
        held.truncate(3);
        while held.len() < 9 {
            held.push(permits.take().await);
        }
        let waiting = futures::FutureExt::now_or_never(permits.take());
        assert!(waiting.is_none());
        assert_eq!(told(), before + 2);
    }
}
