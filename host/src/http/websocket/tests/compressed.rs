use std::time::{Duration, Instant};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::*;

#[test]
fn what_is_compressed_for_a_client_is_what_it_gets() {
    let mut random = Rng::with_seed(5);
    let mut compressed = 0;
    for _ in 0..300 {
        let content = random_bytes(&mut random, 200_000);
        let encoded = Encoded::new(&Message::Binary(content.clone().into()));
        let sent = encoded.frame(true);
        if sent[0] == 0x82 {
            assert_eq!(sent, encoded.frame(false));
            continue;
        }
        assert_eq!(sent[0], 0xc2);
        assert!(sent.len() < encoded.frame(false).len());
        compressed += 1;
        let head_len = match sent[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        let stream = [&sent[head_len..], &[0, 0, 0xff, 0xff]].concat();
        let mut out = Vec::with_capacity(content.len() + 1);
        // A new decompressor: the message refers to nothing before it.
        let mut state = Decompress::new(false);
        state
            .decompress_vec(&stream, &mut out, FlushDecompress::Sync)
            .expect("it is valid");
        assert!(out == content, "{} bytes differ", content.len());
    }
    assert!(compressed > 30);
}

#[test]
fn compressed_messages_arrive() {
    // RFC 7692, 7.2.3: one frame, two fragments, a stored block, a final block, two blocks.
    let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    assert_eq!(events(&frame(0xc1, &hello), true), [text("Hello")]);
    let fragments = [frame(0x41, &hello[..3]), frame(0x80, &hello[3..])].concat();
    assert_eq!(events(&fragments, true), [text("Hello")]);
    let stored = b"\x00\x05\x00\xfa\xffHello\x00";
    assert_eq!(events(&frame(0xc1, stored), true), [text("Hello")]);
    let last = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00];
    assert_eq!(events(&frame(0xc1, &last), true), [text("Hello")]);
    assert_eq!(events(&frame(0xc1, &last[..7]), true), [text("Hello")]);
    let two = [
        0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00,
    ];
    assert_eq!(events(&frame(0xc1, &two), true), [text("Hello")]);
    assert_eq!(events(&frame(0xc1, &[0]), true), [text("")]);
    assert_eq!(events(&frame(0xc2, &[2, 0]), true), [binary(b"")]);
    // Not every message has to be compressed.
    assert_eq!(events(&frame(0x81, b"plain"), true), [text("plain")]);
    // Random data gets larger, and may still be as large as the limit.
    let mut random = Rng::with_seed(1);
    let content: Vec<u8> = (0..MAX).map(|_| random.u8(..)).collect();
    let compressed = deflated(&content, 0);
    assert!(compressed.len() > MAX);
    assert_eq!(events(&frame(0xc2, &compressed), true), [binary(&content)]);
}

#[test]
fn invalid_compressed_messages_are_refused() {
    let message = deflated(&"invalid or not? ".repeat(9).into_bytes(), 6);
    assert_eq!(
        refused(&frame(0xc1, &[message.clone(), vec![6]].concat()), true),
        1007
    );
    let cut = frame(0xc1, &message[..message.len() - 3]);
    assert_eq!(refused(&cut, true), 1007, "cut off");
    let empty = [&[0xc1, 0x80], &MASK[..]].concat();
    assert_eq!(refused(&empty, true), 1007);
    let twice = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0, 0x03, 0x00];
    assert_eq!(refused(&frame(0xc1, &twice), true), 1007, "two streams");
    let not_utf8 = deflated(b"abc\xff", 6);
    assert_eq!(refused(&frame(0xc1, &not_utf8), true), 1007);
    let split = deflated(b"abc\xf0\x9f\x98", 6);
    assert_eq!(refused(&frame(0xc1, &split), true), 1007);
    let smile = deflated("😀".as_bytes(), 6);
    assert_eq!(events(&frame(0xc1, &smile), true), [text("😀")]);
}

#[test]
fn a_message_cannot_refer_to_one_of_another_connection() {
    // A client that keeps its context: the second message is a reference to the first.
    let secret = b"the password of another client is 4711";
    let mut state = Compress::new(Compression::new(9), false);
    let [first, second] = [0, 1].map(|_| {
        let mut out = Vec::with_capacity(200);
        state
            .compress_vec(secret, &mut out, FlushCompress::Sync)
            .expect("it is valid");
        out.truncate(out.len() - 4);
        out
    });
    assert!(second.len() < secret.len() / 2);
    assert_eq!(events(&frame(0xc2, &first), true), [binary(secret)]);
    let (events, _) = feed(&mut Decoder::new(MAX, true), [&frame(0xc2, &second)[..]]);
    for event in events {
        let Event::Message(Message::Binary(content)) = event else {
            panic!("not a message");
        };
        assert!(
            !content
                .windows(4)
                .any(|part| secret.windows(4).any(|it| it == part))
        );
    }
}

#[test]
fn inflation_stops_at_the_limit() {
    // 1 GB of zeros in about 1 MB: a block of 16 MB, compressed once and repeated.
    let block = deflated(&vec![0; 16 << 20], 9);
    let flushed = [&block[..], &[0, 0, 0xff, 0xff]].concat();
    let bomb = flushed.repeat(64);
    let bomb = &bomb[..bomb.len() - 4];
    assert!(bomb.len() < MAX + MAX / 16);
    let begun = Instant::now();
    assert_eq!(
        deflate::inflate(bomb, MAX).map(|it| it.len()),
        Err(frame::TOO_LARGE)
    );
    assert!(begun.elapsed() < Duration::from_secs(1));
    let exact = deflated(&vec![0; MAX], 6);
    assert_eq!(deflate::inflate(&exact, MAX).map(|it| it.len()), Ok(MAX));
    assert_eq!(deflate::inflate(&exact, MAX - 1), Err(frame::TOO_LARGE));
    assert_eq!(
        refused(&frame(0xc2, &deflated(&vec![0; MAX + 1], 6)), true),
        1009
    );
}
