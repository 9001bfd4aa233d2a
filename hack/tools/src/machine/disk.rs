//! A disk with a write cache, as disks have: what is written is on it for good only once a flush was answered. At a power
//! cut any part of the rest may be lost, in any order.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt};

/// What is written whole or not at all, as file systems expect of a disk.
const BLOCK: usize = 4096;

type Blocks = BTreeMap<u64, Box<[u8; BLOCK]>>;

/// A disk that begins with the content of an image, which stays as it is.
#[derive(Debug)]
pub struct Disk {
    image: File,
    size: u64,
    /// On the disk for good, by number.
    durable: Blocks,
    /// In the cache only.
    cached: Blocks,
    lies: bool,
}

impl Disk {
    /// As large as the image.
    pub fn new(image: File) -> io::Result<Self> {
        let size = image.metadata()?.len();
        Ok(Self { image, size, durable: Blocks::new(), cached: Blocks::new(), lies: false })
    }

    /// One that says that it has flushed, and has not: to see tests fail.
    pub fn lying(self) -> Self {
        Self { lies: true, ..self }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What is at an offset, cached or not.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.check(offset, into.len())?;
        let mut done = 0;
        while done < into.len() {
            let (number, start) = split(offset + done as u64);
            let length = (into.len() - done).min(BLOCK - start);
            into[done..done + length].copy_from_slice(&self.block(number)?[start..start + length]);
            done += length;
        }
        Ok(())
    }

    /// Into the cache.
    pub fn write(&mut self, offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        self.check(offset, bytes.len())?;
        let mut at = offset;
        while !bytes.is_empty() {
            let (number, start) = split(at);
            let (part, rest) = bytes.split_at(bytes.len().min(BLOCK - start));
            let mut block = self.block(number)?;
            block[start..start + part.len()].copy_from_slice(part);
            self.cached.insert(number, block);
            (bytes, at) = (rest, at + part.len() as u64);
        }
        Ok(())
    }

    /// Everything that was written is there for good.
    pub fn flush(&mut self) {
        if !self.lies {
            self.durable.append(&mut self.cached);
        }
    }

    /// The power is cut: each block that is in the cache only is lost unless `survives` says otherwise. Tells how many
    /// were there, and how many were lost.
    pub fn cut(&mut self, mut survives: impl FnMut() -> bool) -> (usize, usize) {
        let cached = std::mem::take(&mut self.cached);
        let there = cached.len();
        let mut lost = 0;
        for (number, block) in cached {
            if survives() {
                self.durable.insert(number, block);
            } else {
                lost += 1;
            }
        }
        (there, lost)
    }

    fn block(&self, number: u64) -> io::Result<Box<[u8; BLOCK]>> {
        if let Some(block) = self.cached.get(&number).or_else(|| self.durable.get(&number)) {
            return Ok(block.clone());
        }
        let mut block = Box::new([0; BLOCK]);
        let (mut filled, start) = (0, number * BLOCK as u64);
        // The image may end within a block.
        while filled < BLOCK {
            match self.image.read_at(&mut block[filled..], start + filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(block)
    }

    fn check(&self, offset: u64, length: usize) -> io::Result<()> {
        let end = offset.checked_add(length as u64);
        if end.is_some_and(|end| end <= self.size) { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }
}

/// Number of a block and the place in it.
fn split(offset: u64) -> (u64, usize) {
    (offset / BLOCK as u64, (offset % BLOCK as u64) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        let image = tempfile::tempfile().unwrap();
        image.write_all_at(&[7; 10_000], 0).unwrap();
        Disk::new(image).unwrap()
    }

    fn at(disk: &Disk, offset: u64) -> u8 {
        let mut byte = [0];
        disk.read(offset, &mut byte).unwrap();
        byte[0]
    }

    #[test]
    fn what_was_flushed_stays_and_the_rest_may_be_lost() {
        let mut disk = disk();
        disk.write(4000, &[1; 200]).unwrap();
        disk.flush();
        disk.write(4090, &[2; 10]).unwrap();
        disk.write(9000, &[3; 1000]).unwrap();
        assert_eq!([3999, 4000, 4090, 4095, 4096, 4100, 9999].map(|o| at(&disk, o)), [7, 1, 2, 2, 2, 1, 3]);
        // The first block is lost, the second kept, the third lost.
        let mut number = 0;
        let cut = disk.cut(|| {
            number += 1;
            number == 2
        });
        assert_eq!(cut, (3, 2));
        assert_eq!([3999, 4000, 4090, 4095, 4096, 4100, 9999].map(|o| at(&disk, o)), [7, 1, 1, 1, 2, 1, 7]);
        assert_eq!(disk.cut(|| false), (0, 0));
    }

    #[test]
    fn a_read_over_blocks_is_whole_and_nothing_is_beyond_the_end() {
        let mut disk = disk();
        disk.write(0, &[9; 4096]).unwrap();
        let mut bytes = vec![0; 10_000];
        disk.read(0, &mut bytes).unwrap();
        assert!(bytes[..4096].iter().all(|byte| *byte == 9) && bytes[4096..].iter().all(|byte| *byte == 7));
        for (offset, length) in [(9_999, 2), (10_000, 1), (u64::MAX, 2)] {
            assert!(disk.write(offset, &vec![0; length]).is_err());
            assert!(disk.read(offset, &mut vec![0; length]).is_err());
        }
    }
}
