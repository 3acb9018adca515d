//! A client of HTTP/2 that opens web sockets by extended CONNECT (RFC 8441), many on one connection.

use bytes::Bytes;
use futures::future::poll_fn;
use h2::client::SendRequest;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use hyper::{Request, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::socket::Socket;
use super::{SOON, Server, eventually};

/// How many bytes of one socket the client keeps in each direction.
const KEPT: usize = 16 << 10;

/// A connection.
pub struct Http2 {
    client: SendRequest<Bytes>,
    connection: JoinHandle<()>,
}

/// What the server answers, and the stream to it.
pub type Answer = (Response<RecvStream>, SendStream<Bytes>);

impl Http2 {
    /// Connects to a server that has web sockets over HTTP/2.
    pub async fn connect(server: &Server) -> Http2 {
        let stream = TcpStream::connect(server.address).await;
        let stream = stream.expect("it accepts");
        let (client, connection) = h2::client::handshake(stream)
            .await
            .expect("it speaks HTTP/2");
        let connection = tokio::spawn(async move {
            // Some tests end the connection.
            let _ = connection.await;
        });
        eventually("the setting of RFC 8441", async || {
            match client.is_extended_connect_protocol_enabled() {
                true => Ok(()),
                false => Err("not enabled"),
            }
        })
        .await;
        Http2 { client, connection }
    }

    /// Sends a request without a body, or a CONNECT with this protocol.
    pub async fn ask(
        &self,
        path: &str,
        protocol: Option<&str>,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = Request::builder().uri(format!("http://example.com{path}"));
        if let Some(protocol) = protocol {
            let protocol = Protocol::from(protocol);
            request = request.method("CONNECT").extension(protocol);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("it is a request");
        let client = self.client.clone().ready().await;
        let sent = (client.expect("it is open")).send_request(request, protocol.is_none());
        let (response, stream) = sent.expect("it is sent");
        let response = timeout(SOON, response).await.expect("it comes in time");
        (response.expect("it is answered"), stream)
    }

    /// Asks for a web socket.
    pub async fn handshake(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let version = ("sec-websocket-version", "13");
        let headers = [headers, &[version]].concat();
        self.ask(path, Some("websocket"), &headers).await
    }

    /// Opens a web socket.
    pub async fn socket(&self, path: &str) -> Socket<DuplexStream> {
        let (response, stream) = self.handshake(path, &[]).await;
        assert_eq!(response.status(), 200);
        let (ours, theirs) = tokio::io::duplex(KEPT);
        tokio::spawn(pass(theirs, response.into_body(), stream));
        Socket(WebSocketStream::from_raw_socket(ours, Role::Client, None).await)
    }

    /// Ends the connection without a word, with all that is open on it.
    pub fn cut(self) {
        self.connection.abort();
    }

    /// Waits until the server has closed the connection.
    pub async fn closed(self) {
        let closed = timeout(SOON, self.connection).await;
        closed.expect("it is closed").expect("no panic");
    }
}

/// Passes bytes between a socket and its stream. A socket that is dropped resets its stream.
async fn pass(socket: DuplexStream, mut from: RecvStream, mut to: SendStream<Bytes>) {
    let (mut read, mut write) = tokio::io::split(socket);
    let down = async {
        while let Some(Ok(bytes)) = from.data().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
            let released = from.flow_control().release_capacity(bytes.len());
            released.expect("so much has come");
        }
        // The socket sees the end.
        let _ = write.shutdown().await;
    };
    let up = async {
        let mut buffer = vec![0; KEPT];
        while let Ok(bytes @ 1..) = read.read(&mut buffer).await {
            let mut rest = Bytes::copy_from_slice(&buffer[..bytes]);
            while !rest.is_empty() {
                to.reserve_capacity(rest.len());
                let Some(Ok(room)) = poll_fn(|cx| to.poll_capacity(cx)).await else {
                    return;
                };
                let piece = rest.split_to(room.min(rest.len()));
                if to.send_data(piece, false).is_err() {
                    return;
                }
            }
        }
        to.send_reset(h2::Reason::CANCEL);
    };
    tokio::join!(down, up);
}
