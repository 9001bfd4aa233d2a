//! Names in a layer: what they may be, and what those with a meaning of their own mean.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Longest path: what a system call takes, and room for the layer's own.
const PATH_MAX: usize = 3800;
/// Longest name.
const NAME_MAX: usize = 255;
/// Beginning of names that delete (OCI image specification, layers).
const WHITEOUT: &[u8] = b".wh.";
/// Name that hides everything that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A path relative to the layer's root, without `.` and `..`; empty for the root itself.
pub(super) fn relative(raw: &[u8]) -> Result<PathBuf, String> {
    if raw.starts_with(b"/") {
        return Err("its name is absolute".into());
    }
    if raw.contains(&0) {
        return Err("its name holds a NUL".into());
    }
    let mut path = PathBuf::new();
    for name in raw.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err("its name leads out of the layer by '..'".into()),
            name if name.len() > NAME_MAX => return Err(format!("a part of its name is longer than {NAME_MAX} bytes")),
            name => path.push(OsStr::from_bytes(name)),
        }
    }
    if path.as_os_str().len() > PATH_MAX {
        return Err(format!("its name is longer than {PATH_MAX} bytes"));
    }
    Ok(path)
}

/// What a name in a layer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// Just that.
    Plain,
    /// This sibling is deleted.
    Whiteout(&'a OsStr),
    /// Nothing of the lower layers' directory is left.
    Opaque,
}

/// Meaning of the last part of a path.
pub(super) fn meaning(name: &OsStr) -> Result<Meaning<'_>, String> {
    let bytes = name.as_bytes();
    if bytes == OPAQUE {
        return Ok(Meaning::Opaque);
    }
    match bytes.strip_prefix(WHITEOUT) {
        None => Ok(Meaning::Plain),
        Some(b"" | b"." | b"..") => Err("it is a whiteout of nothing that has a name".into()),
        // Names of this kind belong to tools that were never in use with OCI images.
        Some(rest) if rest.starts_with(WHITEOUT) => Err("it is a whiteout of a whiteout".into()),
        Some(rest) => Ok(Meaning::Whiteout(OsStr::from_bytes(rest))),
    }
}

/// Whether a directory on the way has the name of a whiteout: then nothing can be in it.
pub(super) fn in_whiteout(parent: &Path) -> bool {
    parent.iter().any(|name| name.as_bytes().starts_with(WHITEOUT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_plain() {
        for (raw, path) in [("./", ""), (".", ""), ("./a/b/", "a/b"), ("a//b/./c", "a/b/c"), ("...", "...")] {
            assert_eq!(relative(raw.as_bytes()), Ok(PathBuf::from(path)), "{raw}");
        }
    }

    #[test]
    fn ways_out_of_the_layer_are_refused() {
        let (name, path) = ("n".repeat(256), "d/".repeat(2000));
        for raw in ["/", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "a\0b", &name, &path] {
            assert!(relative(raw.as_bytes()).is_err(), "{raw}");
        }
    }

    #[test]
    fn whiteouts_are_told_by_name() {
        assert_eq!(meaning("x".as_ref()), Ok(Meaning::Plain));
        assert_eq!(meaning(".wh.x".as_ref()), Ok(Meaning::Whiteout("x".as_ref())));
        assert_eq!(meaning(".wh..wh..opq".as_ref()), Ok(Meaning::Opaque));
        for bad in [".wh.", ".wh..", ".wh...", ".wh..wh.x"] {
            assert!(meaning(bad.as_ref()).is_err(), "{bad}");
        }
    }
}
