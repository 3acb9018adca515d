create table rows (id integer primary key, tag text not null);
create table names (name text primary key);
create table counters (name text primary key, n integer not null);
insert into counters values ('one', 0);
create table parents (id integer primary key);
create table children (
    id integer primary key,
    parent integer not null references parents (id) deferrable initially deferred
);
