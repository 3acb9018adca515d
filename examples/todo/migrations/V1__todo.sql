-- SQLite. The same tables for PostgreSQL are in migrations-postgres.
create table users (
    id integer primary key,
    email text not null unique,
    password text not null,
    created_at text not null
) strict;

create table todos (
    id integer primary key,
    user_id integer not null references users (id) on delete cascade,
    title text not null check (length(title) between 1 and 200),
    note text not null default '',
    done integer not null default 0 check (done in (0, 1)),
    created_at text not null
) strict;
create index todos_user on todos (user_id, id);

create table files (
    id integer primary key,
    todo_id integer not null references todos (id) on delete cascade,
    name text not null,
    content_type text not null,
    size integer not null,
    bytes blob not null
) strict;
create index files_todo on files (todo_id);

create table tokens (
    id integer primary key,
    user_id integer not null references users (id) on delete cascade,
    label text not null,
    hash blob not null unique,
    created_at text not null
) strict;

create table audit (
    id integer primary key,
    at text not null,
    user_id integer not null,
    action text not null,
    todo_id integer not null,
    title text not null
) strict;
create index audit_user on audit (user_id, id);
