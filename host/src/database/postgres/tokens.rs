//! The tokens of a statement, as PostgreSQL's own scanner finds them.
//!
//! The scanner here finds only what the guard needs: words, names, and the ends of strings and comments. It makes one
//! pass over the bytes, without recursion: nested comments are counted. A string without an end is an error, so that no
//! part of it is scanned twice. Bytes beyond ASCII are letters, as they are for the server.

/// One token. Blanks and comments are not tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A word as it is written: a keyword or a name.
    Word(&'a str),
    /// A name in double quotes: the text between them as it is written, in which a quote is still doubled.
    Quoted(&'a str),
    /// A name whose letters may be written as numbers: `U&"\0061"`.
    Escaped,
    /// A string, in any of its spellings.
    Text,
    /// A number.
    Number,
    /// `$1`
    Parameter,
    /// An operator.
    Operator(&'a str),
    /// Any other character.
    Other(u8),
}

impl Token<'_> {
    /// Whether the token is the word `wanted`, which must be given in lower case.
    pub(super) fn is(&self, wanted: &str) -> bool {
        matches!(self, Token::Word(word) if word.eq_ignore_ascii_case(wanted))
    }

    pub(super) fn is_name(&self) -> bool {
        matches!(self, Token::Word(_) | Token::Quoted(_))
    }

    /// A name as it is written, with its quotes.
    pub(super) fn name(&self) -> Option<String> {
        match self {
            Token::Word(word) => Some((*word).to_owned()),
            Token::Quoted(name) => Some(format!("\"{name}\"")),
            _ => None,
        }
    }
}

/// The tokens of a statement.
///
/// # Errors
/// If the statement ends within a string, a quoted name or a comment. The error says within which of them.
pub(super) fn tokens(sql: &str) -> Result<Vec<Token<'_>>, &'static str> {
    let mut scanner = Scanner {
        sql,
        at: 0,
        signs: 0,
    };
    let mut tokens = Vec::new();
    while let Some(token) = scanner.next()? {
        tokens.push(token);
    }
    Ok(tokens)
}

/// One of several statements in a text.
pub(in crate::database) struct SqlStatement<'a> {
    /// The byte offset of its first token.
    pub(in crate::database) start: usize,
    /// The SQL of the statement, without its semicolon.
    pub(in crate::database) text: &'a str,
    tokens: Vec<Token<'a>>,
}

impl SqlStatement<'_> {
    /// The word at a place, in lower case; empty if there is something else.
    pub(in crate::database) fn word(&self, index: usize) -> String {
        match self.tokens.get(index) {
            Some(Token::Word(word)) => word.to_ascii_lowercase(),
            _ => String::new(),
        }
    }

    /// Whether the statement has this word, which must be given in lower case.
    pub(in crate::database) fn has(&self, word: &str) -> bool {
        self.tokens.iter().any(|token| token.is(word))
    }

    /// Whether the statement creates a function or procedure, whose body may contain statements.
    fn is_routine(&self) -> bool {
        let kind = match (&*self.word(1), &*self.word(2)) {
            ("or", "replace") => self.word(3),
            (kind, _) => kind.to_owned(),
        };
        self.word(0) == "create" && matches!(&*kind, "function" | "procedure")
    }
}

/// The statements of a text. As in `psql`, a semicolon ends a statement unless it is in parentheses, or between the
/// `begin` and `end` of a function's body.
///
/// # Errors
/// If the text ends within a string, a quoted name or a comment. The error says within which of them.
pub(in crate::database) fn statements(sql: &str) -> Result<Vec<SqlStatement<'_>>, &'static str> {
    let mut scanner = Scanner {
        sql,
        at: 0,
        signs: 0,
    };
    let mut statements = Vec::new();
    let mut current: Option<SqlStatement<'_>> = None;
    let (mut parentheses, mut blocks) = (0_usize, 0_usize);
    loop {
        scanner.skip()?;
        let start = scanner.at;
        let token = scanner.next()?;
        if token.is_none() || (token == Some(Token::Other(b';')) && parentheses + blocks == 0) {
            if let Some(mut statement) = current.take() {
                statement.text = sql[statement.start..start].trim_end();
                statements.push(statement);
            }
            parentheses = 0;
            match token {
                Some(_) => continue,
                None => return Ok(statements),
            }
        }
        let Some(token) = token else { continue };
        let statement = current.get_or_insert_with(|| SqlStatement {
            start,
            text: "",
            tokens: Vec::new(),
        });
        statement.tokens.push(token);
        match token {
            Token::Other(b'(') => parentheses += 1,
            Token::Other(b')') => parentheses = parentheses.saturating_sub(1),
            Token::Word(_) if parentheses == 0 && statement.is_routine() => {
                let begins = token.is("begin") || (token.is("case") && blocks > 0);
                blocks += usize::from(begins);
                blocks -= usize::from(token.is("end") && blocks > 0);
            }
            _ => {}
        }
    }
}

struct Scanner<'a> {
    sql: &'a str,
    at: usize,
    /// Up to this offset there are signs (`+`, `-`) that the operator before them did not take. Each of these signs is
    /// a token of its own.
    signs: usize,
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a [u8] {
        &self.sql.as_bytes()[self.at..]
    }

    fn next(&mut self) -> Result<Option<Token<'a>>, &'static str> {
        self.skip()?;
        let start = self.at;
        Ok(Some(match self.rest() {
            [] => return Ok(None),
            [b'\'' | b'b' | b'B' | b'x' | b'X' | b'n' | b'N', ..] if self.opens(b'\'') => {
                self.text(b'\'')?;
                Token::Text
            }
            [b'e' | b'E', b'\'', ..] => {
                self.at += 2;
                self.escaped_text()?;
                Token::Text
            }
            [b'u' | b'U', b'&', quote @ (b'\'' | b'"'), ..] => {
                self.at += 3;
                self.until(*quote)?;
                match quote {
                    b'"' => Token::Escaped,
                    _ => Token::Text,
                }
            }
            [b'"', ..] => {
                self.text(b'"')?;
                Token::Quoted(&self.sql[start + 1..self.at - 1])
            }
            [b'$', b'0'..=b'9', ..] => {
                self.at += 1;
                self.take(|byte| byte.is_ascii_digit());
                Token::Parameter
            }
            [b'$', ..] => self.dollar_text()?,
            [first, ..] if is_letter(*first) => {
                self.take(|byte| is_letter(byte) || byte.is_ascii_digit() || byte == b'$');
                Token::Word(&self.sql[start..self.at])
            }
            [b'0'..=b'9', ..] | [b'.', b'0'..=b'9', ..] => {
                self.number();
                Token::Number
            }
            [first, ..] if is_operator(*first) => {
                self.operator();
                Token::Operator(&self.sql[start..self.at])
            }
            [other, ..] => {
                self.at += 1;
                Token::Other(*other)
            }
        }))
    }

    /// Whether a string begins here: with its quote, or with one letter and its quote.
    fn opens(&self, quote: u8) -> bool {
        let rest = self.rest();
        rest[0] == quote || rest.get(1) == Some(&quote)
    }

    fn take(&mut self, wanted: impl Fn(u8) -> bool) {
        self.at += self.rest().iter().take_while(|byte| wanted(**byte)).count();
    }

    /// Skips blanks and comments.
    fn skip(&mut self) -> Result<(), &'static str> {
        loop {
            match self.rest() {
                [byte, ..] if is_blank(*byte) => self.at += 1,
                [b'-', b'-', ..] => self.take(|byte| byte != b'\n' && byte != b'\r'),
                [b'/', b'*', ..] => self.comment()?,
                _ => return Ok(()),
            }
        }
    }

    fn comment(&mut self) -> Result<(), &'static str> {
        let mut depth = 0_usize;
        loop {
            match self.rest() {
                [] => return Err("a comment"),
                [b'/', b'*', ..] => (depth, self.at) = (depth + 1, self.at + 2),
                [b'*', b'/', ..] => (depth, self.at) = (depth - 1, self.at + 2),
                _ => self.at += 1,
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// Skips a string from its opening quote, which a letter may precede.
    fn text(&mut self, quote: u8) -> Result<(), &'static str> {
        self.at += if self.rest()[0] == quote { 1 } else { 2 };
        self.until(quote)
    }

    /// Skips up to the closing quote and past it. A doubled quote does not close.
    fn until(&mut self, quote: u8) -> Result<(), &'static str> {
        loop {
            match self.rest() {
                [] => return Err("quotes"),
                [first, second, ..] if (*first, *second) == (quote, quote) => self.at += 2,
                [first, ..] => {
                    self.at += 1;
                    if *first == quote {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Skips the rest of `E'…'`. A backslash escapes the next byte, and the string may go on in the next line.
    fn escaped_text(&mut self) -> Result<(), &'static str> {
        loop {
            match self.rest() {
                [] | [b'\\'] => return Err("quotes"),
                [b'\\', _, ..] | [b'\'', b'\'', ..] => self.at += 2,
                [b'\'', ..] => {
                    self.at += 1;
                    if !self.goes_on() {
                        return Ok(());
                    }
                }
                _ => self.at += 1,
            }
        }
    }

    /// Whether a string that has just ended goes on: with another quote after blanks that include a line end. That
    /// quote is then taken. Line comments count as blanks here.
    fn goes_on(&mut self) -> bool {
        let (before, mut line_ends) = (self.at, false);
        loop {
            match self.rest() {
                [byte, ..] if is_blank(*byte) => {
                    line_ends |= matches!(byte, b'\n' | b'\r');
                    self.at += 1;
                }
                [b'-', b'-', ..] => self.take(|byte| byte != b'\n' && byte != b'\r'),
                [b'\'', ..] if line_ends => {
                    self.at += 1;
                    return true;
                }
                _ => {
                    // The blanks are scanned once more, by `skip`, and never again.
                    self.at = before;
                    return false;
                }
            }
        }
    }

    /// Skips `$tag$…$tag$`, or takes a single `$`.
    fn dollar_text(&mut self) -> Result<Token<'a>, &'static str> {
        let start = self.at;
        self.at += 1;
        if self.rest().first().copied().is_some_and(is_letter) {
            self.take(|byte| is_letter(byte) || byte.is_ascii_digit());
        }
        if self.rest().first() != Some(&b'$') {
            self.at = start + 1;
            return Ok(Token::Other(b'$'));
        }
        self.at += 1;
        let tag = &self.sql[start..self.at];
        let length = self.sql[self.at..].find(tag).ok_or("a text in dollars")?;
        self.at += length + tag.len();
        Ok(Token::Text)
    }

    fn number(&mut self) {
        let digits = |byte: u8| byte.is_ascii_digit() || byte == b'_';
        if let [b'0', b'x' | b'X' | b'o' | b'O' | b'b' | b'B', ..] = self.rest() {
            self.at += 2;
            return self.take(|byte| byte.is_ascii_hexdigit() || byte == b'_');
        }
        self.take(digits);
        match self.rest() {
            [b'.', b'.', ..] => return,
            [b'.', ..] => {
                self.at += 1;
                self.take(digits);
            }
            _ => {}
        }
        match self.rest() {
            [b'e' | b'E', b'0'..=b'9', ..] => self.at += 1,
            [b'e' | b'E', b'+' | b'-', b'0'..=b'9', ..] => self.at += 2,
            _ => return,
        }
        self.take(digits);
    }

    /// Takes the bytes of one operator, which ends before a comment (`--` or `/*`). As in PostgreSQL, an operator of
    /// several characters ends with a sign (`+` or `-`) only if it also has a character such as `~` or `@`.
    fn operator(&mut self) {
        let start = self.at;
        if start < self.signs {
            self.at += 1;
            return;
        }
        while let [first, rest @ ..] = self.rest() {
            let comments = matches!((first, rest), (b'-', [b'-', ..]) | (b'/', [b'*', ..]));
            if !is_operator(*first) || comments {
                break;
            }
            self.at += 1;
        }
        let bytes = self.sql.as_bytes();
        let takes_signs = bytes[start..self.at]
            .iter()
            .any(|byte| b"~!@#%^&|`?".contains(byte));
        self.signs = self.at;
        while !takes_signs && self.at - start > 1 && matches!(bytes[self.at - 1], b'+' | b'-') {
            self.at -= 1;
        }
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_operator(byte: u8) -> bool {
    b"~!@#^&|`?+-*/%<>=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Token::{Escaped, Number, Operator, Other, Parameter, Quoted, Text, Word};
    use super::*;

    #[test]
    fn tokens_are_what_the_server_takes_them_for() {
        for (sql, expected) in [
            ("a$b Ü_1", vec![Word("a$b"), Word("Ü_1")]),
            ("/* a /* b */ ' */ x -- '\ny", vec![Word("x"), Word("y")]),
            ("'it''s' e'\\'' E'a'\n 'b\\'c' x'1f' n'a'", vec![Text; 5]),
            ("e'a' 'b'", vec![Text, Text]),
            ("$$ ' $$ $a$ $$ $b$ $a$ $1", vec![Text, Text, Parameter]),
            (
                "\"a\"\"b\" U&\"\\0061\" u&'c'",
                vec![Quoted("a\"\"b"), Escaped, Text],
            ),
            ("u & \"a\"", vec![Word("u"), Operator("&"), Quoted("a")]),
            (
                "1.5e-3 1e 0x1f 1..2",
                vec![
                    Number,
                    Number,
                    Word("e"),
                    Number,
                    Number,
                    Other(b'.'),
                    Number,
                ],
            ),
            (
                "a=-1",
                vec![Word("a"), Operator("="), Operator("-"), Number],
            ),
            (
                "a@-b+/*c*/d",
                vec![
                    Word("a"),
                    Operator("@-"),
                    Word("b"),
                    Operator("+"),
                    Word("d"),
                ],
            ),
            (
                "a::b[1]",
                vec![
                    Word("a"),
                    Other(b':'),
                    Other(b':'),
                    Word("b"),
                    Other(b'['),
                    Number,
                    Other(b']'),
                ],
            ),
        ] {
            assert_eq!(tokens(sql).as_deref(), Ok(&*expected), "{sql}");
        }
        for (sql, within) in [
            ("'a", "quotes"),
            ("e'a\\", "quotes"),
            ("\"a", "quotes"),
            ("$a$ $b$", "a text in dollars"),
            ("/* /* */", "a comment"),
        ] {
            assert_eq!(tokens(sql), Err(within), "{sql}");
        }
    }

    proptest! {
        #[test]
        fn any_text_can_be_read(sql in "([ -~\n\rü€]|\\$a\\$|/\\*|\\*/|--|''|[eEuU]&?'){0,60}") {
            if let Ok(tokens) = tokens(&sql) {
                prop_assert!(tokens.len() <= sql.len());
            }
        }
    }
}
