//! Hostile statements for PostgreSQL: deep, long, huge, slow, recursive, or changing the session.

/// Each has to end with an error or a result within its limits. `{N*text}` stands for N times the text.
pub const CORPUS: &[&str] = &[
    // Deep.
    "{20000*explain }select 1",
    "{20000*explain (verbose) }select 1",
    "{30000*(}select 1{30000*)}",
    "select {30000*(}1{30000*)}",
    "select {60000*- }1",
    "select {60000*not }true",
    "select 1{40000* + 1}",
    "select 1{40000* union select 1}",
    "select {6000*coalesce(}1{6000*)}",
    "select {6000*case when true then }1{6000* end}",
    "{4000*select (}select 1{4000*)}",
    "select '{100000*[}'::json",
    "select '{100000*[}{100000*]}'::jsonb",
    "select '{50000*{\"a\":}1{50000*}}'::jsonb",
    "select '{60000*{}1{60000*}}'::integer[]",
    "select '{50000*<a>}{50000*</a>}'::xml",
    "select '{30000*(}a{30000*)}'::tsquery",
    "select 'a' ~ '{20000*(}a{20000*)}'",
    "select jsonb_path_query('1', '{20000*(}1{20000*)}')",
    "with {1000*a as (select 1), }b as (select 1) select 1",
    "{120000*/*}{120000*/*}select 1",
    "{60000*/*}{60000**/}select 1",
    "{200000*;}select 1",
    "{260000*+}",
    "{130000*''}",
    "select {10000*set_config('a.b', }'c'{10000*, true)}",
    "select {80000*$1, }$1",
    "select $70000",
    // Long.
    "select 1 where 1 in (1{100000*,1})",
    "select {20000*1,}1",
    "values (1){50000*,(1)}",
    "select '{250000*x}'",
    "select \"{250000*x}\"",
    "select $a${250000*x}$a$",
    "select $a${250000*x}",
    "select e'{120000*\\'}'",
    "select U&'{50000*\\0061}'",
    "select 1 as {2000*x}",
    "{300000*x}",
    "select {100000*a.}b",
    // Huge.
    "select repeat('x', 200000000)",
    "select repeat('x', 1000000000)",
    "select repeat('x', 1000000) from generate_series(1, 100000)",
    "select * from generate_series(1, 100000000)",
    "select array_agg(n) from generate_series(1, 3000000) n",
    "select string_agg(repeat('x', 1000), '') from generate_series(1, 100000)",
    "select json_agg(n) from generate_series(1, 1000000) n",
    "select 10::numeric ^ 100000 from generate_series(1, 100000)",
    "select array_agg(10::numeric ^ 100000) from generate_series(1, 1000)",
    "select lpad('', 200000000)",
    "select format('%200000000s', 1)",
    "select array_fill(1, array[100000000])",
    "select convert_from(decode(repeat('61', 100000000), 'hex'), 'utf8')",
    "do $$ begin raise exception '%', repeat('x', 30000000); end $$",
    "do $$ begin raise exception using message = repeat('ü', 3000000), detail = repeat('x', 3000000), hint = repeat('x', 3000000); end $$",
    "do $$ begin for i in 1..100000 loop raise notice '%', repeat('x', 500); end loop; end $$",
    "do $$ begin raise warning '%', repeat('x', 50000000); end $$",
    // Slow.
    "select pg_sleep(100)",
    "do $$ begin loop end loop; end $$",
    "do $$ begin loop perform pg_sleep(0.001); end loop; end $$",
    "do $$ begin loop begin perform pg_sleep(100); exception when query_canceled then null; end; end loop; end $$",
    "select count(*) from generate_series(1, 1000000) a, generate_series(1, 1000000) b",
    "with recursive n as (select 1 as n union all select n + 1 from n) select count(*) from n",
    "with recursive n as (select 1 as n union all select n from n) select n from n",
    "with recursive n as (select 'x' as n union all select n || n from n) select length(n) from n",
    "select repeat('a', 30) || 'b' ~ '^(a+)+$'",
    "select repeat('a', 100000) ~ '(a*)*(a*)*(a*)*b'",
    "select regexp_replace(repeat('ab', 500000), '(a|b|ab)*c', '')",
    "select regexp_matches(repeat('a', 5000), '(.*)\\1\\1b', 'g')",
    "select 'x' like '{50000*%x}y'",
    "select repeat('a', 200000) like '{20000*%a}b'",
    "select 99999999999::numeric ^ 9999",
    "select factorial(30000)",
    "select exp(5999.9::numeric(10, 4)), ln(1e1000::numeric), sqrt(2e16000::numeric)",
    "select levenshtein('a', 'b')",
    // Recursive.
    "create or replace function hostile_f(n integer) returns integer language sql as 'select hostile_f(n + 1)'",
    "create or replace function hostile_g(n integer) returns integer language plpgsql as $$ begin return hostile_g(n + 1); end $$",
    "select hostile_f(1)",
    "select hostile_g(1)",
    // Changing the session.
    "set search_path = nowhere",
    "set local statement_timeout = 1",
    "select set_config('search_path', 'nowhere', false)",
    "select pg_catalog.\"set_config\"('work_mem', '64kB', false)",
    "select U&\"set\\005fconfig\"('work_mem', '64kB', false)",
    "select set_config('statement_timeout', '1', true)",
    "do $$ begin perform set_config('statement_timeout', '1', false); end $$",
    "do $$ begin perform set_config('role', 'pg_monitor', false); end $$",
    "do $$ begin execute 'set session authorization pg_monitor'; end $$",
    "do $$ begin execute 'deallocate all'; end $$",
    "do $$ begin execute 'discard plans'; end $$",
    "do $$ begin execute 'prepare mine as select 1'; end $$",
    "do $$ begin execute 'declare c cursor with hold for select 1'; end $$",
    "do $$ begin execute 'create temp table plain (a integer)'; end $$",
    "do $$ begin perform pg_advisory_lock(1); end $$",
    "do $$ begin commit; end $$",
    "do $$ begin execute 'commit'; end $$",
    "select pg_advisory_lock(1)",
    "select pg_advisory_xact_lock(n) from generate_series(1, 100000) n",
    "select pg_terminate_backend(pg_backend_pid())",
    "select pg_cancel_backend(pg_backend_pid())",
    "listen a",
    "notify a, '{7000*x}'",
    "prepare a as select 1",
    "execute a",
    "deallocate all",
    "discard all",
    "reset all",
    "begin",
    "; commit",
    "/* */ ((rollback))",
    "savepoint a",
    "prepare transaction 'a'",
    "copy (select 1) to stdout",
    "copy pg_class from stdin",
    "copy (select 1) to program 'sleep 100'",
    "fetch all from a",
    "lock table pg_catalog.pg_class",
    "vacuum",
    "checkpoint",
    "show all",
    "explain analyze select pg_sleep(100)",
    // No statements.
    "",
    " -- only a comment",
    "/*",
    "'",
    "\"",
    "$$",
    "U&'\\0'",
    "select 'a\0b'",
    "select 1; select 2",
    "\u{feff}select 1",
    "select\u{a0}1",
    "select 1 /* \u{202e} */",
];

/// The statement of a line, with all `{N*text}` written out.
pub fn spelled(line: &str) -> String {
    let (mut text, mut rest) = (String::new(), line);
    while let Some(open) = rest.find('{') {
        let digits = rest[open + 1..]
            .chars()
            .take_while(char::is_ascii_digit)
            .count();
        let star = open + 1 + digits;
        if digits == 0 || !rest[star..].starts_with('*') {
            text.push_str(&rest[..=open]);
            rest = &rest[open + 1..];
            continue;
        }
        let count: usize = rest[open + 1..star].parse().expect("a number");
        // The closing brace is the last one before the next `{N*` or the line's end, since the text may contain braces.
        let inner = &rest[star + 1..];
        let mut end = inner.find('}').expect("it ends");
        while inner[end + 1..].starts_with('}') {
            end += 1;
        }
        text.push_str(&rest[..open]);
        text.push_str(&inner[..end].repeat(count));
        rest = &inner[end + 1..];
    }
    text + rest
}
