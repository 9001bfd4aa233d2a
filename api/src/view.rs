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

impl History {
    /// Puts before it what an older log of the volume has of what came before this one begins.
    pub fn precede(&mut self, older: Self) {
        if older.newest == 0 || older.oldest >= self.oldest {
            return;
        }
        let before = |sequence: u64| sequence < self.oldest;
        let mut epochs: Vec<_> = older.epochs.into_iter().filter(|start| before(start.sequence)).collect();
        let mut transactions: Vec<_> = older.transactions.into_iter().filter(|entry| before(entry.sequence)).collect();
        // What this one begins with is no beginning of an incarnation if the older one has that.
        let known = epochs.last().map(|start| start.epoch);
        epochs.extend(self.epochs.iter().filter(|start| Some(start.epoch) != known));
        transactions.append(&mut self.transactions);
        let surplus = transactions.len().saturating_sub(TRANSACTIONS);
        transactions.drain(..surplus);
        self.omitted += older.omitted + surplus as u64;
        (self.oldest, self.epochs, self.transactions) = (older.oldest, epochs, transactions);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn history(epochs: &[(u64, u64)], numbers: std::ops::RangeInclusive<u64>, omitted: u64) -> History {
        let (oldest, newest) = (*numbers.start(), *numbers.end());
        let entry = |sequence| TransactionEntry { sequence, time: Timestamp::UNIX_EPOCH, size: 1 };
        History {
            version: VERSION,
            volume: "v".into(),
            oldest,
            newest,
            epochs: epochs.iter().map(|(epoch, sequence)| EpochStart { epoch: *epoch, sequence: *sequence }).collect(),
            transactions: numbers.skip(usize::try_from(omitted).unwrap()).map(entry).collect(),
            omitted,
        }
    }

    #[test]
    fn what_an_older_log_has_comes_before_and_nothing_twice() {
        // The older one has two transactions that are in the newer one as well, and the newer one begins within an incarnation.
        let mut newer = history(&[(2, 8), (3, 11)], 8..=12, 0);
        newer.precede(history(&[(1, 3), (2, 6)], 3..=9, 1));
        assert_eq!(newer, history(&[(1, 3), (2, 6), (3, 11)], 3..=12, 1));
        // One that is gone.
        let before = newer.clone();
        newer.precede(history(&[], 0..=0, 0));
        assert_eq!(newer, before);
    }
}
