//! Random frames of a client of web sockets, and a plain model of what they mean (RFC 6455, RFC 7692): an oracle for the
//! host's decoder and for a whole server.
//!
//! The model reads whole frames from one slice and keeps nothing between two calls. So it shares no design with the
//! decoder, which reads pieces of any size in place.

use std::io::{Read as _, Write as _};

use fastrand::Rng;
use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FINAL: u8 = 0x80;
const COMPRESSED: u8 = 0x40;

/// What a receiver hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// The last: a close of the other side. `None`: without a code.
    Closed(Option<u16>, String),
    /// The last: the other side has broken a rule, and the connection is closed with this code.
    Broken(u16),
}

/// A frame of a client, under a random mask.
pub fn frame(first: u8, payload: &[u8], random: &mut Rng) -> Vec<u8> {
    let length = payload.len();
    let long = (length as u64).to_be_bytes();
    match length {
        0..126 => masked(&[first, length as u8], payload, random),
        126..0x1_0000 => masked(&[&[first, 126], &long[6..]].concat(), payload, random),
        _ => masked(&[&[first, 127], &long[..]].concat(), payload, random),
    }
}

/// A frame with this head, whose second byte gets the bit for the mask.
fn masked(head: &[u8], payload: &[u8], random: &mut Rng) -> Vec<u8> {
    let mask = random.u32(..).to_be_bytes();
    let mut frame = head.to_vec();
    frame[1] |= 0x80;
    frame.extend(mask);
    let bytes = payload.iter().zip(mask.iter().cycle());
    frame.extend(bytes.map(|(byte, mask)| byte ^ mask));
    frame
}

/// The frames of random messages, with control frames between and within them. Two in three streams end with what breaks
/// a rule, with a close, with a random byte that is changed, or in the middle of a frame. A text that is not empty begins
/// with `~`. `max`: the most bytes of a message, which some messages exceed.
pub fn stream(random: &mut Rng, deflate: bool, max: usize) -> Vec<u8> {
    let mut stream = Vec::new();
    for _ in 0..random.usize(..8) {
        match random.u8(..4) {
            0 => stream.extend(control(random)),
            _ => {
                let frames = message(random, deflate, max);
                for frame in &frames {
                    stream.extend(frame);
                    if random.u8(..4) == 0 {
                        stream.extend(control(random));
                    }
                }
            }
        }
    }
    match random.u8(..6) {
        0 | 1 => {}
        2 => stream.extend(close(random)),
        3 | 4 => {
            // Within a message or between two.
            if random.u8(..3) == 0 {
                let begun = frame([TEXT, BINARY][random.usize(..2)], b"~", random);
                stream.extend(begun);
            }
            stream.extend(broken(random, deflate, max));
            stream.extend(control(random));
        }
        _ if random.bool() => stream.truncate(random.usize(..=stream.len())),
        _ => {
            // A changed byte of compressed data may be valid or not, as one reads the standard.
            if !deflate && !stream.is_empty() {
                let at = random.usize(..stream.len());
                stream[at] = random.u8(..);
            }
        }
    }
    stream
}

fn control(random: &mut Rng) -> Vec<u8> {
    let length = [0, 1, 124, 125, random.usize(..=125)][random.usize(..5)];
    let payload: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
    frame(FINAL | [PING, PONG][random.usize(..2)], &payload, random)
}

/// The frames of one message, cut anywhere.
fn message(random: &mut Rng, deflate: bool, max: usize) -> Vec<Vec<u8>> {
    let lengths = [0, 1, 125, 126, 127, max - 1, max, random.usize(..=max)];
    let length = lengths[random.usize(..lengths.len())].min(max);
    let (opcode, mut content) = match random.bool() {
        true => (TEXT, text(length, random).into_bytes()),
        false => (BINARY, (0..length).map(|_| random.u8(..)).collect()),
    };
    let mut first = opcode;
    if deflate && random.bool() {
        first |= COMPRESSED;
        content = deflated(&content);
    }
    let mut frames = Vec::new();
    while random.bool() && frames.len() < 5 {
        let rest = content.split_off(random.usize(..=content.len()));
        frames.push(frame(first, &content, random));
        (first, content) = (0, rest);
    }
    frames.push(frame(FINAL | first, &content, random));
    frames
}

/// A text of at most `most` bytes.
fn text(most: usize, random: &mut Rng) -> String {
    let mut text = String::new();
    loop {
        let next = match text.is_empty() {
            true => "~",
            false => ["~", "é", "€", "😀", "0"][random.usize(..5)],
        };
        if text.len() + next.len() > most {
            return text;
        }
        text.push_str(next);
    }
}

/// The content of a message as the extension `permessage-deflate` compresses it.
pub fn deflated(content: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).expect("a vector takes all");
    encoder.flush().expect("a vector takes all");
    let mut deflated = encoder.get_ref().clone();
    // A flush writes `00 00 ff ff` last, which is left out (RFC 7692, 7.2.1). Of nothing, nothing may be written.
    match deflated.ends_with(&[0, 0, 0xff, 0xff]) {
        true => deflated.truncate(deflated.len() - 4),
        false => deflated = vec![0],
    }
    deflated
}

fn close(random: &mut Rng) -> Vec<u8> {
    let codes = [1000, 1001, 1003, 1007, 1011, 3000, 4999];
    let code = codes[random.usize(..codes.len())] as u16;
    let reason = text(random.usize(..=123), random);
    let payload = match random.u8(..4) {
        0 => Vec::new(),
        _ => [&code.to_be_bytes()[..], reason.as_bytes()].concat(),
    };
    frame(FINAL | CLOSE, &payload, random)
}

/// Frames that break a rule, at least when they come between two messages.
fn broken(random: &mut Rng, deflate: bool, max: usize) -> Vec<u8> {
    let kinds = if deflate { 21 } else { 18 };
    match random.u8(..kinds) {
        0 => vec![FINAL | TEXT, 1, b'~'],
        1 => frame(FINAL | 0x20 | TEXT, b"~", random),
        2 => frame(FINAL | 0x10 | BINARY, b"~", random),
        3 => frame(FINAL | [3, 7, 11, 15][random.usize(..4)], b"", random),
        4 if !deflate => frame(FINAL | COMPRESSED | TEXT, b"~", random),
        4 | 5 => frame(FINAL | COMPRESSED | PING, b"", random),
        6 => frame(PING, b"", random),
        7 => frame(FINAL | PONG, &[0; 126], random),
        8 => frame(FINAL, b"~", random),
        9 => [frame(TEXT, b"~", random), frame(BINARY, b"", random)].concat(),
        10 => masked(&[FINAL | BINARY, 126, 0, 125], &[0; 125], random),
        11 => masked(
            &[FINAL | BINARY, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
            b"",
            random,
        ),
        12 => masked(
            &[FINAL | BINARY, 127, 0x80, 0, 0, 0, 0, 0, 0, 0],
            b"",
            random,
        ),
        13 => frame(FINAL | BINARY, &vec![0; max + 1], random),
        14 => [
            frame(BINARY, &vec![0; max], random),
            frame(FINAL, &[0], random),
        ]
        .concat(),
        15 => {
            let bad: [&[u8]; 4] = [
                b"~\xff~",
                b"~\xe2\x82",
                b"~\xed\xa0\x80~",
                b"~\xf4\x90\x80\x80",
            ];
            let bad = bad[random.usize(..bad.len())];
            let (one, two) = bad.split_at(random.usize(..bad.len()));
            [frame(TEXT, one, random), frame(FINAL, two, random)].concat()
        }
        16 => frame(FINAL | CLOSE, &[0], random),
        17 => {
            let bad: [&[u8]; 5] = [
                &[0, 0],
                &[3, 0xed],
                &[3, 0xee],
                &[0x13, 0x88],
                &[3, 0xe8, 0xff],
            ];
            frame(FINAL | CLOSE, bad[random.usize(..bad.len())], random)
        }
        // A block of a kind that does not exist.
        18 => frame(FINAL | COMPRESSED | BINARY, &[7, 0, 0], random),
        19 => frame(
            FINAL | COMPRESSED | BINARY,
            &deflated(&vec![0; max + 1]),
            random,
        ),
        _ => frame(FINAL | COMPRESSED | TEXT, &deflated(b"~\xff"), random),
    }
}

/// A message that has begun.
struct Open {
    is_text: bool,
    compressed: bool,
    content: Vec<u8>,
}

/// What a client's bytes mean to a server that takes messages of at most `max` bytes.
pub fn meaning(stream: &[u8], deflate: bool, max: usize) -> Vec<Heard> {
    let mut heard = Vec::new();
    if let Err(code) = read(stream, deflate, max, &mut heard) {
        heard.push(Heard::Broken(code));
    }
    heard
}

/// Reads frame by frame. An error is the code of the close.
fn read(mut rest: &[u8], deflate: bool, max: usize, heard: &mut Vec<Heard>) -> Result<(), u16> {
    let mut open: Option<Open> = None;
    while let [first, second, after @ ..] = rest {
        let (fin, compressed) = (first & FINAL != 0, first & COMPRESSED != 0);
        let (opcode, short) = (first & 0x0f, second & 0x7f);
        let is_control = opcode >= 8;
        let right = match opcode {
            0 => open.is_some() && !compressed,
            TEXT | BINARY => open.is_none() && (deflate || !compressed),
            CLOSE | PING | PONG => fin && short <= 125 && !compressed,
            _ => false,
        };
        if !right || first & 0x30 != 0 || second & 0x80 == 0 {
            return Err(1002);
        }
        let (bytes, least) = match short {
            126 => (2, 126),
            127 => (8, 0x1_0000),
            _ => (0, 0),
        };
        let Some((head, after)) = after.split_at_checked(bytes + 4) else {
            return Ok(());
        };
        let (length, mask) = head.split_at(bytes);
        let length = match bytes {
            0 => u64::from(short),
            _ => length
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        };
        if length < least || length >> 63 == 1 {
            return Err(1002);
        }
        let before = open.as_ref().map_or(0, |open| open.content.len());
        let is_compressed = open.as_ref().map_or(compressed, |open| open.compressed);
        // Compressed data may be a little longer than the message.
        let most = if is_compressed {
            max + max / 16 + 64
        } else {
            max
        };
        if !is_control && length > (most - before) as u64 {
            return Err(1009);
        }
        let (here, next) = after.split_at(after.len().min(length as usize));
        let is_whole = here.len() as u64 == length;
        let bytes = here.iter().zip(mask.iter().cycle());
        let payload: Vec<u8> = bytes.map(|(byte, mask)| byte ^ mask).collect();
        rest = next;
        if is_control {
            match opcode {
                _ if !is_whole => return Ok(()),
                PING => heard.push(Heard::Ping(payload)),
                PONG => heard.push(Heard::Pong(payload)),
                _ => {
                    heard.push(closed(&payload)?);
                    return Ok(());
                }
            }
            continue;
        }
        let message = open.get_or_insert(Open {
            is_text: opcode == TEXT,
            compressed,
            content: Vec::new(),
        });
        message.content.extend(payload);
        if message.is_text && !message.compressed && !begins_a_text(&message.content) {
            return Err(1007);
        }
        if fin && is_whole {
            heard.push(open.take().expect("it is open").complete(max)?);
        }
    }
    Ok(())
}

fn begins_a_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).map_or_else(|error| error.error_len().is_none(), |_| true)
}

impl Open {
    fn complete(self, max: usize) -> Result<Heard, u16> {
        let content = match self.compressed {
            true => inflated(&self.content, max)?,
            false => self.content,
        };
        match self.is_text {
            true => String::from_utf8(content)
                .map(Heard::Text)
                .map_err(|_| 1007),
            false => Ok(Heard::Binary(content)),
        }
    }
}

fn inflated(compressed: &[u8], max: usize) -> Result<Vec<u8>, u16> {
    let whole = [compressed, &[0, 0, 0xff, 0xff, 3, 0]].concat();
    let mut content = Vec::new();
    let limited = &mut DeflateDecoder::new(&whole[..]).take(max as u64 + 1);
    limited.read_to_end(&mut content).map_err(|_| 1007_u16)?;
    match content.len() <= max {
        true => Ok(content),
        false => Err(1009),
    }
}

fn closed(payload: &[u8]) -> Result<Heard, u16> {
    let Some((code, reason)) = payload.split_at_checked(2) else {
        return match payload {
            [] => Ok(Heard::Closed(None, String::new())),
            _ => Err(1002),
        };
    };
    let code = u16::from_be_bytes([code[0], code[1]]);
    let may_be_sent = match code {
        1000..1015 => ![1004, 1005, 1006].contains(&code),
        3000..5000 => true,
        _ => false,
    };
    let reason = std::str::from_utf8(reason);
    match (may_be_sent, reason) {
        (false, _) => Err(1002),
        (true, Err(_)) => Err(1007),
        (true, Ok(reason)) => Ok(Heard::Closed(Some(code), reason.to_owned())),
    }
}

/// What a server has sent: final frames without masks, one after the other.
///
/// # Panics
/// When it is something else.
pub fn sent(mut bytes: &[u8]) -> Vec<Heard> {
    let mut heard = Vec::new();
    while let [first, second, after @ ..] = bytes {
        assert!(
            !matches!(heard.last(), Some(Heard::Closed(..))),
            "a frame after the close: {bytes:?}"
        );
        assert!(first & 0xb0 == FINAL && second & 0x80 == 0, "{bytes:?}");
        let (length, after) = match second {
            126 => (
                usize::from(u16::from_be_bytes([after[0], after[1]])),
                &after[2..],
            ),
            127 => {
                let length = after[..8]
                    .iter()
                    .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                (length, &after[8..])
            }
            short => (usize::from(*short), after),
        };
        let (payload, rest) = after
            .split_at_checked(length)
            .expect("the last frame is whole");
        let payload = match first & COMPRESSED {
            0 => payload.to_vec(),
            _ => inflated(payload, 1 << 20).expect("it is compressed"),
        };
        heard.push(match first & 0x0f {
            TEXT => Heard::Text(String::from_utf8(payload).expect("a text is UTF-8")),
            BINARY => Heard::Binary(payload),
            CLOSE => closed(&payload).expect("a close has a code that may be sent"),
            PING => Heard::Ping(payload),
            PONG => Heard::Pong(payload),
            _ => panic!("{first:x} is no kind of frame"),
        });
        bytes = rest;
    }
    assert!(bytes.is_empty(), "half a head: {bytes:?}");
    heard
}
