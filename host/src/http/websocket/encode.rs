//! Frames to a client.

use std::sync::OnceLock;

use bytes::Bytes;

use super::frame::{BINARY, CLOSE, COMPRESSED, CONTROL_MAX, FINAL, PING, PONG, TEXT};
use super::{Message, deflate};

/// Messages with fewer bytes are not compressed. Compressing takes at least 5 µs, and saves too little on them.
const DEFLATE_MIN: usize = 256;

/// A message as it is sent. It is encoded once, and all receivers of a broadcast share the bytes.
#[derive(Debug)]
pub struct Encoded {
    plain: Bytes,
    /// Where the content starts in `plain`.
    head_len: usize,
    /// `None` in the cell if the message does not get smaller.
    deflated: OnceLock<Option<Bytes>>,
}

impl Encoded {
    /// Encodes a message.
    pub fn new(message: &Message) -> Encoded {
        let (opcode, content) = match message {
            Message::Text(content) => (TEXT, content),
            Message::Binary(content) => (BINARY, content),
        };
        let plain = encode(opcode, content);
        Encoded {
            head_len: plain.len() - content.len(),
            plain,
            deflated: OnceLock::new(),
        }
    }

    /// The frame for a receiver. `deflate` says whether the receiver's handshake has negotiated `permessage-deflate`.
    /// The first such receiver has the message compressed, on its thread; others that come meanwhile wait for it.
    /// Messages that are short or do not get smaller are never compressed.
    pub fn frame(&self, deflate: bool) -> &Bytes {
        let content = &self.plain[self.head_len..];
        if !deflate || content.len() < DEFLATE_MIN {
            return &self.plain;
        }
        let deflated = self.deflated.get_or_init(|| {
            let deflated = deflate::deflate(content)?;
            Some(encode(self.plain[0] & 0x0f | COMPRESSED, &deflated))
        });
        deflated.as_ref().unwrap_or(&self.plain)
    }
}

/// A ping. Of the content, the first 125 bytes are sent, as many as a control frame can have.
pub fn ping(content: &[u8]) -> Bytes {
    encode(PING, &content[..content.len().min(CONTROL_MAX)])
}

/// The answer to a ping with the same content.
pub fn pong(content: &[u8]) -> Bytes {
    encode(PONG, &content[..content.len().min(CONTROL_MAX)])
}

/// A close frame. A reason of more than 123 bytes is cut at the end of a character; without a code, there can be no
/// reason.
pub fn close(code: Option<u16>, reason: &str) -> Bytes {
    let Some(code) = code else {
        return encode(CLOSE, &[]);
    };
    let mut payload = code.to_be_bytes().to_vec();
    let end = reason.floor_char_boundary(CONTROL_MAX - payload.len());
    payload.extend_from_slice(&reason.as_bytes()[..end]);
    encode(CLOSE, &payload)
}

/// One final frame of a server, without a mask. `first` is the opcode, with [`COMPRESSED`] where it applies.
fn encode(first: u8, payload: &[u8]) -> Bytes {
    let length = payload.len() as u64;
    let long = length.to_be_bytes();
    let (short, long) = match length {
        0..126 => (length as u8, &long[8..]),
        126..0x1_0000 => (126, &long[6..]),
        _ => (127, &long[..]),
    };
    // The capacity is exact, because `Bytes` keeps what is allocated beyond it.
    let mut frame = Vec::with_capacity(2 + long.len() + payload.len());
    frame.extend_from_slice(&[FINAL | first, short]);
    frame.extend_from_slice(long);
    frame.extend_from_slice(payload);
    frame.into()
}
