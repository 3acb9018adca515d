//! The sync worker of a scope (R2, R4).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::threads::deadline::Deadline;
use crate::threads::gate::Refused;
use crate::threads::workers::{Exclusion, Lease, Workers};

/// The state of a lease.
#[derive(Default)]
enum Leased {
    #[default]
    NotYet,
    Now(Arc<Lease>),
    /// The worker was given back, because the last sync function has ended.
    Over,
}

/// The sync worker that all sync functions of a scope run on (R2, R4).
pub struct WorkerLease {
    /// None: the scope never needs a worker of its own, or is one job of a worker.
    workers: Option<Workers>,
    lease: tokio::sync::Mutex<Leased>,
    /// The worker's number for the log; 0 means none yet.
    number: AtomicUsize,
}

impl WorkerLease {
    /// The lease of a scope that needs no worker of its own.
    pub fn none() -> WorkerLease {
        WorkerLease {
            workers: None,
            lease: tokio::sync::Mutex::default(),
            number: AtomicUsize::new(0),
        }
    }

    /// The lease of a scope that leases a worker when it first needs one.
    pub fn leased_from(workers: &Workers) -> WorkerLease {
        WorkerLease {
            workers: Some(workers.clone()),
            ..WorkerLease::none()
        }
    }

    /// The lease of another scope, whose functions run on this scope's worker, one scope after the other. The end of the
    /// other scope leaves the worker leased.
    ///
    /// # Errors
    /// When no worker can be had.
    pub async fn lent(&self, deadline: &Deadline) -> Result<WorkerLease, Refused> {
        let lease = match &self.workers {
            Some(_) => Leased::Now(self.get(deadline).await?),
            None => Leased::NotYet,
        };
        Ok(WorkerLease {
            workers: self.workers.clone(),
            lease: tokio::sync::Mutex::new(lease),
            number: AtomicUsize::new(0),
        })
    }

    /// The scope's worker.
    ///
    /// # Errors
    /// When no worker can be had.
    ///
    /// # Panics
    /// When the lease was made by [`WorkerLease::none`].
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

    /// Gives the worker back. No sync function may follow.
    pub async fn release(&self) {
        if self.workers.is_none() {
            return;
        }
        *self.lease.lock().await = Leased::Over;
    }

    /// Gives the worker to the caller, who keeps it. No sync function may follow. None: the scope has none.
    pub async fn take(&self) -> Option<Arc<Lease>> {
        self.workers.as_ref()?;
        match std::mem::replace(&mut *self.lease.lock().await, Leased::Over) {
            Leased::Now(lease) => Some(lease),
            Leased::NotYet | Leased::Over => None,
        }
    }

    /// Leases the worker now if the scope may need one later: a scope that holds a connection must not wait for a
    /// worker (R4).
    ///
    /// # Errors
    /// When no worker can be had.
    pub async fn reserve(&self, deadline: &Deadline) -> Result<(), Refused> {
        if self.workers.is_none() || matches!(*self.lease.lock().await, Leased::Over) {
            return Ok(());
        }
        self.get(deadline).await.map(drop)
    }

    /// Excludes other functions of the scope from the worker: see [`Lease::exclude`]. None: the scope needs no worker
    /// any more. `from`: the ids of the jobs and exclusions that the caller is called from.
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

    /// Notes the worker's number. It is read when the request has come back from the worker.
    pub fn runs_on(&self, number: usize) {
        self.number.store(number, Relaxed);
    }

    /// The worker's number, if any function has run on a worker.
    pub fn number(&self) -> Option<usize> {
        Some(self.number.load(Relaxed)).filter(|number| *number > 0)
    }
}
