//! Frames from a client (RFC 6455, 5). The decoder keeps nothing between two reads unless a frame or a message has
//! arrived in part.

use std::mem;

use bytes::Bytes;

use super::{Event, Message, Violation, code, deflate};

const CONTINUATION: u8 = 0;
pub(super) const TEXT: u8 = 1;
pub(super) const BINARY: u8 = 2;
pub(super) const CLOSE: u8 = 8;
pub(super) const PING: u8 = 9;
pub(super) const PONG: u8 = 10;

/// The first byte of a frame: bits beside the opcode.
pub(super) const FINAL: u8 = 0x80;
pub(super) const COMPRESSED: u8 = 0x40;
const RESERVED: u8 = 0x30;
/// The second byte of a frame: a bit beside the length.
const MASKED: u8 = 0x80;

const MASK_BYTES: usize = 4;
/// The longest head of a frame from a client.
const HEAD_MAX: usize = 2 + 8 + MASK_BYTES;
/// The longest payload of a control frame.
pub(super) const CONTROL_MAX: usize = 125;

pub(super) const TOO_LARGE: Violation = Violation {
    code: code::TOO_LARGE,
    reason: "a message is larger than this server accepts",
};

const NOT_UTF8: Violation = Violation {
    code: code::INVALID_DATA,
    reason: "a text is not valid UTF-8",
};

/// Reads what one client sends.
pub struct Decoder {
    /// What has arrived in part. `None` while the connection is idle.
    partial: Option<Box<Partial>>,
    message_max_bytes: usize,
    deflate: bool,
    /// Whether the client has closed the connection or broken a rule. What it sends afterwards is ignored.
    ended: bool,
}

#[derive(Default)]
struct Partial {
    /// The first bytes of a head.
    head: [u8; HEAD_MAX],
    head_len: usize,
    /// A frame of which the head has arrived, and not all of the payload.
    frame: Option<Frame>,
    /// What has arrived of the payload of a control frame.
    control: Vec<u8>,
    /// A message of which at least one head has arrived. Control frames may come in between.
    message: Option<PartialMessage>,
}

/// A frame of which the head has arrived.
struct Frame {
    fin: bool,
    compressed: bool,
    opcode: u8,
    /// The mask, rotated so that its first byte belongs to the next byte of the payload.
    mask: [u8; MASK_BYTES],
    /// The bytes of the payload that have not arrived.
    missing: usize,
}

struct PartialMessage {
    is_text: bool,
    compressed: bool,
    content: Vec<u8>,
    /// How many bytes of `content` are known to be whole characters. Only text that is not compressed is checked as it
    /// arrives.
    checked: usize,
}

impl Decoder {
    /// A decoder for a new connection. `message_max_bytes` limits each message, after inflation and over all its
    /// frames. `deflate` says whether the handshake has negotiated `permessage-deflate`.
    pub fn new(message_max_bytes: usize, deflate: bool) -> Decoder {
        Decoder {
            partial: None,
            message_max_bytes,
            deflate,
            ended: false,
        }
    }

    /// The next event in `input`, which are bytes from the client in the order in which they were sent. `input` is
    /// shortened by the bytes that were read; they are overwritten. `None` means that `input` is empty now, and what it
    /// had of an unfinished message is kept.
    ///
    /// A caller that cannot take more events stops calling, keeps the rest of `input`, and passes it first when it goes
    /// on.
    ///
    /// # Errors
    /// When the client breaks a rule. After this, and after [`Event::Close`], everything in `input` is skipped.
    pub fn next(&mut self, input: &mut &mut [u8]) -> Result<Option<Event>, Violation> {
        let event = self.read(input);
        if matches!(event, Err(_) | Ok(Some(Event::Close { .. }))) {
            self.ended = true;
            self.partial = None;
        }
        event
    }

    /// The bytes on the heap that are kept for an unfinished message, for the budget of memory. 0 while the connection
    /// is idle; at most a little more than one message otherwise.
    pub fn kept_bytes(&self) -> usize {
        let Some(partial) = &self.partial else {
            return 0;
        };
        let message = partial.message.as_ref();
        size_of::<Partial>()
            + partial.control.capacity()
            + message.map_or(0, |message| message.content.capacity())
    }

    fn read(&mut self, input: &mut &mut [u8]) -> Result<Option<Event>, Violation> {
        if self.ended {
            *input = &mut [];
        }
        while !input.is_empty() {
            let Some(mut frame) = self.frame(input)? else {
                break;
            };
            let payload = take(input, frame.missing);
            unmask(payload, &mut frame.mask);
            frame.missing -= payload.len();
            let event = match frame.opcode {
                CLOSE | PING | PONG => self.control(&frame, payload)?,
                _ => self.data(&frame, payload)?,
            };
            if frame.missing > 0 {
                self.partial.get_or_insert_default().frame = Some(frame);
            } else if self.partial.as_ref().is_some_and(|it| it.message.is_none()) {
                self.partial = None;
            }
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// The frame that the next bytes of `input` belong to: one that has begun earlier, else the one whose head is next.
    /// `None` if the head is incomplete.
    fn frame(&mut self, input: &mut &mut [u8]) -> Result<Option<Frame>, Violation> {
        let (mut head, mut len) = ([0; HEAD_MAX], 0);
        if let Some(partial) = &mut self.partial {
            if let Some(frame) = partial.frame.take() {
                return Ok(Some(frame));
            }
            (head, len) = (partial.head, mem::take(&mut partial.head_len));
        }
        loop {
            let whole = match head[..len] {
                [first, second, ..] => {
                    self.check(first, second)?;
                    2 + length_bytes(second) + MASK_BYTES
                }
                _ => 2,
            };
            if len == whole {
                return self.parse(&head[..len]).map(Some);
            }
            let more = take(input, whole - len);
            head[len..len + more.len()].copy_from_slice(more);
            len += more.len();
            if len < whole {
                let partial = self.partial.get_or_insert_default();
                (partial.head, partial.head_len) = (head, len);
                return Ok(None);
            }
        }
    }

    /// Checks the first two bytes of a frame.
    fn check(&self, first: u8, second: u8) -> Result<(), Violation> {
        let (fin, compressed) = (first & FINAL != 0, first & COMPRESSED != 0);
        let opcode = first & 0x0f;
        let is_control = matches!(opcode, CLOSE | PING | PONG);
        let starts = matches!(opcode, TEXT | BINARY);
        let open = self.open_message().is_some();
        let rules = [
            (
                is_control || starts || opcode == CONTINUATION,
                "a frame has an unknown opcode",
            ),
            (first & RESERVED == 0, "a reserved bit of a frame is set"),
            (
                !compressed || self.deflate,
                "a frame is compressed, although compression was not negotiated",
            ),
            (
                !compressed || starts,
                "a frame that does not start a message is marked as compressed",
            ),
            (fin || !is_control, "a control frame is fragmented"),
            (
                usize::from(second & !MASKED) <= CONTROL_MAX || !is_control,
                "a control frame has more than 125 bytes",
            ),
            (
                open || opcode != CONTINUATION,
                "a frame continues a message that has not started",
            ),
            (
                !open || !starts,
                "a message starts before the end of the one before",
            ),
            (second & MASKED != 0, "a frame is not masked"),
        ];
        match rules.iter().find(|(kept, _)| !kept) {
            Some((_, reason)) => Err(protocol(reason)),
            None => Ok(()),
        }
    }

    /// Parses a complete head whose first two bytes have been checked. A message that would become too large is refused
    /// here, before the payload arrives.
    fn parse(&self, head: &[u8]) -> Result<Frame, Violation> {
        let (lengths, mask) = head[2..].split_at(length_bytes(head[1]));
        let length = match lengths {
            [] => u64::from(head[1] & !MASKED),
            bytes => bytes
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        };
        let minimal = match lengths.len() {
            0 => 0,
            2 => CONTROL_MAX as u64 + 1,
            _ => 1 << 16,
        };
        if length < minimal {
            return Err(protocol("a length is written with more bytes than needed"));
        }
        if length >> 63 != 0 {
            return Err(protocol("a length has its highest bit set"));
        }
        let opcode = head[0] & 0x0f;
        let compressed = head[0] & COMPRESSED != 0;
        let most = match self.open_message() {
            _ if !matches!(opcode, TEXT | BINARY | CONTINUATION) => CONTROL_MAX,
            Some(message) => self.content_max(message.compressed) - message.content.len(),
            None => self.content_max(compressed),
        };
        let missing = usize::try_from(length).ok().filter(|bytes| *bytes <= most);
        Ok(Frame {
            fin: head[0] & FINAL != 0,
            compressed,
            opcode,
            mask: mask
                .try_into()
                .expect("a head ends with four bytes of the mask"),
            missing: missing.ok_or(TOO_LARGE)?,
        })
    }

    fn open_message(&self) -> Option<&PartialMessage> {
        self.partial.as_ref()?.message.as_ref()
    }

    /// The most bytes of payloads that a message may have.
    fn content_max(&self, compressed: bool) -> usize {
        match compressed {
            true => deflate::compressed_max(self.message_max_bytes),
            false => self.message_max_bytes,
        }
    }

    /// Takes a part of a control frame; returns the event if it is the last part.
    fn control(&mut self, frame: &Frame, payload: &[u8]) -> Result<Option<Event>, Violation> {
        if frame.missing > 0 {
            let partial = self.partial.get_or_insert_default();
            partial.control.extend_from_slice(payload);
            return Ok(None);
        }
        let mut whole = match &mut self.partial {
            Some(partial) => mem::take(&mut partial.control),
            None => Vec::new(),
        };
        whole.extend_from_slice(payload);
        match frame.opcode {
            PING => Ok(Some(Event::Ping(whole.into()))),
            PONG => Ok(Some(Event::Pong(whole.into()))),
            _ => closed(&whole).map(Some),
        }
    }

    /// Takes a part of a message; returns the message if it is the last part.
    fn data(&mut self, frame: &Frame, payload: &[u8]) -> Result<Option<Event>, Violation> {
        let is_last = frame.fin && frame.missing == 0;
        let open = self.partial.as_mut().and_then(|it| it.message.take());
        let mut open = open.unwrap_or_else(|| PartialMessage {
            is_text: frame.opcode == TEXT,
            compressed: frame.compressed,
            content: Vec::new(),
            checked: 0,
        });
        // The last frame says how large the message becomes.
        let most = match frame.fin {
            true => open.content.len() + payload.len() + frame.missing,
            false => self.content_max(open.compressed),
        };
        append(&mut open.content, payload, most);
        open.check_text()?;
        if is_last {
            return open.finish(self.message_max_bytes).map(Some);
        }
        self.partial.get_or_insert_default().message = Some(open);
        Ok(None)
    }
}

impl PartialMessage {
    /// Checks the text that has arrived since the last check. Invalid text is refused at its first invalid byte. Up to
    /// three bytes of an incomplete character are looked at again next time.
    fn check_text(&mut self) -> Result<(), Violation> {
        if !self.is_text || self.compressed {
            return Ok(());
        }
        match std::str::from_utf8(&self.content[self.checked..]) {
            Ok(text) => self.checked += text.len(),
            Err(error) if error.error_len().is_none() => self.checked += error.valid_up_to(),
            Err(_) => return Err(NOT_UTF8),
        }
        Ok(())
    }

    fn finish(mut self, max: usize) -> Result<Event, Violation> {
        if self.compressed {
            self.content = deflate::inflate(&self.content, max)?;
            self.compressed = false;
            self.check_text()?;
        }
        if self.is_text && self.checked < self.content.len() {
            return Err(NOT_UTF8);
        }
        // The message may be kept for long, and `Bytes` keeps the whole capacity.
        self.content.shrink_to_fit();
        Ok(message(self.is_text, self.content.into()))
    }
}

fn message(is_text: bool, content: Bytes) -> Event {
    Event::Message(match is_text {
        true => Message::Text(content),
        false => Message::Binary(content),
    })
}

fn protocol(reason: &'static str) -> Violation {
    Violation {
        code: code::PROTOCOL,
        reason,
    }
}

/// Reads the payload of a close frame.
fn closed(payload: &[u8]) -> Result<Event, Violation> {
    let (code, reason) = match payload {
        [] => (None, &[][..]),
        [_] => return Err(protocol("a close frame has half a code")),
        [high, low, reason @ ..] => (Some(u16::from_be_bytes([*high, *low])), reason),
    };
    if !code.is_none_or(code::is_receivable) {
        return Err(protocol("a close frame has an invalid code"));
    }
    let reason = std::str::from_utf8(reason).map_err(|_| NOT_UTF8)?;
    Ok(Event::Close {
        code,
        reason: reason.to_owned(),
    })
}

/// The number of bytes that follow the second byte of a frame and are its length.
fn length_bytes(second: u8) -> usize {
    match second & !MASKED {
        126 => 2,
        127 => 8,
        _ => 0,
    }
}

/// Takes up to `most` bytes from the start of `input`.
fn take<'a>(input: &mut &'a mut [u8], most: usize) -> &'a mut [u8] {
    let all = mem::take(input);
    let (taken, rest) = all.split_at_mut(most.min(all.len()));
    *input = rest;
    taken
}

/// Appends to a buffer that doubles when it is full, so that each byte is moved once on average, but never has room for
/// more than `most` bytes, which it will not exceed.
pub(super) fn append(buffer: &mut Vec<u8>, more: &[u8], most: usize) {
    let len = buffer.len() + more.len();
    if len > buffer.capacity() {
        let room = len.max(buffer.capacity() * 2).min(most.max(len));
        buffer.reserve_exact(room - buffer.len());
    }
    buffer.extend_from_slice(more);
}

/// Removes the mask of a part of a payload, and rotates the mask for the next part.
fn unmask(payload: &mut [u8], mask: &mut [u8; MASK_BYTES]) {
    let [a, b, c, d] = *mask;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    mask.rotate_left(payload.len() % 4);
}
