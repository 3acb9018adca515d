//! Rewrites migrations for PostgreSQL so that SQLite accepts them.
//!
//! This is not a translator for SQL in general. It covers the few things in which table definitions usually differ. If
//! SQLite does not accept a rewritten statement, the test panics and shows the statement.

/// A word, a quoted text or one other character.
#[derive(Clone, Debug)]
struct Token {
    /// Whether white space or a comment was before the token.
    spaced: bool,
    text: String,
}

impl Token {
    fn is(&self, word: &str) -> bool {
        self.text.eq_ignore_ascii_case(word)
    }
}

/// The statements of a file, rewritten for SQLite.
pub(super) fn statements(sql: &str) -> Vec<String> {
    let mut statements = vec![Vec::new()];
    // Semicolons in the body of a trigger do not end the statement.
    let (mut is_trigger, mut depth) = (false, 0);
    for token in tokens(sql) {
        let statement = statements.last_mut().expect("there is one");
        is_trigger |= token.is("trigger") && begins(statement, &["create"]);
        if is_trigger && (token.is("begin") || token.is("case")) {
            depth += 1;
        } else if is_trigger && token.is("end") {
            depth -= 1;
        }
        if token.is(";") && depth <= 0 {
            (is_trigger, depth) = (false, 0);
            statements.push(Vec::new());
        } else {
            statement.push(token);
        }
    }
    (statements.into_iter())
        .filter(|statement| !statement.is_empty() && !is_of_postgres_alone(statement))
        .map(|statement| written(&translated(statement)))
        .collect()
}

fn begins(statement: &[Token], words: &[&str]) -> bool {
    statement.len() >= words.len()
        && (statement.iter().zip(words)).all(|(token, word)| token.is(word))
}

/// Whether SQLite has no equivalent of this statement, so that the statement is left out: those about extensions,
/// types, schemas, comments, privileges, settings and locks.
fn is_of_postgres_alone(statement: &[Token]) -> bool {
    let known: [&[&str]; 8] = [
        &["create", "extension"],
        &["create", "type"],
        &["create", "schema"],
        &["comment", "on"],
        &["grant"],
        &["revoke"],
        &["set"],
        &["lock", "table"],
    ];
    known.iter().any(|words| begins(statement, words))
}

fn tokens(sql: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let (mut rest, mut spaced) = (sql, false);
    while let Some(first) = rest.chars().next() {
        let length = match first {
            _ if first.is_whitespace() => first.len_utf8(),
            '-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |at| at + 2),
            '\'' | '"' => quoted(rest, first),
            _ if first.is_alphanumeric() || first == '_' => rest
                .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'))
                .unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        let (text, after) = rest.split_at(length);
        rest = after;
        let nothing = text.trim().is_empty() || text.starts_with("--") || text.starts_with("/*");
        if !nothing {
            let text = text.strip_prefix("public.").unwrap_or(text).to_owned();
            tokens.push(Token { spaced, text });
        }
        spaced = nothing;
    }
    tokens
}

/// The length of the quoted text at the start of `text`, with its quotes. A doubled quote does not end the quoted text.
fn quoted(text: &str, quote: char) -> usize {
    let mut at = 1;
    while let Some(found) = text[at..].find(quote) {
        at += found + 1;
        if !text[at..].starts_with(quote) {
            return at;
        }
        at += 1;
    }
    text.len()
}

fn translated(tokens: Vec<Token>) -> Vec<Token> {
    let mut made: Vec<Token> = Vec::with_capacity(tokens.len());
    let mut rest = &tokens[..];
    while let Some(token) = rest.first() {
        let next = |words: &[&str]| begins(rest, words);
        rest = if next(&[":", ":"]) {
            after_type(&rest[2..])
        } else if next(&["[", "]"]) {
            &rest[2..]
        } else if next(&["at", "time", "zone"]) {
            rest.get(4..).unwrap_or_default()
        } else if next(&["timestamp", "with", "time", "zone"]) {
            push(&mut made, token, "timestamptz");
            &rest[4..]
        } else if next(&["index", "concurrently"]) {
            push(&mut made, token, "index");
            &rest[2..]
        } else if token.is("using") && rest.get(1).is_some_and(is_index_method) {
            &rest[2..]
        } else if is_serial(token) {
            push(&mut made, token, "integer");
            &rest[1..]
        } else if token.is("generated") && as_identity(rest).is_some() {
            // SQLite assigns row numbers itself only when the type is exactly `integer`.
            if let Some(kind) = made.iter_mut().rev().find(|token| is_integer(token)) {
                kind.text = "integer".to_owned();
            }
            as_identity(rest).expect("it was just found")
        } else if token.is("default") && is_call(&rest[1..]) {
            let call = &rest[1..2 + parenthesized(&rest[2..])];
            push(&mut made, token, "default");
            push(&mut made, token, "(");
            made.extend(translated(call.to_vec()));
            push(&mut made, token, ")");
            &rest[1 + call.len()..]
        } else {
            made.push(token.clone());
            &rest[1..]
        };
    }
    made
}

fn push(made: &mut Vec<Token>, like: &Token, text: &str) {
    made.push(Token {
        spaced: like.spaced,
        text: text.to_owned(),
    });
}

fn is_serial(token: &Token) -> bool {
    ["serial", "bigserial", "smallserial", "serial4", "serial8"]
        .iter()
        .any(|word| token.is(word))
}

fn is_integer(token: &Token) -> bool {
    ["int", "integer", "bigint", "smallint", "int4", "int8"]
        .iter()
        .any(|word| token.is(word))
}

fn is_index_method(token: &Token) -> bool {
    ["btree", "hash", "gin", "gist", "brin"]
        .iter()
        .any(|word| token.is(word))
}

/// The tokens after the clause `generated … as identity` and its options. `None` when `rest` does not begin with such a
/// clause.
fn as_identity(rest: &[Token]) -> Option<&[Token]> {
    let rest = if begins(rest, &["generated", "always", "as", "identity"]) {
        &rest[4..]
    } else if begins(rest, &["generated", "by", "default", "as", "identity"]) {
        &rest[5..]
    } else {
        return None;
    };
    Some(&rest[parenthesized(rest)..])
}

fn is_call(rest: &[Token]) -> bool {
    let is_name = |token: &Token| token.text.starts_with(|c: char| c.is_alphabetic());
    rest.first().is_some_and(is_name) && rest.get(1).is_some_and(|token| token.is("("))
}

/// The number of tokens from the parenthesis at the start of `rest` to its closing parenthesis, both included. 0 when
/// `rest` does not start with a parenthesis.
fn parenthesized(rest: &[Token]) -> usize {
    if !rest.first().is_some_and(|token| token.is("(")) {
        return 0;
    }
    let mut depth = 0;
    for (index, token) in rest.iter().enumerate() {
        match token.text.as_str() {
            "(" => depth += 1,
            ")" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index + 1;
        }
    }
    rest.len()
}

/// The tokens after the type at the start of `rest`, which is the type of a cast.
fn after_type(rest: &[Token]) -> &[Token] {
    let mut rest = rest.get(1..).unwrap_or_default();
    for more in [
        &["precision"][..],
        &["varying"],
        &["with", "time", "zone"],
        &["without", "time", "zone"],
    ] {
        if begins(rest, more) {
            rest = &rest[more.len()..];
        }
    }
    &rest[parenthesized(rest)..]
}

fn written(tokens: &[Token]) -> String {
    let mut text = String::new();
    for token in tokens {
        if token.spaced && !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&token.text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::statements;

    fn one(sql: &str) -> String {
        let statements = statements(sql);
        assert_eq!(statements.len(), 1, "{statements:?}");
        statements.concat()
    }

    #[test]
    fn what_postgres_says_otherwise_is_put_into_the_words_of_sqlite() {
        for (postgres, sqlite) in [
            (
                "create table a (id bigserial primary key, b text)",
                "create table a (id integer primary key, b text)",
            ),
            (
                "create table a (id bigint generated always as identity (start with 5) primary key);",
                "create table a (id integer primary key)",
            ),
            (
                "create table a (id bigint primary key generated by default as identity)",
                "create table a (id integer primary key)",
            ),
            (
                "create table a (at timestamp with time zone not null default now())",
                "create table a (at timestamptz not null default ( now() ))",
            ),
            (
                "alter table a add column b jsonb default '{\"a\": \"''::x\"}'::jsonb",
                "alter table a add column b jsonb default '{\"a\": \"''::x\"}'",
            ),
            (
                "create table a (b text[] default array_of(1, (2))::text[], c numeric(10,2) default 1.5::numeric(10,2))",
                "create table a (b text default ( array_of(1, (2)) ), c numeric(10,2) default 1.5)",
            ),
            (
                "create index concurrently i on public.a using gin (b) -- fast\n where c <> 'x'",
                "create index i on a (b) where c <> 'x'",
            ),
        ] {
            assert_eq!(one(postgres), sqlite);
        }
        assert!(
            statements("create extension pgcrypto; /* no */ comment on table a is 'x;y';")
                .is_empty()
        );
    }

    #[test]
    fn what_sqlite_understands_stays() {
        for sql in [
            "create table a (b text default (strftime('%Y', 'now')), c int check (b || 'x' >= '->>'))",
            "create trigger t after insert on a begin update a set b = 1; delete from a; end",
            "insert into a values ('it''s -- no comment', x'00', -1.5e3) on conflict do nothing",
        ] {
            assert_eq!(one(sql), sql);
        }
        assert_eq!(statements("select 1; select 2;").len(), 2);
    }
}
