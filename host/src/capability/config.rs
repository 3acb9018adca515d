//! `config`: the module's settings and secrets.

use super::Guest;
use crate::bindings::config::Host;

impl Host for Guest {
    fn get(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        Ok(self.grants.settings.get(&name).cloned())
    }
}
