//! Content and places in files: sizes and offsets around the limits where file systems change their mind (inline data,
//! blocks, the 128 KiB of an extent), and data that are noise, text, zeros, or a mixture.

use crate::rng::Rng;

const BLOCK: u64 = 4096;
/// Files of the workload stay below this, so that many fit into a small pool.
const LARGEST: u64 = 3 << 20;

/// A size for new content.
pub fn size(rng: &mut Rng) -> u64 {
    match rng.below(10) {
        0 => *rng.pick(&[1, 2047, 2048, 2049, 4095, 4096, 4097, 131_072, 131_073]).unwrap_or(&1),
        1..=4 => rng.between(1, 2048),
        5..=6 => rng.between(1, 20_000),
        7 => rng.between(1, 64) * BLOCK,
        8 => rng.between(1, 300_000),
        _ => rng.between(1, 1_000_000),
    }
}

/// A place in, at the end of, or behind a file of `length` bytes.
pub fn offset(rng: &mut Rng, length: u64) -> u64 {
    let offset = match rng.below(8) {
        0 => 0,
        1 => length,
        2 => length.next_multiple_of(BLOCK),
        3 => length + rng.below(40 * BLOCK),
        4 | 5 => rng.below(length.div_ceil(BLOCK) + 1) * BLOCK,
        _ => rng.below(length + 1),
    };
    offset.min(LARGEST)
}

/// A part of a file, on blocks or not.
pub fn range(rng: &mut Rng, length: u64) -> (u64, u64) {
    let offset = offset(rng, length);
    let length = match rng.below(4) {
        0 => rng.between(1, 9) * BLOCK,
        1 => rng.between(1, 100) * BLOCK,
        2 => length.saturating_sub(offset).max(1),
        _ => size(rng),
    };
    (offset, length)
}

/// A size to truncate to.
pub fn new_length(rng: &mut Rng, length: u64) -> u64 {
    if rng.once_in(5) { 0 } else { offset(rng, length) }
}

/// Content.
pub fn content(rng: &mut Rng, length: u64) -> Vec<u8> {
    let length = length as usize;
    match rng.below(6) {
        0 => vec![0; length],
        1 => vec![b'a' + rng.below(26) as u8; length],
        2 => {
            // Blocks of zeros between others.
            let mut bytes = rng.noise(length);
            for block in bytes.chunks_mut(BLOCK as usize) {
                if rng.once_in(2) {
                    block.fill(0);
                }
            }
            bytes
        }
        3 => {
            let mut bytes = vec![0; length];
            if let Some(last) = bytes.last_mut() {
                *last = 1;
            }
            bytes
        }
        _ => rng.noise(length),
    }
}
