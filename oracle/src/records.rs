//! The simplest program that needs what it was promised: it appends records to a file, calls fsync(2) now and then, and
//! says so. What is found later must be an unbroken beginning of what it wrote.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use crate::rng::Rng;
use crate::said::{Mouth, Said};

/// Bytes of a record: a page holds a whole number of them.
const LENGTH: usize = 16;

/// Records that are in the file, which may be missing: they are numbered from 1.
///
/// # Errors
/// It cannot be read, or what is in it are not the records 1, 2, 3 and so on.
pub fn read(path: &Path) -> io::Result<u64> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(mut file) => file.read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut last = 0;
    for record in bytes.chunks(LENGTH) {
        if record != line(last + 1).as_bytes() {
            let shown = String::from_utf8_lossy(record);
            return Err(io::Error::other(format!("after record {last} of {} comes {shown:?}", path.display())));
        }
        last += 1;
    }
    Ok(last)
}

/// The file, and who appends to it.
#[derive(Debug)]
pub struct Writer {
    file: File,
    last: u64,
}

impl Writer {
    /// Goes on behind what is there.
    ///
    /// # Errors
    /// As [`read`], or it cannot be appended to.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { last: read(path)?, file: File::options().create(true).append(true).open(path)? })
    }

    /// The last record that is there.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Appends a record, and now and then has the file written out and says so.
    ///
    /// # Errors
    /// The file system fails, or nobody listens.
    pub fn append(&mut self, rng: &mut Rng, mouth: Mouth) -> io::Result<()> {
        self.last += 1;
        self.file.write_all(line(self.last).as_bytes())?;
        if rng.once_in(3) {
            self.file.sync_all()?;
            mouth.say(Said::Synced(self.last))?;
        }
        Ok(())
    }
}

/// Appends records from now on, on a thread of its own, with a pause of at most `longest` after each, until the process ends.
///
/// # Errors
/// As [`Writer::open`].
pub fn write(path: &Path, mut rng: Rng, mouth: Mouth, longest: Duration) -> io::Result<()> {
    let mut writer = Writer::open(path)?;
    std::thread::spawn(move || {
        loop {
            if let Err(error) = writer.append(&mut rng, mouth) {
                eprintln!("record {}: {error}", writer.last());
                std::process::exit(3);
            }
            std::thread::sleep(Duration::from_micros(rng.below(longest.as_micros() as u64)));
        }
    });
    Ok(())
}

fn line(number: u64) -> String {
    format!("{number:015}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unbroken_beginning_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("records");
        assert_eq!(read(&path).unwrap(), 0);
        let all: String = (1..=1000).map(line).collect();
        for length in [0, 1, 999] {
            std::fs::write(&path, &all[..length * LENGTH]).unwrap();
            assert_eq!(read(&path).unwrap(), length as u64);
        }
        let hole = all.replace(&line(500), &"\0".repeat(LENGTH));
        for bad in [&all[..40], &all[LENGTH..], &hole, &all.replace(&line(7), "")] {
            std::fs::write(&path, bad).unwrap();
            assert!(read(&path).is_err());
        }
    }
}
