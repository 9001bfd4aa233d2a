//! Transaction files (`.vtx`): every change of a volume as one checked, self-contained file.
//!
//! The crate knows formats and touches no file system: [`write::Writer`] encodes to any [`std::io::Write`],
//! [`read::Transaction`] checks a whole file before it gives out the first operation, [`send`] parses what the kernel
//! says has changed (`BTRFS_IOC_SEND`), and [`translate`] turns that into operations. The format is specified in
//! `docs/src/formats/vtx.md`; a change of either changes both.

pub mod header;
pub mod merge;
pub mod op;
pub mod path;
pub mod read;
pub mod send;
pub mod touched;
pub mod translate;
pub mod wire;
pub mod write;

pub use header::{Digest, Header, Kind};
pub use op::Op;
pub use path::TreePath;
