//! The function that keeps the conversation of a web socket: it runs as long as the connection, in a scope of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt as _};
use http::StatusCode;

use super::events::Events;
use crate::app::App;
use crate::app::host::Host;
use crate::budget::Exhausted;
use crate::contract::types;
use crate::database::Face;
use crate::guest::run::Run;
use crate::guest::store::{CallChain, Callee, NotPublished, Work};
use crate::http::body::RequestBody;
use crate::http::stream::StreamBody;
use crate::http::websocket::code;
use crate::request::access_log::AccessLogEntry;
use crate::request::attempt::Conversing;
use crate::request::streaming::{end, first_work, own_scope};
use crate::scope::Scope;
use crate::scope::conversation::Conversation;
use crate::scope::transaction::Member;
use crate::telemetry::error::{Failure, Fault};
use crate::telemetry::metrics::{GaugeGuard, METRICS};

/// What clients are told when the function has failed.
const FAILED: &str = "the server has failed";

/// A function that is ready to keep a conversation.
pub(super) struct Ready {
    pub(super) conversation: Arc<Conversation>,
    conversing: Conversing,
    events: Arc<Events>,
    scope: Arc<Scope>,
    app: Arc<App>,
}

impl Ready {
    /// `opening`: the scope of the request that has opened the socket, in this app.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(super) fn new(
        conversing: Conversing,
        opening: &Scope,
        events: &Arc<Events>,
        app: &Arc<App>,
    ) -> Result<Ready, Exhausted> {
        let scope = own_scope(opening, events.account.request()?);
        Ok(Ready {
            conversation: Arc::clone(scope.begin_conversation()),
            conversing,
            events: Arc::clone(events),
            scope,
            app: Arc::clone(app),
        })
    }

    /// Waits until the conversation has to end because another app is served than the one that the function is of.
    pub(super) fn drained(&self) -> BoxFuture<'static, ()> {
        let (events, app) = (Arc::clone(&self.events), Arc::clone(&self.app));
        let drain = Duration::from_millis(app.config.server.drain_timeout_ms);
        async move {
            // It may have been replaced while the socket was opened, so the first look is at once. A candidate that has
            // become the served app is the same app.
            let mut swaps = events.host.swaps.subscribe();
            while Arc::ptr_eq(&events.app(), &app) {
                if swaps.changed().await.is_err() {
                    // The host has gone, and the connection with it.
                    return std::future::pending().await;
                }
            }
            tokio::time::sleep(drain).await;
        }
        .boxed()
    }

    /// Runs the function to its end, and has the connection closed then. Dropping the future ends the function.
    pub(super) fn run(self) -> BoxFuture<'static, ()> {
        async move {
            let begun = Instant::now();
            let _running = GaugeGuard::new(&METRICS.conversations);
            let Ready {
                conversation,
                conversing,
                events,
                scope,
                app,
            } = self;
            let host = Arc::clone(&events.host);
            let ended = converse(conversing, (&host, &app), &scope).await;
            // From here on, nobody takes what waits.
            conversation.over();
            end(&scope, Face::Async).await;
            let (outcome, code, reason) = match &ended {
                Ok(()) => ("finished", code::NORMAL, ""),
                Err(failure) if is_busy(failure) => ("failed", code::TRY_AGAIN, FAILED),
                Err(_) => ("failed", code::INTERNAL, FAILED),
            };
            events.socket.close(code, reason);
            METRICS
                .conversations_ended
                .with_label_values(&[outcome])
                .inc();
            if let Err(failure) = &ended {
                let line = AccessLogEntry {
                    method: "CONVERSATION",
                    path: &events.path,
                    status: failure.status.as_u16(),
                    took: begun.elapsed(),
                    view: Some(&scope.view),
                    settled: None,
                    request: &scope.origin.id,
                    failure: Some(failure),
                };
                line.write();
            }
        }
        .boxed()
    }
}

async fn converse(
    conversing: Conversing,
    (host, app): (&Arc<Host>, &Arc<App>),
    scope: &Arc<Scope>,
) -> Result<(), Failure> {
    let Conversing {
        producer,
        memory: _memory,
        place: _place,
    } = conversing;
    // It belongs to the scope of the opening, which has ended.
    drop(producer.slot);
    let Run::Call(run) = producer.run else {
        unreachable!("a view of the contract is called a second time")
    };
    let work = first_work(scope);
    let calls = Calls {
        host: Arc::clone(host),
        app: Arc::clone(app),
        scope: Arc::clone(scope),
        member: Arc::clone(&work.member),
    };
    let work = Work {
        call_chain: Some(Arc::new(calls)),
        ..work
    };
    run(work).await
}

fn is_busy(failure: &Failure) -> bool {
    failure.fault == Fault::Limit && failure.status == StatusCode::SERVICE_UNAVAILABLE
}

/// What a conversation can do of what the functions of a chain can: publish events.
struct Calls {
    host: Arc<Host>,
    app: Arc<App>,
    scope: Arc<Scope>,
    member: Arc<Member>,
}

fn no_chain() -> types::Error {
    types::Error {
        status: 500,
        message:
            "a conversation calls no other views: send a request by `http` with the grant \"self\""
                .to_owned(),
        detail: None,
    }
}

impl CallChain for Calls {
    fn go(&self, _: Callee, _: types::Request) -> Result<types::Response, types::Error> {
        Err(no_chain())
    }

    fn go_async(
        self: Arc<Self>,
        _: Callee,
        _: types::Request,
        _: Option<RequestBody>,
    ) -> BoxFuture<'static, Result<types::Response, types::Error>> {
        std::future::ready(Err(no_chain())).boxed()
    }

    fn read_stream(&self, _: u32, _: Option<u64>) -> Result<StreamBody, Failure> {
        Err(Failure::view(no_chain().message))
    }

    fn publish(&self, topic: &str, payload: Vec<u8>) -> Result<(), NotPublished> {
        let Calls {
            host,
            app,
            scope,
            member,
        } = self;
        host.events.publish((app, scope, member), topic, payload)
    }
}
