//! Which statements views may run, and what they may leave in a connection (R11).
//!
//! There are two lines of defence. First, a statement whose purpose is to change the session is refused by name,
//! because the next statement may go to another connection. The refusal spares the author of the view a long search.
//! Second, a connection that ran anything is cleaned before somebody else gets it. That also covers what a function, a
//! trigger or an odd spelling does without being seen by the guard.
//!
//! The words of a statement never prove that it leaves the session unchanged: a table may be a view, an operator or a
//! cast may be a function, and either may be replaced after it was checked. So the cleaning after a read of one table
//! is left out only when the server itself says what the read will touch (`plain`).

use super::super::error::{Error, ErrorKind};
use super::super::statement::short;
use super::tokens::{Token, tokens};

/// The guard's verdict on a statement.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Where the statement may run.
    pub(super) needs: Needs,
    /// Whether the row count that the server reports is the number of changed rows. For reads it is the number of rows
    /// that were read, and for `create table … as` the number of rows that the table begins with.
    pub(super) counts: bool,
    /// Whether the statement, by its words, only reads. Functions that it calls may write.
    pub(super) reads: bool,
    /// Whether the statement may make the server drop prepared statements, including the host's.
    pub(super) forgets: bool,
    /// Whether the statement, by its first word, changes no definitions. Functions that it calls may change some.
    pub(super) changes_rows_only: bool,
    /// The table that the statement reads, as it is written, if by its words it reads one table and calls nothing.
    pub(super) plain_read: Option<String>,
}

/// Where a statement may run. Elsewhere the statement is refused, with the sentence in the variant as the message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// Anywhere.
    Nothing,
    /// In a transaction, or while a connection is pinned.
    Transaction(String),
    /// While a connection is pinned.
    Pin(String),
    /// Nowhere.
    Impossible(String),
}

impl Verdict {
    /// Whether the statement may run on this connection now.
    pub(super) fn allows(&self, pinned: bool, in_transaction: bool) -> Result<(), Error> {
        let sentence = match &self.needs {
            Needs::Nothing => return Ok(()),
            Needs::Transaction(_) if pinned || in_transaction => return Ok(()),
            Needs::Pin(_) if pinned => return Ok(()),
            Needs::Transaction(sentence) | Needs::Pin(sentence) | Needs::Impossible(sentence) => {
                sentence
            }
        };
        Err(Error::new(ErrorKind::Denied, sentence.clone()))
    }
}

/// Judges a statement by its tokens, so that comments, quotes and case hide nothing. The time is linear in the length
/// of the statement, and nesting takes no stack.
pub(super) fn judge(sql: &str) -> Result<Verdict, Error> {
    let wrong = |sentence: String| Error::new(ErrorKind::Statement, sentence);
    let tokens = tokens(sql).map_err(|unterminated| {
        wrong(format!(
            "the statement cannot be read (it ends within {unterminated}): {}",
            short(sql)
        ))
    })?;
    if tokens.iter().all(|token| *token == Token::Other(b';')) {
        return Err(wrong("the statement is empty, or only a comment".into()));
    }
    Ok(Words(&tokens).judge())
}

/// The tokens of a statement.
#[derive(Clone, Copy)]
struct Words<'a>(&'a [Token<'a>]);

impl<'a> Words<'a> {
    fn judge(self) -> Verdict {
        let mut words = self.after_what_is_ahead();
        let explains = words.at(0) == "explain";
        while words.at(0) == "explain" {
            words = words.explained().after_what_is_ahead();
        }
        let first = words.at(0);
        let verb = match &*first {
            "with" => words.verb_after_with(),
            first => first,
        };
        Verdict {
            needs: words.needs(&first),
            counts: !explains
                && matches!(verb, "insert" | "update" | "delete" | "merge" | "execute"),
            reads: explains || matches!(verb, "select" | "values" | "table" | "show"),
            forgets: matches!(first.as_str(), "discard" | "deallocate"),
            changes_rows_only: matches!(
                first.as_str(),
                "select"
                    | "values"
                    | "table"
                    | "with"
                    | "show"
                    | "insert"
                    | "update"
                    | "delete"
                    | "merge"
            ),
            plain_read: if explains { None } else { words.plain_read() },
        }
    }

    /// The verb of a statement that begins with `with`. Some verbs may also be the names of queries in `with`, so the
    /// next token is looked at, too.
    fn verb_after_with(self) -> &'static str {
        let mut depth = 0_usize;
        for (index, token) in self.0.iter().enumerate() {
            let next = self.at(index + 1);
            match token {
                Token::Other(b'(') => depth += 1,
                Token::Other(b')') => depth = depth.saturating_sub(1),
                _ if depth > 0 => {}
                _ if token.is("select") || token.is("values") || token.is("table") => {
                    return "select";
                }
                _ if token.is("insert") && next == "into" => return "insert",
                _ if token.is("merge") && next == "into" => return "merge",
                _ if token.is("delete") && next == "from" => return "delete",
                // When `update` is a name, `as` or a list of columns follows it.
                _ if token.is("update")
                    && next != "as"
                    && self.0.get(index + 1) != Some(&Token::Other(b'(')) =>
                {
                    return "update";
                }
                _ => {}
            }
        }
        ""
    }

    /// The statement without the parentheses and semicolons before its first word.
    fn after_what_is_ahead(self) -> Self {
        let ahead = |token: &&Token<'_>| !matches!(token, Token::Word(_) | Token::Quoted(_));
        Words(&self.0[self.0.iter().take_while(ahead).count()..])
    }

    /// The table of a statement `select … from table …`. None if anything in the statement may call a function or read
    /// a second table: a call, a cast (`name 'text'` is a cast), a qualified name (`a.b` may be a call), and so on.
    fn plain_read(self) -> Option<String> {
        let (select, rest) = self.0.split_first()?;
        let from = rest.iter().position(|token| token.is("from"))?;
        let (columns, rest) = (&rest[..from], &rest[from + 1..]);
        let (table, rest) = match rest {
            [schema, Token::Other(b'.'), table, rest @ ..] => {
                (format!("{}.{}", schema.name()?, table.name()?), rest)
            }
            [table, rest @ ..] => (table.name()?, rest),
            _ => return None,
        };
        // An alias and a clause may follow the table. Anything else may be a second table.
        let clauses = match rest {
            [as_, alias, rest @ ..] if as_.is("as") && alias.is_name() => rest,
            [clause, ..] if CLAUSES.iter().any(|word| clause.is(word)) => rest,
            [alias, rest @ ..] if alias.is_name() => rest,
            rest => rest,
        };
        let ends = |token: &Token<'_>| {
            *token == Token::Other(b';') || CLAUSES.iter().any(|word| token.is(word))
        };
        if !clauses.first().is_none_or(ends) {
            return None;
        }
        let plain = |token: &Token<'_>| match token {
            Token::Word(_) => !NOT_PLAIN.iter().any(|word| token.is(word)),
            Token::Quoted(_) | Token::Number | Token::Parameter => true,
            Token::Other(b',' | b';') => true,
            Token::Operator(name) => matches!(
                *name,
                "=" | "<>" | "!=" | "<" | ">" | "<=" | ">=" | "+" | "-" | "*" | "/" | "%"
            ),
            Token::Escaped | Token::Text | Token::Other(_) => false,
        };
        let is_plain = select.is("select") && columns.iter().chain(clauses).all(plain);
        is_plain.then_some(table)
    }

    /// The word at a place, in lower case; empty if there is something else.
    fn at(self, index: usize) -> String {
        match self.0.get(index) {
            Some(Token::Word(word)) => word.to_ascii_lowercase(),
            _ => String::new(),
        }
    }

    /// The word or quoted name at a place, in lower case; empty if there is something else.
    fn name(self, index: usize) -> String {
        match self.0.get(index) {
            Some(Token::Word(word) | Token::Quoted(word)) => word.to_ascii_lowercase(),
            _ => String::new(),
        }
    }

    fn has(self, first: &str, second: &[&str]) -> bool {
        (self.0.windows(2)).any(|pair| pair[0].is(first) && second.iter().any(|s| pair[1].is(s)))
    }

    /// The statement that `explain` explains.
    fn explained(self) -> Self {
        let mut rest = &self.0[1..];
        if rest.first() == Some(&Token::Other(b'(')) {
            let end = rest.iter().position(|token| *token == Token::Other(b')'));
            rest = &rest[end.map_or(rest.len(), |end| end + 1)..];
        }
        while (rest.first()).is_some_and(|token| token.is("analyze") || token.is("verbose")) {
            rest = &rest[1..];
        }
        Words(rest)
    }

    /// The names that stand before an opening parenthesis (functions and keywords), each with the index of the
    /// parenthesis.
    fn calls(self) -> impl Iterator<Item = (&'a str, usize)> {
        self.0
            .windows(2)
            .enumerate()
            .filter_map(|(index, pair)| match pair {
                [Token::Word(name) | Token::Quoted(name), Token::Other(b'(')] => {
                    Some((*name, index + 1))
                }
                _ => None,
            })
    }

    fn needs(self, first: &str) -> Needs {
        let second = self.at(1);
        match first {
            "begin" | "start" | "commit" | "end" | "rollback" | "abort" | "savepoint"
            | "release" => return transaction(first),
            "prepare" if second == "transaction" => return transaction("prepare transaction"),
            "copy" => {
                return Needs::Impossible(
                    "`copy` was refused: its data does not travel with a statement. Insert rows with `insert … select … from unnest($1)`, or read them with `open`".to_owned(),
                );
            }
            "set" => return self.needs_of_set(&second),
            "reset" if of_transaction(&self.name(1)) => return characteristics(),
            "reset" if self.is_escaped() => return escaped(),
            "reset" | "listen" | "unlisten" | "prepare" | "execute" | "deallocate" | "discard"
            | "load" => {
                return pin(first);
            }
            "declare" if self.has("with", &["hold"]) => return pin("declare … with hold"),
            "declare" | "fetch" | "move" | "close" => return within(first),
            "create" if (1..5).any(|index| is_temporary(&self.at(index))) => {
                return pin("create temporary …");
            }
            _ => {}
        }
        if self.has("into", &["temp", "temporary"])
            || self.0.windows(2).any(|pair| {
                matches!(pair, [Token::Word(word) | Token::Quoted(word), Token::Other(b'.')] if word.eq_ignore_ascii_case("pg_temp"))
            })
        {
            return pin("a temporary table");
        }
        let ends = ends(self.0);
        self.calls()
            .map(|(name, open)| self.needs_of_call(name, ends[open]))
            .find(|needs| *needs != Needs::Nothing)
            .unwrap_or(Needs::Nothing)
    }

    fn needs_of_set(self, second: &str) -> Needs {
        match second {
            "constraints" => within("set constraints"),
            "session" if self.at(2) == "characteristics" => characteristics(),
            _ if of_transaction(&self.name(1)) || of_transaction(&self.name(2)) => {
                characteristics()
            }
            _ if self.is_escaped() => escaped(),
            "local" => within("set local"),
            _ => pin("set"),
        }
    }

    /// Whether the statement has a name whose letters are written as numbers: `U&"\0061"`.
    fn is_escaped(self) -> bool {
        self.0.contains(&Token::Escaped)
    }

    fn needs_of_call(self, name: &str, end: usize) -> Needs {
        match &*name.to_ascii_lowercase() {
            "set_config" if !self.last_argument_is_true(end) => pin("set_config(…, false)"),
            "pg_advisory_lock"
            | "pg_advisory_lock_shared"
            | "pg_try_advisory_lock"
            | "pg_try_advisory_lock_shared"
            | "pg_advisory_unlock"
            | "pg_advisory_unlock_shared"
            | "pg_advisory_unlock_all" => Needs::Pin(format!(
                "`{name}` was refused: the lock would stay with one connection of the pool. Use `pg_advisory_xact_lock` in a transaction, or `pin` to keep one connection"
            )),
            "lastval" | "currval" => Needs::Transaction(format!(
                "`{name}` was refused: outside a transaction, the next statement may go to another connection. Use `returning`, or a transaction"
            )),
            _ => Needs::Nothing,
        }
    }

    /// Whether the call whose closing parenthesis is at the index `end` ends with `, true)`.
    fn last_argument_is_true(self, end: usize) -> bool {
        end >= 2 && self.at(end - 1) == "true" && self.0[end - 2] == Token::Other(b',')
    }
}

/// For every opening parenthesis, the index of the one that closes it; 0 if none does.
fn ends(tokens: &[Token<'_>]) -> Vec<usize> {
    let (mut ends, mut open) = (vec![0; tokens.len()], Vec::new());
    for (index, token) in tokens.iter().enumerate() {
        match token {
            Token::Other(b'(') => open.push(index),
            Token::Other(b')') => {
                if let Some(opened) = open.pop() {
                    ends[opened] = index;
                }
            }
            _ => {}
        }
    }
    ends
}

/// Words that a plain read must not have: with them, a `select` may read more than one table, write, or call something.
const NOT_PLAIN: [&str; 12] = [
    "select",
    "from",
    "join",
    "union",
    "intersect",
    "except",
    "into",
    "with",
    "values",
    "table",
    "tablesample",
    "cast",
];

/// Words that begin a clause after the table.
const CLAUSES: [&str; 8] = [
    "where", "group", "having", "order", "limit", "offset", "fetch", "for",
];

fn is_temporary(word: &str) -> bool {
    matches!(word, "temp" | "temporary")
}

/// Whether a setting belongs to the transaction, such as `transaction_read_only`.
fn of_transaction(name: &str) -> bool {
    name.starts_with("transaction")
}

fn transaction(first: &str) -> Needs {
    Needs::Impossible(format!(
        "`{first}`, a statement that begins or ends a transaction, was refused: mark the view `atomic`, or use `begin` (in the SDK: `cx.atomic(..)`), so that the host knows of the transaction"
    ))
}

fn characteristics() -> Needs {
    Needs::Impossible(
        "`set transaction` was refused: say `isolation = …` or `read_only` where the view is declared, so that the host knows of it".to_owned(),
    )
}

fn escaped() -> Needs {
    Needs::Impossible(
        "a setting whose name has letters as numbers (`U&\"…\"`) was refused, because it could be one of the host's: write its name in plain letters".to_owned(),
    )
}

fn pin(what: &str) -> Needs {
    let otherwise = match what {
        "set" => "; `set local` is for one transaction",
        "set_config(…, false)" => "; `set_config(…, true)` is for one transaction",
        _ => "",
    };
    Needs::Pin(format!(
        "`{what}` was refused: it would change one connection of the pool and be lost for the next statement. Use `pin` (in the SDK: `cx.db().pin()`) to keep one connection for several statements{otherwise}"
    ))
}

fn within(what: &str) -> Needs {
    Needs::Transaction(format!(
        "`{what}` was refused: it has an effect within a transaction only, and there is none. Mark the view `atomic`, or use `begin` (in the SDK: `cx.atomic(..)`)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(sql: &str, pinned: bool, in_transaction: bool) -> Option<String> {
        let verdict = judge(sql).unwrap_or_else(|error| panic!("{sql}: {}", error.message));
        let allowed = verdict.allows(pinned, in_transaction);
        allowed.err().map(|error| error.message)
    }

    #[test]
    fn only_rows_that_were_changed_are_counted() {
        let counts = |sql: &str| judge(sql).expect(sql).counts;
        for sql in [
            "insert into a values (1)",
            "with b as (select 1) insert into a select * from b",
            "with update as (select 1) update a set b = 1",
            "with a as (delete from b returning *) delete from c",
            "merge into a using b on true when matched then delete",
        ] {
            assert!(counts(sql), "{sql}");
        }
        for sql in [
            "select 1",
            "create table a as select 1",
            "with b as (insert into a values (1) returning *) select * from b",
            "with update (a) as (select 1) select * from update",
            "explain analyze insert into a values (1)",
            "drop table a",
        ] {
            assert!(!counts(sql), "{sql}");
        }
    }

    #[test]
    fn what_writes_by_its_words_is_known() {
        let reads = |sql: &str| judge(sql).expect(sql).reads;
        for sql in [
            "select 1",
            "(values (1))",
            "table a",
            "show work_mem",
            "with b as (insert into a values (1) returning *) select * from b",
            "explain analyze insert into a values (1)",
        ] {
            assert!(reads(sql), "{sql}");
        }
        for sql in [
            "insert into a values (1) returning *",
            "with b as (select 1) insert into a select * from b returning *",
            "/* select */ update a set b = 1",
            "call a()",
            "do $$ select $$",
            "create table a as select 1",
        ] {
            assert!(!reads(sql), "{sql}");
        }
    }

    #[test]
    fn r11_statements_that_change_the_session_are_refused_by_name() {
        for (sql, part) in [
            ("set search_path = x", "`set` was refused"),
            ("/* hm */ SET\n\"search_path\" = x", "`set` was refused"),
            ("set session search_path to x", "`set` was refused"),
            ("-- a\nset time zone 'UTC'", "`pin`"),
            ("reset all", "`reset`"),
            ("listen a", "`listen`"),
            ("unlisten *", "`unlisten`"),
            ("prepare a as select 1", "`prepare`"),
            ("execute a", "`execute`"),
            ("explain (analyze) execute a", "`execute`"),
            (
                "explain analyze create temp table t as select 1",
                "`create temporary …`",
            ),
            ("deallocate a", "`deallocate`"),
            ("discard all", "`discard`"),
            ("load 'auto_explain'", "`load`"),
            ("create temp table t (a int)", "`create temporary …`"),
            (
                "create local temporary table t (a int)",
                "`create temporary …`",
            ),
            (
                "create or replace temp view t as select 1",
                "`create temporary …`",
            ),
            ("select 1 into temp t", "a temporary table"),
            ("create table pg_temp.t (a int)", "a temporary table"),
            (
                "select set_config('a.b', 'c', false)",
                "`set_config(…, false)`",
            ),
            (
                "select SET_CONFIG('a.b', 'c', $1)",
                "`set_config(…, false)`",
            ),
            (
                "select pg_catalog.\"set_config\"('a', 'true', false)",
                "`set_config(…, false)`",
            ),
            ("select pg_advisory_lock(1)", "`pg_advisory_xact_lock`"),
            ("select pg_try_advisory_lock (1)", "`pg_advisory_xact_lock`"),
            ("declare c cursor with hold for select 1", "with hold"),
        ] {
            for in_transaction in [false, true] {
                let sentence =
                    refused(sql, false, in_transaction).unwrap_or_else(|| panic!("{sql} passed"));
                assert!(sentence.contains(part), "{sql}: {sentence}");
            }
            assert_eq!(refused(sql, true, false), None, "{sql}");
        }
    }

    #[test]
    fn r11_a_plain_read_names_one_table_and_no_function() {
        for (sql, table) in [
            ("select name from items where id = $1", "items"),
            (
                "SELECT * FROM shop.\"Items\" i ORDER BY id DESC LIMIT 10;",
                "shop.\"Items\"",
            ),
            (
                "select a, b as c from t where a >= 1 and b is not null for update",
                "t",
            ),
            ("select a from only", "only"),
        ] {
            let verdict = judge(sql).expect("it can be read");
            assert_eq!(verdict.plain_read.as_deref(), Some(table), "{sql}");
        }
        for sql in [
            "select 1",
            "select evil() from t",
            "select evil from t, u",
            "select a from t u, v",
            "select a from evil(1)",
            "select a from t where (a = 1)",
            "select a from t where a in (select b from u)",
            "select a from t join u using (a)",
            "select t.evil from t",
            "select a::evil from t",
            "select cast(a as evil) from t",
            "select a from t where a @@ 'b'",
            "select a from t union select b from u",
            "select a into u from t",
            "select a into temp u from t",
            "with u as (delete from t returning a) select a from u",
            "select a from t tablesample evil (1)",
            "select a from only (t)",
            "select a from t, u where b = 1",
            "select a from t as u, v",
            "select a from t where b = 'c'",
            "select evil 'a' from t where a operator(evil.=) 1",
            "table t",
            "update t set a = 1",
            "explain select a from t",
        ] {
            let verdict = judge(sql).expect("it can be read");
            assert_eq!(verdict.plain_read, None, "{sql}");
        }
    }

    #[test]
    fn some_are_refused_everywhere() {
        for sql in [
            "begin",
            "START transaction",
            "commit",
            "end",
            "rollback to a",
            "savepoint a",
            "release a",
            "abort",
            "prepare transaction 'a'",
            "copy t from stdin",
            "set transaction read write",
            "set local transaction_read_only = off",
            "set session characteristics as transaction read write",
            "(begin)",
            "; begin",
            ";commit",
            " /* a */ ;; -- b\n ; commit",
            "-- a\rbegin",
            "/* /* */ */begin",
            "\u{b}\u{c}begin",
            "explain ;begin",
            ";explain ;(begin)",
            "set \"transaction_read_only\" = off",
            "set local \"Transaction_Read_Only\" = off",
            "set session \"transaction_isolation\" = serializable",
            "set local U&\"transaction\\005fread_only\" = off",
            "set local u&\"!0074ransaction_read_only\" uescape '!' = off",
            "reset transaction_read_only",
            "reset \"transaction_read_only\"",
        ] {
            assert!(refused(sql, true, true).is_some(), "{sql} passed");
        }
    }

    #[test]
    fn some_need_a_transaction() {
        for sql in [
            "set local work_mem = '1MB'",
            "declare c cursor for select 1",
            "fetch 1 from c",
            "select lastval()",
            "set constraints all deferred",
        ] {
            assert!(refused(sql, false, false).is_some(), "{sql} passed");
            assert_eq!(refused(sql, false, true), None, "{sql}");
        }
    }

    #[test]
    fn what_only_mentions_such_words_passes() {
        for sql in [
            "select 'set a = b; commit'",
            "select \"begin\" from t",
            "update t set a = 1",
            "select $$listen a$$",
            "insert into reset (a) values (1)",
            "select set_config('a.b', $1, true)",
            "select 1 -- commit",
            "select pg_advisory_xact_lock(1)",
            "create table temperatures (a int)",
            "select e'it\\'s' || u&'d\\0061t'",
            "select a ? 'b', a ->> $1 from t",
        ] {
            assert_eq!(refused(sql, false, false), None, "{sql}");
        }
    }

    #[test]
    fn r5_statements_of_every_shape_are_judged_in_linear_time() {
        let explain = "explain ".repeat(30_000) + "select 1";
        let verdict = judge(&explain).expect("it can be read");
        assert!(!verdict.counts && verdict.needs == Needs::Nothing);
        let hidden = "explain (".repeat(20_000) + "begin";
        assert!(judge(&hidden).is_ok());
        for unit in [
            "(",
            "explain ",
            "explain (a) ",
            "explain analyze ",
            "/*",
            "/**/",
            "'",
            "''",
            "\"",
            "\"\"",
            "e'\\'",
            "e''\n",
            "$a$",
            "$$",
            "$a",
            "$1",
            "set_config(",
            "set_config(1,true)",
            "pg_temp",
            "a.",
            "into ",
            "with hold ",
            "--\n",
            ";",
            "(;",
            "-",
            "+",
            "@-",
            "1e",
            "1.",
            "..",
            "u&",
            "U&\"a\"",
            "select a from t where ",
            ",",
            "declare ",
            "U&''",
            "ü",
        ] {
            for (ahead, behind) in [("", ""), ("select 1 from t ", "x"), ("set a ", ", true)")] {
                let count = 262_144 / unit.len();
                let sql = format!("{ahead}{}{behind}", unit.repeat(count));
                let since = std::time::Instant::now();
                let _ = judge(&sql);
                // Linear time is a few milliseconds without optimisation. Quadratic time would be minutes.
                let took = since.elapsed();
                assert!(
                    took.as_millis() < 2_000,
                    "{ahead}{unit}…{behind} took {took:?}"
                );
            }
        }
        let nested = "set_config(".repeat(20_000) + &"'a', true)".repeat(20_000);
        let since = std::time::Instant::now();
        let _ = judge(&nested);
        assert!(since.elapsed().as_millis() < 2_000);
    }

    #[test]
    fn what_says_nothing_is_told_so() {
        for sql in ["", " -- nothing", "/* */;"] {
            assert!(
                judge(sql)
                    .expect_err("it is empty")
                    .message
                    .contains("empty")
            );
        }
        assert!(
            judge("select 'a")
                .expect_err("it does not end")
                .message
                .contains("cannot be read")
        );
    }
}
