//! Tests that the functions return the same results as SQLite's own ones, and that they end in time.

use std::time::{Duration, Instant};

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::*;

fn own() -> (Connection, Arc<Guard>) {
    let connection = Connection::open_in_memory().expect("it opens");
    let guard = Arc::new(Guard::default());
    guard.values_max.store(1 << 30, Relaxed);
    register(&connection, &guard).expect("they are taken");
    (connection, guard)
}

/// The result of a function, or an error if it fails.
fn call(connection: &Connection, sql: &str, arguments: &[Value]) -> std::result::Result<Value, ()> {
    (connection.prepare_cached(sql).and_then(|mut statement| {
        statement.query_row(params_from_iter(arguments), |row| row.get(0))
    }))
    .map_err(drop)
}

/// A value of few different characters, so that parts of it occur in other values.
fn value(random: &mut fastrand::Rng) -> Value {
    let kind = random.u8(..10);
    let mut text = |alphabet: &[&str]| -> String {
        let length = random.usize(..8);
        (0..length)
            .map(|_| *random.choice(alphabet).expect("some"))
            .collect()
    };
    let any = [
        "a", "b", "A", "ä", "日", "%", "_", "*", "?", "[", "]", "^", "-", "!", "6", "1", "\0",
    ];
    match kind {
        0 => Value::Null,
        1 => Value::Integer(random.i64(-20..700)),
        2 => Value::Real(random.f64() * 10.0),
        3 => Value::Blob(text(&["a", "b", "ä", "\0"]).into_bytes()),
        4 | 5 => Value::Text(text(&["a", "b"])),
        6 => Value::Text(text(&["a", "%", "_", "*", "?"])),
        7 => Value::Text(text(&["a", "b", "[", "]", "^", "-", "*"])),
        _ => Value::Text(text(&any)),
    }
}

#[test]
fn they_give_what_those_of_sqlite_give() {
    let (ours, _guard) = own();
    let theirs = Connection::open_in_memory().expect("it opens");
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let calls = [
        ("select ? like ?", 2),
        ("select like(?, ?)", 2),
        ("select ? like ? escape '!'", 2),
        ("select ? like ? escape ?", 3),
        ("select ? like ? escape '%'", 2),
        ("select ? like ? escape '_'", 2),
        ("select ? glob ?", 2),
        ("select instr(?, ?)", 2),
        ("select replace(?, ?, ?)", 3),
        ("select trim(?, ?)", 2),
        ("select ltrim(?, ?)", 2),
        ("select rtrim(?, ?)", 2),
        ("select unhex(?, ?)", 2),
        ("select concat(?, ?, ?)", 3),
        ("select concat_ws(?, ?, ?)", 3),
    ];
    for _ in 0..40_000 {
        let (sql, count) = calls[random.usize(..calls.len())];
        let arguments: Vec<Value> = (0..count).map(|_| value(&mut random)).collect();
        let (own, reference) = (call(&ours, sql, &arguments), call(&theirs, sql, &arguments));
        assert_eq!(own, reference, "seed {seed}: {sql} {arguments:?}");
    }
    ours.execute_batch("pragma case_sensitive_like = on")
        .expect("it is set");
    register_like(&ours, &_guard, true).expect("they are taken");
    theirs
        .execute_batch("pragma case_sensitive_like = on")
        .expect("it is set");
    for _ in 0..2_000 {
        let arguments = [value(&mut random), value(&mut random)];
        let sql = "select ? like ?";
        let (own, reference) = (call(&ours, sql, &arguments), call(&theirs, sql, &arguments));
        assert_eq!(own, reference, "seed {seed}: {sql} {arguments:?}");
    }
}

/// No call takes as long as it would if its time grew with the square of its values.
#[test]
fn long_values_take_no_long_time() {
    let (connection, _) = own();
    for (zeros, sql) in [
        (500_000, "instr(a, substr(a, 1, 500000) || 'b')"),
        (
            500_000,
            "length(replace(a, substr(a, 1, 500000) || 'b', ''))",
        ),
        (500_000, "length(trim(a, '0123456789äöüßéèêa'))"),
        (500_000, "length(unhex(replace(a, 'a', 'zyx'), 'xyzabc'))"),
        (20_000, "a like '%' || substr(a, 1, 20)"),
        (
            20_000,
            "a like replace(hex(zeroblob(4900)), '00', '%a') || 'b%'",
        ),
        (20_000, "a glob replace(hex(zeroblob(2000)), '00', '*[a]')"),
    ] {
        let begin = Instant::now();
        let sql = format!("select {sql} from (select replace(hex(zeroblob({zeros})), '0', 'a') a)");
        let _: Option<i64> = (connection.query_row(&sql, (), |row| row.get(0))).expect(&sql);
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(10), "{sql}: {took:?}");
    }
}

/// Functions that cannot be quick end when the request has ended.
#[test]
fn they_end_with_the_request() {
    for sql in [
        "a like '%' || substr(a, 1, 9000) || 'b'",
        "a like '%' || replace(hex(zeroblob(4000)), '00', '_a') || 'b'",
        "a glob '*' || replace(hex(zeroblob(2000)), '00', '[a]') || 'b'",
    ] {
        let (connection, guard) = own();
        let sql = format!("select {sql} from (select replace(hex(zeroblob(8000000)), '0', 'a') a)");
        let begin = Instant::now();
        let ending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            guard.over.store(true, Relaxed);
        });
        let ended = connection.query_row(&sql, (), |row| row.get::<_, Option<i64>>(0));
        assert!(
            ended.is_err_and(|error| error.to_string().contains("interrupted")),
            "{sql}"
        );
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{sql}: {:?}",
            begin.elapsed()
        );
        ending.join().expect("it slept");
    }
}
