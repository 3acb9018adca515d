//! `log`: structured log records of a view.

use crate::guest::bindings::log::{Host, Level};
use crate::guest::store::Guest;
use crate::telemetry::log::quoted;

impl Host for Guest {
    fn write(
        &mut self,
        level: Level,
        message: String,
        fields: Vec<(String, String)>,
    ) -> wasmtime::Result<()> {
        let mut text = message;
        // A record over the limit is dropped as a whole, so the rest of its text need not be built.
        let max = self.output.left();
        for (name, value) in fields {
            if text.len() > max {
                break;
            }
            text.push(' ');
            text.push_str(&quoted(&name));
            text.push('=');
            text.push_str(&quoted(&value));
        }
        let level = match level {
            Level::Trace => tracing::Level::TRACE,
            Level::Debug => tracing::Level::DEBUG,
            Level::Info => tracing::Level::INFO,
            Level::Warn => tracing::Level::WARN,
            Level::Error => tracing::Level::ERROR,
        };
        self.output.record(level, &text);
        Ok(())
    }
}
