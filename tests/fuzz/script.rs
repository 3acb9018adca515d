//! Makes inputs that are nearly valid: random bytes are a script of changes to a valid text.

/// The length of the longest input, in bytes.
const MAX: usize = 64 << 10;

/// Texts that have a meaning in many of the formats that are fuzzed.
const WORDS: [&str; 24] = [
    "(", ")", "[", "]", "{", "}", "\"", "'", "$$", "/*", "*/", "--", ";", ",", "=", ":", "\\",
    "\0", "\n", " ", "explain ", "select ", "e'", "\u{ff}",
];

/// One of the seeds, changed by the script. The first byte chooses the seed, and every three bytes after it are a change.
pub(crate) fn changed(seeds: &[&str], script: &[u8]) -> Vec<u8> {
    let Some((first, rest)) = script.split_first() else {
        return Vec::new();
    };
    let seed = |number: u8| seeds[usize::from(number) % seeds.len()].as_bytes();
    let mut text = seed(*first).to_vec();
    for change in rest.chunks_exact(3) {
        let [what, place, how] = [change[0], change[1], change[2]];
        let at = usize::from(place) * text.len() / 256;
        let word = WORDS[usize::from(how) % WORDS.len()].as_bytes();
        match what % 8 {
            0 => insert(&mut text, at, word),
            1 => insert(&mut text, at, seed(how)),
            // The word up to 32,768 times: nesting that is deep enough to find recursion.
            2 => insert(&mut text, at, &word.repeat(1 << (how >> 4))),
            3 => {
                let end = text.len().min(at + usize::from(how) + 1);
                let piece = text[at..end].to_vec();
                insert(&mut text, at, &piece.repeat(usize::from(what >> 3) + 1));
            }
            4 => {
                let end = text.len().min(at + usize::from(how) + 1);
                text.drain(at..end);
            }
            5 => text.truncate(at),
            6 => insert(&mut text, at, &[how]),
            _ => {
                if let Some(byte) = text.get_mut(at) {
                    *byte = how;
                }
            }
        }
    }
    text.truncate(MAX);
    text
}

fn insert(text: &mut Vec<u8>, at: usize, piece: &[u8]) {
    if text.len() + piece.len() <= MAX {
        text.splice(at..at, piece.iter().copied());
    }
}
