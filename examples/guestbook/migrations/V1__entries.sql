create table entries (
    id integer primary key,
    name text not null check (length(name) between 1 and 60),
    message text not null check (length(message) between 1 and 1000),
    signed_at text not null default (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
);

insert into entries (name, message) values
    ('Ada', 'The first entry is always the hardest. There, it is done.'),
    ('Boris & Zoë', '<b>Bold</b> claims stay text here: what guests write is escaped.');
