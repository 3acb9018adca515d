//! Clients that do not keep to the protocol.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{SOON, Server};

/// A connection on which anything can be sent.
pub struct Raw(TcpStream);

impl Raw {
    pub async fn connect(server: &Server) -> Raw {
        let stream = TcpStream::connect(server.address).await;
        let stream = stream.expect("the server accepts connections");
        // Small pieces are sent one by one, without waiting for the server's acknowledgements.
        stream.set_nodelay(true).expect("it is a socket");
        Raw(stream)
    }

    /// Sends bytes. Returns whether the connection still took them.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.write_all(bytes.as_ref()).await.is_ok()
    }

    /// Closes the client's direction of the connection.
    pub async fn finish(&mut self) {
        // The server may have closed the connection before.
        let _ = self.0.shutdown().await;
    }

    /// Everything that the server sends until it closes the connection.
    ///
    /// # Panics
    /// When the server does not close the connection soon.
    pub async fn rest(&mut self) -> String {
        String::from_utf8_lossy(&self.rest_of_bytes().await).into_owned()
    }

    /// As [`Raw::rest`], for what is no text.
    ///
    /// # Panics
    /// As [`Raw::rest`].
    pub async fn rest_of_bytes(&mut self) -> Vec<u8> {
        let mut answer = Vec::new();
        let read = tokio::time::timeout(SOON, async {
            let mut piece = [0; 4096];
            // A reset ends the connection, too.
            while let Ok(length @ 1..) = self.0.read(&mut piece).await {
                answer.extend_from_slice(&piece[..length]);
            }
        });
        let ended = read.await.is_ok();
        assert!(
            ended,
            "the server should have closed the connection; it sent {:?}",
            String::from_utf8_lossy(&answer)
        );
        answer
    }

    /// Reads this many bytes.
    ///
    /// # Panics
    /// When they do not arrive soon.
    pub async fn exactly(&mut self, length: usize) -> String {
        let mut bytes = vec![0; length];
        let read = tokio::time::timeout(SOON, self.0.read_exact(&mut bytes)).await;
        read.expect("they come soon").expect("they come");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Reads until `end`, which is included.
    ///
    /// # Panics
    /// When `end` does not arrive soon.
    pub async fn until(&mut self, end: &str) -> String {
        let answer = self.until_or_closed(end).await;
        assert!(
            answer.ends_with(end),
            "{end:?} should have come; it sent {answer:?}"
        );
        answer
    }

    /// Reads until `end`, which is included, or until the server closes the connection.
    ///
    /// # Panics
    /// When neither happens soon.
    pub async fn until_or_closed(&mut self, end: &str) -> String {
        let mut answer = Vec::new();
        let read = tokio::time::timeout(SOON, async {
            while !answer.ends_with(end.as_bytes()) {
                match self.0.read_u8().await {
                    Ok(byte) => answer.push(byte),
                    Err(_) => break,
                }
            }
        });
        let ended = read.await.is_ok();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(ended, "{end:?} should have come; it sent {answer:?}");
        answer
    }

    /// As [`Raw::until`], for what is no text.
    ///
    /// # Panics
    /// As [`Raw::until`].
    pub async fn bytes_until(&mut self, end: &[u8]) -> Vec<u8> {
        let mut answer = Vec::new();
        let read = tokio::time::timeout(SOON, async {
            while !answer.ends_with(end) {
                match self.0.read_u8().await {
                    Ok(byte) => answer.push(byte),
                    Err(_) => break,
                }
            }
        });
        let came = read.await.is_ok() && answer.ends_with(end);
        assert!(came, "{end:x?} should have come; it sent {answer:x?}");
        answer
    }

    /// Whether the server sends nothing for this long.
    pub async fn is_silent_for(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.0.read_u8()).await.is_err()
    }
}

/// Sends bytes on a new connection and reads until the server closes it.
pub async fn exchange(server: &Server, request: impl AsRef<[u8]>) -> String {
    let mut raw = Raw::connect(server).await;
    raw.send(request).await;
    raw.rest().await
}

/// The status in the first line of a response; 0 if there is no response.
pub fn status(answer: &str) -> u16 {
    answer
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}
