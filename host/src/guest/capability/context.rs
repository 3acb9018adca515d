//! `context`: what the host knows about the request.

use crate::guest::bindings::context::{Error, Host};
use crate::guest::store::Guest;
use crate::scope::context::NotSet;

impl Host for Guest {
    fn request_id(&mut self) -> wasmtime::Result<String> {
        Ok(self.work().scope.origin.id.clone())
    }

    fn route(&mut self) -> wasmtime::Result<String> {
        Ok(self.work().scope.view.pattern().to_owned())
    }

    fn peer(&mut self) -> wasmtime::Result<String> {
        Ok(self.work().scope.origin.peer.to_string())
    }

    fn traceparent(&mut self) -> wasmtime::Result<String> {
        Ok(self.work().scope.origin.trace.to_string())
    }

    fn remaining_ms(&mut self) -> wasmtime::Result<u64> {
        Ok(u64::try_from(self.work().scope.time_for_call().as_millis()).unwrap_or(u64::MAX))
    }

    fn get(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        Ok(self.work().scope.context.get(&name))
    }

    fn set(&mut self, name: String, value: String) -> wasmtime::Result<Result<(), Error>> {
        let scope = &self.work().scope;
        let on = (&scope.limits, &scope.origin.account);
        Ok(scope
            .context
            .set(&name, &value, on)
            .map_err(|why| match why {
                NotSet::TooLarge(sentence) => Error::TooLarge(sentence),
                NotSet::Reserved(sentence) => Error::Reserved(sentence),
            }))
    }
}
