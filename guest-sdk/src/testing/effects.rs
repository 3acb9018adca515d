//! What views publish and send. It is held until the commit of the transaction or savepoint that it was sent in.

use crate::Event;
use crate::host::ChannelChange;
use std::cell::RefCell;

/// Something that leaves the request.
pub(super) enum Effect {
    Event(Event),
    Change(ChannelChange),
}

/// The effects that are held, each with the level that it was sent in.
#[derive(Default)]
pub(super) struct Effects(RefCell<Vec<(u32, Effect)>>);

impl Effects {
    pub(super) fn hold(&self, level: u32, effect: Effect) {
        self.0.borrow_mut().push((level, effect));
    }

    /// Ends the level `depth`, and all levels within it.
    pub(super) fn end(&self, depth: u32, commit: bool) {
        let mut held = self.0.borrow_mut();
        match commit {
            true => held
                .iter_mut()
                .for_each(|(level, _)| *level = (*level).min(depth - 1)),
            false => held.retain(|(level, _)| *level < depth),
        }
    }

    pub(super) fn take(&self) -> impl Iterator<Item = Effect> + use<> {
        self.0.take().into_iter().map(|(_, effect)| effect)
    }
}
