//! The rest of a request whose response has begun: its function produces the body.

use std::pin::pin;
use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt as _, join, join_all, select};
use tokio::sync::oneshot;

use crate::app::host::Host;
use crate::budget::Account;
use crate::database::Face;
use crate::guest::run::{Producer, Run, after_answer};
use crate::guest::store::Work;
use crate::http::stream::{BodyWriter, StreamWriter};
use crate::scope::{Origin, Scope, Setup};
use crate::threads::deadline::Ended;
use crate::threads::workers::{self, Lease};
use crate::view::{Mode, Options, View};

/// A producer, and the body that it writes.
pub struct Streaming {
    pub(super) producer: Producer,
    pub(super) writer: StreamWriter,
}

/// What produces the body of a response.
pub(super) struct Streams {
    /// The body that the client gets.
    pub(super) body: Streaming,
    /// The bodies that plain components read to produce theirs.
    pub(super) inner: Vec<Streaming>,
    /// The worker for those that are sync.
    pub(super) worker: Option<Arc<Lease>>,
}

impl Streams {
    /// Produces the body: async functions here, sync ones on the worker. `scope`: the scope in which the head was made.
    pub(super) async fn run(self, scope: Arc<Scope>, host: Arc<Host>) {
        let Streams {
            body,
            inner,
            worker,
        } = self;
        let (mut here, mut there) = (Vec::new(), Vec::new());
        let mut place = |mode: Mode, work: BoxFuture<'static, ()>| match mode {
            Mode::Sync => there.push(work),
            Mode::Async => here.push(work),
        };
        place(
            body.producer.mode,
            body.run(Arc::clone(&scope), host).boxed(),
        );
        for inner in inner {
            place(
                inner.producer.mode,
                inner.run_inner(Arc::clone(&scope)).boxed(),
            );
        }
        let here = join_all(here);
        match worker {
            Some(worker) => {
                // Nobody else closes the lease, so the job runs. Of several sync producers, all but one have no reader
                // any more.
                let job = worker.run(Vec::new(), |_| there.into_iter().for_each(workers::drive));
                let _ = join(here, job).await;
            }
            None => drop(here.await),
        }
    }
}

impl Streaming {
    /// Whether the call that has made the head goes on. Its scope is then that of the whole request.
    pub(super) fn is_rest(&self) -> bool {
        self.producer.is_rest()
    }

    /// Produces the body that the client gets, until the function has ended, or must end because the client has gone.
    /// The future blocks its thread when the producer is sync.
    pub(super) async fn run(self, scope: Arc<Scope>, host: Arc<Host>) {
        let scope = self.scope(scope);
        let deadline = Arc::clone(&scope.deadline);
        let abandoned = move || deadline.cancel(host.why_dropped());
        self.writer.handle().when_abandoned(abandoned);
        let face = self.face();
        self.produce(&scope, true).await;
        end(&scope, face).await;
    }

    /// Produces a body that another function reads, until one of the two has ended. See [`Streaming::run`].
    async fn run_inner(self, scope: Arc<Scope>) {
        let handle = self.writer.handle();
        if handle.is_abandoned() {
            return;
        }
        if self.is_rest() {
            // The scope is that of the reader, too. It ends with the reader.
            let (sender, abandoned) = oneshot::channel::<()>();
            handle.when_abandoned(move || drop(sender));
            let produced = pin!(self.produce(&scope, false));
            select(produced, abandoned).await;
            return;
        }
        let scope = self.scope(scope);
        let deadline = Arc::clone(&scope.deadline);
        handle.when_abandoned(move || deadline.cancel(Ended::Answered));
        let face = self.face();
        self.produce(&scope, false).await;
        end(&scope, face).await;
    }

    fn face(&self) -> Face {
        match self.producer.mode {
            Mode::Sync => Face::Sync,
            Mode::Async => Face::Async,
        }
    }

    /// The scope of the producer. `scope`: the scope in which the head was made.
    fn scope(&self, scope: Arc<Scope>) -> Arc<Scope> {
        match self.is_rest() {
            true => scope,
            false => {
                let own = own_scope(&scope, Arc::clone(&scope.origin.account));
                own.begin_stream();
                own
            }
        }
    }

    async fn produce(self, scope: &Arc<Scope>, to_client: bool) {
        let Streaming { producer, writer } = self;
        let handle = writer.handle();
        let produced = match producer.run {
            Run::Rest(run) => run(writer, to_client).await,
            Run::Call(run) => {
                let writer = BodyWriter::new(writer);
                let work = Work {
                    writer: Some(Arc::clone(&writer)),
                    ..first_work(scope)
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
            after_answer(scope, &failure);
        }
    }
}

/// The work of the only function of a scope.
pub(super) fn first_work(scope: &Arc<Scope>) -> Work {
    let member = Arc::new(scope.transaction.first_member());
    let begun = member.begins();
    debug_assert!(begun, "nobody else knows the member");
    Work::new(Arc::clone(scope), Arc::clone(&scope.view), member)
}

/// Ends the scope of a producer. What the producer has left open is rolled back.
pub(super) async fn end(scope: &Scope, face: Face) {
    scope.deadline.cancel(Ended::Answered);
    if let Err(error) = scope.transaction.finish(face, false).await {
        let (view, request) = (&scope.view, &scope.origin.id);
        tracing::warn!(%view, request, error = error.message, "what a stream or conversation left open could not be rolled back");
    }
}

/// The scope of a function that goes on after its answer: the request's transaction has ended, its context goes on.
pub(super) fn own_scope(scope: &Scope, account: Arc<Account>) -> Arc<Scope> {
    let origin = Origin {
        account,
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
    own.share_outbound(scope);
    own
}
