//! Web sockets of tests.

use super::call::Call;
use super::conversation::Talk;
use super::{App, Inner, TestRequest, TestResponse, World};
use crate::body::{Content, Source};
use crate::channels::Message;
use crate::host::{Happened, Host};
use crate::session::Values;
use crate::socket::{Closed, Notice, Received};
use crate::view::{Kind, View};
use crate::{Headers, Request};
use serde::Serialize;
use std::rc::Rc;
use std::time::Duration;

/// A web socket that a test has opened with [`App::socket`]. Each event runs in a transaction if the socket is atomic, as
/// under the host.
#[derive(Debug)]
pub struct TestSocket {
    app: App,
    id: String,
    name: &'static str,
    path: String,
    params: Vec<(String, String)>,
    opening: TestResponse,
    /// Runs the view without middleware, which is for the opening alone.
    run: Inner,
    call: fn(Rc<World>, &[u8]) -> Call,
    /// The function, if it keeps the conversation.
    talk: Option<Talk>,
}

impl App {
    /// Opens a web socket: `app.socket::<chat>("/chat/7?name=Ann")`, or, for a request with headers or a session,
    /// `app.socket::<chat>(get("/chat/7").session("user", "ann"))`. [`TestSocket::response`] tells whether the view has
    /// accepted or refused it.
    ///
    /// To open it within middleware that the configuration names, write
    /// `app.around::<chat>().socket::<signed_in>("/chat/7")`.
    ///
    /// # Panics
    ///
    /// When the host would not open this socket by this request.
    pub fn socket<V: View>(&self, request: impl Into<TestRequest>) -> TestSocket {
        let (request, world): (TestRequest, _) = (request.into(), &self.0);
        let kind = world.routed::<V>();
        assert!(
            matches!(kind, Kind::Socket { .. }),
            "`{}` is no socket: write `app.call::<…>(…)`",
            V::NAME
        );
        let session = request.session_values().clone();
        let id = {
            let values = world.values.borrow().clone();
            world.connections.borrow_mut().open(values)
        };
        let request = request.into_request((V::NAME, kind), false, None, &world.settings.borrow());
        let (path, params) = (request.path.clone(), request.params.clone());
        let call = Call::of::<V>(world.clone(), &[]).on_connection(&id);
        let call = Rc::new(call);
        let host = Host::new(call.clone());
        let run = || super::run_view::<V>(&host, request);
        let mut outcome = call.finish(host.while_running(run));
        let producer = outcome.as_mut().map(|response| call.producer(response));
        let producer = producer.unwrap_or(Ok(None));
        let producer = producer.expect("a view passes on what it got");
        let opens = matches!(&outcome, Ok(response) if response.status.is_success());
        let opening = TestResponse::new(outcome, V::NAME, session, &world.settings.borrow());
        let producer = producer.filter(|_| opens);
        let talk = producer.map(|producer| {
            let (of, with) = ((self, V::NAME, &*id), (host.clone(), call.clone()));
            let mut talk = Talk::begin(of, with, producer);
            talk.go_on();
            talk
        });
        if talk.is_none() {
            call.end();
        }
        if !opening.status().is_success() {
            world.connections.borrow_mut().refuse(&id);
        }
        let around = world.inner.borrow().filter(|_| V::KIND == Kind::Middleware);
        TestSocket {
            app: self.clone(),
            id,
            name: V::NAME,
            path,
            params,
            opening,
            run: around.map_or(super::run_alone::<V>, |around| around.alone),
            call: Call::of::<V>,
            talk,
        }
    }
}

impl TestSocket {
    /// The id of the connection.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The response to the request that opens the socket. A status of 200 to 299 stands for a handshake that is completed.
    pub fn response(&self) -> &TestResponse {
        &self.opening
    }

    /// Whether the view has accepted the socket, and neither side has closed it since.
    pub fn is_open(&self) -> bool {
        let mut connections = self.app.0.connections.borrow_mut();
        let connection = connections.of(&self.id);
        !connection.ended && connection.closed.is_none()
    }

    /// Sends a message of the client to the view. In the response, only [`error`](TestResponse::error) is of interest: no
    /// client gets it. A function that keeps the conversation runs until it waits for what the test does next.
    ///
    /// # Panics
    ///
    /// When the socket is not open.
    pub fn send(&mut self, message: impl Into<Message>) -> TestResponse {
        self.assert_open();
        let message = message.into();
        if let Some(talk) = &mut self.talk {
            return talk.event(Happened::Received(Received::Message(message)));
        }
        match message {
            Message::Text(text) => self.event("TEXT", Headers::new(), text.into_bytes()),
            Message::Binary(bytes) => self.event("BINARY", Headers::new(), bytes),
        }
    }

    /// Calls the view with a notice to this group, which has the payload as JSON. Notices that views send are in
    /// [`App::notices`]; like events, they are not delivered by themselves.
    ///
    /// # Panics
    ///
    /// When the socket is not open, or the payload cannot be serialized.
    pub fn notice<T: Serialize + ?Sized>(&mut self, group: &str, payload: &T) -> TestResponse {
        self.assert_open();
        let payload =
            serde_json::to_vec(payload).expect("a payload of a test can be written as JSON");
        if let Some(talk) = &mut self.talk {
            let group = group.to_owned();
            let notice = Received::Notice(Notice { group, payload });
            return talk.event(Happened::Received(notice));
        }
        self.event("NOTICE", headers("group", group), payload)
    }

    /// Lets time pass for a function that keeps the conversation: its sleeps, and what it receives within a time.
    ///
    /// # Panics
    ///
    /// When the socket is of the other form.
    pub fn pass(&mut self, time: Duration) -> TestResponse {
        let talk = self.talk.as_mut();
        let talk = talk.expect(
            "time passes for a function that keeps the conversation, which takes `socket: Socket`",
        );
        talk.pass(time)
    }

    /// Ends the connection, and calls the view with [`SocketEvent::Closed`](crate::SocketEvent::Closed). A function that
    /// keeps the conversation receives nothing more; it has some time to come to its end.
    ///
    /// # Panics
    ///
    /// When the connection has ended already, or was never accepted, or when a function that keeps the conversation does not
    /// end.
    pub fn closed(&mut self, code: u16, reason: &str) -> TestResponse {
        {
            let mut connections = self.app.0.connections.borrow_mut();
            assert!(
                !connections.of(&self.id).ended,
                "this socket has ended, or the view has refused it: {:?}",
                self.opening.error()
            );
            connections.end(&self.id);
        }
        if let Some(talk) = &mut self.talk {
            let reason = reason.to_owned();
            let response = talk.event(Happened::Closed(Closed { code, reason }));
            if !talk.is_running() {
                return response;
            }
            let timeout = self.app.0.grants.borrow().limits.timeout_ms;
            let response = talk.pass(Duration::from_millis(timeout));
            assert!(
                !talk.is_running(),
                "`{}` goes on for longer than its `timeout_ms` after the end of its connection",
                self.name
            );
            return response;
        }
        self.event("CLOSED", headers("code", &code.to_string()), reason.into())
    }

    /// The messages that the client has received: from this view, and from all views by groups and by
    /// [`Channels::send_to`](crate::channels::Channels::send_to).
    pub fn received(&self) -> Vec<Message> {
        let mut connections = self.app.0.connections.borrow_mut();
        connections.of(&self.id).received.clone()
    }

    /// The groups that the connection is in.
    pub fn groups(&self) -> Vec<String> {
        let mut connections = self.app.0.connections.borrow_mut();
        connections.of(&self.id).groups.iter().cloned().collect()
    }

    /// How the view has closed the connection, with [`SocketHandle::close`](crate::socket::SocketHandle::close). The test calls
    /// [`closed`](Self::closed), as the host does afterwards.
    pub fn closed_by_view(&self) -> Option<Closed> {
        let mut connections = self.app.0.connections.borrow_mut();
        connections.of(&self.id).closed.clone()
    }

    /// A context value that the events so far have left for the next one.
    pub fn value(&self, name: &str) -> Option<String> {
        let mut connections = self.app.0.connections.borrow_mut();
        connections.of(&self.id).values.get(name).cloned()
    }

    fn assert_open(&self) {
        assert!(
            self.is_open(),
            "this socket is not open: {:?} {:?}",
            self.opening.error(),
            self.closed_by_view()
        );
    }

    fn event(&self, method: &str, headers: Headers, body: Vec<u8>) -> TestResponse {
        let world = &self.app.0;
        let call = (self.call)(world.clone(), &body).on_connection(&self.id);
        let spool_over = *world.spool_over.borrow();
        let content = match spool_over {
            Some(limit) if body.len() > limit => Content::Host(Source::Spooled(body.len() as u64)),
            _ => Content::Bytes(body),
        };
        let request = Request {
            method: method.into(),
            path: self.path.clone(),
            query: String::new(),
            headers,
            params: self.params.clone(),
            content,
        };
        (self.app).run_request((self.name, self.run), call, request, Values::new())
    }
}

fn headers(name: &str, value: &str) -> Headers {
    let mut headers = Headers::new();
    headers.append(name, value);
    headers
}
