//! Runs cases: commits with the node driver's own code, and says what must hold after each.
//!
//! One bench is one small pool that its cases share, each in a directory of its own. After every commit the subvolume that
//! the transactions were applied to must look like the snapshot, line by line. In the end the same must come out of all
//! transactions applied to a fresh subvolume, and of one whole capture of the last snapshot (a checkpoint).

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;
use vivarium_journal::read::{ReadError, Transaction};
use vivarium_journal::{Digest, Header, Kind};
use vivarium_node::journal::apply::{ApplyError, Target};
use vivarium_node::journal::capture::{CaptureError, Difference, capture};
use vivarium_node::journal::tree;
use vivarium_node::pool::{Pool, PoolError, PoolSource};
use vivarium_sys::btrfs;

use crate::plan::{Plan, Step};
use crate::template;
use crate::workload::{Layer, Workload};

/// Enough for one case at a time, and the rooms that earlier ones have not yet given back.
const POOL_SIZE: u64 = 1 << 30;
/// Lines of a difference that are shown.
const SHOWN: usize = 12;

/// Why a case failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The surroundings: pool, subvolumes, files.
    #[error("the case cannot be run: {0}")]
    Io(#[from] io::Error),
    /// The pool.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A change failed in a way that the state of the tree does not explain.
    #[error("the workload failed: {0}")]
    Workload(io::Error),
    /// No transaction could be made.
    #[error("commit {commit} cannot be captured: {source}")]
    Capture {
        /// Number of the commit, from 1.
        commit: u64,
        /// Why not.
        source: CaptureError,
    },
    /// What was written cannot be read.
    #[error("the transaction of commit {commit} is refused: {source}")]
    Read {
        /// Number of the commit.
        commit: u64,
        /// Why.
        source: ReadError,
    },
    /// What was read cannot be carried out.
    #[error("{what} cannot be applied: {source}")]
    Apply {
        /// Which transaction, to what.
        what: String,
        /// Why not.
        source: ApplyError,
    },
    /// The trees are not equal.
    #[error("{what}: the trees differ\n{difference}")]
    Differs {
        /// After what.
        what: String,
        /// Lines of the snapshot with `-`, of the other tree with `+`.
        difference: String,
    },
    /// A changed name is not in the index.
    #[error("the index of commit {commit} does not have what has changed: {line}")]
    Index {
        /// Number of the commit.
        commit: u64,
        /// The changed line of the tree.
        line: String,
    },
}

/// A pool with a template.
#[derive(Debug)]
pub struct Bench {
    layers: Vec<Layer>,
    pool: Pool,
    cases: u64,
    directory: TempDir,
}

impl Bench {
    /// Makes the pool. Needs root and `mkfs.btrfs`.
    ///
    /// # Errors
    /// The pool cannot be made.
    pub fn new() -> Result<Self, Failure> {
        let directory = crate::place::scratch()?;
        let pool = Pool::open("oracle", &PoolSource::File { size: POOL_SIZE }, directory.path())?;
        let mut bench = Self { layers: Vec::new(), pool, cases: 0, directory };
        for (name, seed) in [("lower", 1), ("upper", 2)] {
            bench.layers.push(template::layer(bench.pool.root(), name, seed)?);
        }
        Ok(bench)
    }

    /// Runs a case to its end or first failure. The log says what was done.
    pub fn run(&mut self, plan: &Plan) -> (Result<(), Failure>, Vec<String>) {
        self.cases += 1;
        let mut log = Vec::new();
        let mut case = Case { bench: self, snapshots: 0, files: Vec::new(), made: BTreeSet::new(), last: Vec::new() };
        let result = case.run(plan, &mut log);
        let cleaned = case.clean();
        (result.and(cleaned.map_err(Failure::Io)), log)
    }

    fn subvolume(&self, name: &str) -> io::Result<OwnedFd> {
        btrfs::create_subvolume(self.pool.root(), &CString::new(name)?)?;
        self.open(name)
    }

    fn open(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(self.pool.root(), name, flags, Mode::empty())?)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.layers.clear();
        let _ = rustix::mount::unmount(self.pool.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

/// A case that runs.
struct Case<'b> {
    bench: &'b Bench,
    snapshots: u64,
    /// Transactions, in order.
    files: Vec<(u64, PathBuf)>,
    /// Subvolumes to be destroyed.
    made: BTreeSet<String>,
    /// The tree at the last commit.
    last: Vec<String>,
}

impl Case<'_> {
    fn run(&mut self, plan: &Plan, log: &mut Vec<String>) -> Result<(), Failure> {
        let source = self.make("source")?;
        let target = self.make("target")?;
        // One case in four is what an environment does: it sees the volume through overlayfs only.
        let overlay = if plan.seed % 4 == 3 {
            for directory in ["upper", "work"] {
                rustix::fs::mkdirat(&source, directory, Mode::from_raw_mode(0o755)).map_err(io::Error::from)?;
            }
            Some(template::overlay(&self.bench.layers, source.as_fd())?)
        } else {
            None
        };
        let (root, depth) = overlay.as_ref().map_or((&source, 0), |root| (root, "upper/".len()));
        let mut workload = Workload::new(root.as_fd(), depth, &self.bench.layers, plan.seed);
        for step in plan.steps.iter().chain([&Step::Commit]) {
            let result = match step {
                Step::Change(number) => workload.change(*number).map_err(Failure::Workload),
                Step::Commit => {
                    workload.log.push(format!("commit {}", self.snapshots + 1));
                    self.commit(&source, &target)
                }
            };
            if result.is_err() {
                log.append(&mut workload.log);
                return result;
            }
        }
        log.append(&mut workload.log);
        self.replay()?;
        self.checkpoint()
    }

    fn name(&self, name: &str) -> String {
        format!("{name}-{}", self.bench.cases)
    }

    fn make(&mut self, name: &str) -> io::Result<OwnedFd> {
        let name = self.name(name);
        let root = self.bench.subvolume(&name)?;
        self.made.insert(name);
        Ok(root)
    }

    fn snapshot(&self, number: u64) -> io::Result<OwnedFd> {
        self.bench.open(&self.name(&format!("snapshot{number}")))
    }

    fn capture(&self, number: u64, base: Option<u64>, header: &Header) -> Result<Option<PathBuf>, Failure> {
        let snapshot = self.snapshot(number)?;
        let layers: io::Result<Vec<_>> =
            self.bench.layers.iter().map(|layer| btrfs::subvolume_info(layer.root.as_fd())).collect();
        let layers = layers?;
        let info = btrfs::subvolume_info(snapshot.as_fd())?;
        let path = self.bench.directory.path().join(format!("{number}-{:?}.vtx", header.kind));
        let file = File::create(&path)?;
        let difference = Difference { snapshot: snapshot.as_fd(), info, base, layers: &layers };
        let summary =
            capture(&difference, header, &file).map_err(|source| Failure::Capture { commit: number, source })?;
        Ok(summary.map(|_| path))
    }

    fn commit(&mut self, source: &OwnedFd, target: &OwnedFd) -> Result<(), Failure> {
        let number = self.snapshots + 1;
        let name = self.name(&format!("snapshot{number}"));
        btrfs::snapshot(
            source.as_fd(),
            self.bench.pool.root(),
            &CString::new(name.as_str()).map_err(io::Error::from)?,
            true,
        )?;
        self.made.insert(name);
        let base = match self.snapshots {
            0 => None,
            old => Some(btrfs::subvolume_info(self.snapshot(old)?.as_fd())?.id),
        };
        self.snapshots = number;
        let captured = self.capture(number, base, &self.header(Kind::Delta, number))?;
        let expected = lines(&self.snapshot(number)?)?;
        if let Some(path) = captured {
            let mut transaction = open(&path, number)?;
            self.apply(&mut transaction, target, &format!("transaction {number}"))?;
            let index = transaction.index().map_err(|source| Failure::Read { commit: number, source })?;
            self.indexed(number, &expected, &index)?;
            self.files.push((number, path));
        }
        compare(&format!("after commit {number}"), &expected, &lines(target)?)?;
        self.last = expected;
        Ok(())
    }

    /// Each line that is new or gone has its name, or that of a directory above, in the index.
    fn indexed(
        &self,
        commit: u64,
        now: &[String],
        index: &[(Vec<u8>, vivarium_journal::touched::What)],
    ) -> Result<(), Failure> {
        let named: BTreeSet<String> = index.iter().map(|(path, _)| quoted(path)).collect();
        let (old, new): (BTreeSet<&String>, BTreeSet<&String>) = (self.last.iter().collect(), now.iter().collect());
        for line in old.symmetric_difference(&new) {
            let known = named.iter().any(|name| {
                // A quoted path ends in a quotation mark; below it, a slash follows in its place.
                let open = &name[..name.len() - 1];
                line.starts_with(name.as_str()) || line.starts_with(&format!("{open}/"))
            });
            // Another name of the same file is touched with it; and the line of the root has no name.
            if !known && !line.starts_with(". ") && !line.contains(" same=") && !linked(line, &self.last, now) {
                return Err(Failure::Index { commit, line: (*line).clone() });
            }
        }
        Ok(())
    }

    fn replay(&mut self) -> Result<(), Failure> {
        let again = self.make("again")?;
        for (number, path) in &self.files {
            self.apply(&mut open(path, *number)?, &again, &format!("transaction {number} from nothing"))?;
        }
        compare("all transactions from nothing", &self.last, &lines(&again)?)
    }

    fn checkpoint(&mut self) -> Result<(), Failure> {
        let whole = self.make("whole")?;
        let header = Header { first: 0, ..self.header(Kind::Checkpoint, self.snapshots) };
        if let Some(path) = self.capture(self.snapshots, None, &header)? {
            self.apply(&mut open(&path, self.snapshots)?, &whole, "the checkpoint")?;
        }
        compare("the checkpoint", &self.last, &lines(&whole)?)
    }

    fn apply(&self, transaction: &mut Transaction<File>, to: &OwnedFd, what: &str) -> Result<(), Failure> {
        let layers: io::Result<Vec<_>> = self.bench.layers.iter().map(|layer| layer.root.try_clone()).collect();
        Target::new(to.try_clone()?, layers?)
            .apply(transaction)
            .map_err(|source| Failure::Apply { what: what.to_owned(), source })
    }

    fn header(&self, kind: Kind, sequence: u64) -> Header {
        Header {
            kind,
            volume: "oracle".into(),
            writer: [1; 16],
            epoch: 1,
            first: sequence,
            sequence,
            parent: Digest::EMPTY,
            time: 0,
            layers: (0..self.bench.layers.len()).map(|number| format!("sha256:{number}")).collect(),
        }
    }

    fn clean(&mut self) -> io::Result<()> {
        for (_, path) in self.files.drain(..) {
            fs::remove_file(path)?;
        }
        for name in std::mem::take(&mut self.made) {
            btrfs::destroy_subvolume(self.bench.pool.root(), &CString::new(name)?)?;
        }
        Ok(())
    }
}

/// A path as [`tree::describe`] begins its line.
#[allow(clippy::unnecessary_debug_formatting, reason = "quoted, and with every odd byte to be seen")]
fn quoted(path: &[u8]) -> String {
    format!("{:?}", OsStr::from_bytes(path))
}

/// Whether a line is of a file with several names: the first of them, which carries the description, may have changed.
fn linked(line: &str, old: &[String], new: &[String]) -> bool {
    let same = format!(" same={}", name_of(line));
    old.iter().chain(new).any(|other| other.ends_with(&same))
}

/// The quoted name that a line begins with.
fn name_of(line: &str) -> &str {
    let mut escaped = false;
    for (at, byte) in line.bytes().enumerate().skip(1) {
        match byte {
            b'"' if !escaped => return &line[..=at],
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    line
}

fn open(path: &Path, commit: u64) -> Result<Transaction<File>, Failure> {
    Transaction::open(File::open(path)?).map_err(|source| Failure::Read { commit, source })
}

fn lines(root: &OwnedFd) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    tree::describe(root.as_fd(), &mut |line| lines.push(line.to_owned()))?;
    Ok(lines)
}

fn compare(what: &str, expected: &[String], found: &[String]) -> Result<(), Failure> {
    if expected == found {
        return Ok(());
    }
    let (old, new): (BTreeSet<&String>, BTreeSet<&String>) = (expected.iter().collect(), found.iter().collect());
    let mut difference = String::new();
    for (sign, line) in old.difference(&new).map(|l| ('-', l)).chain(new.difference(&old).map(|l| ('+', l))).take(SHOWN)
    {
        let count = line.chars().count();
        let (start, end): (String, String) =
            (line.chars().take(80).collect(), line.chars().skip(count.saturating_sub(500).max(80)).collect());
        let _ = writeln!(difference, "{sign} {start}{}{end}", if count > 580 { " [...] " } else { "" });
    }
    Err(Failure::Differs { what: what.to_owned(), difference })
}
