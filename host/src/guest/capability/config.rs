//! `config`: the module's settings and secrets, and three names that the host sets itself.

use crate::guest::bindings::config::Host;
use crate::guest::store::Guest;

/// `true` under `amphi up`; not set under `amphi serve`.
const DEVELOPMENT: &str = "amphi.development";

/// The origins of `allowed_origins`, separated by spaces.
const ALLOWED_ORIGINS: &str = "amphi.allowed_origins";

/// `true` while the module's views are only listed, by `amphi inspect`.
pub const INSPECTED: &str = "amphi.inspected";

impl Host for Guest {
    fn get(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        if name == DEVELOPMENT {
            return Ok(self.shared.services.development.then(|| "true".to_owned()));
        }
        if name == ALLOWED_ORIGINS {
            let origins = &self.shared.services.allowed_origins;
            return Ok((!origins.is_empty()).then(|| origins.clone()));
        }
        Ok(self.shared.grants.settings.get(&name).cloned())
    }
}
