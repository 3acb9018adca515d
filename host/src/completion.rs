//! The one line of log about a request or an event that has ended, and its counts.

use std::time::Duration;

use crate::error::{Failure, Fault};
use crate::metrics::METRICS;
use crate::settle::Settled;
use crate::transaction::Fate;
use crate::view::View;

/// What the line tells.
pub struct Line<'a> {
    /// The method, or `EVENT`.
    pub method: &'a str,
    /// The path, or the topic.
    pub path: &'a str,
    /// The status of the answer; 499 when nobody waited for it any more.
    pub status: u16,
    /// Time since it arrived.
    pub took: Duration,
    /// The view it was routed to.
    pub view: Option<&'a View>,
    /// How its chain ended, if that ran.
    pub settled: Option<&'a Settled>,
    /// Its id.
    pub request: &'a str,
    /// What went wrong.
    pub failure: Option<&'a Failure>,
}

impl Line<'_> {
    /// Writes it: as an error when it is the host's fault, as a warning for a view's or when a limit was hit.
    pub fn write(&self) {
        let Line {
            method,
            path,
            status,
            request,
            ..
        } = *self;
        let duration_us = u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX);
        let view = self.view.map(tracing::field::display);
        let mode = self.view.map(|view| view.mode.as_str());
        let settled = self.settled;
        let transaction = settled.map(|settled| settled.fate);
        let transaction = transaction.filter(|fate| *fate != Fate::None);
        let transaction = transaction.map(tracing::field::display);
        let hops = settled.map(|settled| settled.scope.hops());
        let worker = settled.and_then(|settled| settled.scope.worker.number());
        let retries = settled.map(|settled| settled.retries);
        let retries = retries.filter(|retries| *retries > 0);
        macro_rules! line {
            ($level:ident, $($more:tt)*) => {
                tracing::$level!(target: "amphi::request", method, path, status, duration_us, mode, view, transaction, hops, worker, retries, request, $($more)*)
            };
        }
        let Some(failure) = self.failure else {
            return line!(info, "request");
        };
        let (fault, why) = (failure.fault.as_str(), &failure.detail);
        // Of a chain of one, the line names that one already.
        let way = (failure.way.len() > 1).then(|| failure.way.join(" → "));
        METRICS.failures.with_label_values(&[fault]).inc();
        match failure.fault {
            Fault::Client => line!(info, fault, why, way, "request"),
            Fault::View | Fault::Limit => line!(warn, fault, why, way, "request"),
            Fault::Host => line!(error, fault, why, way, "request"),
        }
    }
}
