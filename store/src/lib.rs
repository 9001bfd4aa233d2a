//! Objects of journals and templates in stores that others operate: S3, or a local directory.
//!
//! What is guaranteed: an object is written by create-if-absent alone, so of several writers of one [`Key`] at most one
//! is ever told that it succeeded, whatever answers were lost ([`Store::create`]); what is read was checked as far as
//! the store's own format goes ([`Store::read`]); a store that only pretends to be atomic is found out
//! ([`Store::prove`]). A store with mirrors acknowledges what all of them have ([`Store::with_mirrors`]).
//!
//! What is left to others: what the bytes mean, who may write which key, and when something may be deleted. The names
//! and the layout of large objects are specified in `docs/src/formats/store.md`.

mod config;
mod create;
mod durable;
mod failure;
#[cfg(feature = "faults")]
pub mod faults;
mod key;
mod maintain;
mod manifest;
mod mirror;
#[cfg(feature = "kubernetes")]
pub mod object;
mod open;
mod prove;
mod read;
mod retry;
mod store;
mod sweep;
mod writer;

pub use config::{Backend, Config, ConfigError, Credential, S3};
pub use create::{CreateError, Created, Source};
pub use failure::{Cause, Failure};
pub use key::{Key, KeyError, Name, Prefix};
pub use maintain::{Listed, MaintainError};
pub use mirror::MendError;
pub use open::OpenError;
pub use prove::{Proof, ProveError};
pub use read::{Content, Object, ReadError, Slice, Span};
pub use store::{Sizes, Store};
pub use sweep::Used;

/// BLAKE3 of a content.
pub type Digest = [u8; 32];
/// Until when something is tried.
pub type Deadline = tokio::time::Instant;

/// Largest object that is written in one request; a larger content is split. Bounds the memory that a request takes.
pub const PART_SIZE: usize = 16 << 20;
