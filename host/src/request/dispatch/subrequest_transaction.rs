//! The transaction of an atomic view that is called as a sub-request outside of any transaction.

use std::sync::Arc;

use super::{LinkCall, LinkResult, busy};
use crate::database::Face;
use crate::guest::stop::Stop;
use crate::scope::transaction::{Member, not_kept};
use crate::telemetry::error::Failure;
use crate::threads::deadline::Ended;
use crate::threads::workers::Exclusion;

/// The transaction of a called atomic view, while the view runs. Dropping it before `end` rolls back.
pub(super) struct SubrequestTransaction {
    member: Arc<Member>,
    _exclusion: Option<Exclusion>,
}

impl SubrequestTransaction {
    /// Begins a transaction if the called view needs one of its own. Waits first until no function that the view could
    /// have to wait for is on the scope's worker.
    pub(super) async fn begin(
        link_call: &LinkCall,
    ) -> Result<Option<SubrequestTransaction>, Failure> {
        if !link_call.needs_own_transaction() {
            return Ok(None);
        }
        let (scope, member) = (link_call.scope(), &link_call.member);
        let exclusion = scope.worker.exclude(&scope.deadline, &member.from()).await;
        let exclusion = exclusion.map_err(busy)?;
        member.called_from(exclusion.as_ref().map(|exclusion| exclusion.id));
        Ok(Some(SubrequestTransaction {
            member: Arc::clone(member),
            _exclusion: exclusion,
        }))
    }

    /// Commits the transaction. It is rolled back when anything in it has failed, even if a caller has handled the
    /// failure, and when nobody waits for the view any more: then its caller, which may still run, is told so.
    pub(super) async fn end(self, outcome: LinkResult) -> LinkResult {
        let transaction = self.member.transaction();
        let awaited = self.member.is_awaited();
        let keep = outcome.is_ok() && !transaction.has_failed() && awaited;
        match transaction.finish(Face::Async, keep).await {
            Err(error) if keep => Err(not_kept(&error)),
            _ if outcome.is_ok() && !awaited => Err((&Stop::from(Ended::Answered)).into()),
            _ => outcome,
        }
    }
}

impl Drop for SubrequestTransaction {
    fn drop(&mut self) {
        self.member.transaction().give_up();
    }
}
