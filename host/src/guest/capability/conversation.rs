//! `conversation`: the events of a web socket, for the function that keeps its conversation.

use std::sync::Arc;

use wasmtime::component::{Accessor, HasSelf};

use super::channels::message_bytes;
use crate::guest::bindings::channel_types::{Error as ChannelError, Message};
use crate::guest::bindings::conversation::{Closed, Error, Event, Host, HostWithStore, Notice};
use crate::guest::bindings::socket;
use crate::guest::store::Guest;
use crate::http::websocket;
use crate::scope::conversation::{self, Conversation, Taken};
use crate::scope::socket::Socket;

impl From<ChannelError> for Error {
    fn from(error: ChannelError) -> Error {
        match error {
            ChannelError::Denied(sentence)
            | ChannelError::TooLarge(sentence)
            | ChannelError::Full(sentence) => Error::Refused(sentence),
        }
    }
}

impl From<conversation::Event> for Event {
    fn from(event: conversation::Event) -> Event {
        match event {
            conversation::Event::Message(websocket::Message::Text(bytes)) => {
                // The decoder has checked it.
                let text = String::from_utf8_lossy(&bytes).into_owned();
                Event::Message(Message::Text(text))
            }
            conversation::Event::Message(websocket::Message::Binary(bytes)) => {
                Event::Message(Message::Binary(bytes.to_vec()))
            }
            conversation::Event::Notice(notice) => Event::Notice(Notice {
                group: notice.group,
                payload: notice.payload.to_vec(),
            }),
            conversation::Event::Closed { code, reason } => Event::Closed(Closed { code, reason }),
        }
    }
}

/// A message that is to be sent when there is room for it.
struct Sending {
    conversation: Arc<Conversation>,
    socket: Arc<Socket>,
    message: websocket::Message,
}

impl Guest {
    /// The conversation that the function keeps, and its connection.
    fn conversing(&self) -> Result<(Arc<Conversation>, Arc<Socket>), Error> {
        let scope = &self.work().scope;
        match (scope.conversation(), &scope.origin.socket) {
            (Some(conversation), Some(socket)) => {
                Ok((Arc::clone(conversation), Arc::clone(socket)))
            }
            _ => Err(Error::Refused(
                "there is no conversation: only the function of a web socket that keeps its conversation has one, after the opening".to_owned(),
            )),
        }
    }

    /// Checks a message, and sends it with the commit if the function is in a transaction. None: it is sent.
    fn prepared(&mut self, message: Message) -> Result<Option<Sending>, Error> {
        let (conversation, socket) = self.conversing()?;
        let (bytes, max) = (message_bytes(&message), socket.message_max());
        if bytes > max {
            return Err(Error::Refused(format!(
                "the message has {bytes} bytes, and `outbox_max_bytes` of `[sockets]` leaves room for {max}"
            )));
        }
        if self.work().member.holds_effects() {
            let sent = socket::Host::send(self, message);
            let sent = sent.map_err(|error| Error::Refused(error.to_string()))?;
            return sent.map(|()| None).map_err(Error::from);
        }
        let (message, ..) = self.checked(message)?;
        Ok(Some(Sending {
            conversation,
            socket,
            message,
        }))
    }
}

impl Host for Guest {}

impl HostWithStore<Guest> for HasSelf<Guest> {
    async fn receive(accessor: &Accessor<Guest, Self>) -> wasmtime::Result<Result<Event, Error>> {
        let ready = accessor.with(|mut store| {
            let guest = store.get();
            let held = guest.work().scope.hold_call(0).map_err(Error::Refused)?;
            let (conversation, _) = guest.conversing()?;
            Ok((conversation, Arc::clone(&guest.work().cpu), held))
        });
        let (conversation, cpu, _held) = match ready {
            Ok(ready) => ready,
            Err(error) => return Ok(Err(error)),
        };
        Ok(match conversation.take(|| cpu.used()).await {
            Taken::Event(event) => Ok(event.into()),
            Taken::Ended => Err(Error::Ended),
            Taken::Refused => Err(Error::Refused(
                "nothing is received within a transaction or with a pinned connection, because others wait for these: end it first".to_owned(),
            )),
        })
    }

    async fn send(
        accessor: &Accessor<Guest, Self>,
        message: Message,
    ) -> wasmtime::Result<Result<(), Error>> {
        let bytes = message_bytes(&message) as u64;
        let ready = accessor.with(|mut store| {
            let guest = store.get();
            let held = guest
                .work()
                .scope
                .hold_call(bytes)
                .map_err(Error::Refused)?;
            Ok((guest.prepared(message)?, held))
        });
        let (waits, _held) = match ready {
            Ok(ready) => ready,
            Err(error) => return Ok(Err(error)),
        };
        let Some(Sending {
            conversation,
            socket,
            message,
        }) = waits
        else {
            return Ok(Ok(()));
        };
        Ok(match socket.send_in_time(&message).await {
            true => Ok(()),
            false => {
                conversation.tell();
                Err(Error::Ended)
            }
        })
    }
}
