//! The context of a request: values by name, which guests and the host set for the later parts of the request (R14).

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::budget::{Account, Room};
use crate::config::Limits;
use crate::http::middleware::USER;
use crate::telemetry::error::shown;

/// Context values by name. A map that is shared does not change any more: [`Context::set`] changes a copy.
pub type Values = HashMap<Arc<str>, Value>;

/// A context value.
#[derive(Debug, Clone)]
pub struct Value {
    /// What was set.
    pub text: Arc<str>,
    /// Whether the host has set the value. Guests cannot change such a value (R14).
    pub reserved: bool,
    /// The memory that is drawn for the value, until neither the request nor an event of the request has the value.
    _room: Option<Arc<Room>>,
}

impl Value {
    /// A value that no guest can change.
    pub fn reserved(text: &str) -> Value {
        Value {
            text: text.into(),
            reserved: true,
            _room: None,
        }
    }
}

/// The values with their memory drawn from another account: they outlive the request that set them. A value for which
/// there is no memory is left out, and logged.
pub fn kept(values: &Values, account: &Arc<Account>) -> Values {
    let keep = |(name, value): (&Arc<str>, &Value)| {
        let room = match value.reserved {
            true => None,
            false => {
                let bytes = (name.len() + value.text.len()) as u64 + VALUE_BYTES;
                let drawn = account.draw(bytes);
                let drawn = drawn.inspect_err(|why| {
                    tracing::warn!(%name, %why, "a context value of a connection was not kept");
                });
                Some(Arc::new(drawn.ok()?))
            }
        };
        let value = Value {
            text: Arc::clone(&value.text),
            reserved: value.reserved,
            _room: room,
        };
        Some((Arc::clone(name), value))
    };
    values.iter().filter_map(keep).collect()
}

/// Why a value was not set.
#[derive(Debug, PartialEq, Eq)]
pub enum NotSet {
    /// There are too many values, this value is too large, or there is no memory for it.
    TooLarge(String),
    /// The host has set the value.
    Reserved(String),
}

/// About how many bytes of the host's memory a context value takes besides its name and its text.
const VALUE_BYTES: u64 = 128;

/// The values of one request as they are now.
pub struct Context(Mutex<Arc<Values>>);

impl Context {
    /// A context that starts with these values.
    pub fn starting_with(values: &Arc<Values>) -> Context {
        Context(Mutex::new(Arc::clone(values)))
    }

    /// The value with this name, if it is set.
    pub fn get(&self, name: &str) -> Option<String> {
        let value = self.0.lock().get(name).map(|value| Arc::clone(&value.text));
        value.map(|text| text.as_ref().to_owned())
    }

    /// All values as they are now.
    pub fn all(&self) -> Arc<Values> {
        Arc::clone(&self.0.lock())
    }

    /// Sets a value for the later parts of this request.
    ///
    /// # Errors
    /// When there are too many values, this value is too large, there is no memory for it, or the host has set it. The
    /// text says which.
    pub fn set(
        &self,
        name: &str,
        text: &str,
        (limits, account): (&Limits, &Arc<Account>),
    ) -> Result<(), NotSet> {
        let max = limits.context_value_max_bytes;
        if name.len() + text.len() > max {
            return Err(NotSet::TooLarge(format!(
                "the context value `{}` has {} bytes with its name; `context_value_max_bytes` is {max}",
                shown(name),
                name.len() + text.len()
            )));
        }
        let mut values = self.0.lock();
        let known = values.get(name);
        if name == USER || known.is_some_and(|value| value.reserved) {
            return Err(NotSet::Reserved(format!(
                "the context value `{name}` is the host's, and views cannot set it: choose another name"
            )));
        }
        if known.is_none() && values.len() >= limits.context_values_max {
            return Err(NotSet::TooLarge(format!(
                "the request has {} context values already, as many as `context_values_max` allows",
                values.len()
            )));
        }
        let room = account.draw((name.len() + text.len()) as u64 + VALUE_BYTES);
        let room = room.map_err(|why| NotSet::TooLarge(why.to_string()))?;
        let value = Value {
            text: text.into(),
            reserved: false,
            _room: Some(Arc::new(room)),
        };
        Arc::make_mut(&mut values).insert(name.into(), value);
        Ok(())
    }
}
