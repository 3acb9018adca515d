//! UUIDs of the crate `uuid`, as texts. PostgreSQL accepts and returns such texts for its own type.

use super::{FromValue, ToValue, Value};
use crate::Result;
use uuid::Uuid;

impl ToValue for Uuid {
    fn to_value(self) -> Result<Value> {
        Ok(Value::Text(self.to_string()))
    }
}

/// Read from a text, or from a blob of 16 bytes.
impl FromValue for Uuid {
    const EXPECTED: &'static str = "a UUID";

    fn from_value(value: Value) -> Result<Self, Value> {
        let uuid = match &value {
            Value::Text(text) => Uuid::try_parse(text),
            Value::Blob(bytes) => Uuid::from_slice(bytes),
            _ => return Err(value),
        };
        uuid.map_err(|_| value)
    }
}
