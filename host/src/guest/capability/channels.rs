//! `channels` and `socket`: messages to connections, and the web socket whose event a view handles. All of them are
//! effects (R20): held until the commit.

use bytes::Bytes;

use crate::channels::{Hub, Members, Refused};
use crate::guest::bindings::channel_types::{Error, Member, MemberList, Message};
use crate::guest::bindings::channels::Host;
use crate::guest::bindings::socket;
use crate::guest::store::Guest;
use crate::http::websocket::{self, code};
use crate::scope::socket::Socket;
use crate::scope::transaction::{Described, Effect};
use crate::telemetry::error::shown;
use crate::view::is_topic;

/// The most bytes of the name of a group, or of the id of a connection.
const NAME_BYTES_MAX: usize = 200;
/// About how many bytes an effect takes beside what is sent.
const EFFECT_BYTES: usize = 512;
/// The most bytes of the reason of a close.
const REASON_BYTES_MAX: usize = 123;

impl Host for Guest {
    fn send(&mut self, group: String, message: Message) -> wasmtime::Result<Result<(), Error>> {
        Ok(self.send_to_group(group, message))
    }

    fn send_to(
        &mut self,
        connection: String,
        message: Message,
    ) -> wasmtime::Result<Result<(), Error>> {
        Ok(self.send_to_connection(connection, message))
    }

    fn notify(&mut self, group: String, payload: Vec<u8>) -> wasmtime::Result<Result<(), Error>> {
        Ok(self.notify_group(group, payload))
    }

    fn members(&mut self, group: String) -> wasmtime::Result<Result<MemberList, Error>> {
        Ok(self.granted(&group).map(|()| {
            let Members { list, count, .. } = self.shared.services.hub.members_heard(&group);
            let listed = list.into_iter().map(|member| Member {
                connection: member.id,
                user: member.user,
            });
            MemberList {
                listed: listed.collect(),
                count,
            }
        }))
    }
}

impl socket::Host for Guest {
    fn id(&mut self) -> wasmtime::Result<Option<String>> {
        let socket = self.work().scope.origin.socket.as_ref();
        Ok(socket.map(|socket| socket.id().to_owned()))
    }

    fn send(&mut self, message: Message) -> wasmtime::Result<Result<(), Error>> {
        Ok(self.with_socket(message_bytes(&message), |guest| {
            let (message, ..) = guest.checked(message)?;
            Ok(move |socket: &Socket| socket.send(&message))
        }))
    }

    fn close(&mut self, code: u16, reason: String) -> wasmtime::Result<Result<(), Error>> {
        let is_known = code == code::NORMAL || (3000..5000).contains(&code);
        if !is_known || reason.len() > REASON_BYTES_MAX {
            return Ok(Err(Error::Denied(format!(
                "a view closes with a code of 1000 or 3000 to 4999 and at most {REASON_BYTES_MAX} bytes of reason, not with {code} and {} bytes",
                reason.len()
            ))));
        }
        Ok(self.with_socket(reason.len(), |_| {
            Ok(move |socket: &Socket| socket.close(code, &reason))
        }))
    }

    fn join(&mut self, group: String) -> wasmtime::Result<Result<(), Error>> {
        Ok(self.with_socket(group.len(), |guest| {
            guest.granted(&group)?;
            let (view, request) = (guest.work().view.to_string(), guest.work().scope.origin.id.clone());
            Ok(move |socket: &Socket| {
                if let Err(why) = socket.join(&group) {
                    tracing::warn!(view, request, group, %why, "a connection is not a member of this group");
                    socket.close(code::TRY_AGAIN, "a limit on groups is reached");
                }
            })
        }))
    }

    fn leave(&mut self, group: String) -> wasmtime::Result<Result<(), Error>> {
        Ok(self.with_socket(group.len(), |guest| {
            guest.granted(&group)?;
            Ok(move |socket: &Socket| socket.leave(&group))
        }))
    }
}

impl Guest {
    fn send_to_group(&self, group: String, message: Message) -> Result<(), Error> {
        self.granted(&group)?;
        let (message, text, bytes) = self.checked(message)?;
        let (websocket::Message::Text(content) | websocket::Message::Binary(content)) = message;
        let what = self.described(|| format!("message to the group `{group}`"), &content);
        self.on_hub((bytes, what), move |hub| {
            hub.send(&group, text, content).map(drop)
        })
    }

    fn send_to_connection(&self, connection: String, message: Message) -> Result<(), Error> {
        if self.shared.grants.channels.is_empty() {
            return Err(self.denied("connections"));
        }
        if connection.len() > NAME_BYTES_MAX {
            return Err(Error::Denied(format!(
                "`{}` is not the id of a connection",
                shown(&connection)
            )));
        }
        let (message, text, bytes) = self.checked(message)?;
        let (websocket::Message::Text(content) | websocket::Message::Binary(content)) = message;
        let what = self.described(|| "message to a connection".to_owned(), &content);
        self.on_hub((bytes, what), move |hub| {
            hub.send_to(&connection, text, content).map(drop)
        })
    }

    fn notify_group(&self, group: String, payload: Vec<u8>) -> Result<(), Error> {
        self.granted(&group)?;
        self.fits(payload.len())?;
        let what = self.described(|| format!("notice to the group `{group}`"), &payload);
        self.on_hub((payload.len(), what), move |hub| {
            hub.notify(&group, Bytes::from(payload))
        })
    }

    /// Checks that the module is granted the group.
    fn granted(&self, group: &str) -> Result<(), Error> {
        if group.len() > NAME_BYTES_MAX || !is_topic(group) {
            return Err(Error::Denied(format!(
                "`{}` is not a group: write words of letters, digits, `-` and `_` with dots between, such as `room.7`, of at most {NAME_BYTES_MAX} bytes",
                shown(group)
            )));
        }
        match self
            .shared
            .grants
            .channels
            .iter()
            .any(|granted| granted.contain(group))
        {
            true => Ok(()),
            false => Err(self.denied(group)),
        }
    }

    fn denied(&self, what: &str) -> Error {
        Error::Denied(format!(
            "module `{}` may not send to `{}`: add the group to `channels` of `[modules.{0}]`",
            self.shared.grants.name,
            shown(what)
        ))
    }

    fn fits(&self, bytes: usize) -> Result<(), Error> {
        let max = self.shared.services.hub.payload_max_bytes();
        match bytes <= max {
            true => Ok(()),
            false => Err(Error::TooLarge(format!(
                "the message has {bytes} bytes; `payload_max_bytes` of `[channels]` is {max}"
            ))),
        }
    }

    /// The message, whether it is text, and its length.
    pub(super) fn checked(
        &self,
        message: Message,
    ) -> Result<(websocket::Message, bool, usize), Error> {
        let bytes = message_bytes(&message);
        self.fits(bytes)?;
        let (message, text) = match message {
            Message::Text(text) => (websocket::Message::Text(text.into()), true),
            Message::Binary(binary) => (websocket::Message::Binary(binary.into()), false),
        };
        Ok((message, text, bytes))
    }

    /// Does something with the hub when the transaction commits. What the hub refuses then is logged.
    fn on_hub(
        &self,
        effect: (usize, Option<Described>),
        what: impl FnOnce(&Hub) -> Result<(), Refused> + Send + 'static,
    ) -> Result<(), Error> {
        let hub = std::sync::Arc::clone(&self.shared.services.hub);
        let (view, request) = (
            self.work().view.to_string(),
            self.work().scope.origin.id.clone(),
        );
        self.effect(effect, move || {
            if let Err(why) = what(&hub) {
                tracing::warn!(view, request, %why, "a message to connections was not sent");
            }
        })
    }

    /// Does something with the socket whose event the view handles, when the transaction commits.
    fn with_socket<F: FnOnce(&Socket) + Send + 'static>(
        &self,
        bytes: usize,
        what: impl FnOnce(&Guest) -> Result<F, Error>,
    ) -> Result<(), Error> {
        let Some(socket) = self.work().scope.origin.socket.clone() else {
            return Err(Error::Denied(
                "there is no web socket: this request is not an event of one".to_owned(),
            ));
        };
        let what = what(self)?;
        // A request has no socket, and only requests are compared.
        self.effect((bytes, None), move || what(&socket))
    }

    /// What is sent, if the effects of the request are described.
    fn described(&self, what: impl FnOnce() -> String, content: &[u8]) -> Option<Described> {
        let member = &self.work().member;
        member.describe(|| Described::new(what(), content))
    }

    /// Does something when the transaction commits. `bytes` are held until then.
    fn effect(
        &self,
        (bytes, described): (usize, Option<Described>),
        what: impl FnOnce() + Send + 'static,
    ) -> Result<(), Error> {
        let work = self.work();
        if work.call_chain.is_none() && work.writer.is_none() {
            return Err(Error::Denied(
                "nothing can be sent while a module is being checked".to_owned(),
            ));
        }
        let (sent, most) = (work.scope.count_event(), work.scope.limits.events_max);
        if sent > most {
            return Err(Error::Full(format!(
                "the request has sent {most} messages and events already, as many as `events_max` allows"
            )));
        }
        let room = work
            .scope
            .origin
            .account
            .draw((bytes + EFFECT_BYTES) as u64);
        let room = room.map_err(|why| Error::Full(format!("nothing was sent: {why}")))?;
        let effect: Effect = Box::new(move || {
            what();
            drop(room);
        });
        match work.member.effect(effect, described) {
            true => Ok(()),
            false => Err(Error::Denied(
                "the request that this view was called in is over, or the transaction of its caller: nothing was sent".to_owned(),
            )),
        }
    }
}

pub(super) fn message_bytes(message: &Message) -> usize {
    match message {
        Message::Text(text) => text.len(),
        Message::Binary(binary) => binary.len(),
    }
}
