-- SQLite. The same tables for PostgreSQL are in migrations-postgres. `autoincrement` gives no id twice: a vote or form for an answer
-- that has been deleted must not reach another one.
create table questions (
    id integer primary key autoincrement,
    text text not null check (length(text) between 1 and 200),
    pub_date text not null
) strict;
create index questions_pub_date on questions (pub_date, id);

create table choices (
    id integer primary key autoincrement,
    question_id integer not null references questions (id) on delete cascade,
    text text not null check (length(text) between 1 and 200),
    votes integer not null default 0 check (votes >= 0)
) strict;
create index choices_question on choices (question_id, id);
