-- PostgreSQL. The same tables for SQLite are in migrations.
create table users (
    id bigint generated always as identity primary key,
    email text not null unique,
    password text not null,
    created_at timestamptz not null
);

create table todos (
    id bigint generated always as identity primary key,
    user_id bigint not null references users (id) on delete cascade,
    title text not null check (length(title) between 1 and 200),
    note text not null default '',
    done boolean not null default false,
    created_at timestamptz not null
);
create index todos_user on todos (user_id, id);

create table files (
    id bigint generated always as identity primary key,
    todo_id bigint not null references todos (id) on delete cascade,
    name text not null,
    content_type text not null,
    size bigint not null,
    bytes bytea not null
);
create index files_todo on files (todo_id);

create table tokens (
    id bigint generated always as identity primary key,
    user_id bigint not null references users (id) on delete cascade,
    label text not null,
    hash bytea not null unique,
    created_at timestamptz not null
);

create table audit (
    id bigint generated always as identity primary key,
    at timestamptz not null,
    user_id bigint not null,
    action text not null,
    todo_id bigint not null,
    title text not null
);
create index audit_user on audit (user_id, id);
