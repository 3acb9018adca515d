//! The errors of a configuration, with their place. They show no secrets that the file may contain.

use std::fmt;
use std::path::PathBuf;

use super::postgres_url::without_passwords;

/// What is wrong with a configuration, and where.
#[derive(Debug)]
pub struct ConfigError {
    pub(super) file: PathBuf,
    pub(super) location: Option<Location>,
    pub(super) message: String,
}

#[derive(Debug)]
pub(super) struct Location {
    line: usize,
    column: usize,
    source: String,
}

impl Location {
    pub(super) fn of(text: &str, offset: usize) -> Location {
        let before = &text[..offset.min(text.len())];
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Location {
            line: before.matches('\n').count() + 1,
            column: before[start..].chars().count() + 1,
            source: text[start..].lines().next().unwrap_or_default().to_owned(),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            Some(Location {
                line,
                column,
                source,
            }) => {
                let message = without_secrets(&without_passwords(&self.message), source);
                write!(
                    f,
                    "{}:{line}:{column}: {message}\n  {line} | {}",
                    self.file.display(),
                    without_values(source, &message)
                )
            }
            None => {
                let message = without_passwords(&self.message);
                write!(f, "{}: {message}", self.file.display())
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// The line of the file, as an error shows it. Quoted texts that the message does not contain are hidden, because they
/// may be keys, hashes or passwords.
fn without_values(source: &str, message: &str) -> String {
    let mut shown = String::new();
    let mut rest = source;
    while let Some(start) = rest.find(['"', '\'']) {
        let (before, quoted) = rest.split_at(start);
        let (quote, inner) = quoted.split_at(1);
        let end = inner.find(quote).unwrap_or(inner.len());
        let (text, after) = inner.split_at(end);
        let hidden = if message.contains(text) { text } else { "…" };
        shown.extend([before, quote, hidden]);
        rest = match after.strip_prefix(quote) {
            Some(after) => {
                shown.push_str(quote);
                after
            }
            None => after,
        };
    }
    shown + rest
}

/// When a string is where another type was expected, serde's message quotes the string. The string is removed from the
/// message when the line may contain a secret.
fn without_secrets(message: &str, source: &str) -> String {
    let source = source.to_ascii_lowercase();
    let words = [
        "key", "secret", "token", "password", "users", "postgres", "settings",
    ];
    let Some((before, rest)) = message.split_once("invalid type: string \"") else {
        return message.to_owned();
    };
    match rest.split_once("\", expected") {
        Some((_, after)) if words.iter().any(|word| source.contains(word)) => {
            format!("{before}invalid type: string \"…\", expected{after}")
        }
        _ => message.to_owned(),
    }
}

/// Adds to serde's message what to write: the key that was probably meant, or an example of the right type.
pub(super) fn with_suggestion(message: &str) -> String {
    if let Some((_, expected)) = message.rsplit_once("expected ") {
        let form = match expected {
            "a sequence" => Some(r#"a list, in brackets: `["…"]`"#),
            "a string" | "path string" | "a string or a path" => {
                Some(r#"a text, in quotes: `"…"`"#)
            }
            "a boolean" => Some("`true` or `false`, without quotes"),
            "a map" => Some("a table, in braces: `{ name = … }`"),
            _ if expected.starts_with("struct ") => Some("a table, in braces: `{ name = … }`"),
            _ if ["u8", "u16", "u32", "u64", "usize"].contains(&expected) => {
                Some("a whole number, without quotes: `1000`")
            }
            _ => None,
        };
        if let Some(form) = form {
            return format!("{message}; write {form}");
        }
    }
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let Some((unknown, known)) = quoted.split_first() else {
        return message.to_owned();
    };
    match nearest(unknown, known) {
        Some(name) if message.starts_with("unknown") => {
            format!("{message}; did you mean `{name}`?")
        }
        _ => message.to_owned(),
    }
}

/// The known name that was probably meant; none if no name is similar.
pub(super) fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    (known.iter())
        .map(|name| (strsim::damerau_levenshtein(unknown, name), *name))
        .min()
        .and_then(|(distance, name)| (distance <= 3).then_some(name))
}
