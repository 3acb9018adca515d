//! Hostile statements for SQLite.

use serde_json::json;

use super::{Corpus, Line};
use crate::harness::Kind;
use crate::harness::steps::{execute, execute_with, pinned, query, query_with};

pub(super) fn corpus() -> Corpus {
    let lines = [
        deep(),
        long(),
        huge(),
        slow(),
        recursive(),
        of_the_session(),
    ];
    Corpus {
        kind: Kind::Sqlite,
        setup: setup(),
        lines: lines.into_iter().flatten().collect(),
    }
}

fn setup() -> Vec<String> {
    let mut setup = vec![
        "create table n (n integer primary key)".into(),
        "insert into n with recursive r(n) as (select 1 union all select n + 1 from r limit 3000) select n from r".into(),
        "create table long as select replace(hex(zeroblob(8000000)), '0', 'a') as big".into(),
        "create table json as select '{' || group_concat('\"' || n || '\":1') || '}' as json from n".into(),
        "create virtual table docs using fts5(text)".into(),
        "insert into docs values (replace(hex(zeroblob(250000)), '00', 'a '))".into(),
        "create virtual table old using fts4(text)".into(),
        "insert into old values (replace(hex(zeroblob(30000)), '00', 'a '))".into(),
        "create virtual table places using rtree(id, x0, x1, y0, y1)".into(),
        "create table t0 (a)".into(),
        "create view v0 (a) as select 1".into(),
        "create table c0 (id integer primary key)".into(),
        "insert into c0 values (1)".into(),
    ];
    for (number, before) in (1..400).zip(0..) {
        setup.push(format!(
            "create view v{number} (a) as select max(a) from v{before}"
        ));
        setup.push(format!("create table t{number} (a)"));
        setup.push(format!("create trigger g{number} after insert on t{before} begin insert into t{number} select new.a where new.a in (select 1); end"));
        setup.push(format!("create table c{number} (id integer primary key references c{before} (id) on delete cascade on update cascade)"));
        setup.push(format!("insert into c{number} values (1)"));
    }
    setup.push("create table again (a)".into());
    setup.push("create trigger again_insert after insert on again begin insert into again values (new.a + 1); end".into());
    setup
}

/// `open`, `open`, … `core`, … `close`, `close`.
fn nested(depth: usize, open: &str, core: &str, close: &str) -> String {
    format!("{}{core}{}", open.repeat(depth), close.repeat(depth))
}

fn deep() -> Vec<Line> {
    let mut lines = Vec::new();
    for depth in [100, 450, 1_000, 5_000, 20_000] {
        for (name, open, close) in [
            ("parentheses", "(", ")"),
            ("functions", "abs(", ")"),
            ("not", "not ", ""),
            ("minus", "- ", ""),
            ("scalar subqueries", "(select ", ")"),
            ("cases", "case when 1 then ", " end"),
        ] {
            let sql = format!("select {}", nested(depth, open, "1", close));
            lines.push(Line::new(&format!("{depth} {name}"), sql));
        }
        for (name, open, close) in [
            ("subqueries", "(select * from ", ")"),
            (
                "grouped subqueries",
                "(select a, count(*) over () as n from ",
                " group by a)",
            ),
            ("joins", "(", " join (select 2 as b))"),
        ] {
            let sql = format!(
                "select * from {}",
                nested(depth, open, "(select 1 as a)", close)
            );
            lines.push(Line::new(&format!("{depth} {name}"), sql));
        }
        let sql = format!(
            "select 1 where {}",
            nested(depth, "exists (select 1 where ", "1", ")")
        );
        lines.push(Line::new(&format!("{depth} exists"), sql));
        let sql = format!("select 1 where {}", vec!["1 = 2"; depth].join(" or "));
        lines.push(Line::new(&format!("{depth} or"), sql));
        let sql = format!("select {}", vec!["?1"; depth].join(" + "));
        lines.push(Line::of(
            &format!("{depth} plus"),
            "run",
            json!([query_with(&sql, json!([1]))]),
        ));
        let sql = format!("select json('{}')", nested(depth, "[", "", "]"));
        lines.push(Line::new(&format!("{depth} arrays"), sql));
        let sql = format!("select json_set('{{}}', '${}', 1)", ".a".repeat(depth));
        lines.push(Line::new(&format!("{depth} members"), sql));
        let sql = format!(
            "select count(*) from docs where docs match '{}'",
            nested(depth, "(", "a", ")")
        );
        lines.push(Line::new(&format!("{depth} parentheses of FTS5"), sql));
        let sql = format!(
            "select count(*) from old where old match '{}'",
            nested(depth, "(", "a", ")")
        );
        lines.push(Line::new(&format!("{depth} parentheses of FTS4"), sql));
        let common: String = (1..depth)
            .map(|n| format!(", c{n} (a) as (select max(a) from c{})", n - 1))
            .collect();
        let sql = format!(
            "with c0 (a) as (select 1){common} select * from c{}",
            depth - 1
        );
        lines.push(Line::new(&format!("{depth} common tables"), sql));
    }
    lines.push(Line::new("views in views", "select * from v399"));
    lines.push(Line::writes(
        "triggers in triggers",
        "insert into t0 values (1)",
    ));
    lines.push(Line::writes(
        "triggers in some triggers",
        "insert into t330 values (1)",
    ));
    lines.push(Line::writes("cascading updates", "update c0 set id = 2"));
    lines.push(Line::writes("cascading deletes", "delete from c0"));
    let again = json!([pinned(json!([
        execute("pragma recursive_triggers = on"),
        execute("insert into again values (1)")
    ]))]);
    lines.push(Line::of("a trigger of itself", "run", again));
    lines
}

fn long() -> Vec<Line> {
    let many = |part: &str, count: usize, between: &str| vec![part; count].join(between);
    vec![
        Line::new(
            "unions",
            format!("select {}", many("1", 240, " union select ")),
        ),
        Line::new(
            "too many unions",
            format!("select {}", many("1", 10_000, " union all select ")),
        ),
        Line::new("values", format!("values {}", many("(1)", 60_000, ","))),
        Line::new(
            "a list",
            format!("select 1 in ({})", many("1", 100_000, ",")),
        ),
        Line::new("a sum", format!("select {}", many("1", 100_000, "+"))),
        Line::new("columns", format!("select {}", many("1", 2_000, ","))),
        Line::new(
            "too many columns",
            format!("select {}", many("1", 50_000, ",")),
        ),
        Line::new(
            "terms of an order",
            format!("select 1 order by {}", many("1", 2_000, ",")),
        ),
        Line::new(
            "windows",
            format!(
                "select {} from n",
                many("sum(n) over (order by -n)", 1_000, ",")
            ),
        ),
        Line::new(
            "arguments",
            format!("select max({})", many("1", 50_000, ",")),
        ),
        Line::new("tables", format!("select 1 from {}", many("n", 64, ","))),
        Line::new("a statement", format!("select '{}'", "x".repeat(1 << 20))),
        Line::new("a comment", format!("select 1 /*{}*/", "x".repeat(200_000))),
        Line::new("a name", format!("select 1 as \"{}\"", "x".repeat(250_000))),
        Line::new(
            "many long names",
            format!(
                "select {} from (select 1 as \"{}\")",
                many("*", 2_000, ","),
                "x".repeat(200_000)
            ),
        ),
        Line::new("an unknown name", format!("select {}", "x".repeat(250_000))),
        Line::new(
            "a named parameter",
            format!("select :{}", "x".repeat(250_000)),
        ),
        Line::new("parameters", format!("select {}", many("?", 40_000, "+"))),
        Line::new(
            "upserts",
            format!(
                "insert into n values (1) {}",
                "on conflict (n) do update set n = 1 ".repeat(5_000)
            ),
        ),
        Line::new(
            "straight line of texts",
            format!("select {} from long", many("length(big || 1)", 1_900, ",")),
        ),
        Line::new(
            "straight line of hex",
            format!(
                "select {} from long",
                many("length(hex(zeroblob(8000000)))", 1_900, ",")
            ),
        ),
        Line::new(
            "straight line of JSON",
            format!(
                "select {} from long",
                many("json_valid('[' || big)", 1_900, ",")
            ),
        ),
        Line::new(
            "straight line of patches",
            format!(
                "select {} from json",
                many("length(json_patch(json, json))", 1_900, ",")
            ),
        ),
        Line::new(
            "straight line of comparisons",
            format!("select {} from long", many("big = big || ''", 1_900, ",")),
        ),
        Line::new(
            "straight line of searches",
            format!(
                "select 1 from long where {}",
                many("big like '%aaaaaaaaaaaaaaaaaaaaaaaaaab'", 400, " or ")
            ),
        ),
        Line::new(
            "words to search for",
            format!(
                "select count(*) from docs where docs match '{}'",
                many("a", 50_000, " ")
            ),
        ),
        Line::new(
            "a phrase to search for",
            format!(
                "select count(*) from docs where docs match '{}'",
                many("a", 400, " + ")
            ),
        ),
    ]
}

fn huge() -> Vec<Line> {
    let mut lines = vec![
        Line::new("a blob", "select zeroblob(1000000000)"),
        Line::new(
            "hex of hex",
            "select length(hex(hex(hex(hex(zeroblob(1000000))))))",
        ),
        Line::new("a width", "select printf('%999999999d', 1)"),
        Line::new(
            "a precision",
            "select printf('%.999999999f', 1e300), round(1e300, 999999999)",
        ),
        Line::new(
            "a repeated character",
            "select printf('%.*c', 2000000000, 'x')",
        ),
        Line::new(
            "replacements",
            "select replace(replace(hex(zeroblob(100000)), '0', hex(zeroblob(100000))), '0', hex(zeroblob(100000)))",
        ),
        Line::new(
            "a separator",
            "select length(concat_ws(big, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)) from long",
        ),
        Line::new(
            "an aggregate",
            "select length(group_concat(big)) from long, n",
        ),
        Line::new(
            "an array",
            "select length(json_group_array(big)) from long, n",
        ),
        Line::new(
            "an object",
            "select length(json_group_object(n, big)) from long, n",
        ),
        Line::new(
            "an indent",
            "select length(json_pretty(replace(hex(zeroblob(900)), '00', '[') || replace(hex(zeroblob(900)), '00', ']'), big)) from long",
        ),
        Line::new(
            "long marks",
            "select length(highlight(docs, 0, big, big)) from docs, long where docs match 'a'",
        ),
        Line::new("rows", "select a.n, b.n from n a, n b"),
        Line::new(
            "sorted blobs",
            "select zeroblob(1000000) as z from n order by z || n",
        ),
        Line::new(
            "distinct blobs",
            "select count(distinct randomblob(1000000)) from n a, n b",
        ),
        Line::writes(
            "written blobs",
            "insert into t300 select randomblob(1000000) from n",
        ),
        Line::writes("indexed texts", "insert into docs select big from long"),
    ];
    let pages = json!([
        execute("create table wide as select 1 as a"),
        query("select a.*, b.* from wide a, wide b")
    ]);
    lines.push(Line::of("a table from nothing", "run/atomic", pages));
    lines
}

fn slow() -> Vec<Line> {
    let mut lines: Vec<Line> = [
        "select instr(hex(zeroblob(1600000)), hex(zeroblob(800000)) || '1')",
        "select instr(big, substr(big, 1, 8000000) || 'b') from long, n",
        "select length(replace(big, substr(big, 1, 8000000) || 'b', '')) from long, n",
        "select sum(length(trim(big, 'b' || big))) from long, n",
        "select sum(length(unhex(replace(big, 'a', 'z'), replace(big, 'a', 'y') || 'z'))) from long, n",
        "select big like '%' || substr(big, 1, 9000) || 'b' from long",
        "select big like '%' || replace(hex(zeroblob(4000)), '00', '_a') || 'b' from long",
        "select big like replace(hex(zeroblob(4900)), '00', '%a') || 'b' from long",
        "select big glob '*' || substr(big, 1, 9000) || 'b' from long",
        "select big glob '*' || replace(hex(zeroblob(2000)), '00', '[a]') || 'b' from long",
        "select like(big, big) from long",
        "select sum(length(hex(zeroblob(8000000 + n)))) from n",
        "select sum(length(quote(zeroblob(8000000 + n)))) from n",
        "select sum(length(printf('%*d', 16000000, n))) from n",
        "select sum(length(upper(big || n))), sum(length(lower(big || n))) from long, n",
        "select sum(length(randomblob(16000000))) from n",
        "select sum(unicode(substr(big, -n))) from long, n",
        "select sum(length(unistr(big || n))) from long, n",
        "select sum(length(strftime(big || n))) from long, n",
        "select sum(length(char(n, n, n))) from n a natural join n b, n c, n d",
        "select sum(cast(big as integer) + n) from long, n",
        "select sum(big || n = big) from long, n",
        "select sum(soundex(big || n) is null) from long, n",
        "select string_agg(n, big) over (order by n rows between 1 preceding and current row) from long, n",
        "select sum(length(g)) from (select group_concat(n, 'xxxxxxxx') over (order by n) as g from n)",
        "select sum(json_valid('[' || rtrim(replace(hex(zeroblob(3000000 + n)), '00', '1,'), ',') || ']')) from n",
        "select sum(length(json('[' || rtrim(replace(hex(zeroblob(3000000 + n)), '00', '1,'), ',') || ']'))) from n",
        "select sum(json_extract(json, '$.' || n)) from json, n a natural join n b, n c",
        "select sum(length(json_patch(json, json_set(json, '$.x', n)))) from json, n",
        "select sum(length(fullkey)) from n, json_tree('[' || rtrim(replace(hex(zeroblob(3000000)), '00', '1,'), ',') || ']')",
        "select sum(json_array_length(jsonb('[' || rtrim(replace(hex(zeroblob(3000000 + n)), '00', '1,'), ',') || ']'))) from n",
        "select count(*) from n a, n b, n c",
        "select max(a.n) over (order by b.n rows between unbounded preceding and unbounded following exclude ties) from n a, n b",
        "select count(*) from docs a, docs b, n c, n d where a.docs match 'a' and b.docs match 'a'",
        "select snippet(docs, 0, '<', '>', '', 10) from docs where docs match 'a'",
        "select highlight(docs, 0, '<', '>') from docs where docs match 'a'",
        "select bm25(docs) from docs, n where docs match 'a a a a a a a a a a a a a a a a a a a a'",
        "select count(*) from docs where docs match 'NEAR(a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a, 100000)'",
        "select count(*) from docs where docs match replace(hex(zeroblob(8000)), '00', 'a ')",
        "select count(*) from docs(replace(hex(zeroblob(8000)), '00', 'a '))",
        "select count(*) from docs where docs = replace(hex(zeroblob(8000)), '00', 'a ')",
        "select offsets(old), matchinfo(old) from old where old match 'a'",
        "select count(*) from old where old match '\"a a a a a a a a a a a a a a a a\"'",
        "select count(*) from old where old match 'a NEAR a NEAR a NEAR a NEAR a NEAR a NEAR a'",
        "pragma integrity_check",
        "analyze",
    ]
    .iter()
    .map(|sql| Line::new(sql, sql))
    .collect();
    lines.extend(
        [
            "insert into t300 select instr(hex(zeroblob(1600000)), hex(zeroblob(800000)) || '1')",
            "insert into t300 select a.n || b.n || c.n from n a, n b, n c",
            "create table made as select a.n, hex(randomblob(1000)) as text from n a, n b, n c",
            "create index made_index on n (hex(zeroblob(8000000)) || n)",
            "insert into places select a.n * 3000 + b.n, a.n, a.n + 1, b.n, b.n + 1 from n a, n b",
            "insert into docs select 'a b c ' || a.n || ' ' || b.n from n a, n b",
            "insert into docs (docs) values ('optimize')",
            "insert into docs (docs) select 'rebuild' from n",
            "insert into docs (docs) select 'integrity-check' from n",
            "update long set big = (select max(a.n || b.n || c.n) from n a, n b, n c)",
            "delete from n where n in (select a.n from n a, n b, n c where a.n || b.n || c.n like '%x')",
            "reindex",
            "vacuum",
        ]
        .iter()
        .map(|sql| Line::writes(sql, sql)),
    );
    let texts = "x".repeat(7_000);
    let long = json!([query_with(
        "select count(*) from docs where docs match ?",
        json!([texts])
    )]);
    lines.push(Line::of("a long text to search for", "run", long));
    lines
}

fn recursive() -> Vec<Line> {
    [
        "with recursive r(n) as (select 1 union all select n + 1 from r) select max(n) from r",
        "with recursive r(n) as (select 1 union all select n + 1 from r) select count(*) from r where n < 0",
        "with recursive r(n) as (select 1 union select n + 1 from r) select count(*) from r",
        "with recursive r(n) as (select '1' union all select n || n from r) select max(length(n)) from r",
        "with recursive r(n) as (select hex(zeroblob(500000)) union all select n || 'x' from r) select n from r order by n",
        "with recursive r(n) as (select 1 union all select n + 1 from r limit 1000000000) select group_concat(n) from r",
    ]
    .iter()
    .map(|sql| Line::new(sql, sql))
    .collect()
}

fn of_the_session() -> Vec<Line> {
    let mut lines: Vec<Line> = [
        "begin",
        "commit",
        "savepoint a",
        "attach 'x' as y",
        "detach main",
        "vacuum into 'x'",
        "pragma journal_mode = delete",
        "pragma writable_schema = on",
        "pragma hard_heap_limit = 1",
        "pragma soft_heap_limit = 1",
        "pragma trusted_schema = on",
        "pragma cache_size = 1000000",
        "pragma threads = 8",
        "pragma temp_store_directory = '/'",
        "pragma wal_checkpoint(truncate)",
        "create temp table a (a)",
        "select load_extension('x')",
        "select fts3_tokenizer('simple')",
        "select last_insert_rowid()",
        "select changes()",
        "select total_changes()",
        "select * from pragma_hard_heap_limit",
        "select * from dbstat",
        "select * from sqlite_dbpage",
        "create virtual table x using fts5vocab(docs, row)",
        "drop table sqlite_schema",
    ]
    .iter()
    .map(|sql| Line::new(sql, sql))
    .collect();
    let steps = json!([pinned(json!([
        execute("pragma case_sensitive_like = on"),
        execute("pragma temp_store = memory"),
        execute("pragma cache_size = -1000000"),
        query("select big like '%' || substr(big, 1, 9000) || 'b' from long"),
        execute_with("create temp table mine as select ? as a", json!(["x"])),
    ]))]);
    lines.push(Line::of("a pinned session", "run", steps));
    lines
}
