//! Why a check does not hold: a sentence for the report. What goes wrong here is only ever told, never acted upon, so
//! every cause is turned into text where it occurs.

use std::{fmt, path::Path};

/// One sentence, or several lines.
#[derive(Debug)]
pub struct Failure(pub String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Fails with `message` unless it holds.
pub fn ensure(holds: bool, message: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(Failure(message())) }
}

/// The content of a file without the blanks at its end, or a failure that names the file.
pub fn read(path: impl AsRef<Path>) -> Result<String, Failure> {
    let path = path.as_ref();
    let text =
        std::fs::read_to_string(path).map_err(|error| Failure(format!("cannot read {}: {error}", path.display())))?;
    Ok(text.trim_end().to_owned())
}

/// Writes a file, or fails with its name.
pub fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<(), Failure> {
    let path = path.as_ref();
    std::fs::write(path, content).map_err(|error| Failure(format!("cannot write {}: {error}", path.display())))
}

/// Makes a directory with its parents, or fails with its name.
pub fn directory(path: impl AsRef<Path>) -> Result<(), Failure> {
    let path = path.as_ref();
    std::fs::create_dir_all(path).map_err(|error| Failure(format!("cannot create {}: {error}", path.display())))
}
