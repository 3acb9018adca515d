//! A web socket as the app sees it: what waits for its client, what waits for its view, and its groups. The connection's
//! task, in `request/socket/`, sends the one and calls the view for the other.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Scope;
use super::conversation::Notice;
use crate::budget::{Account, Room};
use crate::channels::{Attachment, Hub, Payload, Receiver, Refused};
use crate::http::websocket::{Encoded, Message, code};
use crate::telemetry::metrics::METRICS;

/// Bytes that may wait for a client without memory being drawn from the budget. If there are more, all are drawn.
const FREE: usize = 4 << 10;
/// The most bytes of the head of a frame that a server sends.
const FRAME_HEAD_BYTES: usize = 10;
/// About how many bytes a frame takes beside its own.
const FRAME_BYTES: usize = 64;

/// What one socket may keep.
#[derive(Debug, Clone, Copy)]
pub struct SocketLimits {
    /// The most bytes that wait for the client.
    pub outbox_max_bytes: usize,
    /// The most notices that wait for the view.
    pub mailbox_max: usize,
}

/// A web socket.
pub struct Socket {
    outbox: Arc<Outbox>,
    /// None: its memberships have ended.
    attachment: Mutex<Option<Attachment>>,
    opening: Mutex<Opening>,
}

/// The request that opens a socket. Its scope is kept until it has ended: a client may leave while its transaction
/// commits, and the view has to be told of the end of each connection that was opened (R19).
enum Opening {
    NotYet,
    By(Arc<Scope>),
    Ended,
}

/// What waits for a client and for its view.
pub struct Outbox {
    id: String,
    deflate: bool,
    limits: SocketLimits,
    waiting: Mutex<Waiting>,
    changed: Notify,
    /// Notified when something was taken that waited for the client, or nothing can be sent any more.
    room: Notify,
}

struct Waiting {
    frames: VecDeque<Bytes>,
    bytes: usize,
    room: Room,
    notices: VecDeque<Notice>,
    /// The value `user` of the context.
    user: Option<String>,
    close: Option<Close>,
    /// Set when the connection has ended: nothing waits any more.
    over: bool,
}

/// Why the host closes a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    /// The code for the client.
    pub code: u16,
    /// The text for the client.
    pub reason: String,
}

impl Socket {
    /// A socket without groups, whose handshake is not complete. `deflate`: whether the client takes compressed
    /// messages.
    ///
    /// # Errors
    /// When there are too many connections.
    pub fn new(
        hub: &Arc<Hub>,
        deflate: bool,
        limits: SocketLimits,
        account: &Arc<Account>,
    ) -> Result<Arc<Socket>, Refused> {
        let outbox = Arc::new(Outbox {
            id: hub.new_id(),
            deflate,
            limits,
            waiting: Mutex::new(Waiting {
                frames: VecDeque::new(),
                bytes: 0,
                room: Room::empty(account),
                notices: VecDeque::new(),
                user: None,
                close: None,
                over: false,
            }),
            changed: Notify::new(),
            room: Notify::new(),
        });
        let attachment = hub.attach(Arc::clone(&outbox) as Arc<dyn Receiver>)?;
        Ok(Arc::new(Socket {
            outbox,
            attachment: Mutex::new(Some(attachment)),
            opening: Mutex::new(Opening::NotYet),
        }))
    }

    /// Notes the scope that the socket is opened in. Later scopes are those of events, and are not noted.
    pub fn opened_in(&self, scope: &Arc<Scope>) {
        let mut opening = self.opening.lock();
        if !matches!(*opening, Opening::Ended) {
            *opening = Opening::By(Arc::clone(scope));
        }
    }

    /// Notes that the request that opens the socket has ended. Returns its scope, the first time.
    pub fn opening_ended(&self) -> Option<Arc<Scope>> {
        match std::mem::replace(&mut *self.opening.lock(), Opening::Ended) {
            Opening::By(scope) => Some(scope),
            Opening::NotYet | Opening::Ended => None,
        }
    }

    /// The id of the connection, unique across hosts.
    pub fn id(&self) -> &str {
        &self.outbox.id
    }

    /// Sends a message to the client.
    pub fn send(&self, message: &Message) {
        self.outbox.send(&Encoded::new(message));
    }

    /// Sends a message to the client, and waits before that while as much waits for the client as may. False: the
    /// connection has ended, or is being closed.
    pub async fn send_in_time(&self, message: &Message) -> bool {
        let outbox = &*self.outbox;
        let frame = Encoded::new(message).frame(outbox.deflate).clone();
        let bytes = frame.len() + FRAME_BYTES;
        let taken = loop {
            let room = outbox.room.notified();
            {
                let mut waiting = outbox.waiting.lock();
                if waiting.over || waiting.close.is_some() {
                    return false;
                }
                if waiting.frames.is_empty()
                    || waiting.bytes + bytes <= outbox.limits.outbox_max_bytes
                {
                    break waiting.push(frame, outbox.limits);
                }
            }
            room.await;
        };
        outbox.sent(taken);
        taken
    }

    /// The most bytes that one message may have, so that it can be sent at all.
    pub fn message_max(&self) -> usize {
        self.outbox
            .limits
            .outbox_max_bytes
            .saturating_sub(FRAME_BYTES + FRAME_HEAD_BYTES)
    }

    /// Closes the connection, after what has been sent before.
    pub fn close(&self, code: u16, reason: &str) {
        self.outbox.close(code, reason);
    }

    /// Makes the connection a member of a group. Nothing happens when it has ended.
    ///
    /// # Errors
    /// When a limit on groups is reached.
    pub fn join(&self, group: &str) -> Result<(), Refused> {
        match &*self.attachment.lock() {
            Some(attachment) => attachment.join(group),
            None => Ok(()),
        }
    }

    /// Ends the connection's membership in a group.
    pub fn leave(&self, group: &str) {
        if let Some(attachment) = &*self.attachment.lock() {
            attachment.leave(group);
        }
    }

    /// Ends all memberships: the connection has ended, or the host has decided that it will (R21).
    pub fn leave_all(&self) {
        let attachment = self.attachment.lock().take();
        drop(attachment);
    }

    /// Ends all memberships, and drops what waits: the connection has ended.
    pub fn end(&self) {
        self.leave_all();
        let mut waiting = self.outbox.waiting.lock();
        waiting.over = true;
        waiting.drop_frames();
        waiting.notices = VecDeque::new();
        drop(waiting);
        self.outbox.room.notify_waiters();
    }

    /// Sets the user that the hub tells others.
    pub fn set_user(&self, user: Option<String>) {
        self.outbox.waiting.lock().user = user;
    }

    /// What the connection's task takes from.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }
}

impl Outbox {
    /// Waits until there is more to take.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Sends a control frame.
    pub fn send_control(&self, frame: Bytes) {
        let mut waiting = self.waiting.lock();
        waiting.push(frame, self.limits);
    }

    /// The next frame for the client.
    pub fn frame(&self) -> Option<Bytes> {
        let mut waiting = self.waiting.lock();
        let frame = waiting.frames.pop_front()?;
        waiting.bytes -= frame.len() + FRAME_BYTES;
        if waiting.frames.is_empty() {
            // Gives back what a burst has taken.
            waiting.frames = VecDeque::new();
            waiting.room = Room::empty(waiting.room.account());
        }
        drop(waiting);
        self.room.notify_waiters();
        if is_message(&frame) {
            count("out", 1);
        }
        Some(frame)
    }

    /// The next notice for the view.
    pub fn notice(&self) -> Option<Notice> {
        self.waiting.lock().notices.pop_front()
    }

    /// Whether notices wait.
    pub fn has_notices(&self) -> bool {
        !self.waiting.lock().notices.is_empty()
    }

    /// Why the host wants to close the connection. What was sent before comes first.
    pub fn wants_close(&self) -> Option<Close> {
        self.waiting.lock().close.clone()
    }

    fn send(&self, message: &Encoded) {
        let mut waiting = self.waiting.lock();
        let taken = waiting.push(message.frame(self.deflate).clone(), self.limits);
        drop(waiting);
        self.sent(taken);
    }

    /// Notes that a message was put into the outbox. A connection that is closed takes no more: the sender is not told, so
    /// the message is counted (R22). One that is taken is counted when it leaves the outbox.
    fn sent(&self, taken: bool) {
        if !taken {
            count("dropped", 1);
        }
        self.changed.notify_one();
    }

    fn close(&self, code: u16, reason: &str) {
        let mut waiting = self.waiting.lock();
        waiting.close(code, reason);
        drop(waiting);
        self.changed.notify_one();
        self.room.notify_waiters();
    }
}

impl Waiting {
    /// Adds a frame. A client that does not keep up is closed, and what waited for it is dropped (R22). False: the frame is
    /// dropped, because the connection is closed.
    fn push(&mut self, frame: Bytes, limits: SocketLimits) -> bool {
        if self.over || self.close.is_some() {
            return false;
        }
        self.bytes += frame.len() + FRAME_BYTES;
        let too_much = self.bytes > limits.outbox_max_bytes;
        let no_memory = self.bytes > FREE && self.room.grow_to(self.bytes as u64).is_err();
        if too_much || no_memory {
            let why = if too_much { "outbox" } else { "memory" };
            METRICS.socket_dropped.with_label_values(&[why]).inc();
            self.drop_frames();
            match too_much {
                true => self.close(code::POLICY, "the client does not read fast enough"),
                false => self.close(code::TRY_AGAIN, "the server has no memory for more"),
            }
            return false;
        }
        self.frames.push_back(frame);
        true
    }

    /// Drops all that waits for the client, and counts the messages (R22).
    fn drop_frames(&mut self) {
        let messages = self.frames.iter().filter(|frame| is_message(frame)).count();
        count("dropped", messages as u64);
        self.frames = VecDeque::new();
        self.bytes = 0;
        self.room = Room::empty(self.room.account());
    }

    fn close(&mut self, code: u16, reason: &str) {
        let reason = reason.to_owned();
        self.close.get_or_insert(Close { code, reason });
    }
}

/// Whether a frame of the host is a message, not a ping or a pong.
fn is_message(frame: &[u8]) -> bool {
    frame.first().is_some_and(|first| first & 0x08 == 0)
}

fn count(what: &str, messages: u64) {
    if messages > 0 {
        let counter = METRICS.socket_messages.with_label_values(&[what]);
        counter.inc_by(messages);
    }
}

impl Receiver for Outbox {
    fn id(&self) -> &str {
        &self.id
    }

    fn user(&self) -> Option<String> {
        self.waiting.lock().user.clone()
    }

    fn message(&self, message: &Arc<Payload>) {
        let encoded = message.frame.get_or_init(|| {
            let bytes = message.bytes.clone();
            Encoded::new(&match message.text {
                true => Message::Text(bytes),
                false => Message::Binary(bytes),
            })
        });
        self.send(encoded);
    }

    fn notice(&self, group: &str, payload: &Bytes) {
        let mut waiting = self.waiting.lock();
        if waiting.over || waiting.close.is_some() {
            return;
        }
        if waiting.notices.len() >= self.limits.mailbox_max {
            METRICS.socket_dropped.with_label_values(&["mailbox"]).inc();
            waiting.close(code::TRY_AGAIN, "the server cannot keep up with notices");
        } else {
            waiting.notices.push_back(Notice {
                group: group.to_owned(),
                payload: payload.clone(),
            });
        }
        drop(waiting);
        self.changed.notify_one();
    }
}
