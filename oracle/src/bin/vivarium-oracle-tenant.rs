//! A tenant in an environment of a real cluster, and what becomes of its tree. `work` changes a tree and appends records beside
//! it until it is killed; what was synced it says on standard output ([`vivarium_oracle::said`]). `tree` tells of each
//! directory, as it lies in the pool of a node, the digest of that tree and the last record, or that nothing is there.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use vivarium_node::journal::tree;
use vivarium_oracle::life::CHANGES;
use vivarium_oracle::records;
use vivarium_oracle::rng::Rng;
use vivarium_oracle::said::Mouth;
use vivarium_oracle::workload::Workload;

const USAGE: &str = "usage: vivarium-oracle-tenant work DIRECTORY SEED LIFE | tree DIRECTORY...";
/// Longest pauses, so that ten tenants share a small machine.
const CHANGE_PACE: Duration = Duration::from_millis(60);
const RECORD_PACE: Duration = Duration::from_millis(300);
/// Streams of random numbers that no change uses.
const STREAM: u64 = 1 << 41;
/// Paths in the volume are longer than those that the tenant knows by so much, at most.
const DEPTH: usize = 64;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["work", directory, seed, life] => match (seed.parse(), life.parse()) {
            (Ok(seed), Ok(life)) => work(Path::new(directory), seed, life),
            _ => Err(io::Error::other(USAGE)),
        },
        ["tree", ref directories @ ..] => directories.iter().try_for_each(|directory| tell(Path::new(directory))),
        _ => Err(io::Error::other(USAGE)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vivarium-oracle-tenant: {error}");
            ExitCode::FAILURE
        }
    }
}

fn work(directory: &Path, seed: u64, life: u32) -> io::Result<()> {
    let stream = |part: u64| Rng::new(seed, STREAM + (u64::from(life) << 8) + part);
    let path = directory.join("tree");
    std::fs::create_dir_all(&path)?;
    records::write(&directory.join("records"), stream(0), Mouth::open(), RECORD_PACE)?;
    let root = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut workload = Workload::new(root.as_fd(), DEPTH, &[], seed);
    Err(workload.go_on(life * CHANGES, &mut stream(1), CHANGE_PACE))
}

fn tell(directory: &Path) -> io::Result<()> {
    let path = directory.join("tree");
    match rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(root) => println!("{} {}", tree::digest(root.as_fd())?, records::read(&directory.join("records"))?),
        Err(rustix::io::Errno::NOENT) => println!("nothing 0"),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
