//! Paths in a volume: relative, without anything that could lead out of it.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Longest path in bytes: `PATH_MAX` without its NUL, which is also the most that the kernel's send stream can name.
pub const MAX_PATH: usize = 4095;
/// Longest component in bytes (`NAME_MAX`).
pub const MAX_NAME: usize = 255;

/// A path below the root of a volume, as bytes: components joined by single `/`, none of them empty, `.` or `..`, no
/// NUL. The empty path is the root itself. Names need not be UTF-8: a tenant chooses them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreePath<'a>(&'a [u8]);

/// Bytes that are no path in a volume.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{}' is no path in a volume: {reason}", String::from_utf8_lossy(path))]
pub struct PathError {
    /// The bytes, the first hundred of them.
    pub path: Vec<u8>,
    /// What is wrong.
    pub reason: &'static str,
}

impl<'a> TreePath<'a> {
    /// The root of the volume.
    pub const ROOT: Self = Self(b"");

    /// Checks a path.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PathError> {
        let refuse = |reason| Err(PathError { path: bytes[..bytes.len().min(100)].to_vec(), reason });
        if bytes.is_empty() {
            return Ok(Self::ROOT);
        }
        if bytes.len() > MAX_PATH {
            return refuse("it is longer than 4095 bytes");
        }
        for name in bytes.split(|byte| *byte == b'/') {
            match name {
                b"" => return refuse("it has an empty component"),
                b"." | b".." => return refuse("it has a component '.' or '..'"),
                _ if name.len() > MAX_NAME => return refuse("a component is longer than 255 bytes"),
                _ if name.contains(&0) => return refuse("it has a NUL byte"),
                _ => {}
            }
        }
        Ok(Self(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// As a path of the standard library; empty for the root.
    #[must_use]
    pub fn as_path(self) -> &'a Path {
        Path::new(OsStr::from_bytes(self.0))
    }

    /// Whether it is the root of the volume.
    #[must_use]
    pub fn is_root(self) -> bool {
        self.0.is_empty()
    }

    /// The components, from the root on.
    pub fn components(self) -> impl Iterator<Item = &'a [u8]> {
        self.0.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
    }

    /// Directory and name; `None` for the root.
    #[must_use]
    pub fn split(self) -> Option<(Self, &'a [u8])> {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(at) => Some((Self(&self.0[..at]), &self.0[at + 1..])),
            None if self.0.is_empty() => None,
            None => Some((Self::ROOT, self.0)),
        }
    }
}

impl fmt::Display for TreePath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.0))
    }
}

impl fmt::Debug for TreePath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_relative_paths_without_detours_are_paths() {
        for good in [&b""[..], b"a", b"upper/etc/passwd", b"...", b"a/..b", b"\xff\xfe"] {
            assert_eq!(TreePath::parse(good).unwrap().as_bytes(), good);
        }
        let long_name = vec![b'a'; 256];
        let long_path = [b'a', b'/'].repeat(2048);
        for bad in [&b"/"[..], b"/a", b"a/", b"a//b", b".", b"..", b"a/../b", b"a/.", b"a\0b", &long_name, &long_path] {
            assert!(TreePath::parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_path_splits_into_directory_and_name() {
        let split = |path| TreePath::parse(path).unwrap().split().map(|(dir, name)| (dir.as_bytes(), name));
        assert_eq!(split(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
        assert_eq!(split(b"a"), Some((&b""[..], &b"a"[..])));
        assert_eq!(split(b""), None);
    }
}
