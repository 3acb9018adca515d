//! The task of one web socket: it reads frames, sends what waits, and has the events handled one at a time.
//!
//! While nothing happens, the task has no buffer: it reads into a buffer of its thread, and the decoder copies what is
//! half-read (R18). Whatever ends the connection, the task ends the memberships first, has the events that came before
//! handled, and then the event `closed`, once (R19, R21).

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use futures::future::{BoxFuture, FutureExt as _};
use hyper::upgrade::{OnUpgrade, Upgraded};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::conversation::Ready;
use super::events::Events;
use super::stream::{BUFFER, Stream};
use crate::budget::Room;
use crate::config::Sockets;
use crate::http::websocket::{self, Decoder, Event as Received, code};
use crate::scope::conversation::{Conversation, Event};
use crate::scope::socket::Close;
use crate::telemetry::metrics::{GaugeGuard, METRICS};

/// Bytes that a connection may keep without memory being drawn from the budget. If there are more, all are drawn.
const FREE: usize = 4 << 10;
/// How long a client may take to answer a close, and to read what was sent before.
const CLOSE_TIME: Duration = Duration::from_secs(5);
/// The same while the server stops: the views have to be told in time.
const STOP_TIME: Duration = Duration::from_secs(1);
/// How long the host goes on reading after its last frame.
const LINGER: Duration = Duration::from_secs(1);
/// The code of a connection that has ended without a close.
const ABNORMAL: u16 = 1006;

/// Takes the stream out of an upgraded connection, with the bytes that were read ahead. None: it is none of this server.
pub(crate) type IntoStream = fn(Upgraded) -> Option<(Stream, Bytes)>;

/// Something that a stream of an HTTP/2 connection holds as long as it is open, so that the connection is not taken for
/// idle. The server puts it into the extensions of a request that may become a web socket.
#[derive(Clone)]
pub struct KeptOpen(pub Arc<dyn Any + Send + Sync>);

/// Where connections go on that have been upgraded.
#[derive(Clone)]
pub struct Upgrades {
    /// Counts them, so that the server waits for their end.
    pub open: TaskTracker,
    /// Cancelled when the server stops.
    pub stop: CancellationToken,
    /// What the connection holds, such as its permit.
    pub held: Arc<dyn Any + Send + Sync>,
    /// Takes the stream out of the upgraded connection.
    pub into_stream: IntoStream,
}

impl Upgrades {
    /// `kept`: what a stream of an HTTP/2 connection holds, and the memory for it.
    pub(super) fn spawn(
        &self,
        upgrade: OnUpgrade,
        kept: (Option<KeptOpen>, Room),
        connection: Connection,
    ) {
        let Upgrades {
            held,
            stop,
            into_stream,
            ..
        } = self.clone();
        self.open.spawn(async move {
            let _held = (held, kept);
            let upgraded = upgrade.await.ok().and_then(into_stream);
            connection.run(upgraded, stop).await;
        });
    }
}

/// A connection whose handshake has succeeded.
pub(super) struct Connection {
    events: Arc<Events>,
    decoder: Decoder,
    /// Events that wait, the oldest first.
    mailbox: VecDeque<Event>,
    /// What the events wait for, if the view keeps the conversation, and the view until the connection is served.
    conversation: Option<Arc<Conversation>>,
    ready: Option<Box<Ready>>,
    /// What was read and not decoded, because the mailbox is full.
    unread: BytesMut,
    /// The memory that is drawn for what waits for the view, and for what is half-read.
    room: Room,
    /// The frame that is being sent.
    sending: Bytes,
    phase: Phase,
    /// The close that the host has decided on, and when the connection ends whether or not the client takes it.
    decided: Option<(Close, Instant)>,
    /// When something was last written, or nothing was to be.
    wrote: Instant,
    limits: Limits,
    counts: Counts,
    /// Whether anything was received since the last tick of the clock, and when the last message came or went.
    heard: bool,
    last: Instant,
    rate: (Instant, u32),
    pace: Option<Pace>,
    _open: GaugeGuard,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    mailbox_max: usize,
    rate_max: u32,
    ping: Duration,
    idle: Option<Duration>,
}

/// How fast a client is read, so that one that floods leaves the processor to others (R5).
struct Pace {
    /// The time that one message takes at this pace.
    each: Duration,
    /// When the messages up to now would have come, had they come at this pace.
    due: Instant,
}

impl Pace {
    /// How long after its time a client may be before it: it can send as much at once.
    const AHEAD: Duration = Duration::from_secs(1);

    /// None: the client is read as fast as its view handles messages.
    fn new(limits: &Sockets) -> Option<Pace> {
        let is_closed_instead = limits.messages_per_second_max > 0;
        (limits.messages_per_second > 0 && !is_closed_instead).then(|| Pace {
            each: Duration::from_secs(1) / limits.messages_per_second,
            due: Instant::now(),
        })
    }

    fn note(&mut self) {
        self.due = self.due.max(Instant::now()) + self.each;
    }

    /// When the client is read again. None: now.
    fn pause(&self) -> Option<Instant> {
        let until = self.due.checked_sub(Pace::AHEAD)?;
        (until > Instant::now()).then_some(until)
    }
}

#[derive(Debug, Default)]
struct Counts {
    received: u64,
    received_bytes: u64,
    sent_bytes: u64,
}

enum Phase {
    Open,
    /// The host has sent a close with this code, and waits for the client's, until then.
    Closing(u16, String, Instant),
    /// Nothing comes or goes any more.
    Over(u16, String),
}

impl Connection {
    /// `ready`: what keeps the conversation, if the view does.
    pub(super) fn new(
        events: Arc<Events>,
        limits: &Sockets,
        deflate: bool,
        ready: Option<Box<Ready>>,
    ) -> Connection {
        let now = Instant::now();
        Connection {
            decoder: Decoder::new(limits.message_max_bytes, deflate),
            mailbox: VecDeque::new(),
            conversation: ready.as_ref().map(|ready| Arc::clone(&ready.conversation)),
            ready,
            unread: BytesMut::new(),
            room: Room::empty(&events.account),
            sending: Bytes::new(),
            phase: Phase::Open,
            decided: None,
            wrote: now,
            limits: Limits {
                mailbox_max: limits.mailbox_max,
                rate_max: limits.messages_per_second_max,
                ping: Duration::from_millis(limits.ping_ms),
                idle: (limits.idle_timeout_ms > 0)
                    .then(|| Duration::from_millis(limits.idle_timeout_ms)),
            },
            counts: Counts::default(),
            heard: true,
            last: now,
            rate: (now, 0),
            pace: Pace::new(limits),
            _open: GaugeGuard::new(&METRICS.sockets),
            events,
        }
    }

    /// Has the view told of the end of a connection that was never served.
    pub(super) fn end_in(self, upgrades: &Upgrades) {
        let stop = upgrades.stop.clone();
        upgrades.open.spawn(self.run(None, stop));
    }

    /// Serves the connection to its end. `upgraded`: None if the client has gone before the handshake was complete.
    async fn run(mut self, upgraded: Option<(Stream, Bytes)>, stop: CancellationToken) {
        let begun = Instant::now();
        let mut served = None;
        if let Some((mut stream, ahead)) = upgraded {
            self.unread.extend_from_slice(&ahead);
            // Even when it is empty, it is a part of hyper's buffer.
            drop(ahead);
            self.serve(&mut stream, stop).await;
            served = Some(stream);
        }
        // Membership ends with the connection (R21).
        self.events.socket.end();
        let (code, reason) = match self.phase {
            Phase::Over(code, reason) | Phase::Closing(code, reason, _) => (code, reason),
            Phase::Open => (ABNORMAL, String::new()),
        };
        // A conversation has seen to its events itself.
        if self.conversation.is_none() {
            for event in std::mem::take(&mut self.mailbox) {
                Arc::clone(&self.events).handle(event).await;
            }
            let closed = Event::Closed {
                code,
                reason: reason.clone(),
            };
            Arc::clone(&self.events).handle(closed).await;
        }
        if let Some(mut stream) = served {
            let _ = tokio::time::timeout(LINGER, stream.hang_up()).await;
        }
        // Apps and clients choose among 2,000 codes.
        let why = match code {
            3000..4000 => "3xxx".to_owned(),
            4000.. => "4xxx".to_owned(),
            code => code.to_string(),
        };
        METRICS.sockets_closed.with_label_values(&[&*why]).inc();
        let Counts {
            received,
            received_bytes,
            sent_bytes,
        } = self.counts;
        tracing::info!(
            target: "amphi::socket",
            path = self.events.path,
            connection = self.events.socket.id(),
            duration_ms = begun.elapsed().as_millis() as u64,
            code,
            reason,
            messages_received = received,
            received_bytes,
            sent_bytes,
            "closed"
        );
    }

    /// Reads and writes until the connection is over. The event that runs then is waited for.
    async fn serve(&mut self, stream: &mut Stream, stop: CancellationToken) {
        let socket = Arc::clone(&self.events.socket);
        let outbox = socket.outbox();
        let ready = self.ready.take();
        let mut drained = ready.as_ref().map(|ready| ready.drained());
        let mut running: Option<BoxFuture<'static, ()>> = ready.map(|ready| ready.run());
        let mut clock = std::pin::pin!(tokio::time::sleep(self.limits.ping));
        let mut stopping = false;
        loop {
            if self.receive(stream) {
                // More may be there already, and frames without end need make no message: others on the loop come first.
                tokio::task::yield_now().await;
            }
            self.take_notices();
            self.draw();
            if let Some(conversation) = &self.conversation {
                self.mailbox
                    .drain(..)
                    .for_each(|event| conversation.put(event));
            } else if running.is_none()
                && let Some(event) = self.mailbox.pop_front()
            {
                running = Some(Arc::clone(&self.events).handle(event).boxed());
                continue;
            }
            self.decide(stopping);
            let blocked = self.send(stream);
            if let Phase::Over(code, reason) = &self.phase {
                let (code, reason) = (*code, reason.clone());
                socket.end();
                if let Some(conversation) = &self.conversation {
                    conversation.put(Event::Closed { code, reason });
                }
                let running = async {
                    if let Some(running) = running {
                        running.await;
                    }
                };
                let _ = tokio::join!(running, tokio::time::timeout(LINGER, self.flush(stream)));
                return;
            }
            let closes_at = match (&self.phase, &self.decided) {
                (Phase::Closing(_, _, at), _) | (_, Some((_, at))) => Some(*at),
                _ => None,
            };
            let pause = self.pause();
            let reads = self.has_room() && pause.is_none();
            let conversation = self.conversation.clone();
            tokio::select! {
                () = async { running.as_mut().expect("it runs").await }, if running.is_some() => {
                    running = None;
                    // The next event may be there already, and its view may never wait: others on the loop come first.
                    if !self.mailbox.is_empty() {
                        tokio::task::yield_now().await;
                    }
                }
                () = outbox.changed() => {}
                () = taken(conversation.as_deref()), if conversation.is_some() => {
                    // More may be there already, and the function may never wait: others on the loop come first.
                    tokio::task::yield_now().await;
                }
                () = async { drained.as_mut().expect("it waits").await }, if drained.is_some() => {
                    drained = None;
                    socket.close(code::RESTART, "the app has changed: connect again");
                }
                _ = stream.ready(reads, blocked), if reads || blocked => {}
                () = tokio::time::sleep_until(pause.unwrap_or_else(Instant::now).into()), if pause.is_some() => {}
                () = clock.as_mut() => {
                    self.tick();
                    clock.as_mut().reset((Instant::now() + self.limits.ping).into());
                }
                () = tokio::time::sleep_until(closes_at.unwrap_or_else(Instant::now).into()), if closes_at.is_some() => {
                    self.over();
                }
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    socket.close(code::GOING_AWAY, "the server stops");
                }
            }
        }
    }

    /// Draws memory for what waits for the view and what is half-read; a connection without memory is closed.
    fn draw(&mut self) {
        let waiting: usize = match &self.conversation {
            Some(conversation) => conversation.waiting().1,
            None => self.mailbox.iter().map(Event::bytes).sum(),
        };
        let bytes = waiting + self.unread.capacity() + self.decoder.kept_bytes();
        if bytes <= FREE {
            if self.room.bytes() > 0 {
                self.room = Room::empty(self.room.account());
            }
        } else if bytes as u64 > self.room.bytes() && self.room.grow_to(bytes as u64).is_err() {
            METRICS.socket_dropped.with_label_values(&["memory"]).inc();
            let sentence = "the server has no memory for more";
            self.events.socket.close(code::TRY_AGAIN, sentence);
        }
    }

    /// Notes that the host wants to close the connection. From then on it is no member, takes no message, and has a limited
    /// time.
    fn decide(&mut self, stopping: bool) {
        let socket = &self.events.socket;
        if self.decided.is_none()
            && let Some(close) = socket.outbox().wants_close()
        {
            socket.leave_all();
            let time = if stopping { STOP_TIME } else { CLOSE_TIME };
            self.decided = Some((close, Instant::now() + time));
        }
    }

    /// Whether the client is still to be heard.
    fn hears(&self) -> bool {
        !matches!(self.phase, Phase::Over(..)) && self.has_room() && self.pause().is_none()
    }

    /// Until when the client is not read, if it has been read too far ahead of its pace.
    fn pause(&self) -> Option<Instant> {
        self.pace.as_ref().and_then(Pace::pause)
    }

    /// Whether another event can wait.
    fn has_room(&self) -> bool {
        let conversation = self.conversation.as_ref();
        let waiting = conversation.map_or(0, |conversation| conversation.waiting().0);
        self.mailbox.len() + waiting < self.limits.mailbox_max
    }

    /// Reads what there is, up to the limit of the mailbox, and a bounded part of it at once. Returns whether there may be
    /// more.
    fn receive(&mut self, stream: &mut Stream) -> bool {
        if !self.unread.is_empty() {
            let mut unread = std::mem::take(&mut self.unread);
            let left = self.decode(&mut unread);
            let at = unread.len() - left;
            unread.advance(at);
            self.unread = unread;
        }
        BUFFER.with_borrow_mut(|buffer| {
            // A bounded number of rounds, so that others on the loop have their turn.
            for _ in 0..4 {
                if !self.hears() || !self.unread.is_empty() {
                    return false;
                }
                match stream.try_read(buffer) {
                    Ok(0) => {
                        self.over();
                        return false;
                    }
                    Ok(read) => {
                        self.heard = true;
                        self.counts.received_bytes += read as u64;
                        let bytes = &mut buffer[..read];
                        let left = self.decode(bytes);
                        self.unread.extend_from_slice(&bytes[bytes.len() - left..]);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                    Err(_) => {
                        self.over();
                        return false;
                    }
                }
            }
            true
        })
    }

    /// Decodes frames, and notes what they are. Returns how many bytes are left because the mailbox is full.
    fn decode(&mut self, bytes: &mut [u8]) -> usize {
        let mut input = bytes;
        while self.hears() {
            match self.decoder.next(&mut input) {
                Ok(Some(event)) => self.received(event),
                Ok(None) => return 0,
                Err(violation) => {
                    let (code, reason) = (violation.code, violation.reason);
                    self.close_frame(websocket::close(Some(code), reason));
                    self.phase = Phase::Over(code, reason.to_owned());
                }
            }
        }
        match self.phase {
            Phase::Over(..) => 0,
            _ => input.len(),
        }
    }

    fn received(&mut self, event: Received) {
        if let Some(pace) = &mut self.pace {
            pace.note();
            if pace.pause().is_some() {
                METRICS.socket_pauses.inc();
            }
        }
        match event {
            Received::Message(message) => {
                self.last = Instant::now();
                self.counts.received += 1;
                METRICS.socket_messages.with_label_values(&["in"]).inc();
                if self.is_too_fast() {
                    METRICS.socket_dropped.with_label_values(&["rate"]).inc();
                    let limit = self.limits.rate_max;
                    let reason = format!("more than {limit} messages in a second");
                    return self.events.socket.close(code::POLICY, &reason);
                }
                if let (Phase::Open, None) = (&self.phase, &self.decided) {
                    self.mailbox.push_back(Event::Message(message));
                }
            }
            Received::Ping(content) => {
                let pong = websocket::pong(&content);
                self.events.socket.outbox().send_control(pong);
            }
            Received::Pong(_) => {}
            Received::Close { code, reason } => {
                match &self.phase {
                    Phase::Closing(ours, why, _) => {
                        self.phase = Phase::Over(*ours, why.clone());
                    }
                    _ => {
                        // The same code goes back; 1005 stands for none.
                        self.close_frame(websocket::close(code, ""));
                        self.phase = Phase::Over(code.unwrap_or(1005), reason);
                    }
                }
            }
        }
    }

    fn is_too_fast(&mut self) -> bool {
        let (since, count) = &mut self.rate;
        if since.elapsed() >= Duration::from_secs(1) {
            (*since, *count) = (Instant::now(), 0);
        }
        *count += 1;
        self.limits.rate_max > 0 && *count > self.limits.rate_max
    }

    fn take_notices(&mut self) {
        while self.has_room()
            && let Some(notice) = self.events.socket.outbox().notice()
        {
            self.mailbox.push_back(Event::Notice(notice));
        }
    }

    /// Sends what the client takes now. Returns whether more is to be sent.
    fn send(&mut self, stream: &mut Stream) -> bool {
        loop {
            if self.sending.is_empty() && !self.next_frame() {
                self.wrote = Instant::now();
                return false;
            }
            match stream.try_write(&self.sending) {
                Ok(written) => {
                    self.wrote = Instant::now();
                    self.counts.sent_bytes += written as u64;
                    self.sending.advance(written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(_) => {
                    self.over();
                    return false;
                }
            }
        }
    }

    /// Sends the rest of the last frame, which is a close unless the client is gone.
    async fn flush(&mut self, stream: &mut Stream) {
        while self.send(stream) && stream.ready(false, true).await.is_ok() {}
    }

    /// Takes the next frame to send. A close comes after all others: what waits when the client closes or breaks a rule is
    /// not sent any more (RFC 6455, 5.5.1).
    fn next_frame(&mut self) -> bool {
        if let Phase::Over(..) = self.phase {
            return false;
        }
        let outbox = self.events.socket.outbox();
        if let Some(frame) = outbox.frame() {
            self.last = Instant::now();
            self.sending = frame;
            return true;
        }
        if let (Phase::Open, Some((close, until))) = (&self.phase, self.decided.clone()) {
            self.close_frame(websocket::close(Some(close.code), &close.reason));
            self.phase = Phase::Closing(close.code, close.reason, until);
            return true;
        }
        false
    }

    /// Makes a close frame the next one to be sent. A frame that is sent in part comes first.
    fn close_frame(&mut self, frame: Bytes) {
        let mut both = BytesMut::from(&self.sending[..]);
        both.extend_from_slice(&frame);
        self.sending = both.freeze();
    }

    /// Ends a connection whose client takes nothing any more.
    fn over(&mut self) {
        self.sending = Bytes::new();
        self.phase = match std::mem::replace(&mut self.phase, Phase::Open) {
            Phase::Open => match self.decided.take() {
                Some((close, _)) => Phase::Over(close.code, close.reason),
                None => Phase::Over(ABNORMAL, String::new()),
            },
            Phase::Closing(code, reason, _) | Phase::Over(code, reason) => {
                Phase::Over(code, reason)
            }
        };
    }

    /// Sends a ping to a client that is silent. One that has not answered the last ping is gone.
    fn tick(&mut self) {
        // A client whose messages are not read cannot be heard.
        let is_read = self.hears() && self.unread.is_empty();
        let is_silent = !std::mem::take(&mut self.heard) && is_read;
        // One that takes nothing of what is sent is as good as gone, whatever it says.
        let is_stuck = !self.sending.is_empty() && self.wrote.elapsed() >= self.limits.ping;
        if is_silent || is_stuck {
            return self.over();
        }
        self.events
            .socket
            .outbox()
            .send_control(websocket::ping(b""));
        let idle = self
            .limits
            .idle
            .is_some_and(|idle| self.last.elapsed() >= idle);
        if idle {
            self.events
                .socket
                .close(code::GOING_AWAY, "the connection was idle");
        }
    }
}

/// Waits until the function has taken an event.
async fn taken(conversation: Option<&Conversation>) {
    if let Some(conversation) = conversation {
        conversation.taken().await;
    }
}
