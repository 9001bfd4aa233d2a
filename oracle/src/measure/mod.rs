//! What journals cost: figures for `docs/benchmarks.md`, each beside a peer that does the same in the same run. Machines are
//! shared and noisy, so the two are taken in turn, and the ratio is what to read. Prints Markdown.

mod latency;
mod overhead;
mod restore;
mod sizes;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use vivarium_node::pool::PoolSource;

use crate::place::{Conditions, Error, Place};

/// Sparse; room for a gigabyte in a volume, its copy and its transactions.
const POOL: u64 = 12 << 30;

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Runs of each workload, with commits and without in turn.
    pub runs: usize,
    /// Transactions of which a volume is restored.
    pub transactions: u64,
}

/// Measures and prints, with pools in files below `directory`.
///
/// # Errors
/// Something cannot be measured.
pub fn run(directory: &Path, effort: Effort) -> Result<(), Error> {
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!("Load of the machine at the beginning: {}\n", load.split(' ').next().unwrap_or_default());
    let bench = Bench { directory: tempfile::Builder::new().prefix("vivarium-bench").tempdir_in(directory)? };
    sizes::run(&bench)?;
    latency::run(&bench)?;
    restore::run(&bench, effort.transactions)?;
    overhead::run(&bench, effort.runs)
}

/// Two nodes and a store.
#[derive(Debug)]
struct Bench {
    directory: TempDir,
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn state(&self, node: usize) -> PathBuf {
        self.path(&format!("node{node}"))
    }

    fn place(&self, node: usize, volume: &str, layered: bool) -> Result<Place, Error> {
        self.place_with(node, volume, layered, &self.path("store"))
    }

    /// The same with another store than the others have.
    fn place_with(&self, node: usize, volume: &str, layered: bool, store: &Path) -> Result<Place, Error> {
        let conditions = Conditions { layered, pool: PoolSource::File { size: POOL }, ..Conditions::plain(volume) };
        Place::open(&self.state(node), store, &conditions)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for node in 0..2 {
            let pool = self.state(node).join("pool");
            let _ = rustix::mount::unmount(pool, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Runs a shell script of one line, which stands for a peer; what it prints.
fn shell(script: &str) -> Result<String, Error> {
    let output = Command::new("sh").args(["-ec", script]).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(format!("{script}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// How a command of restic begins that is about a repository.
fn restic(repository: &Path) -> String {
    format!("RESTIC_PASSWORD=v restic --quiet --no-cache -r {}", repository.display())
}

fn timed<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<(Duration, T), Error> {
    let begun = Instant::now();
    let done = work()?;
    Ok((begun.elapsed(), done))
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn bytes(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{:.1} KB", count as f64 / 1e3),
        _ => format!("{:.1} MB", count as f64 / 1e6),
    }
}
