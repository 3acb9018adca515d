create table notes (
    id integer primary key,
    text text not null
);

insert into notes (text) values ('Edit src/lib.rs: the page changes while the server runs.');
