//! Container images without a container engine: [`ImageBuilder`] makes layers, configuration, manifest and index of an
//! OCI image (image-spec 1.1) from files or tar archives, [`ImageBuilder::write_archive`] puts them into a tarball that
//! `ctr images import` and `skopeo` read, [`Archive::push`] takes one of those into a registry over plain HTTP. What is built depends
//! on the input alone: time stamps are zero, so that the same files give the same digests.

mod archive;
mod build;
mod digest;
mod layer;
mod push;
mod reference;

use std::{io, path::PathBuf};

pub use archive::Archive;
pub use build::ImageBuilder;
pub use layer::{Compression, Entry};

/// Why an image could not be made or handed over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {attempt} {path}", path = path.display())]
    File { attempt: &'static str, path: PathBuf, source: io::Error },
    #[error("`{0}` is not an image reference of the form [registry/]repository:tag")]
    Reference(String),
    #[error("{path} is no image archive: {what}", path = path.display())]
    Archive { path: PathBuf, what: &'static str },
    #[error("the registry at {registry} did not {attempt}")]
    Http { registry: String, attempt: String, source: Box<ureq::Error> },
    #[error("the registry at {registry} answered {status} when asked to {attempt}: {body}")]
    Status { registry: String, attempt: String, status: u16, body: String },
}

impl Error {
    fn file(attempt: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { attempt, path, source }
    }
}
