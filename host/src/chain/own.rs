//! The transaction of an atomic view that is called by a request which has none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use tokio::sync::OwnedMutexGuard;

use super::{Outcome, Position};
use crate::database::Face;
use crate::error::Failure;
use crate::scope::Scope;
use crate::settle::not_kept;
use crate::transaction::Level;

/// Such a transaction, from the view's beginning to its end. A scope has one at a time: statements do not say whose
/// they are. Dropped before its end, it is rolled back.
pub(super) struct OwnTransaction {
    scope: Arc<Scope>,
    level: Option<Level>,
    /// Set when any part within it has failed.
    failed: Arc<AtomicBool>,
    _alone: OwnedMutexGuard<()>,
}

impl OwnTransaction {
    /// Begins one if the view at `position` needs it.
    pub(super) async fn begin(position: &mut Position) -> Result<Option<OwnTransaction>, Failure> {
        if !position.needs_own_transaction() {
            return Ok(None);
        }
        let scope = Arc::clone(position.scope());
        let alone = scope.own_transaction().lock_owned();
        let alone = scope.deadline.bound(alone).await;
        let alone = alone.map_err(|why| Failure::from(&crate::run::Stop::from(why)))?;
        // The caller has begun one that this is part of.
        if scope.transaction.is_active() {
            return Ok(None);
        }
        let level = scope.transaction.enter(&scope.deadline).await;
        let failed = Arc::new(AtomicBool::new(false));
        position.own = Some(Arc::clone(&failed));
        Ok(Some(OwnTransaction {
            level: Some(level.map_err(|error| not_kept(&error))?),
            scope,
            failed,
            _alone: alone,
        }))
    }

    /// Commits it, or rolls it back when anything in it has failed, whatever was made of that.
    pub(super) async fn end(mut self, outcome: Outcome) -> Outcome {
        let level = self.level.take().expect("it ends once");
        let transaction = &self.scope.transaction;
        if outcome.is_ok() && !self.failed.load(SeqCst) {
            let kept = transaction.commit(Face::Async, level).await;
            return kept.map_err(|error| not_kept(&error)).and(outcome);
        }
        // What has failed is the one to tell about.
        let _ = transaction.rollback(Face::Async, level).await;
        outcome
    }
}

impl Drop for OwnTransaction {
    fn drop(&mut self) {
        if let Some(level) = self.level {
            self.scope.transaction.abandon(level);
        }
    }
}
