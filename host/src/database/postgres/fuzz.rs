//! Entry points for fuzzing: the readers of bytes that guests and the server send.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;

use super::super::statement::Value;
use super::{guard, params, values, wire};

/// Lets the guard judge a statement.
pub fn statement(data: &[u8]) {
    if let Ok(sql) = std::str::from_utf8(data) {
        let _ = guard::judge(sql);
    }
}

/// Converts a JSON array to an array literal of the server. The first byte chooses the type of the array.
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

/// Reads a value in the form that the server sends. The first byte chooses the type.
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

/// Passes bytes of a server on to tokio-postgres. The first byte chooses the length of the pieces that the bytes come
/// in, the second byte what tokio-postgres has sent before.
pub fn wire(data: &[u8]) {
    // tokio-postgres gets the server's messages, some errors twice, and short answers to the statements ahead. A row
    // that is cut becomes one of nulls, which has up to four bytes for each of 65,535 columns.
    assert!(wire::fuzzed(data) <= 2 * data.len() + 300_000);
}
