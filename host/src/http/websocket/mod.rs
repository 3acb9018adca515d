//! WebSockets (RFC 6455) as a server speaks them, with `permessage-deflate` (RFC 7692). The module owns the protocol
//! and does no I/O: [`Handshake`] checks a request, [`Decoder`] turns received bytes into events, and [`Encoded`],
//! [`ping`], [`pong`] and [`close`] make frames. Connections, queues, timeouts and the budget of memory belong to the
//! caller.
//!
//! **Memory.** Most connections are idle most of the time, so a connection owns no buffer. The caller reads into a
//! buffer of its thread, the decoder works in that buffer, and only a message that has arrived in part is copied to the
//! heap, in a buffer that grows with the bytes that have arrived and not with the length that the client announces. The
//! state of deflate (about 60 kB to read and 320 kB to write) exists once per thread. Therefore both sides negotiate
//! "no context takeover": each message is compressed on its own.
//!
//! **Time.** The work is linear in the bytes that arrive, however the client cuts its messages into frames and packets:
//! heads of frames have constant size, buffers double, UTF-8 is checked once per byte. An inflated message is limited
//! while it is inflated.

mod deflate;
mod encode;
mod frame;
mod handshake;
#[cfg(test)]
mod tests;

use std::fmt;

use bytes::Bytes;

pub use encode::{Encoded, close, ping, pong};
pub use frame::Decoder;
pub use handshake::{Handshake, Refusal, is_requested, offered_protocols};

/// A message from a client or to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Text. The bytes are valid UTF-8; whoever makes the message is responsible for that.
    Text(Bytes),
    /// Any bytes.
    Binary(Bytes),
}

/// What a client has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A complete message.
    Message(Message),
    /// The client wants a [`pong`] with the same content.
    Ping(Bytes),
    /// The answer to a [`ping`], or a sign of life that nobody asked for.
    Pong(Bytes),
    /// The client closes the connection. It expects a [`close`] with the same code, unless it answers one.
    Close {
        /// One of the codes for which [`code::is_receivable`] is true.
        code: Option<u16>,
        /// Text for logs; often empty.
        reason: String,
    },
}

/// A client has broken a rule of the protocol. The connection ends with a [`close`] of this code and reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    /// [`code::PROTOCOL`], [`code::INVALID_DATA`] or [`code::TOO_LARGE`].
    pub code: u16,
    /// What was wrong, for the client and the log. It fits into a close frame.
    pub reason: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.reason, self.code)
    }
}

impl std::error::Error for Violation {}

/// Why a connection is closed (RFC 6455, 7.4).
pub mod code {
    /// The connection has served its purpose.
    pub const NORMAL: u16 = 1000;
    /// The server stops, or the user has left the page.
    pub const GOING_AWAY: u16 = 1001;
    /// The other side has broken the protocol.
    pub const PROTOCOL: u16 = 1002;
    /// The other side has sent a kind of message that is not accepted, such as binary where text is expected.
    pub const UNSUPPORTED: u16 = 1003;
    /// The content of a message does not fit its kind: text that is not UTF-8, or invalid compressed data.
    pub const INVALID_DATA: u16 = 1007;
    /// A message is against the rules of the application.
    pub const POLICY: u16 = 1008;
    /// A message is larger than the other side accepts.
    pub const TOO_LARGE: u16 = 1009;
    /// The server has failed.
    pub const INTERNAL: u16 = 1011;
    /// The server restarts; clients may connect again.
    pub const RESTART: u16 = 1012;
    /// The server is overloaded; clients may try again later.
    pub const TRY_AGAIN: u16 = 1013;

    /// Whether a close frame from a client may have this code. Those left out are reserved for use within one side
    /// (1005, 1006, 1015), not assigned, or not allowed on the wire.
    pub fn is_receivable(code: u16) -> bool {
        matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }

    /// Whether a server may send this code, on its own behalf or that of an application. As [`is_receivable`], without
    /// 1010, which only a client can mean, and 1014, which only a gateway can mean.
    pub fn is_sendable(code: u16) -> bool {
        is_receivable(code) && !matches!(code, 1010 | 1014)
    }
}
