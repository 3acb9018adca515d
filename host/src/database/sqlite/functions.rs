//! Functions that replace SQLite's own ones (LIKE, GLOB, `instr`, `replace`, `trim` with characters, `unhex` with
//! characters, `concat`, `concat_ws`). The time of SQLite's own ones grows with the product of two values, or they
//! recurse along a pattern.
//!
//! They return the same results as SQLite's. Their time is linear in their values where that is possible; elsewhere
//! they check the interrupt flag. They never make a value that is larger than allowed. SQLite uses no index for a LIKE
//! or GLOB that is replaced.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use memchr::memmem;
use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, Error, Result, ffi};

use super::super::error::ErrorKind;
use super::guard::Guard;
use super::limits::PATTERN_BYTES_MAX;

const FLAGS: FunctionFlags = FunctionFlags::SQLITE_UTF8
    .union(FunctionFlags::SQLITE_DETERMINISTIC)
    .union(FunctionFlags::SQLITE_INNOCUOUS);

type Function = fn(&Context<'_>, &Guard) -> Result<Value>;

/// The name, the number of arguments (-1: any) and the function.
const FUNCTIONS: &[(&str, i32, Function)] = &[
    ("glob", 2, glob),
    ("instr", 2, instr),
    ("replace", 3, replace),
    ("trim", 2, |context, guard| trim(context, guard, true, true)),
    ("ltrim", 2, |context, guard| {
        trim(context, guard, true, false)
    }),
    ("rtrim", 2, |context, guard| {
        trim(context, guard, false, true)
    }),
    ("unhex", 2, unhex),
    ("concat", -1, concat),
    ("concat_ws", -1, concat_ws),
];

/// Registers the functions in place of SQLite's own ones.
pub(super) fn register(connection: &Connection, guard: &Arc<Guard>) -> Result<()> {
    for (name, arguments, function) in FUNCTIONS {
        add(connection, guard, name, *arguments, *function)?;
    }
    // SQLite's own `total_changes` also counts the changes of earlier borrowers.
    let counting = Arc::clone(guard);
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
    connection.create_scalar_function("total_changes", 0, flags, move |_| {
        Ok(counting.total_changes.load(Relaxed))
    })?;
    register_like(connection, guard, false)
}

/// Registers LIKE. SQLite's `pragma case_sensitive_like` registers a LIKE of SQLite's own, so LIKE is registered again
/// after this pragma.
pub(super) fn register_like(
    connection: &Connection,
    guard: &Arc<Guard>,
    case_sensitive: bool,
) -> Result<()> {
    let function: Function = match case_sensitive {
        true => |context, guard| like(context, guard, false),
        false => |context, guard| like(context, guard, true),
    };
    add(connection, guard, "like", 2, function)?;
    add(connection, guard, "like", 3, function)
}

fn add(
    connection: &Connection,
    guard: &Arc<Guard>,
    name: &str,
    arguments: i32,
    function: Function,
) -> Result<()> {
    let guard = Arc::clone(guard);
    connection.create_scalar_function(name, arguments, FLAGS, move |context| {
        guard.check()?;
        function(context, &guard)
    })
}

/// Counts steps of work, and checks the interrupt flag every so many steps.
struct Work<'a> {
    guard: &'a Guard,
    left: usize,
}

impl Work<'_> {
    const STEPS: usize = 1 << 16;

    fn new(guard: &Guard) -> Work<'_> {
        Work {
            guard,
            left: Work::STEPS,
        }
    }

    fn step(&mut self, steps: usize) -> Result<()> {
        if let Some(left) = self.left.checked_sub(steps) {
            self.left = left;
            return Ok(());
        }
        self.left = Work::STEPS;
        self.guard.check()
    }
}

impl Guard {
    /// Fails if the request has ended, which ends the function that is running.
    fn check(&self) -> Result<()> {
        match self.over.load(Relaxed) {
            false => Ok(()),
            true => Err(failure(ffi::SQLITE_INTERRUPT)),
        }
    }

    /// Fails if a value of this size is not allowed.
    fn admits(&self, bytes: usize) -> Result<()> {
        match bytes as u64 <= self.values_max.load(Relaxed) {
            true => Ok(()),
            false => Err(failure(ffi::SQLITE_TOOBIG)),
        }
    }
}

fn failure(code: i32) -> Error {
    Error::SqliteFailure(ffi::Error::new(code), None)
}

/// An argument as a text, as `cast(… as text)` makes it. None: the argument is NULL.
fn text<'a>(
    context: &'a Context<'_>,
    index: usize,
    room: &'a mut Vec<u8>,
) -> Result<Option<&'a [u8]>> {
    Ok(Some(match context.get_raw(index) {
        ValueRef::Null => return Ok(None),
        ValueRef::Text(text) => text,
        ValueRef::Blob(blob) => blob,
        ValueRef::Integer(number) => {
            room.extend_from_slice(number.to_string().as_bytes());
            room
        }
        ValueRef::Real(number) => {
            room.extend_from_slice(real(number)?.as_bytes());
            room
        }
    }))
}

/// A real number as SQLite prints it. SQLite has a format of its own, so a connection in memory makes the text.
fn real(number: f64) -> Result<String> {
    thread_local! {
        static WRITER: RefCell<Option<Connection>> = const { RefCell::new(None) };
    }
    WRITER.with_borrow_mut(|writer| {
        let writer = match writer {
            Some(writer) => writer,
            None => writer.insert(Connection::open_in_memory()?),
        };
        let mut statement = writer.prepare_cached("select cast(? as text)")?;
        statement.query_row([number], |row| row.get(0))
    })
}

fn made(text: Vec<u8>) -> Result<Value> {
    match String::from_utf8(text) {
        Ok(text) => Ok(Value::Text(text)),
        Err(_) => Err(Error::UserFunctionError(
            "the text is not UTF-8: use a blob (`cast(… as blob)`)".into(),
        )),
    }
}

/// The text as C sees it: up to the first NUL.
fn until_nul(text: &[u8]) -> &[u8] {
    &text[..memchr::memchr(0, text).unwrap_or(text.len())]
}

fn is_continuation(byte: &u8) -> bool {
    byte & 0xc0 == 0x80
}

/// The character that begins at `at`, and the index of the next one, decoded as SQLite does: bytes that are not UTF-8
/// are taken as they are.
fn character(text: &[u8], at: usize) -> (u32, usize) {
    let first = text[at];
    let mut next = at + 1;
    if first < 0xc0 {
        return (first.into(), next);
    }
    let mut character = u32::from(match first {
        0xc0..=0xdf => first & 0x1f,
        0xe0..=0xef => first & 0x0f,
        0xf0..=0xf7 => first & 0x07,
        0xf8..=0xfb => first & 0x03,
        _ => first & 0x01,
    });
    while let Some(byte) = text.get(next).filter(|byte| is_continuation(byte)) {
        character = (character << 6).wrapping_add(u32::from(byte & 0x3f));
        next += 1;
    }
    match character {
        0..0x80 | 0xd800..0xe000 => (0xfffd, next),
        _ => (character, next),
    }
}

fn instr(context: &Context<'_>, guard: &Guard) -> Result<Value> {
    let (mut room, mut more) = (Vec::new(), Vec::new());
    let blobs = (0..2).all(|index| matches!(context.get_raw(index), ValueRef::Blob(_)));
    let (Some(text), Some(part)) = (
        self::text(context, 0, &mut room)?,
        self::text(context, 1, &mut more)?,
    ) else {
        return Ok(Value::Null);
    };
    let finder = memmem::Finder::new(part);
    let mut work = Work::new(guard);
    let mut from = 0;
    let found = loop {
        let Some(found) = finder.find(&text[from..]).map(|at| from + at) else {
            return Ok(Value::Integer(0));
        };
        // A part that is not UTF-8 may be found in the middle of a character: such a match does not count.
        if blobs || found == 0 || !text.get(found).is_some_and(is_continuation) {
            break found;
        }
        work.step(found - from + part.len())?;
        from = found + 1;
    };
    // For SQLite, the first byte begins a character, even if it is a continuation byte. Each later byte that begins a
    // character shows that one more character has ended.
    let characters = (text[..found].iter().skip(1))
        .chain(text.get(found))
        .filter(|byte| !is_continuation(byte));
    let before = match found {
        0 => 0,
        _ if blobs => found,
        _ => characters.count(),
    };
    Ok(Value::Integer(
        i64::try_from(before + 1).unwrap_or(i64::MAX),
    ))
}

fn replace(context: &Context<'_>, guard: &Guard) -> Result<Value> {
    let mut rooms = [Vec::new(), Vec::new(), Vec::new()];
    let [first, second, third] = &mut rooms;
    let (Some(text), Some(part)) = (
        self::text(context, 0, first)?,
        self::text(context, 1, second)?,
    ) else {
        return Ok(Value::Null);
    };
    if part.first().is_none_or(|first| *first == 0) {
        return made(text.to_vec());
    }
    let Some(instead) = self::text(context, 2, third)? else {
        return Ok(Value::Null);
    };
    let mut work = Work::new(guard);
    let (mut replaced, mut from) = (Vec::with_capacity(text.len()), 0);
    for found in memmem::find_iter(text, part) {
        work.step(found - from + instead.len() + 1)?;
        replaced.extend_from_slice(&text[from..found]);
        replaced.extend_from_slice(instead);
        guard.admits(replaced.len())?;
        from = found + part.len();
    }
    replaced.extend_from_slice(&text[from..]);
    guard.admits(replaced.len())?;
    made(replaced)
}

fn trim(context: &Context<'_>, guard: &Guard, left: bool, right: bool) -> Result<Value> {
    let (mut room, mut more) = (Vec::new(), Vec::new());
    let (Some(mut text), Some(characters)) = (
        self::text(context, 0, &mut room)?,
        self::text(context, 1, &mut more)?,
    ) else {
        return Ok(Value::Null);
    };
    let characters = until_nul(characters);
    let mut work = Work::new(guard);
    let mut set = HashSet::new();
    let mut at = 0;
    while at < characters.len() {
        work.step(8)?;
        let next = character(characters, at).1;
        set.insert(&characters[at..next]);
        at = next;
    }
    let lengths: BTreeSet<usize> = set.iter().map(|character| character.len()).collect();
    let longest = lengths.iter().sum::<usize>() + 1;
    loop {
        work.step(longest)?;
        let fits = |length: &usize| text.get(..*length).is_some_and(|part| set.contains(part));
        match lengths.iter().copied().find(fits).filter(|_| left) {
            Some(length) => text = &text[length..],
            None => break,
        }
    }
    loop {
        work.step(longest)?;
        let end = |length: &usize| text.get(text.len().checked_sub(*length)?..);
        let fits = |length: &usize| end(length).is_some_and(|part| set.contains(part));
        match lengths.iter().copied().find(fits).filter(|_| right) {
            Some(length) => text = &text[..text.len() - length],
            None => break,
        }
    }
    made(text.to_vec())
}

fn unhex(context: &Context<'_>, guard: &Guard) -> Result<Value> {
    let (mut room, mut more) = (Vec::new(), Vec::new());
    let (Some(text), Some(ignored)) = (
        self::text(context, 0, &mut room)?,
        self::text(context, 1, &mut more)?,
    ) else {
        return Ok(Value::Null);
    };
    let text = until_nul(text);
    let mut work = Work::new(guard);
    let (mut set, mut at) = (HashSet::new(), 0);
    while at < ignored.len() {
        work.step(8)?;
        let (ignored, next) = character(ignored, at);
        set.insert(ignored);
        at = next;
    }
    let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let (mut bytes, mut at) = (Vec::new(), 0);
    while at < text.len() {
        work.step(1)?;
        match (digit(at), digit(at + 1)) {
            (Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                at += 2;
            }
            (Some(_), None) => return Ok(Value::Null),
            (None, _) => {
                let (between, next) = character(text, at);
                if !set.contains(&between) {
                    return Ok(Value::Null);
                }
                at = next;
            }
        }
    }
    Ok(Value::Blob(bytes))
}

fn concat(context: &Context<'_>, guard: &Guard) -> Result<Value> {
    if context.is_empty() {
        return Err(Error::UserFunctionError(
            "`concat` takes at least one value".into(),
        ));
    }
    joined(context, guard, 0, &[])
}

fn concat_ws(context: &Context<'_>, guard: &Guard) -> Result<Value> {
    if context.len() < 2 {
        return Err(Error::UserFunctionError(
            "`concat_ws` takes a separator and at least one value".into(),
        ));
    }
    let mut room = Vec::new();
    match text(context, 0, &mut room)? {
        Some(separator) => joined(context, guard, 1, separator),
        None => Ok(Value::Null),
    }
}

fn joined(context: &Context<'_>, guard: &Guard, from: usize, separator: &[u8]) -> Result<Value> {
    let (mut all, mut first) = (Vec::new(), true);
    for index in from..context.len() {
        let mut room = Vec::new();
        let Some(part) = text(context, index, &mut room)? else {
            continue;
        };
        guard.admits(all.len() + part.len() + separator.len())?;
        if !std::mem::take(&mut first) {
            all.extend_from_slice(separator);
        }
        all.extend_from_slice(part);
    }
    made(all)
}

/// The special characters of a pattern. `any` or `one` is None if the pattern uses its character as the escape
/// character.
struct Wildcards {
    any: Option<u32>,
    one: Option<u32>,
    escape: Option<u32>,
    sets: bool,
    /// Whether `a` matches `A`.
    folds: bool,
}

fn like(context: &Context<'_>, guard: &Guard, folds: bool) -> Result<Value> {
    let mut room = Vec::new();
    let escape = match context.len() {
        3 => {
            let Some(escape) = text(context, 2, &mut room)?.map(until_nul) else {
                return Ok(Value::Null);
            };
            let (first, next) = match escape {
                [] => (0, usize::MAX),
                _ => character(escape, 0),
            };
            if next != escape.len() {
                return Err(Error::UserFunctionError(
                    "ESCAPE expression must be a single character".into(),
                ));
            }
            Some(first)
        }
        _ => None,
    };
    let special =
        |character: char| Some(u32::from(character)).filter(|_| escape != Some(character.into()));
    let wildcards = Wildcards {
        any: special('%'),
        one: special('_'),
        escape,
        sets: false,
        folds,
    };
    compare(context, guard, &wildcards)
}

fn glob(context: &Context<'_>, guard: &Guard) -> Result<Value> {
    let wildcards = Wildcards {
        any: Some('*'.into()),
        one: Some('?'.into()),
        escape: None,
        sets: true,
        folds: false,
    };
    compare(context, guard, &wildcards)
}

fn compare(context: &Context<'_>, guard: &Guard, wildcards: &Wildcards) -> Result<Value> {
    let (mut room, mut more) = (Vec::new(), Vec::new());
    let pattern = text(context, 0, &mut room)?;
    if let Some(pattern) = pattern
        && pattern.len() > PATTERN_BYTES_MAX
    {
        return Err(guard.refuse(
            ErrorKind::TooLarge,
            format!(
                "a pattern of LIKE or GLOB has {} bytes, and may have {PATTERN_BYTES_MAX}: look for a shorter text, or use `instr` or a full-text index",
                pattern.len()
            ),
        ));
    }
    let (Some(pattern), Some(text)) = (pattern, text(context, 1, &mut more)?) else {
        return Ok(Value::Null);
    };
    let matches = wildcards.matches(until_nul(pattern), until_nul(text), &mut Work::new(guard))?;
    Ok(Value::Integer(matches.into()))
}

impl Wildcards {
    /// Whether a text matches. When the match fails after a `%`, only the part after the last `%` is tried again,
    /// further on in the text: an earlier `%` could not match anything that the last one cannot match. So there is no
    /// recursion.
    fn matches(&self, pattern: &[u8], text: &[u8], work: &mut Work<'_>) -> Result<bool> {
        let (mut at, mut begin) = (0, 0);
        // The index after the last `%`, and the place in the text where the part after it was tried last.
        let mut retry: Option<(usize, usize)> = None;
        loop {
            work.step(1)?;
            if at < pattern.len() {
                let (wanted, next) = character(pattern, at);
                if Some(wanted) == self.any {
                    if next == pattern.len() {
                        return Ok(true);
                    }
                    at = next;
                    begin = self.candidate(pattern, at, text, begin);
                    retry = Some((at, begin));
                    continue;
                }
                if begin < text.len() {
                    let (found, after) = character(text, begin);
                    if let Some(next) = self.one(pattern, (wanted, next), found, work)? {
                        (at, begin) = (next, after);
                        continue;
                    }
                }
            } else if begin == text.len() {
                return Ok(true);
            }
            match retry {
                // If the text ended before the pattern did, another try further on would have even less text, so it is
                // not made.
                Some((behind, tried)) if begin < text.len() && tried < text.len() => {
                    let further = character(text, tried).1;
                    at = behind;
                    begin = self.candidate(pattern, at, text, further);
                    retry = Some((at, begin));
                }
                _ => return Ok(false),
            }
        }
    }

    /// Matches one character of the text with the pattern, whose first character is read already. Returns where the
    /// pattern goes on.
    fn one(
        &self,
        pattern: &[u8],
        (wanted, next): (u32, usize),
        found: u32,
        work: &mut Work<'_>,
    ) -> Result<Option<usize>> {
        if Some(wanted) == self.escape {
            // An escape character at the end of the pattern matches nothing.
            let escaped = (next < pattern.len()).then(|| character(pattern, next));
            return Ok(escaped.and_then(|(wanted, next)| self.same(wanted, found).then_some(next)));
        }
        if self.sets && wanted == u32::from('[') {
            let (is_in, next) = set(pattern, next, found);
            work.step(next - 1)?;
            return Ok(is_in.then_some(next));
        }
        let matches = Some(wanted) == self.one || self.same(wanted, found);
        Ok(matches.then_some(next))
    }

    fn same(&self, wanted: u32, found: u32) -> bool {
        let fold = |character: u32| match u8::try_from(character) {
            Ok(byte) if self.folds => byte.to_ascii_lowercase().into(),
            _ => character,
        };
        fold(wanted) == fold(found)
    }

    /// The next place in the text where the part after a `%` can match: found by searching for its first byte.
    fn candidate(&self, pattern: &[u8], at: usize, text: &[u8], from: usize) -> usize {
        let first = pattern[at];
        let special = [self.any, self.one, self.escape].contains(&Some(first.into()))
            || (self.sets && first == b'[');
        if special || !first.is_ascii() {
            return from;
        }
        let rest = &text[from..];
        let found = match self.folds {
            true => memchr::memchr2(first.to_ascii_lowercase(), first.to_ascii_uppercase(), rest),
            false => memchr::memchr(first, rest),
        };
        from + found.unwrap_or(rest.len())
    }
}

/// Whether the character `wanted` is in a set such as `[a-z]`, and the index after the set. `at` is the index after the
/// `[`.
fn set(pattern: &[u8], mut at: usize, wanted: u32) -> (bool, usize) {
    let read = |at: &mut usize| match *at < pattern.len() {
        true => {
            let (character, next) = character(pattern, *at);
            *at = next;
            Some(character)
        }
        false => None,
    };
    let end = Some(u32::from(']'));
    let (mut seen, mut before) = (false, None);
    let mut next = read(&mut at);
    let inverted = next == Some('^'.into());
    if inverted {
        next = read(&mut at);
    }
    if next == end {
        seen = wanted == u32::from(']');
        next = read(&mut at);
    }
    while let Some(character) = next.filter(|_| next != end) {
        let to = pattern.get(at).filter(|byte| **byte != b']');
        match before {
            Some(from) if character == u32::from('-') && to.is_some() => {
                let to = read(&mut at).unwrap_or_default();
                seen |= (from..=to).contains(&wanted);
                before = None;
            }
            _ => {
                seen |= wanted == character;
                before = Some(character);
            }
        }
        next = read(&mut at);
    }
    // A set without an end matches nothing.
    (next == end && seen != inverted, at)
}

#[cfg(test)]
mod tests;
