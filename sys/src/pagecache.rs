//! How much of a file is in memory (cachestat(2), Linux 6.5).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The same number on every architecture.
const CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range`; a length of 0 means up to the end.
#[repr(C)]
struct Range {
    offset: u64,
    length: u64,
}

/// `struct cachestat`, in pages.
#[repr(C)]
#[derive(Default)]
struct Stat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Pages of a file that are in the page cache. `ENOSYS`: the kernel is older than 6.5.
pub fn cached_pages(file: BorrowedFd<'_>) -> io::Result<u64> {
    let range = Range { offset: 0, length: 0 };
    let mut stat = Stat::default();
    // SAFETY: both structures have the kernel's layout and outlive the call; the kernel reads the one and fills the other.
    let result =
        unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut stat, 0 as libc::c_uint) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(stat.cached) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn what_was_just_written_is_in_memory() {
        let path = std::env::temp_dir().join(format!("vivarium-pagecache-{}", std::process::id()));
        std::fs::write(&path, vec![1; 5 * 4096]).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(cached_pages(file.as_fd()).unwrap(), 5);
    }
}
