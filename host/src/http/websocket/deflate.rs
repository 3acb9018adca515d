//! `permessage-deflate` without context takeover: each message is compressed on its own, by state that all connections
//! of a thread share.

use std::cell::RefCell;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::{Violation, code};

/// How a flushed deflate stream ends. The sender leaves these bytes out (RFC 7692, 7.2.1).
const FLUSHED: [u8; 4] = [0, 0, 0xff, 0xff];
/// What is added to a received message: the bytes of [`FLUSHED`], and an empty final block. The decompressor finds the
/// end of its stream only if the message was complete, so messages that are cut off are noticed.
const END: [u8; 6] = [0, 0, 0xff, 0xff, 3, 0];
/// The output of one step of the decompressor. The limit on a message is checked after each step.
const STEP_BYTES: usize = 16 << 10;

struct Inflater {
    state: Decompress,
    step: Box<[u8]>,
}

thread_local! {
    static INFLATER: RefCell<Inflater> = RefCell::new(Inflater {
        state: Decompress::new(false),
        step: vec![0; STEP_BYTES].into(),
    });
    // The fastest level: servers compress for many clients, and better levels save little on short messages.
    static DEFLATER: RefCell<Compress> = RefCell::new(Compress::new(Compression::fast(), false));
}

const INVALID: Violation = Violation {
    code: code::INVALID_DATA,
    reason: "a compressed message is not valid deflate data",
};

/// The most bytes that a message of `max` bytes can take when compressed. Deflate makes random data larger: zlib by up
/// to 4 % with the smallest window.
pub(super) fn compressed_max(max: usize) -> usize {
    max.saturating_add(max / 16 + 64)
}

/// Inflates a message. The time is linear in the bytes on both sides. The worst messages consist of empty blocks, for
/// each of which miniz_oxide builds its tables anew: 1 to 2 µs for each compressed byte.
///
/// # Errors
/// When the message is invalid, or as soon as it is known to be larger than `max`; then it has been inflated to at most
/// [`STEP_BYTES`] more than `max`.
pub(super) fn inflate(compressed: &[u8], max: usize) -> Result<Vec<u8>, Violation> {
    INFLATER.with_borrow_mut(|Inflater { state, step }| {
        state.reset(false);
        let mut inflated = Vec::new();
        for (part, is_end) in [(compressed, false), (&END[..], true)] {
            let mut rest = part;
            loop {
                let before = (state.total_in(), state.total_out());
                let status = state.decompress(rest, step, FlushDecompress::Sync);
                let status = status.map_err(|_| INVALID)?;
                let read = (state.total_in() - before.0) as usize;
                let written = (state.total_out() - before.1) as usize;
                rest = &rest[read..];
                if written > max - inflated.len() {
                    return Err(super::frame::TOO_LARGE);
                }
                super::frame::append(&mut inflated, &step[..written], max);
                // Senders that cannot flush end the message with a final block and an empty block, of which only the
                // first byte is sent (RFC 7692, 7.2.3.4). More streams in one message are not accepted, because a
                // message of many empty ones would reset the decompressor, 32 kB of state, for every two bytes.
                let is_whole = if is_end {
                    rest.is_empty()
                } else {
                    matches!(rest, [] | [0])
                };
                match status {
                    Status::StreamEnd if is_whole => return Ok(inflated),
                    Status::StreamEnd => return Err(INVALID),
                    _ if (read, written) != (0, 0) => {}
                    _ if rest.is_empty() => break,
                    _ => return Err(INVALID),
                }
            }
        }
        Err(INVALID)
    })
}

/// Compresses a message. `None` if it does not get smaller.
pub(super) fn deflate(content: &[u8]) -> Option<Vec<u8>> {
    DEFLATER.with_borrow_mut(|state| {
        state.reset();
        let mut compressed = Vec::with_capacity(content.len());
        let status = state.compress_vec(content, &mut compressed, FlushCompress::Sync);
        // A full buffer means that there is more to come.
        let is_whole = state.total_in() == content.len() as u64
            && compressed.len() < compressed.capacity()
            && compressed.ends_with(&FLUSHED);
        if status.is_err() || !is_whole {
            return None;
        }
        compressed.truncate(compressed.len() - FLUSHED.len());
        Some(compressed)
    })
}
