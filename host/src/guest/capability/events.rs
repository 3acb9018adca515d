//! `events`: publishes events to the app's subscribers.

use crate::guest::bindings::events::{Error, Host};
use crate::guest::store::{Guest, NotPublished};
use crate::telemetry::error::shown;

impl Host for Guest {
    fn publish(&mut self, topic: String, payload: Vec<u8>) -> wasmtime::Result<Result<(), Error>> {
        Ok(self.published(&topic, payload))
    }
}

impl Guest {
    fn published(&self, topic: &str, payload: Vec<u8>) -> Result<(), Error> {
        if !self
            .shared
            .grants
            .publish
            .iter()
            .any(|granted| granted.contain(topic))
        {
            return Err(Error::Denied(format!(
                "module `{}` may not publish on `{}`: add it to `publish` of `[modules.{0}]`",
                self.shared.grants.name,
                shown(topic)
            )));
        }
        let Some(call_chain) = &self.work().call_chain else {
            return Err(Error::Denied(
                "nothing can be published while a module is being checked".to_owned(),
            ));
        };
        call_chain.publish(topic, payload).map_err(|why| match why {
            NotPublished::NoTopic(sentence) | NotPublished::Over(sentence) => {
                Error::Denied(sentence)
            }
            NotPublished::TooLarge(sentence) => Error::TooLarge(sentence),
            NotPublished::Full(sentence) => Error::Full(sentence),
        })
    }
}
