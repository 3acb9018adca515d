//! Connections to a server: sockets, TLS on them if `sslmode` asks for it, and the limits on messages
//! ([`super::wire`]).
//!
//! The host must watch the messages of every stream, with TLS or without. But tokio-postgres negotiates TLS by itself,
//! and lets the host wrap a stream only if the stream gets TLS. So tokio-postgres is told that every stream has TLS
//! from its first byte on. To set TLS up, tokio-postgres calls a function of the host ([`Begin`]). This function asks
//! the server for TLS, sets TLS up if the server has it, and returns a watched stream in both cases.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{self, Poll};

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::UnixStream;
use tokio_postgres::config::{Host, SslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::{CancelToken, Client, Connection, NoTls, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::tls;
use super::wire::{Limits, Watched};
use crate::config::PostgresServer;

/// The message that asks a server for TLS.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

type Encrypted = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;
type Handshake = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;

/// The address of a server, and how to connect to it.
#[derive(Clone)]
pub(super) struct Connector {
    url: tokio_postgres::Config,
    mode: SslMode,
    negotiation: SslNegotiation,
    tls: MakeRustlsConnect,
}

/// A new connection, by TCP or by a Unix socket.
pub(super) enum Connecting {
    Tcp(Connection<Socket, Watched<Carrier>>),
    Unix(Connection<Watched<UnixStream>, tokio_postgres::tls::NoTlsStream>),
}

impl Connector {
    /// # Errors
    /// When the certificates to trust cannot be read.
    pub(super) fn new(server: &PostgresServer) -> anyhow::Result<Connector> {
        let mut url = server.url.clone();
        let (mode, negotiation) = (url.get_ssl_mode(), url.get_ssl_negotiation());
        if socket_of(&url).is_none() {
            // TLS needs a host name. If the URL has addresses only, they are used as the names.
            if url.get_hosts().is_empty() {
                let addresses = url.get_hostaddrs().to_vec();
                for address in addresses {
                    url.host(address.to_string());
                }
            }
            url.ssl_mode(SslMode::Require)
                .ssl_negotiation(SslNegotiation::Direct);
        } else {
            url.ssl_mode(SslMode::Disable);
        }
        Ok(Connector {
            url,
            mode,
            negotiation,
            tls: tls::client(server)?,
        })
    }

    /// Opens a connection. Later changes of `limits` apply to the connection.
    pub(super) async fn connect(&self, limits: &Limits) -> anyhow::Result<(Client, Connecting)> {
        let make = Make {
            connector: self.clone(),
            limits: limits.clone(),
        };
        let Some(path) = socket_of(&self.url) else {
            let (client, connection) = self.url.connect(make).await?;
            return Ok((client, Connecting::Tcp(connection)));
        };
        let place = || path.display().to_string();
        let stream = UnixStream::connect(&path).await.with_context(place)?;
        let stream = Watched::new(stream, limits.clone());
        let (client, connection) = self.url.connect_raw(stream, NoTls).await?;
        Ok((client, Connecting::Unix(connection)))
    }

    /// Asks the server to cancel what runs on a connection.
    pub(super) async fn cancel(&self, token: &CancelToken) -> anyhow::Result<()> {
        let make = Make {
            connector: self.clone(),
            limits: Limits::new(),
        };
        match socket_of(&self.url) {
            None => token.cancel_query(make).await?,
            Some(path) => {
                let stream = UnixStream::connect(path).await?;
                token.cancel_query_raw(stream, NoTls).await?;
            }
        }
        Ok(())
    }
}

impl Connecting {
    pub(super) fn poll_message(
        &mut self,
        context: &mut task::Context<'_>,
    ) -> Poll<Option<Result<tokio_postgres::AsyncMessage, tokio_postgres::Error>>> {
        match self {
            Connecting::Tcp(connection) => connection.poll_message(context),
            Connecting::Unix(connection) => connection.poll_message(context),
        }
    }
}

/// The path of the Unix socket, if the server is reached through a Unix socket.
fn socket_of(url: &tokio_postgres::Config) -> Option<std::path::PathBuf> {
    let folder = |host: &Host| match host {
        Host::Unix(folder) => Some(folder.clone()),
        Host::Tcp(_) => None,
    };
    let folder = url.get_hosts().iter().find_map(folder)?;
    let port = url.get_ports().first().copied().unwrap_or(5432);
    Some(Path::new(&folder).join(format!(".s.PGSQL.{port}")))
}

/// What tokio-postgres calls to set up TLS on a socket.
#[derive(Clone)]
struct Make {
    connector: Connector,
    limits: Limits,
}

/// A stream with TLS or without.
pub(super) enum Carrier {
    Plain(Socket),
    Encrypted(Box<Encrypted>),
}

impl MakeTlsConnect<Socket> for Make {
    type Stream = Watched<Carrier>;
    type TlsConnect = Begin;
    type Error = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Error;

    fn make_tls_connect(&mut self, host: &str) -> Result<Begin, Self::Error> {
        let tls = &mut self.connector.tls;
        Ok(Begin {
            handshake: MakeTlsConnect::<Socket>::make_tls_connect(tls, host)?,
            mode: self.connector.mode,
            negotiation: self.connector.negotiation,
            limits: self.limits.clone(),
        })
    }
}

/// Negotiates TLS at the beginning of one stream.
pub(super) struct Begin {
    handshake: Handshake,
    mode: SslMode,
    negotiation: SslNegotiation,
    limits: Limits,
}

impl Begin {
    async fn carrier(self, mut socket: Socket) -> io::Result<Carrier> {
        if self.mode == SslMode::Disable {
            return Ok(Carrier::Plain(socket));
        }
        if self.negotiation == SslNegotiation::Postgres {
            socket.write_all(&SSL_REQUEST).await?;
            let answer = socket.read_u8().await?;
            if answer != b'S' && self.mode == SslMode::Require {
                return Err(io::Error::other("the server has no TLS"));
            }
            if answer != b'S' {
                return Ok(Carrier::Plain(socket));
            }
        }
        let encrypted = self.handshake.connect(socket).await?;
        Ok(Carrier::Encrypted(Box::new(encrypted)))
    }
}

impl TlsConnect<Socket> for Begin {
    type Stream = Watched<Carrier>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Watched<Carrier>>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move {
            let limits = self.limits.clone();
            Ok(Watched::new(self.carrier(socket).await?, limits))
        })
    }
}

impl AsyncRead for Carrier {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Carrier::Plain(socket) => Pin::new(socket).poll_read(context, buffer),
            Carrier::Encrypted(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Carrier::Plain(socket) => Pin::new(socket).poll_write(context, bytes),
            Carrier::Encrypted(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Carrier::Plain(socket) => Pin::new(socket).poll_flush(context),
            Carrier::Encrypted(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(
        self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Carrier::Plain(socket) => Pin::new(socket).poll_shutdown(context),
            Carrier::Encrypted(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

impl TlsStream for Carrier {
    fn channel_binding(&self) -> ChannelBinding {
        match self {
            Carrier::Plain(_) => ChannelBinding::none(),
            Carrier::Encrypted(stream) => stream.channel_binding(),
        }
    }
}
