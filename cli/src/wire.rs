//! What `ve-reader` prints: one JSON document a line. Names and targets are bytes, because tenants choose them.

use serde::{Deserialize, Serialize};

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Type {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Link,
    /// Character device.
    Character,
    /// Block device.
    Block,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

/// A name and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Path below the root of the tree, or a name in a directory.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Type,
    /// Permissions, with set-user-ID and the like.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file.
    pub size: u64,
    /// Time of change, in seconds and nanoseconds since 1970.
    pub modified: (i64, u32),
    /// Where a link points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Vec<u8>>,
    /// Number of a device.
    pub device: u64,
}

/// In what way something differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aspect {
    /// Another type.
    Type,
    /// Other bytes, another target of a link, or another device.
    Content,
    /// Other permissions.
    Mode,
    /// Another owner or group.
    Owner,
    /// Other extended attributes (access control lists and capabilities are such).
    Attributes,
}

/// A difference between two trees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// As it was; none: it was not there.
    pub before: Option<Entry>,
    /// As it is; none: it is not there.
    pub after: Option<Entry>,
    /// What differs, if it is there in both.
    pub aspects: Vec<Aspect>,
    /// Names below a directory that came or went.
    pub below: u64,
}
