//! Entry points for fuzzing: the readers of bytes that guests and the server send.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;

use super::super::statement::Value;
use super::{guard, params, values, wire};

/// Judges a statement.
pub fn statement(data: &[u8]) {
    if let Ok(sql) = std::str::from_utf8(data) {
        let _ = guard::judge(sql);
    }
}

/// Writes a JSON array as a literal of the server's: the first byte chooses the type.
pub fn array_parameter(data: &[u8]) {
    const TYPES: [Type; 5] = [
        Type::INT4_ARRAY,
        Type::TEXT_ARRAY,
        Type::JSONB_ARRAY,
        Type::BYTEA_ARRAY,
        Type::NUMERIC_ARRAY,
    ];
    if let Some((chosen, json)) = data.split_first()
        && let Ok(json) = std::str::from_utf8(json)
    {
        let ty = TYPES[usize::from(*chosen) % TYPES.len()].clone();
        let _ = params::params(&[Value::Text(json.to_owned())], &[ty], BTreeMap::new());
    }
}

/// Reads a value as the server sends it: the first byte chooses the type.
pub fn value(data: &[u8]) {
    const TYPES: [Type; 20] = [
        Type::BOOL,
        Type::INT2,
        Type::INT8,
        Type::FLOAT4,
        Type::FLOAT8,
        Type::NUMERIC,
        Type::TEXT,
        Type::BYTEA,
        Type::UUID,
        Type::DATE,
        Type::TIME,
        Type::TIMESTAMP,
        Type::TIMESTAMPTZ,
        Type::INTERVAL,
        Type::JSON,
        Type::JSONB,
        Type::NUMERIC_ARRAY,
        Type::INTERVAL_ARRAY,
        Type::BYTEA_ARRAY,
        Type::JSONB_ARRAY,
    ];
    const MAX: u64 = 1 << 20;
    if let Some((chosen, raw)) = data.split_first() {
        let ty = &TYPES[usize::from(*chosen) % TYPES.len()];
        if let Ok(Some(Value::Text(text))) = values::read(ty, raw, MAX) {
            assert!(text.len() as u64 <= MAX);
        }
    }
}

/// Passes bytes of a server on to the client: the first byte says in which pieces, the second what was sent before.
pub fn wire(data: &[u8]) {
    // tokio-postgres gets the messages that came, one answer for the statements ahead, and some errors twice.
    assert!(wire::fuzzed(data) <= 2 * data.len() + 300_000);
}
