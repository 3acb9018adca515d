//! The messages between hosts, as bytes: a head of fixed size, then what the kind of message has.
//!
//! | subject | kinds |
//! | --- | --- |
//! | `PREFIX.group.NAME`: hosts with members or subscribers of the group | text, binary, notice, changes, mark |
//! | `PREFIX.host.ID`: one host | text and binary to one connection, mark, ask, answer |
//! | `PREFIX.all`: every host | hello, beat, bye |
//!
//! Text, binary, notice and changes are numbered, for each sending host and subject.

use std::fmt::Write as _;

use bytes::Bytes;

/// The first byte of every message. A host ignores messages of another format, and counts them.
const FORMAT: u8 = 1;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A message of text for the members' clients. On a host's subject: for one connection.
    Text = 1,
    /// A binary message, as above.
    Binary,
    /// An event for each member's view.
    Notice,
    /// Members that have joined or left.
    Changes,
    /// The number of the last numbered message, so that its loss is noticed without another message.
    Mark,
    /// Asks for the members of groups.
    Ask,
    /// The members of one group.
    Answer,
    /// A host has started; others answer with a beat.
    Hello,
    /// A host is alive.
    Beat,
    /// A host shuts down.
    Bye,
}

const KINDS: [Kind; 10] = [
    Kind::Text,
    Kind::Binary,
    Kind::Notice,
    Kind::Changes,
    Kind::Mark,
    Kind::Ask,
    Kind::Answer,
    Kind::Hello,
    Kind::Beat,
    Kind::Bye,
];

/// What every message begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    /// The sending host.
    pub(super) host: u64,
    /// When the sender began to number, by its own clock: greater after each new beginning. 0: not numbered yet.
    pub(super) epoch: u64,
    /// The message's number, or for a message that is not numbered: the number of the last one that was.
    pub(super) sequence: u64,
}

/// Writes a message.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn new(head: Head, capacity: usize) -> Writer {
        let mut bytes = Vec::with_capacity(capacity + 26);
        bytes.extend([FORMAT, head.kind as u8]);
        Writer(bytes)
            .u64(head.host)
            .u64(head.epoch)
            .u64(head.sequence)
    }

    pub(super) fn u8(mut self, value: u8) -> Writer {
        self.0.push(value);
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Writer {
        self.0.extend(value.to_be_bytes());
        self
    }

    /// A text of at most 65,535 bytes; more are cut.
    pub(super) fn text(mut self, text: &str) -> Writer {
        let text = &text[..text.floor_char_boundary(usize::from(u16::MAX))];
        let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_be_bytes());
        self.rest(text.as_bytes())
    }

    pub(super) fn rest(mut self, bytes: &[u8]) -> Writer {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn done(self) -> Bytes {
        self.0.into()
    }
}

/// Reads a message. Each part is none if the message ends before it.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads the head of a message.
    pub(super) fn new(bytes: &'a [u8]) -> Option<(Head, Reader<'a>)> {
        let mut reader = Reader(bytes);
        if reader.u8()? != FORMAT {
            return None;
        }
        let kind = usize::from(reader.u8()?).checked_sub(1)?;
        let head = Head {
            kind: *KINDS.get(kind)?,
            host: reader.u64()?,
            epoch: reader.u64()?,
            sequence: reader.u64()?,
        };
        Some((head, reader))
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*first))
    }

    pub(super) fn text(&mut self) -> Option<&'a str> {
        let (length, rest) = self.0.split_first_chunk()?;
        let (text, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A member, as hosts tell each other of members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// The connection's id, and what its receiver tells of its user.
    Joined(Box<str>, Option<Box<str>>),
    /// The connection's id.
    Left(Box<str>),
}

impl Change {
    pub(super) fn write(&self, to: Writer) -> Writer {
        match self {
            Change::Joined(id, Some(user)) => to.u8(2).text(id).text(user),
            Change::Joined(id, None) => to.u8(1).text(id),
            Change::Left(id) => to.u8(0).text(id),
        }
    }

    pub(super) fn read(from: &mut Reader) -> Option<Change> {
        let kind = from.u8()?;
        let id = from.text()?.into();
        Some(match kind {
            0 => Change::Left(id),
            1 => Change::Joined(id, None),
            _ => Change::Joined(id, Some(from.text()?.into())),
        })
    }
}

/// A host's members of a group: all of them, or how they have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Changes {
    /// Whether `changes` are all members, as far as they are listed, and not the difference to the version before.
    pub(super) full: bool,
    /// Greater by one for each announced change of a group, and greater again when the group had been forgotten.
    pub(super) version: u64,
    /// How many members the host has after the changes.
    pub(super) count: u64,
    pub(super) changes: Vec<Change>,
}

impl Changes {
    pub(super) fn write(&self, to: Writer) -> Writer {
        let to = to.u8(self.full.into()).u64(self.version).u64(self.count);
        self.changes.iter().fold(to, |to, change| change.write(to))
    }

    pub(super) fn read(from: &mut Reader) -> Option<Changes> {
        let full = from.u8()? != 0;
        let (version, count) = (from.u64()?, from.u64()?);
        let mut changes = Vec::new();
        while !from.is_empty() {
            changes.push(Change::read(from)?);
        }
        Some(Changes {
            full,
            version,
            count,
            changes,
        })
    }
}

/// The name of a group as one word of a subject: letters, digits, `-` and `_` stay, each other byte becomes `=` and two
/// hexadecimal digits.
pub(super) fn subject_word(group: &str) -> String {
    let mut word = String::with_capacity(group.len() + 8);
    for byte in group.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => word.push(byte.into()),
            _ => write!(word, "={byte:02X}").expect("writing to memory cannot fail"),
        }
    }
    word
}
