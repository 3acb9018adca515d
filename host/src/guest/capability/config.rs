//! `config`: the module's settings and secrets, and whether the host runs for development.

use crate::guest::bindings::config::Host;
use crate::guest::store::Guest;

/// Is `true` under `amphi up`, and not there under `amphi serve`.
const DEVELOPMENT: &str = "amphi.development";

/// The origins in `allowed_origins`, with spaces between.
const ALLOWED_ORIGINS: &str = "amphi.allowed_origins";

/// Is `true` when the views are only listed, by `amphi inspect`.
pub const INSPECTED: &str = "amphi.inspected";

impl Host for Guest {
    fn get(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        if name == DEVELOPMENT {
            return Ok(self.services.development.then(|| "true".to_owned()));
        }
        if name == ALLOWED_ORIGINS {
            let origins = &self.services.allowed_origins;
            return Ok((!origins.is_empty()).then(|| origins.clone()));
        }
        Ok(self.grants.settings.get(&name).cloned())
    }
}
