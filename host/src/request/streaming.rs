//! The rest of a request whose response has begun: its function produces the body until it has ended.

use std::sync::Arc;

use crate::app::host::Host;
use crate::database::Face;
use crate::guest::run::Producer;
use crate::guest::stop::Stop;
use crate::http::stream::StreamWriter;
use crate::scope::Scope;
use crate::threads::deadline::Ended;
use crate::view::Mode;

/// A producer, and the body that it writes.
pub(super) struct Streaming {
    producer: Producer,
    writer: StreamWriter,
}

impl Streaming {
    pub(super) fn new(producer: Producer, writer: StreamWriter) -> Streaming {
        Streaming { producer, writer }
    }

    /// Produces the body until the function has ended, or the client has gone. Then the request has ended.
    pub(super) async fn run(self, scope: Arc<Scope>, host: Arc<Host>) {
        let Streaming { producer, writer } = self;
        let face = match producer.mode {
            Mode::Sync => Face::Sync,
            Mode::Async => Face::Async,
        };
        let handle = writer.handle();
        let produced = tokio::select! {
            biased;
            produced = producer.run(writer) => produced,
            () = handle.until_abandoned() => {
                let why = host.why_dropped();
                scope.deadline.cancel(why);
                Err((&Stop::from(why)).into())
            }
        };
        if let Err(failure) = produced
            && handle.is_finished()
        {
            let (view, request) = (&scope.view, &scope.origin.id);
            tracing::warn!(%view, request, why = failure.detail, "the view went on after its answer, and failed");
        }
        scope.deadline.cancel(Ended::Answered);
        // Rolls back what the function has left open.
        if let Err(error) = scope.transaction.finish(face, false).await {
            let (view, request) = (&scope.view, &scope.origin.id);
            tracing::warn!(%view, request, error = error.message, "what a stream left open could not be rolled back");
        }
    }
}
