//! The native server that Amphi is compared with: hyper gives the same answers without a sandbox, with one event loop per
//! core and as many database connections as Amphi has.

use std::convert::Infallible;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::NoTls;

use crate::sockets::{self, Group};

/// The numbers of connections are Amphi's defaults.
const READERS: usize = 4;
const POSTGRES_CONNECTIONS: usize = 10;

const LARGE: &[u8] = &[b'x'; 1 << 20];

/// Arguments of the native server.
#[derive(clap::Args)]
pub(crate) struct Native {
    /// Where to listen.
    address: String,
    /// The SQLite file.
    #[arg(long)]
    sqlite: PathBuf,
    /// The URL of the PostgreSQL database.
    #[arg(long)]
    postgres: Option<String>,
}

struct Data {
    readers: Arc<Pool<Connection>>,
    writer: Arc<Pool<Connection>>,
    postgres: Option<Arc<Pool<Postgres>>>,
    group: Arc<Group>,
}

/// A connection with the prepared statement that reads a row.
type Postgres = (tokio_postgres::Client, tokio_postgres::Statement);

/// Connections, each used by one request at a time.
struct Pool<T> {
    free: Mutex<Vec<T>>,
    permits: Arc<Semaphore>,
}

/// A connection that is lent from a pool. Dropping this gives the connection back to the pool.
struct Lent<T> {
    connection: Option<T>,
    pool: Arc<Pool<T>>,
    _permit: OwnedSemaphorePermit,
}

impl<T> Pool<T> {
    fn new(connections: Vec<T>) -> Arc<Pool<T>> {
        Arc::new(Pool {
            permits: Arc::new(Semaphore::new(connections.len())),
            free: Mutex::new(connections),
        })
    }

    fn free(&self) -> MutexGuard<'_, Vec<T>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn lend(self: &Arc<Self>) -> anyhow::Result<Lent<T>> {
        let permit = Arc::clone(&self.permits).acquire_owned().await?;
        Ok(Lent {
            connection: self.free().pop(),
            pool: Arc::clone(self),
            _permit: permit,
        })
    }
}

impl<T> Lent<T> {
    fn get(&mut self) -> &mut T {
        self.connection
            .as_mut()
            .expect("the pool has a connection for each permit")
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        let connection = self.connection.take();
        self.pool.free().extend(connection);
    }
}

/// Runs the server until the process is killed.
pub(crate) fn serve(native: &Native) -> anyhow::Result<()> {
    let listener = TcpListener::bind(&native.address)?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let open = |_| open(&native.sqlite);
    let data = Arc::new(Data {
        readers: Pool::new((0..READERS).map(open).collect::<anyhow::Result<_>>()?),
        writer: Pool::new(vec![open(0)?]),
        postgres: (native.postgres.as_ref())
            .map(|url| runtime.block_on(connect(url)))
            .transpose()?,
        group: Arc::default(),
    });
    let loops = std::thread::available_parallelism()?.get();
    std::thread::scope(|scope| {
        let serving: Vec<_> = (0..loops)
            .map(|_| {
                let (listener, data) = (listener.try_clone(), Arc::clone(&data));
                scope.spawn(move || one_loop(listener?, &data))
            })
            .collect();
        serving
            .into_iter()
            .try_for_each(|each| each.join().expect("a loop does not panic"))
    })
}

/// Opens a connection with the settings that Amphi uses.
fn open(file: &Path) -> anyhow::Result<Connection> {
    let connection = Connection::open(file)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    Ok(connection)
}

async fn connect(url: &str) -> anyhow::Result<Arc<Pool<Postgres>>> {
    let mut connections = Vec::new();
    for _ in 0..POSTGRES_CONNECTIONS {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        let read = client
            .prepare("select name from items where id = $1")
            .await?;
        connections.push((client, read));
    }
    Ok(Pool::new(connections))
}

fn one_loop(listener: TcpListener, data: &Arc<Data>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let data = Arc::clone(data);
            tokio::spawn(async move {
                let service = service_fn(|request| answer(request, Arc::clone(&data)));
                // The client may disconnect at any time.
                let _ = hyper::server::conn::http1::Builder::new()
                    .pipeline_flush(true)
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
                    .await;
            });
        }
    })
}

async fn answer(
    request: Request<Incoming>,
    data: Arc<Data>,
) -> anyhow::Result<Response<Either<Full<Bytes>, Stream>>> {
    let path = request.uri().path();
    let (folder, id) = path.rsplit_once('/').context("no path")?;
    let body = match (request.method(), folder) {
        (_, "/socket") => {
            let opened = sockets::serve(request, Arc::clone(&data.group))?;
            return Ok(opened.map(Either::Left));
        }
        (&Method::GET, "/stream") => return Ok(Response::new(Either::Right(Stream::default()))),
        (&Method::POST, "/stream") => count_body(request.into_body()).await?.into(),
        (&Method::POST, "") => request.into_body().collect().await?.to_bytes(),
        (&Method::GET, "") if id == "large" => LARGE.to_vec().into(),
        (&Method::GET, "/items") => read(data, id.parse()?).await?.into(),
        (&Method::POST, "/items") => count(data, id.parse()?).await?.into(),
        (&Method::GET, "/postgres") => read_postgres(&data, id.parse()?).await?.into(),
        _ => Bytes::from_static(b"Hello, World!"),
    };
    let response = Response::builder().header(header::CONTENT_TYPE, "text/plain; charset=utf-8");
    Ok(response.body(Either::Left(Full::new(body)))?)
}

/// A body of 1 GiB in pieces of 64 kB, as the views have it: each piece is made when it is sent.
#[derive(Default)]
struct Stream {
    pieces: usize,
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.pieces == 1024 * 16 {
            return Poll::Ready(None);
        }
        self.pieces += 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::copy_from_slice(
            &LARGE[..64 << 10],
        )))))
    }
}

/// Counts the bytes of a body.
async fn count_body(mut body: Incoming) -> anyhow::Result<String> {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(bytes.to_string())
}

/// Reads a row. SQLite blocks its thread, so the statement runs on one of tokio's threads for blocking work.
async fn read(data: Arc<Data>, id: i64) -> anyhow::Result<String> {
    let mut connection = data.readers.lend().await?;
    Ok(tokio::task::spawn_blocking(move || name(connection.get(), id)).await??)
}

fn name(connection: &Connection, id: i64) -> rusqlite::Result<String> {
    connection
        .prepare_cached("select name from items where id = $1")?
        .query_row((id,), |row| row.get(0))
}

async fn count(data: Arc<Data>, id: i64) -> anyhow::Result<String> {
    let mut connection = data.writer.lend().await?;
    tokio::task::spawn_blocking(move || count_one(connection.get(), id)).await??;
    Ok(String::new())
}

fn count_one(connection: &mut Connection, id: i64) -> rusqlite::Result<()> {
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    transaction
        .prepare_cached("update items set hits = hits + 1 where id = $1")?
        .execute((id,))?;
    transaction.commit()
}

async fn read_postgres(data: &Data, id: i64) -> anyhow::Result<String> {
    let pool = data.postgres.as_ref().context("no PostgreSQL")?;
    let mut lent = pool.lend().await?;
    let (client, read) = lent.get();
    Ok(client.query_one(&*read, &[&id]).await?.try_get(0)?)
}
