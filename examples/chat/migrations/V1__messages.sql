create table messages (
    id integer primary key,
    room text not null,
    name text not null check (length(name) between 1 and 30),
    text text not null check (length(text) between 1 and 1000),
    written_at text not null default (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
);

create index messages_of_room on messages (room, id);

-- The connections of each room. Those of a host that was killed stay here, but are no members of its group any more.
create table connections (
    id text primary key,
    room text not null,
    name text not null
);

create index connections_of_room on connections (room);
