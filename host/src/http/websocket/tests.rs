use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use flate2::{Compress, Compression, FlushCompress};

use super::*;

mod compressed;

const MAX: usize = 1 << 20;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A frame of a client.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = match payload.len() {
        len @ 0..126 => vec![first, 0x80 | len as u8],
        len @ 126..0x1_0000 => [&[first, 0xfe], &(len as u16).to_be_bytes()[..]].concat(),
        len => [&[first, 0xff], &(len as u64).to_be_bytes()[..]].concat(),
    };
    frame.extend(MASK);
    let masked = payload.iter().zip(MASK.iter().cycle());
    frame.extend(masked.map(|(byte, mask)| byte ^ mask));
    frame
}

fn text(content: &str) -> Event {
    Event::Message(Message::Text(Bytes::copy_from_slice(content.as_bytes())))
}

fn binary(content: &[u8]) -> Event {
    Event::Message(Message::Binary(Bytes::copy_from_slice(content)))
}

fn closed(code: u16, reason: &str) -> Event {
    let (code, reason) = (Some(code), reason.to_owned());
    Event::Close { code, reason }
}

/// All events in `parts`, which arrive one after the other.
fn feed<'a>(
    decoder: &mut Decoder,
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Event>, Option<Violation>) {
    let mut events = Vec::new();
    for part in parts {
        let mut buffer = part.to_vec();
        let mut input = &mut buffer[..];
        loop {
            match decoder.next(&mut input) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(violation) => return (events, Some(violation)),
            }
        }
        assert!(input.is_empty());
    }
    (events, None)
}

/// The events in `stream`, which breaks no rule and leaves nothing unfinished: in one read, and in reads of one byte.
#[track_caller]
fn events(stream: &[u8], deflate: bool) -> Vec<Event> {
    let [whole, bytes] = [stream.len().max(1), 1].map(|size| {
        let mut decoder = Decoder::new(MAX, deflate);
        let (events, violation) = feed(&mut decoder, stream.chunks(size));
        assert_eq!(violation, None);
        assert_eq!(decoder.kept_bytes(), 0);
        events
    });
    assert_eq!(whole, bytes);
    whole
}

/// The code with which `stream` is refused, however it is cut. The rule is broken only by its last byte: what comes
/// before is accepted.
#[track_caller]
fn refused(stream: &[u8], deflate: bool) -> u16 {
    let (last, before) = stream.split_last().expect("there are bytes");
    let mut decoder = Decoder::new(MAX, deflate);
    let (_, early) = feed(&mut decoder, before.chunks(1));
    assert_eq!(early, None, "refused too early");
    let (events, violation) = feed(&mut decoder, [&[*last][..]]);
    assert_eq!(events, []);
    let violation = violation.expect("a rule is broken");
    assert!(violation.reason.len() <= 123);
    assert_eq!(decoder.kept_bytes(), 0);
    // Whatever follows is skipped.
    let after = [frame(0x82, b"x"), frame(0x70, b"")].concat();
    assert_eq!(feed(&mut decoder, [&after[..]]), (vec![], None));
    let whole = feed(&mut Decoder::new(MAX, deflate), [stream]).1;
    assert_eq!(whole, Some(violation));
    violation.code
}

#[test]
fn an_idle_decoder_is_small() {
    assert!(size_of::<Decoder>() <= 24);
    assert_eq!(Decoder::new(MAX, true).kept_bytes(), 0);
}

#[test]
fn messages_of_all_lengths_arrive() {
    for len in [0, 1, 7, 8, 9, 125, 126, 127, 65_535, 65_536, MAX] {
        let content: Vec<u8> = (0..len).map(|at| (at % 127) as u8).collect();
        assert_eq!(events(&frame(0x82, &content), false), [binary(&content)]);
        let as_text = std::str::from_utf8(&content).expect("ASCII");
        assert_eq!(events(&frame(0x81, &content), false), [text(as_text)]);
    }
    // RFC 6455, 5.7.
    let masked = [
        0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
    ];
    assert_eq!(events(&masked, false), [text("Hello")]);
}

#[test]
fn control_frames_come_between_fragments() {
    let stream = [
        frame(0x01, b"Hel"),
        frame(0x89, b"ping"),
        frame(0x00, b""),
        frame(0x8a, &[0; 125]),
        frame(0x80, b"lo"),
        frame(0x02, b""),
        frame(0x89, b""),
        frame(0x80, b""),
        frame(0x88, b"\x03\xe8bye"),
        frame(0x82, b"after the end"),
    ];
    let expected = [
        Event::Ping(Bytes::from_static(b"ping")),
        Event::Pong(Bytes::from_static(&[0; 125])),
        text("Hello"),
        Event::Ping(Bytes::new()),
        binary(b""),
        closed(1000, "bye"),
    ];
    assert_eq!(events(&stream.concat(), false), expected);
}

#[test]
fn a_caller_may_stop_after_any_event() {
    let mut stream = [frame(0x81, b"one"), frame(0x81, b"two"), frame(0x01, b"th")].concat();
    let mut decoder = Decoder::new(MAX, false);
    let mut input = &mut stream[..];
    assert_eq!(decoder.next(&mut input), Ok(Some(text("one"))));
    let mut rest = input.to_vec();
    let mut input = &mut rest[..];
    assert_eq!(decoder.next(&mut input), Ok(Some(text("two"))));
    assert_eq!(decoder.kept_bytes(), 0);
    assert_eq!(decoder.next(&mut input), Ok(None));
    assert!(input.is_empty() && decoder.kept_bytes() > 0);
    assert_eq!(
        feed(&mut decoder, [&frame(0x80, b"ree")[..]]),
        (vec![text("three")], None)
    );
    assert_eq!(decoder.kept_bytes(), 0);
}

#[test]
fn invalid_heads_are_refused() {
    let head = |first, second| refused(&[first, second], true);
    for reserved in [0x10, 0x20, 0x30] {
        assert_eq!(head(0x81 | reserved, 0x80), 1002);
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        assert_eq!(head(0x80 | opcode, 0x80), 1002);
    }
    for opcode in [8, 9, 10] {
        assert_eq!(head(opcode, 0x80), 1002, "fragmented");
        assert_eq!(head(0x80 | opcode, 0x80 | 126), 1002, "long");
        assert_eq!(head(0x80 | opcode, 0x80 | 127), 1002, "long");
        assert_eq!(head(0xc0 | opcode, 0x80), 1002, "compressed");
        assert_eq!(head(0x80 | opcode, 0), 1002, "not masked");
    }
    for len in [0, 1, 125, 126, 127] {
        assert_eq!(head(0x81, len), 1002, "not masked");
    }
    assert_eq!(head(0x80, 0x80), 1002, "continues nothing");
    assert_eq!(head(0x00, 0x80), 1002, "continues nothing");
    let after_start = |first| [&frame(0x01, b"a")[..], &[first, 0x80]].concat();
    assert_eq!(refused(&after_start(0x81), true), 1002);
    assert_eq!(refused(&after_start(0x02), true), 1002);
    assert_eq!(
        refused(&after_start(0xc0), true),
        1002,
        "only the first is marked"
    );
    assert_eq!(refused(&[0xc1, 0x80], false), 1002, "not negotiated");
    let after_end = [&frame(0x01, b"a")[..], &frame(0x80, b""), &[0x80, 0x80]].concat();
    assert_eq!(refused(&after_end, true), 1002);
}

#[test]
fn lengths_are_minimal_and_limited_before_the_payload_arrives() {
    let long = |len: u64| [&[0x82, 0xff], &len.to_be_bytes()[..], &MASK].concat();
    let medium = |len: u16| [&[0x82, 0xfe], &len.to_be_bytes()[..], &MASK].concat();
    assert_eq!(refused(&medium(125), false), 1002);
    assert_eq!(refused(&medium(0), false), 1002);
    assert_eq!(refused(&long(65_535), false), 1002);
    assert_eq!(refused(&long(1 << 63), false), 1002);
    assert_eq!(refused(&long(u64::MAX), false), 1002);
    assert_eq!(refused(&long(u64::MAX >> 1), false), 1009);
    assert_eq!(refused(&long(MAX as u64 + 1), false), 1009);
    // Over all frames.
    let start = frame(0x02, &[1; MAX - 200]);
    let head = [&[0x00, 0xfe], &201_u16.to_be_bytes()[..], &MASK].concat();
    assert_eq!(refused(&[start.clone(), head].concat(), false), 1009);
    let rest = frame(0x80, &[1; 200]);
    assert_eq!(events(&[start, rest].concat(), false), [binary(&[1; MAX])]);
    // A limit of 0 still allows control frames and empty messages.
    let mut decoder = Decoder::new(0, false);
    let stream = [frame(0x89, b"p"), frame(0x81, b"")].concat();
    let expected = vec![Event::Ping(Bytes::from_static(b"p")), text("")];
    assert_eq!(feed(&mut decoder, [&stream[..]]), (expected, None));
    let (_, violation) = feed(&mut decoder, [&frame(0x81, b"a")[..]]);
    assert_eq!(violation.map(|it| it.code), Some(1009));
}

#[test]
fn close_frames_are_checked() {
    let none = Event::Close {
        code: None,
        reason: String::new(),
    };
    assert_eq!(events(&frame(0x88, b""), false), [none]);
    let with_code = |code: u16| frame(0x88, &code.to_be_bytes());
    for code in [
        1000, 1001, 1002, 1003, 1007, 1009, 1010, 1011, 1014, 3000, 4999,
    ] {
        assert_eq!(events(&with_code(code), false), [closed(code, "")]);
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
        assert_eq!(refused(&with_code(code), false), 1002);
        assert!(!code::is_sendable(code));
    }
    assert!(code::is_sendable(1012) && code::is_sendable(4000) && !code::is_sendable(1010));
    assert_eq!(refused(&frame(0x88, &[3]), false), 1002);
    let longest = "é".repeat(61) + "!";
    let payload = [&1000_u16.to_be_bytes()[..], longest.as_bytes()].concat();
    assert_eq!(
        events(&frame(0x88, &payload), false),
        [closed(1000, &longest)]
    );
    assert_eq!(refused(&frame(0x88, b"\x03\xe8\xff"), false), 1007);
    assert_eq!(refused(&frame(0x88, b"\x03\xe8\xc3"), false), 1007);
}

#[test]
fn invalid_text_is_refused_at_its_first_invalid_byte() {
    let smile = "κόσμε😀".as_bytes();
    for at in 0..=smile.len() {
        let stream = [
            frame(0x01, &smile[..at]),
            frame(0x89, b""),
            frame(0x80, &smile[at..]),
        ];
        let expected = [Event::Ping(Bytes::new()), text("κόσμε😀")];
        assert_eq!(events(&stream.concat(), false), expected);
    }
    // Overlong forms, surrogates, beyond Unicode, continuation bytes alone.
    let invalid: [&[u8]; 7] = [
        b"a\xc0",
        b"a\xe0\x80",
        b"a\xf0\x80",
        b"a\xed\xa0",
        b"a\xf4\x90",
        b"a\xff",
        b"a\x80",
    ];
    for invalid in invalid {
        // The frame announces more. It is refused before the rest arrives.
        let whole = frame(0x81, &[invalid, &[b'z'; 100]].concat());
        assert_eq!(refused(&whole[..6 + invalid.len()], false), 1007);
        let (first, last) = invalid.split_at(invalid.len() - 1);
        let stream = [frame(0x01, first), frame(0x00, b""), frame(0x00, last)];
        assert_eq!(refused(&stream.concat(), false), 1007);
        assert_eq!(events(&frame(0x82, invalid), false), [binary(invalid)]);
    }
    // An incomplete character at the end.
    assert_eq!(refused(&frame(0x81, b"a\xf0\x9f\x98"), false), 1007);
    let stream = [frame(0x01, b"\xf0\x9f"), frame(0x80, b"\x98")];
    assert_eq!(refused(&stream.concat(), false), 1007);
    let empty_end = [&frame(0x01, b"\xf0")[..], &[0x80, 0x80], &MASK].concat();
    assert_eq!(refused(&empty_end, false), 1007);
}

#[test]
fn frames_of_the_server_are_well_formed() {
    assert_eq!(ping(b"a"), &b"\x89\x01a"[..]);
    assert_eq!(pong(b""), &b"\x8a\x00"[..]);
    assert_eq!(pong(&[7; 200]).len(), 127);
    assert_eq!(close(None, "ignored"), &b"\x88\x00"[..]);
    assert_eq!(close(Some(1001), "bye"), &b"\x88\x05\x03\xe9bye"[..]);
    let long = close(Some(1000), &"é".repeat(100));
    assert_eq!((long.len(), long[1]), (126, 124));
    assert!(std::str::from_utf8(&long[4..]).is_ok());
    for (len, head) in [
        (0, &[0x82, 0][..]),
        (125, &[0x82, 125]),
        (126, &[0x82, 126, 0, 126]),
        (65_535, &[0x82, 126, 255, 255]),
        (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
    ] {
        let content = Bytes::from(vec![1; len]);
        let encoded = Encoded::new(&Message::Binary(content.clone()));
        assert_eq!(encoded.frame(false), &[head, &content].concat());
    }
}

/// Compresses as a client does.
fn deflated(content: &[u8], level: u32) -> Vec<u8> {
    let mut state = Compress::new(Compression::new(level), false);
    let mut out = Vec::with_capacity(content.len() + content.len() / 8 + 64);
    state
        .compress_vec(content, &mut out, FlushCompress::Sync)
        .expect("it is valid");
    assert_eq!(state.total_in(), content.len() as u64);
    assert_eq!(out.split_off(out.len() - 4), [0, 0, 0xff, 0xff]);
    out
}

fn random_bytes(random: &mut Rng, most: usize) -> Vec<u8> {
    let len = match random.u8(..8) {
        0 => random.usize(..=most),
        1..4 => random.usize(..=most.min(300)),
        _ => random.usize(..=most.min(20)),
    };
    let span = *random.choice([1, 4, 255].iter()).expect("there are some");
    (0..len).map(|_| random.u8(..=span)).collect()
}

/// A random stream of frames that break no rule, and its events.
fn random_stream(random: &mut Rng, deflate: bool) -> (Vec<u8>, Vec<Event>) {
    let (mut stream, mut events) = (Vec::new(), Vec::new());
    for _ in 0..random.usize(1..8) {
        let mut content = random_bytes(random, 70_000);
        let is_text = random.bool();
        let event = if is_text {
            let content_text: String = content.iter().map(|byte| char::from(*byte)).collect();
            content = content_text.clone().into_bytes();
            text(&content_text)
        } else {
            binary(&content)
        };
        let mut first = if is_text { 1 } else { 2 };
        if deflate && random.bool() {
            content = deflated(&content, random.u32(0..=9));
            first |= 0x40;
        }
        let mut rest = &content[..];
        loop {
            let is_last = random.u8(..3) > 0;
            let (part, after) = rest.split_at(if is_last {
                rest.len()
            } else {
                random.usize(..=rest.len())
            });
            stream.extend(frame(if is_last { 0x80 | first } else { first }, part));
            (rest, first) = (after, 0);
            if is_last {
                break;
            }
            if random.bool() {
                let ping = random_bytes(random, 125);
                stream.extend(frame(0x89, &ping));
                events.push(Event::Ping(ping.into()));
            }
        }
        events.push(event);
    }
    (stream, events)
}

#[test]
fn reads_may_be_cut_anywhere() {
    let seed = fastrand::u64(..);
    let mut random = Rng::with_seed(seed);
    for round in 0..200 {
        let deflate = random.bool();
        let (stream, expected) = random_stream(&mut random, deflate);
        let mut decoder = Decoder::new(MAX, deflate);
        let mut parts = Vec::new();
        let mut rest = &stream[..];
        let most = *random
            .choice([3, 20, 100, 100_000].iter())
            .expect("there are some");
        while !rest.is_empty() {
            let (part, after) = rest.split_at(random.usize(..=most.min(rest.len())));
            parts.push(part);
            rest = after;
        }
        let (events, violation) = feed(&mut decoder, parts);
        assert_eq!(violation, None, "seed {seed}, round {round}");
        assert!(events == expected, "seed {seed}, round {round}");
        assert_eq!(decoder.kept_bytes(), 0, "seed {seed}, round {round}");
    }
}

#[test]
fn any_bytes_are_read_within_the_limit() {
    const SMALL: usize = 1000;
    let seed = fastrand::u64(..);
    let mut random = Rng::with_seed(seed);
    for round in 0..5_000 {
        let mut stream = match random.bool() {
            true => (0..random.usize(..200)).map(|_| random.u8(..)).collect(),
            // Frames with an error here and there get further.
            false => {
                let first = [
                    0x00, 0x01, 0x02, 0x41, 0x80, 0x81, 0x82, 0x88, 0x89, 0xc1, 0xc2,
                ];
                let frames = (0..random.usize(1..10)).map(|_| {
                    let first = *random.choice(first.iter()).expect("there are some");
                    let mut payload = random_bytes(&mut random, 1200);
                    if random.bool() {
                        payload = deflated(&payload, 6);
                    }
                    frame(first, &payload)
                });
                frames.collect::<Vec<_>>().concat()
            }
        };
        for _ in 0..random.usize(..3) {
            if let Some(byte) = random.choice(stream.iter_mut()) {
                *byte = random.u8(..);
            }
        }
        let mut decoder = Decoder::new(SMALL, random.bool());
        let mut rest = &mut stream[..];
        while !rest.is_empty() {
            let at = random.usize(1..=rest.len());
            let (mut part, after) = rest.split_at_mut(at);
            while let Ok(Some(event)) = decoder.next(&mut part) {
                if let Event::Message(Message::Text(content) | Message::Binary(content)) = event {
                    assert!(content.len() <= SMALL, "seed {seed}, round {round}");
                }
            }
            let most = deflate::compressed_max(SMALL) + size_of::<Decoder>() + 300;
            assert!(decoder.kept_bytes() <= most, "seed {seed}, round {round}");
            rest = after;
        }
    }
}

#[test]
fn small_pieces_do_not_cost_more_than_linear_time() {
    // Each of these takes minutes if one piece costs time that depends on what is kept.
    let begun = Instant::now();
    let whole = frame(0x81, "é".repeat(MAX / 2).as_bytes());
    let (events, violation) = feed(&mut Decoder::new(MAX, false), whole.chunks(1));
    assert_eq!((events.len(), violation), (1, None));
    let start = frame(0x01, "é".repeat(MAX / 2 - 100).as_bytes());
    for (piece, count) in [(&b""[..], 300_000), ("é".as_bytes(), 100)] {
        let stream = [
            start.clone(),
            frame(0x00, piece).repeat(count),
            frame(0x80, b""),
        ]
        .concat();
        let (events, violation) = feed(&mut Decoder::new(MAX, false), stream.chunks(4096));
        assert_eq!((events.len(), violation), (1, None));
    }
    let bytes = [
        frame(0x02, b""),
        frame(0x00, b"x").repeat(300_000),
        frame(0x80, b""),
    ]
    .concat();
    let (events, violation) = feed(&mut Decoder::new(MAX, true), bytes.chunks(4096));
    assert_eq!((events.len(), violation), (1, None));
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[test]
fn memory_follows_what_has_arrived() {
    let whole = frame(0x82, &[1; MAX]);
    let mut decoder = Decoder::new(MAX, false);
    let mut arrived = 0;
    for part in whole[..MAX].chunks(1000) {
        arrived += part.len();
        assert_eq!(feed(&mut decoder, [part]), (vec![], None));
        assert!(decoder.kept_bytes() <= (2 * arrived).min(MAX) + 300);
    }
    // A head alone, and the first byte of one.
    for bytes in [&whole[..14], &whole[..1]] {
        let mut decoder = Decoder::new(MAX, false);
        assert_eq!(feed(&mut decoder, [bytes]), (vec![], None));
        assert!((1..300).contains(&decoder.kept_bytes()));
    }
}
