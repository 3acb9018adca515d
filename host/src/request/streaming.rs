//! The rest of a request whose response has begun: its function produces the body.

use std::sync::Arc;

use crate::app::host::Host;
use crate::database::Face;
use crate::guest::run::{Producer, Run, after_answer};
use crate::guest::store::Work;
use crate::http::stream::{BodyWriter, StreamWriter};
use crate::scope::{Origin, Scope, Setup};
use crate::threads::deadline::Ended;
use crate::view::{Mode, Options, View};

/// A producer, and the body that it writes.
pub struct Streaming {
    pub(super) producer: Producer,
    pub(super) writer: StreamWriter,
}

impl Streaming {
    /// Whether the call that has made the head goes on. Its scope is then that of the whole request.
    pub(super) fn is_rest(&self) -> bool {
        self.producer.is_rest()
    }

    /// Produces the body until the function has ended, or must end because the client has gone. `scope`: the scope in
    /// which the head was made. The future blocks its thread when the producer is sync.
    pub(super) async fn run(self, scope: Arc<Scope>, host: Arc<Host>) {
        let Streaming { producer, writer } = self;
        let face = match producer.mode {
            Mode::Sync => Face::Sync,
            Mode::Async => Face::Async,
        };
        let scope = match &producer.run {
            Run::Rest(_) => scope,
            Run::Call(_) => own_scope(&scope),
        };
        let handle = writer.handle();
        let deadline = Arc::clone(&scope.deadline);
        handle.when_abandoned(move || deadline.cancel(host.why_dropped()));
        let produced = match producer.run {
            Run::Rest(run) => run(writer).await,
            Run::Call(run) => {
                let member = Arc::new(scope.transaction.first_member());
                let begun = member.begins();
                debug_assert!(begun, "nobody else knows the member");
                let writer = BodyWriter::new(writer);
                let work = Work {
                    writer: Some(Arc::clone(&writer)),
                    ..Work::new(Arc::clone(&scope), Arc::clone(&scope.view), member)
                };
                let produced = match run(work).await {
                    Ok(()) => writer.finish().await,
                    Err(failure) => Err(failure),
                };
                // Here, and not when the writer is dropped: the failure has to be known by then.
                produced.inspect_err(|failure| handle.fail(failure))
            }
        };
        drop(producer.slot);
        if let Err(failure) = produced
            && handle.is_finished()
        {
            after_answer(&scope, &failure);
        }
        scope.deadline.cancel(Ended::Answered);
        // Rolls back what the function has left open.
        if let Err(error) = scope.transaction.finish(face, false).await {
            let (view, request) = (&scope.view, &scope.origin.id);
            tracing::warn!(%view, request, error = error.message, "what a stream left open could not be rolled back");
        }
    }
}

/// The scope of a function that produces a body: the request's transaction has ended, its context goes on.
fn own_scope(scope: &Scope) -> Arc<Scope> {
    let origin = Origin {
        values: scope.context.all(),
        ..Origin::clone(&scope.origin)
    };
    let view = View {
        transaction: Options {
            atomic: false,
            ..scope.view.transaction
        },
        ..View::clone(&scope.view)
    };
    let own = Scope::open(
        &Arc::new(origin),
        &Arc::new(view),
        &scope.limits,
        Setup::now(),
    );
    own.begin_stream();
    own
}
