//! The sync worker of a scope (R2, R4).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::threads::deadline::Deadline;
use crate::threads::gate::Refused;
use crate::threads::workers::{Exclusion, Lease, Workers};

/// How far a scope is with its worker.
#[derive(Default)]
enum Leased {
    #[default]
    NotYet,
    Now(Arc<Lease>),
    /// Its last sync part has ended.
    Over,
}

/// The sync worker that a scope sticks to (R2, R4).
pub struct WorkerLease {
    /// None: the scope cannot come to need one, or its one job has it already.
    workers: Option<Workers>,
    lease: tokio::sync::Mutex<Leased>,
    /// The worker's number for the log; 0: none yet.
    number: AtomicUsize,
}

impl WorkerLease {
    /// No worker can be leased.
    pub fn none() -> WorkerLease {
        WorkerLease {
            workers: None,
            lease: tokio::sync::Mutex::default(),
            number: AtomicUsize::new(0),
        }
    }

    /// A worker is leased when it is first needed.
    pub fn leased_from(workers: &Workers) -> WorkerLease {
        WorkerLease {
            workers: Some(workers.clone()),
            ..WorkerLease::none()
        }
    }

    /// The scope's worker.
    ///
    /// # Errors
    /// When none can be had.
    ///
    /// # Panics
    /// When the scope was said to need none.
    pub async fn get(&self, deadline: &Deadline) -> Result<Arc<Lease>, Refused> {
        let mut state = self.lease.lock().await;
        if let Leased::Now(lease) = &*state {
            return Ok(Arc::clone(lease));
        }
        let workers = self.workers.as_ref();
        let workers = workers.expect("the chain was looked through for sync parts");
        let lease = Arc::new(workers.lease(deadline).await?);
        self.runs_on(lease.worker);
        *state = Leased::Now(Arc::clone(&lease));
        Ok(lease)
    }

    /// Gives the worker back: no sync part can follow.
    pub async fn release(&self) {
        if self.workers.is_none() {
            return;
        }
        *self.lease.lock().await = Leased::Over;
    }

    /// Takes the worker now if the scope may need one later: before it holds a connection that others wait for.
    ///
    /// # Errors
    /// When none can be had.
    pub async fn reserve(&self, deadline: &Deadline) -> Result<(), Refused> {
        if self.workers.is_none() || matches!(*self.lease.lock().await, Leased::Over) {
            return Ok(());
        }
        self.get(deadline).await.map(drop)
    }

    /// Has the worker for a part that is called `from` jobs and exclusions of these ids: see [`Lease::exclude`]. None:
    /// the scope has no use for a worker any more.
    ///
    /// # Errors
    /// When no worker can be had, or the request ends.
    pub async fn exclude(
        &self,
        deadline: &Deadline,
        from: &[u64],
    ) -> Result<Option<Exclusion>, Refused> {
        if self.workers.is_none() || matches!(*self.lease.lock().await, Leased::Over) {
            return Ok(None);
        }
        let lease = self.get(deadline).await?;
        let excluded = lease.exclude(deadline, from).await;
        excluded.map(Some).map_err(Refused::Ended)
    }

    /// Notes the worker that the scope runs on.
    pub fn runs_on(&self, number: usize) {
        self.number.store(number, SeqCst);
    }

    /// The number of the worker, if any part has run on one.
    pub fn number(&self) -> Option<usize> {
        Some(self.number.load(SeqCst)).filter(|number| *number > 0)
    }
}
