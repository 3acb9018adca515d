//! The messages of the rooms, who is connected, and the group of connections that each room is.

use amphi_sdk::prelude::*;

/// The most characters of a name.
pub const NAME_MAX: usize = 30;
/// The most characters of a message, or of the name of a room.
const TEXT_MAX: usize = 1000;
const ROOM_MAX: usize = 30;

/// A message, as the database stores it and as clients get it.
#[derive(Debug, FromRow, Serialize)]
pub struct Line {
    pub id: i64,
    pub name: String,
    pub text: String,
    /// The time in UTC, e.g. `2031-05-04T16:20:00Z`.
    pub written_at: String,
}

/// What a room's clients get, as JSON.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Told<'a> {
    Line(&'a Line),
    Typing {
        name: &'a str,
    },
    /// Somebody came or left.
    Members,
}

impl Told<'_> {
    pub fn message(&self) -> Result<Message> {
        let json = serde_json::to_string(self).map_err(|why| Error::internal(why.to_string()))?;
        Ok(Message::text(json))
    }
}

/// The group of the connections in a room. Groups have names of letters, digits, `-` and `_`, so rooms have, too.
pub fn group(room: &str) -> Result<String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match (1..=ROOM_MAX).contains(&room.len()) && room.chars().all(fits) {
        true => Ok(format!("room.{room}")),
        false => Err(Error::not_found(
            "rooms have names of up to 30 small letters, digits and `-`",
        )),
    }
}

/// The text without surrounding white space, if it is neither empty nor too long.
pub fn checked(text: &str) -> Option<&str> {
    let text = text.trim();
    let fits = !text.contains('\0') && (1..=TEXT_MAX).contains(&text.chars().count());
    fits.then_some(text)
}

/// The newest messages of a room, oldest first.
#[both]
pub async fn newest(cx: &Context, room: &str, limit: u32) -> Result<Vec<Line>> {
    let statement =
        "select id, name, text, written_at from messages where room = $1 order by id desc limit $2";
    let mut lines: Vec<Line> = cx.db().query(statement, (room, limit)).await?;
    lines.reverse();
    Ok(lines)
}

/// The messages of a room after the one with this id, oldest first.
#[both]
pub async fn after(cx: &Context, room: &str, id: i64, limit: u32) -> Result<Vec<Line>> {
    let statement = "select id, name, text, written_at from messages where room = $1 and id > $2 order by id limit $3";
    cx.db().query(statement, (room, id, limit)).await
}

/// The rooms that somebody has written in last, with the number of their messages.
#[both]
pub async fn rooms(cx: &Context) -> Result<Vec<(String, i64)>> {
    let statement =
        "select room, count(*) from messages group by room order by max(id) desc limit 12";
    cx.db().query(statement, ()).await
}

/// Stores a message that has been checked.
#[both]
pub async fn insert(cx: &Context, room: &str, name: &str, text: &str) -> Result<Line> {
    let statement = "insert into messages (room, name, text) values ($1, $2, $3) returning id, name, text, written_at";
    let line = cx.db().query_one(statement, (room, name, text)).await?;
    line.ok_or_else(|| Error::internal("the database returned no row for the new message"))
}

/// Stores whose connection it is.
#[both]
pub async fn connected(cx: &Context, room: &str, connection: &str, name: &str) -> Result<()> {
    let statement = "insert into connections (id, room, name) values ($1, $2, $3)";
    cx.db().execute(statement, (connection, room, name)).await?;
    Ok(())
}

#[both]
pub async fn disconnected(cx: &Context, connection: &str) -> Result<()> {
    let statement = "delete from connections where id = $1";
    cx.db().execute(statement, (connection,)).await?;
    Ok(())
}

/// The names of those whose connections are members of the room's group now, on any host, each name once.
#[both]
pub async fn present(cx: &Context, room: &str) -> Result<Vec<String>> {
    let members = cx.channels().members(group(room)?)?.list;
    let statement = "select id, name from connections where room = $1";
    let connections: Vec<(String, String)> = cx.db().query(statement, (room,)).await?;
    let is_member = |id: &str| members.iter().any(|member| member.connection == id);
    let mut names: Vec<String> = (connections.into_iter())
        .filter(|(id, _)| is_member(id))
        .map(|(_, name)| name)
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_rooms_are_checked() {
        assert_eq!(checked(" Hello\n"), Some("Hello"));
        assert_eq!(checked(" \n"), None);
        assert_eq!(checked(&"é".repeat(1000)).map(str::len), Some(2000));
        assert_eq!(checked(&"x".repeat(1001)), None);
        assert!(group("lobby-2").is_ok_and(|group| group == "room.lobby-2"));
        assert!(group("a.b").is_err() && group("").is_err() && group(&"x".repeat(31)).is_err());
    }
}
