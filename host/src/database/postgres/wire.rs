//! The messages between tokio-postgres and the server, watched on their way.
//!
//! tokio-postgres buffers a whole message before it parses it, however long it is. And it ends every request with a
//! `Sync`, after which the server forgets that an earlier statement failed. Both problems are solved here, where the
//! messages pass:
//!
//! * Every message of the server is bounded. A row over the statement's limit is passed on without its values
//!   ([`Limits::is_cut`]). The text of an error is cut. Notices and other messages beside answers are dropped when they
//!   are too long. Any other message that is too long closes the connection.
//! * Statements ahead of another one (`begin`, savepoints) are sent without a `Sync` of their own ([`ahead`]). When one
//!   of them fails, the server skips the statement, which would otherwise run, and be committed, on its own.
//!   tokio-postgres is given the answers that it waits for.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsStream};

/// The most bytes of an error's text that are passed on.
const ERROR_MAX: usize = 16 << 10;
/// The most bytes of a notice, notification or parameter status that is passed on.
const REMARK_MAX: usize = 16 << 10;
/// The most bytes of any other message. The description of the widest table has about 150 KiB.
const MESSAGE_MAX: usize = 1 << 20;
/// The most bytes of one read.
const CHUNK: usize = 16 << 10;

/// The beginning of a simple query whose statements go ahead of the next request. Guests cannot send such a message,
/// because their statements are always prepared.
const AHEAD: &[u8] = b"/* ahead */ ";
const BETWEEN: char = '\u{1}';

/// The text of a simple query for statements that go ahead of the next request. When one of the statements fails, the
/// server skips that request. A request must follow: after an error, the server skips everything up to the `Sync` of
/// that request.
pub(super) fn ahead(statements: &[String]) -> String {
    let mark = std::str::from_utf8(AHEAD).expect("it is ASCII");
    format!("{mark}{}", statements.join(&BETWEEN.to_string()))
}

/// What the owner of a connection and the connection's stream ([`Watched`]) tell each other.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// The most bytes of one row.
    row_max: Arc<AtomicU64>,
    /// Whether a row was passed on without its values since the limit was set.
    cuts: Arc<AtomicBool>,
    /// The number of the server's process, from its first messages; 0 before.
    process: Arc<AtomicU32>,
}

impl Limits {
    pub(super) fn new() -> Limits {
        Limits {
            row_max: Arc::new(AtomicU64::new(MESSAGE_MAX as u64)),
            cuts: Arc::default(),
            process: Arc::default(),
        }
    }

    /// The number of the server's process, from its first messages; 0 before.
    pub(super) fn process(&self) -> u32 {
        self.process.load(Relaxed)
    }

    /// Sets the limit for rows from now on.
    pub(super) fn set_row_max(&self, bytes: u64) {
        self.row_max.store(bytes.max(ERROR_MAX as u64), Relaxed);
        self.cuts.store(false, Relaxed);
    }

    /// Whether a row was over the limit, so that it was passed on without its values.
    pub(super) fn is_cut(&self, row: &tokio_postgres::Row) -> bool {
        self.cuts.load(Relaxed) && row.raw_size_bytes() == 4 * row.len()
    }
}

/// The answers that the server will send, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// A request that ends with `ReadyForQuery`.
    Request,
    /// The answers to so many statements that go ahead of the next request.
    Ahead(usize),
}

/// Reads the server's messages and changes them for tokio-postgres.
pub(super) struct Incoming {
    limits: Limits,
    expected: Arc<Mutex<VecDeque<Expected>>>,
    head: [u8; 5],
    head_length: usize,
    body: Body,
    /// The error of a statement ahead. The server skips the next request, so this error becomes the answer to that
    /// request.
    skips: Option<BytesMut>,
    /// Bytes that tokio-postgres can read now.
    ready: BytesMut,
}

/// What is done with the rest of a message.
enum Body {
    /// Nothing: the next byte begins a message.
    None,
    Pass(usize),
    Drop(usize),
    /// A row over the limit: how many bytes are left, and the first two bytes of the row, which are the number of
    /// columns.
    Cut(usize, Vec<u8>),
    /// The number and the key of the server's process, as far as they have arrived.
    Key(Vec<u8>),
    /// An error, whose first bytes are kept. `of_ahead`: it is the error of a statement ahead.
    Error {
        left: usize,
        kept: BytesMut,
        of_ahead: bool,
    },
}

impl Incoming {
    fn new(limits: Limits, expected: Arc<Mutex<VecDeque<Expected>>>) -> Incoming {
        Incoming {
            limits,
            expected,
            head: [0; 5],
            head_length: 0,
            body: Body::None,
            skips: None,
            ready: BytesMut::new(),
        }
    }

    fn take(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match &mut self.body {
                Body::None => {
                    let count = bytes.len().min(5 - self.head_length);
                    self.head[self.head_length..][..count].copy_from_slice(&bytes[..count]);
                    self.head_length += count;
                    bytes.advance(count);
                    if self.head_length == 5 {
                        self.head_length = 0;
                        self.begin()?;
                    }
                }
                Body::Pass(left) => {
                    let count = bytes.len().min(*left);
                    self.ready.extend_from_slice(&bytes[..count]);
                    *left -= count;
                    bytes.advance(count);
                }
                Body::Drop(left) => {
                    let count = bytes.len().min(*left);
                    *left -= count;
                    bytes.advance(count);
                }
                Body::Cut(left, count) => {
                    count.push(bytes[0]);
                    *left -= 1;
                    bytes.advance(1);
                }
                Body::Key(key) => {
                    key.push(bytes[0]);
                    bytes.advance(1);
                }
                Body::Error { left, kept, .. } => {
                    let count = bytes.len().min(*left);
                    let room = ERROR_MAX.saturating_sub(kept.len());
                    kept.extend_from_slice(&bytes[..count.min(room)]);
                    *left -= count;
                    bytes.advance(count);
                }
            }
            self.end();
        }
        Ok(())
    }

    /// Decides what to do with a message whose head has arrived.
    fn begin(&mut self) -> io::Result<()> {
        let [tag, length @ ..] = self.head;
        let length = u32::from_be_bytes(length) as usize;
        let Some(left) = length.checked_sub(4) else {
            return Err(invalid("a message of the server has no length".into()));
        };
        let queue = Arc::clone(&self.expected);
        let mut expected = queue.lock();
        let ahead = matches!(expected.front(), Some(Expected::Ahead(_)));
        self.body = match tag {
            // The number and the key of the server's process.
            b'K' if left == 8 && self.limits.process() == 0 => {
                self.ready.extend_from_slice(&self.head);
                Body::Key(Vec::new())
            }
            b'N' | b'A' | b'S' if left > REMARK_MAX => Body::Drop(left),
            b'N' | b'A' | b'S' => self.pass(left),
            b'E' => Body::Error {
                left,
                kept: BytesMut::new(),
                of_ahead: ahead,
            },
            // A statement ahead has succeeded. After the last one, tokio-postgres gets the `ReadyForQuery` that it
            // waits for.
            b'C' if ahead => {
                if let Some(Expected::Ahead(count)) = expected.front_mut() {
                    *count -= 1;
                    if *count == 0 {
                        expected.pop_front();
                        self.ready.put_slice(b"Z\0\0\0\x05T");
                    }
                }
                Body::Drop(left)
            }
            b'Z' if !ahead => {
                expected.pop_front();
                if let Some(error) = self.skips.take() {
                    self.ready.unsplit(error);
                }
                self.pass(left)
            }
            _ if ahead => Body::Drop(left),
            b'D' if left as u64 > self.limits.row_max.load(Relaxed) => {
                self.limits.cuts.store(true, Relaxed);
                Body::Cut(left, Vec::new())
            }
            b'D' => self.pass(left),
            _ if left > MESSAGE_MAX => {
                return Err(invalid(format!(
                    "a message of the server (`{}`) has {left} bytes; the most is {MESSAGE_MAX}",
                    char::from(tag).escape_default()
                )));
            }
            _ => self.pass(left),
        };
        Ok(())
    }

    fn pass(&mut self, left: usize) -> Body {
        self.ready.extend_from_slice(&self.head);
        Body::Pass(left)
    }

    /// Ends a message, when all of it has arrived.
    fn end(&mut self) {
        match &mut self.body {
            Body::Pass(0) | Body::Drop(0) => self.body = Body::None,
            Body::Cut(left, count) if count.len() == 2 => {
                let columns = u16::from_be_bytes([count[0], count[1]]);
                self.ready.put_u8(b'D');
                self.ready.put_u32(6 + 4 * u32::from(columns));
                self.ready.put_u16(columns);
                // A length of -1 for each column: null.
                (self.ready).put_bytes(0xff, 4 * usize::from(columns));
                self.body = Body::Drop(*left);
            }
            Body::Key(key) if key.len() == 8 => {
                let process = u32::from_be_bytes(key[..4].try_into().expect("four bytes"));
                self.limits.process.store(process, Relaxed);
                self.ready.extend_from_slice(key);
                self.body = Body::None;
            }
            Body::Error {
                left: 0,
                kept,
                of_ahead,
            } => {
                let (error, of_ahead) = (error_message(kept), *of_ahead);
                self.ready.extend_from_slice(&error);
                if of_ahead {
                    // This `ReadyForQuery` completes the answer to the statements ahead. The request after them is
                    // answered with the same error, right before the server's own `ReadyForQuery`.
                    self.ready.put_slice(b"Z\0\0\0\x05E");
                    self.expected.lock().pop_front();
                    self.skips = Some(error);
                }
                self.body = Body::None;
            }
            _ => {}
        }
    }
}

/// The message of an error with these `fields`, which may be cut at the end.
fn error_message(fields: &[u8]) -> BytesMut {
    let mut fields = fields;
    let whole = fields.len() < ERROR_MAX;
    if !whole {
        // The last field is cut at the boundary of a character, and leaves room for the ` …` that marks the cut.
        let end = fields.len().min(ERROR_MAX) - 8;
        let text = &fields[..end];
        let boundary = (text.iter().rposition(|byte| byte & 0xc0 != 0x80)).unwrap_or(0);
        fields = &fields[..boundary];
    }
    let tail: &[u8] = if whole { b"" } else { " …\0\0".as_bytes() };
    let mut message = BytesMut::with_capacity(fields.len() + tail.len() + 5);
    message.put_u8(b'E');
    let length = 4 + fields.len() + tail.len();
    message.put_u32(u32::try_from(length).expect("it is bounded"));
    message.put_slice(fields);
    message.put_slice(tail);
    message
}

fn invalid(sentence: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, sentence)
}

/// Follows the messages of tokio-postgres and changes them for the server.
struct Outgoing {
    expected: Arc<Mutex<VecDeque<Expected>>>,
    /// Whether the first message has passed. It has no tag.
    started: bool,
    head: [u8; 5],
    head_length: usize,
    left: usize,
    /// Changed messages that are not sent yet.
    out: BytesMut,
}

impl Outgoing {
    fn new(expected: Arc<Mutex<VecDeque<Expected>>>) -> Outgoing {
        Outgoing {
            expected,
            started: false,
            head: [0; 5],
            head_length: 0,
            left: 0,
            out: BytesMut::new(),
        }
    }

    /// Follows messages that are passed on unchanged, and notes the answers that they will get.
    fn note(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let count = bytes.len().min(self.left);
                self.left -= count;
                bytes.advance(count);
                continue;
            }
            let (length, tagged) = if self.started { (5, 1) } else { (4, 0) };
            let count = bytes.len().min(length - self.head_length);
            self.head[self.head_length..][..count].copy_from_slice(&bytes[..count]);
            self.head_length += count;
            bytes.advance(count);
            if self.head_length == length {
                self.head_length = 0;
                let size = &self.head[tagged..tagged + 4];
                let size = u32::from_be_bytes(size.try_into().expect("four bytes"));
                self.left = (size as usize).saturating_sub(4);
                if !self.started || matches!(self.head[0], b'S' | b'Q' | b'F') {
                    self.expected.lock().push_back(Expected::Request);
                }
                self.started = true;
            }
        }
    }

    /// The number of bytes at the beginning of `bytes` that are passed on unchanged: up to the next query of statements
    /// ahead.
    fn plain(&self, bytes: &[u8]) -> usize {
        if !self.started || self.head_length > 0 {
            return bytes.len();
        }
        let mut at = self.left;
        while let Some(rest @ [tag, a, b, c, d, ..]) = bytes.get(at..) {
            if *tag == b'Q' && rest[5..].starts_with(AHEAD) {
                return at;
            }
            at += 1 + u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        }
        bytes.len()
    }

    /// Converts a query of statements ahead, at the beginning of `bytes`, to messages of the extended protocol without
    /// a `Sync`. Returns its length.
    fn take_ahead(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let whole = || invalid("a message that goes ahead is not whole".into());
        let length = bytes.get(1..5).ok_or_else(whole)?;
        let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize + 1;
        let text = bytes.get(5 + AHEAD.len()..length - 1).ok_or_else(whole)?;
        let mut count = 0;
        for sql in text.split(|byte| *byte == BETWEEN as u8) {
            self.out.put_u8(b'P');
            self.out
                .put_u32(4 + 1 + u32::try_from(sql.len()).expect("it is short") + 1 + 2);
            self.out.put_u8(0);
            self.out.put_slice(sql);
            self.out.put_slice(b"\0\0\0");
            self.out.put_slice(b"B\0\0\0\x0c\0\0\0\0\0\0\0\0");
            self.out.put_slice(b"E\0\0\0\x09\0\0\0\0\0");
            count += 1;
        }
        // `Flush`: the server is to send the answers without waiting for a `Sync`.
        self.out.put_slice(b"H\0\0\0\x04");
        self.expected.lock().push_back(Expected::Ahead(count));
        Ok(length)
    }
}

/// A stream whose messages are watched.
pub(super) struct Watched<S> {
    inner: S,
    incoming: Incoming,
    outgoing: Outgoing,
    chunk: Box<[u8]>,
}

impl<S> Watched<S> {
    pub(super) fn new(inner: S, limits: Limits) -> Watched<S> {
        let expected = Arc::new(Mutex::new(VecDeque::new()));
        Watched {
            inner,
            incoming: Incoming::new(limits, Arc::clone(&expected)),
            outgoing: Outgoing::new(expected),
            chunk: vec![0; CHUNK].into(),
        }
    }
}

impl<S: AsyncWrite + Unpin> Watched<S> {
    /// Sends the bytes that are not sent yet.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.out.is_empty() {
            let sent = ready!(Pin::new(&mut self.inner).poll_write(context, &self.outgoing.out))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.out.advance(sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.incoming.ready.is_empty() {
            let mut chunk = ReadBuf::new(&mut this.chunk);
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.incoming.take(chunk.filled())?;
        }
        let count = buffer.remaining().min(this.incoming.ready.len());
        buffer.put_slice(&this.incoming.ready[..count]);
        this.incoming.ready.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_drain(context))?;
        let plain = this.outgoing.plain(bytes);
        if plain > 0 {
            let sent = ready!(Pin::new(&mut this.inner).poll_write(context, &bytes[..plain]))?;
            this.outgoing.note(&bytes[..sent]);
            return Poll::Ready(Ok(sent));
        }
        let mut taken = this.outgoing.take_ahead(bytes)?;
        // A short request behind the statements ahead is sent together with them.
        let behind = &bytes[taken..];
        if behind.len() <= CHUNK && this.outgoing.plain(behind) == behind.len() {
            this.outgoing.note(behind);
            this.outgoing.out.extend_from_slice(behind);
            taken += behind.len();
        }
        if let Poll::Ready(sent) = this.poll_drain(context) {
            sent?;
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(context))?;
        Pin::new(&mut this.inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(context))?;
        Pin::new(&mut this.inner).poll_shutdown(context)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Watched<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.inner.channel_binding()
    }
}

/// For fuzzing: passes bytes of a server on to tokio-postgres. The first byte chooses the length of the pieces that the
/// bytes come in, the second byte what tokio-postgres has sent before. Returns how many bytes tokio-postgres gets.
pub(super) fn fuzzed(data: &[u8]) -> usize {
    let Some(([piece, requests], bytes)) = data.split_first_chunk() else {
        return 0;
    };
    let expected = (0..8).map(|bit| match requests >> bit & 1 {
        0 => Expected::Request,
        _ => Expected::Ahead(bit + 1),
    });
    let expected = Arc::new(Mutex::new(expected.collect()));
    let mut incoming = Incoming::new(Limits::new(), expected);
    for piece in bytes.chunks(usize::from(*piece) + 1) {
        if incoming.take(piece).is_err() {
            break;
        }
    }
    incoming.ready.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).expect("it is short");
        [&[tag][..], &length.to_be_bytes(), body].concat()
    }

    fn incoming(expected: &[Expected]) -> Incoming {
        let expected = expected.iter().copied().collect();
        Incoming::new(Limits::new(), Arc::new(Mutex::new(expected)))
    }

    /// What tokio-postgres gets. The test fails if that depends on the pieces that the bytes come in.
    fn passed(expected: &[Expected], bytes: &[u8]) -> Vec<u8> {
        let mut seen = None;
        for piece in [1, 3, 7, bytes.len()] {
            let mut incoming = incoming(expected);
            for piece in bytes.chunks(piece) {
                incoming.take(piece).expect("it is valid");
            }
            let ready = incoming.ready.to_vec();
            assert_eq!(seen.get_or_insert_with(|| ready.clone()), &ready);
        }
        seen.expect("it was read")
    }

    #[test]
    fn rows_that_are_too_long_come_without_their_values() {
        let long = message(b'D', &[&[0, 2][..], &vec![7; MESSAGE_MAX + 1]].concat());
        let null = b"D\0\0\0\x0e\0\x02\xff\xff\xff\xff\xff\xff\xff\xff";
        let short = message(b'D', b"\0\x01\0\0\0\x01a");
        let ready = message(b'Z', b"I");
        let sent = [&short[..], &long, &short, &ready].concat();
        let expected = [&short[..], null, &short, &ready].concat();
        assert!(passed(&[Expected::Request], &sent) == expected);
    }

    #[test]
    fn errors_are_cut_at_a_character_and_stay_messages() {
        let text = "ü".repeat(2 << 20);
        let fields = [&b"SERROR\0C42000\0M"[..], text.as_bytes(), b"\0\0"].concat();
        let passed = passed(&[Expected::Request], &message(b'E', &fields));
        assert!(passed.len() <= ERROR_MAX + 8, "{}", passed.len());
        let mut bytes = BytesMut::from(&passed[..]);
        let read = postgres_protocol::message::backend::Message::parse(&mut bytes);
        let Ok(Some(postgres_protocol::message::backend::Message::ErrorResponse(body))) = read
        else {
            panic!("it is an error");
        };
        let mut fields = body.fields();
        let mut texts = Vec::new();
        while let Some(field) =
            fallible_iterator::FallibleIterator::next(&mut fields).expect("they are fields")
        {
            texts.push(String::from_utf8(field.value_bytes().to_vec()).expect("it is text"));
        }
        assert_eq!(texts.len(), 3);
        assert!(texts[2].starts_with('ü') && texts[2].ends_with('…'));
    }

    #[test]
    fn remarks_of_any_length_are_left_out_and_other_messages_end_it() {
        let remark = message(b'N', &vec![b'x'; REMARK_MAX + 1]);
        let ready = message(b'Z', b"I");
        assert_eq!(
            passed(&[Expected::Request], &[&remark[..], &ready].concat()),
            ready
        );
        let mut broken = incoming(&[Expected::Request]);
        assert!(
            broken
                .take(&message(b'd', &vec![0; MESSAGE_MAX + 1]))
                .is_err()
        );
        assert!(incoming(&[]).take(b"Z\0\0\0\x03").is_err());
    }

    #[test]
    fn r9_what_goes_ahead_is_answered_and_what_follows_a_failure_is_told_so() {
        let both = [Expected::Ahead(2), Expected::Request];
        let (complete, ready) = (message(b'C', b"BEGIN\0"), message(b'Z', b"T"));
        let one = [message(b'1', b""), message(b'2', b""), complete.clone()].concat();
        let statement = [message(b'2', b""), complete.clone(), ready.clone()].concat();
        let sent = [&one[..], &one, &statement].concat();
        assert_eq!(passed(&both, &sent), [&ready[..], &statement].concat());
        // The second statement ahead fails: the server skips the request after it.
        let error = message(b'E', b"SERROR\0C57014\0Mno\0\0");
        let idle = message(b'Z', b"I");
        let sent = [&one[..], &error, &idle, &statement].concat();
        let failed = message(b'Z', b"E");
        let expected = [&error[..], &failed, &error, &idle, &statement].concat();
        assert_eq!(
            passed(&[both[0], both[1], Expected::Request], &sent),
            expected
        );
    }

    #[test]
    fn r9_what_goes_ahead_is_sent_without_a_sync() {
        let text = ahead(&["begin".to_owned(), "savepoint a".to_owned()]);
        let query = message(b'Q', &[text.as_bytes(), b"\0"].concat());
        let startup = [&9_u32.to_be_bytes()[..], b"\0\x03\0\0\0"].concat();
        let (bind, sync) = (message(b'B', &[9; 40]), message(b'S', b""));
        let all = [&bind[..], &sync, &query, &bind, &sync].concat();
        // The message that goes ahead is written whole, with other messages before and behind it: so tokio-postgres
        // writes it.
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("it can be made").block_on(async {
            use tokio::io::AsyncWriteExt as _;
            let mut watched = Watched::new(Vec::new(), Limits::new());
            watched.write_all(&startup).await.expect("it is kept");
            watched.write_all(&all).await.expect("it is kept");
            watched.flush().await.expect("it is kept");
            let expected = watched.outgoing.expected.lock().clone();
            assert_eq!(
                expected,
                [
                    Expected::Request,
                    Expected::Request,
                    Expected::Ahead(2),
                    Expected::Request
                ]
            );
            let one = |sql: &str| {
                let parse = message(b'P', &[b"\0", sql.as_bytes(), b"\0\0\0"].concat());
                [parse, message(b'B', &[0; 8]), message(b'E', &[0; 5])].concat()
            };
            let flush = message(b'H', b"");
            let sent = [
                &startup[..],
                &bind,
                &sync,
                &one("begin"),
                &one("savepoint a"),
                &flush,
                &bind,
                &sync,
            ];
            assert!(watched.inner == sent.concat(), "{:?}", watched.inner);
        });
    }
}
