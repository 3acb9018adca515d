//! Compression of bodies that are in memory as a whole.
//!
//! For a small body, the encoder costs more to set up than to run: brotli of quality 4 clears more than a megabyte
//! before it reads the first byte. So the quality and the window of brotli depend on the length, and contexts of zstd,
//! which can be reused, are kept. Measured for 4 kB of HTML, compared with brotli of quality 4: brotli takes a sixth of
//! the time, zstd takes a fortieth of the time, and the results have about the same size.

use std::io::Write as _;

use brotli::enc::BrotliEncoderParams;
use parking_lot::Mutex;
use zstd::bulk::Compressor;

use super::Encoding;

/// Bodies of up to this many bytes are compressed with the lower quality.
const BROTLI_SMALL: usize = 16 << 10;
const BROTLI_SMALL_QUALITY: i32 = 1;
const BROTLI_QUALITY: i32 = 3;
/// The window of brotli has 2^10 to 2^18 bytes, depending on the length of the data.
const WINDOWS: std::ops::RangeInclusive<u32> = 10..=18;
const ZSTD_LEVEL: i32 = 3;
const GZIP_LEVEL: u32 = 5;
/// The levels for files are higher, because a file is compressed once.
const BROTLI_FILE_QUALITY: i32 = 9;
const ZSTD_FILE_LEVEL: i32 = 12;
const GZIP_FILE_LEVEL: u32 = 9;

/// Contexts of zstd that are not in use. Each takes about a megabyte. A context that has compressed more than
/// `KEPT_FOR` bytes takes more, and is not kept.
static KEPT: Mutex<Vec<Compressor<'static>>> = Mutex::new(Vec::new());
const KEPT_MAX: usize = 8;
const KEPT_FOR: usize = 256 << 10;

/// Compresses the body of a response that is made for one request.
pub(super) fn quickly(encoding: Encoding, data: &[u8]) -> Vec<u8> {
    let mut made = match encoding {
        Encoding::Br => {
            let quality = match data.len() <= BROTLI_SMALL {
                true => BROTLI_SMALL_QUALITY,
                false => BROTLI_QUALITY,
            };
            brotli(data, quality)
        }
        Encoding::Zstd => {
            let kept = KEPT.lock().pop();
            let mut context = kept.unwrap_or_else(|| zstd_context(ZSTD_LEVEL));
            let made = context
                .compress(data)
                .expect("there is room for the result");
            if data.len() <= KEPT_FOR {
                let mut kept = KEPT.lock();
                if kept.len() < KEPT_MAX {
                    kept.push(context);
                }
            }
            made
        }
        Encoding::Gzip => gzip(data, GZIP_LEVEL),
    };
    made.shrink_to_fit();
    made
}

/// Compresses a file with higher levels than [`quickly`]. This takes longer, but the smaller result serves many
/// requests.
pub(super) fn well(encoding: Encoding, data: &[u8]) -> Vec<u8> {
    let mut made = match encoding {
        Encoding::Br => brotli(data, BROTLI_FILE_QUALITY),
        Encoding::Zstd => zstd_context(ZSTD_FILE_LEVEL)
            .compress(data)
            .expect("there is room for the result"),
        Encoding::Gzip => gzip(data, GZIP_FILE_LEVEL),
    };
    made.shrink_to_fit();
    made
}

fn brotli(data: &[u8], quality: i32) -> Vec<u8> {
    let bits = usize::BITS - data.len().saturating_sub(1).leading_zeros();
    let params = BrotliEncoderParams {
        quality,
        lgwin: bits.clamp(*WINDOWS.start(), *WINDOWS.end()).cast_signed(),
        size_hint: data.len(),
        ..BrotliEncoderParams::default()
    };
    let mut encoder = brotli::CompressorWriter::with_params(Vec::new(), 4096, &params);
    encoder.write_all(data).expect("memory can be written");
    encoder.into_inner()
}

fn zstd_context(level: i32) -> Compressor<'static> {
    Compressor::new(level).expect("the level is one that there is")
}

fn gzip(data: &[u8], level: u32) -> Vec<u8> {
    let level = flate2::Compression::new(level);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
    encoder.write_all(data).expect("memory can be written");
    encoder.finish().expect("memory can be written")
}
