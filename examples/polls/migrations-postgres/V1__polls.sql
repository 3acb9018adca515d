-- PostgreSQL. The same tables for SQLite are in migrations.
create table questions (
    id bigint generated always as identity primary key,
    text text not null check (length(text) between 1 and 200),
    pub_date timestamptz not null
);
create index questions_pub_date on questions (pub_date, id);

create table choices (
    id bigint generated always as identity primary key,
    question_id bigint not null references questions (id) on delete cascade,
    text text not null check (length(text) between 1 and 200),
    votes bigint not null default 0 check (votes >= 0)
);
create index choices_question on choices (question_id, id);
