//! The limits on full-text searches.
//!
//! FTS compares every word of a phrase with every word of a text, without a check of the interrupt flag. The size of
//! the text is limited when the text is written (`limits`). The length of the search is limited here. After MATCH, a
//! statement may have only literals and parameters, joined by `||`: so the length of the search is known before it
//! runs.

use super::super::error::{Error, ErrorKind};
use super::super::statement::Value;

/// The most bytes of one search, and of every parameter of a statement that searches.
const BYTES_MAX: usize = 1_000;
/// The most bytes of the two marks of `highlight` together, with their quotes.
const MARKS_BYTES_MAX: usize = 40;

/// Checks that the searches of a statement are short enough.
pub(super) fn check(sql: &str, params: &[Value]) -> Result<(), Error> {
    let longest = params.iter().map(|value| match value {
        Value::Text(text) => text.len(),
        Value::Blob(blob) => blob.len(),
        _ => 0,
    });
    if let Some(bytes) = longest.max().filter(|bytes| *bytes > BYTES_MAX) {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!(
                "a parameter of a full-text search has {bytes} bytes, and may have {BYTES_MAX}: search for less, or give the other parameters to a statement of their own"
            ),
        ));
    }
    let mut words = Words(sql);
    while let Some(word) = words.next() {
        let name = word.trim_matches(['"', '`', '[', ']']);
        if name.eq_ignore_ascii_case("match") {
            operand(&mut words)?;
        } else if name.eq_ignore_ascii_case("highlight") {
            marks(&mut words)?;
        }
    }
    Ok(())
}

/// Checks the arguments of `highlight`: names, numbers, and marks that are literals.
fn marks(words: &mut Words<'_>) -> Result<(), Error> {
    let mut bytes = match words.next() {
        Some("(") => 0,
        _ => usize::MAX,
    };
    for word in words {
        match word.as_bytes() {
            b")" if bytes <= MARKS_BYTES_MAX => return Ok(()),
            b"," | b"." | b"-" => {}
            [b'\'', ..] => bytes += word.len(),
            [first, ..] if is_word(*first) && !word.contains('$') => {}
            [b'"' | b'`' | b'[', ..] => {}
            _ => bytes = usize::MAX,
        }
        if bytes > MARKS_BYTES_MAX {
            break;
        }
    }
    Err(Error::new(
        ErrorKind::Denied,
        format!(
            "a call of `highlight` was refused: its marks are two texts written there, with at most {MARKS_BYTES_MAX} bytes together"
        ),
    ))
}

/// Checks what is searched for: literals and parameters, joined by `||`.
fn operand(words: &mut Words<'_>) -> Result<(), Error> {
    let (mut bytes, mut parts) = (0, 0);
    loop {
        let word = words.next().unwrap_or_default();
        match word.as_bytes() {
            [b'\'', ..] => bytes += word.len(),
            [b'?' | b'$', ..] => {}
            _ => {
                return Err(Error::new(
                    ErrorKind::Denied,
                    "a full-text search was refused: behind `match`, write a parameter or a text, or some joined by `||`, so that its length is known",
                ));
            }
        }
        parts += 1;
        if bytes > BYTES_MAX || parts > 5 {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "a full-text search may have {BYTES_MAX} bytes and 5 parts: search for less, or join it in the view"
                ),
            ));
        }
        let mut next = words.clone();
        match next.next().unwrap_or_default() {
            "||" => *words = next,
            // These operators bind more closely than `match`, so they would change what is searched for.
            "->" | "->>" | "+" | "-" | "*" | "/" | "%" | "<<" | ">>" | "&" | "|" => {
                return Err(Error::new(
                    ErrorKind::Denied,
                    "a full-text search was refused: behind `match`, parameters and texts can be joined by `||`, and by nothing else",
                ));
            }
            _ => return Ok(()),
        }
    }
}

/// The words of a statement, without comments: names, numbers, literals with their quotes, parameters and operators.
#[derive(Clone)]
pub(super) struct Words<'a>(pub(super) &'a str);

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            self.0 = self.0.trim_start_matches(|c: char| c.is_ascii_whitespace());
            let rest = self.0;
            let comment = match rest {
                "" => return None,
                _ if rest.starts_with("--") => rest.find('\n').map(|at| at + 1),
                _ if rest.starts_with("/*") => rest[2..].find("*/").map(|at| at + 4),
                _ => break,
            };
            self.0 = &rest[comment.unwrap_or(rest.len())..];
        }
        let rest = self.0;
        let first = rest.as_bytes()[0];
        let length = match first {
            b'\'' | b'"' | b'`' => quoted(rest, first),
            b'[' => rest.find(']').map_or(rest.len(), |at| at + 1),
            _ if is_word(first) || first == b'?' => {
                let end = |(at, byte): (usize, u8)| (at > 0 && !is_word(byte)).then_some(at);
                rest.bytes().enumerate().find_map(end).unwrap_or(rest.len())
            }
            _ => (["->>", "->", "||", "<<", ">>"].iter())
                .find(|operator| rest.starts_with(**operator))
                .map_or(1, |operator| operator.len()),
        };
        let (word, rest) = rest.split_at(length);
        self.0 = rest;
        Some(word)
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b':' | b'@' | 0x80..)
}

/// The length of a quoted word. A quote within the word is doubled.
fn quoted(text: &str, quote: u8) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match (bytes[at] == quote, bytes.get(at + 1) == Some(&quote)) {
            (true, true) => at += 2,
            (true, false) => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_searched_for_has_a_length() {
        let long = format!("select 1 from f where f match '{}'", "a ".repeat(1_000));
        for (sql, admitted) in [
            ("select 1 from f where f match ?", true),
            (
                "select 1 from f where f MATCH $1 and a = replace(b, 'x', 'y')",
                true,
            ),
            ("select 1 from f where f match 'it''s' order by rank", true),
            (
                "select 1 from f where f match '\"' || ? || '\"*' limit 1",
                true,
            ),
            (
                "select 'match' || x from f where f match ? -- match ()",
                true,
            ),
            (
                "select highlight(f, 0, '<b>', '</b>') from f where f match ?",
                true,
            ),
            (
                "select highlight(f, -1, '<strong>', '</strong>') as \"h\" from f where f match ?",
                true,
            ),
            ("select 1 from f where f match hex(?)", false),
            ("select 1 from f where f match (?)", false),
            ("select 1 from f where f match x", false),
            ("select 1 from f where f match ? || x", false),
            ("select 1 from f where f match '1' + ?", false),
            ("select 1 from f where f match ? -> '$'", false),
            (
                "select 1 from f where f match /* a comment */ upper('x')",
                false,
            ),
            ("select 1 from f where \"match\"(hex(?), f)", false),
            ("select 1 from f where [MATCH](hex(?), f)", false),
            (
                "select 1 from f where f match ? || ? || ? || ? || ? || ?",
                false,
            ),
            ("select highlight(f, 0, ?, ?) from f where f match ?", false),
            (
                "select highlight(f, 0, hex('a'), '') from f where f match ?",
                false,
            ),
            (
                "select `highlight`(f, 0, '', 'x' || 'y') from f where f match ?",
                false,
            ),
            (
                "select highlight(f, 0, '<span class=\"very very very long\">', '</span>') from f where f match ?",
                false,
            ),
            (long.as_str(), false),
        ] {
            assert_eq!(check(sql, &[]).is_ok(), admitted, "{sql}");
        }
        let long = [Value::Text("a".repeat(BYTES_MAX + 1))];
        let refused = check("select 1 from f where f match ?", &long).expect_err("it is too long");
        assert_eq!(refused.kind, ErrorKind::TooLarge);
    }
}
