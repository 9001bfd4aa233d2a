//! The interface for those who only read: the attributes of an ephemeral volume of the CSI driver, and the index of instants
//! that it can show.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Attribute: name of the environment, in the pod's namespace.
pub const ENVIRONMENT: &str = "environment";
/// Attribute: a time (RFC 3339), the number of a transaction, or empty for the last commit.
pub const AT: &str = "at";
/// Attribute: `<node>/<epoch>` of a tree that was set aside.
pub const DIVERGED: &str = "diverged";
/// Attribute: what to show, [`SHOW_TREE`] or [`SHOW_HISTORY`].
pub const SHOW: &str = "view";
/// The file tree (default).
pub const SHOW_TREE: &str = "tree";
/// A directory with [`HISTORY_FILE`].
pub const SHOW_HISTORY: &str = "history";
/// A [`History`] as JSON.
pub const HISTORY_FILE: &str = "history.json";

/// Config map that everybody in the cluster may read, in the namespace that Vivarium is installed in: what the command line
/// tool has to know.
pub const TOOL_CONFIG: &str = "vivarium-tool";
/// Key in it: image that holds [`READER`].
pub const TOOL_CONFIG_IMAGE: &str = "readerImage";
/// Program in that image that reads trees for the command line tool.
pub const READER: &str = "/usr/local/bin/ve-reader";

/// Version of [`History`] that this build writes and reads.
pub const VERSION: u32 = 1;

/// Which states of a volume can be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// [`VERSION`].
    pub version: u32,
    /// The volume: UID of its object.
    pub volume: String,
    /// The oldest state is that after this transaction.
    pub oldest: u64,
    /// The newest state is that after this one.
    pub newest: u64,
    /// Where incarnations begin, oldest first, as far back as states can be shown.
    pub epochs: Vec<EpochStart>,
    /// Transactions, oldest first: the newest [`TRANSACTIONS`] of those that can be shown.
    pub transactions: Vec<TransactionEntry>,
    /// Transactions that can be shown, and are older than those.
    pub omitted: u64,
}

/// Most transactions that a [`History`] lists.
pub const TRANSACTIONS: usize = 20_000;

/// First transaction of an incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochStart {
    /// The incarnation.
    pub epoch: u64,
    /// The transaction.
    pub sequence: u64,
}

/// One transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionEntry {
    /// Its number.
    pub sequence: u64,
    /// When it was in the store.
    pub time: Timestamp,
    /// Bytes in the store.
    pub size: u64,
}
