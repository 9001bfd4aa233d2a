//! What a tenant pays for commits once a second: workloads on a volume, with them, with snapshots alone, and without, in turn.

use std::ffi::CString;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use vivarium_node::journal::commit::Journal;
use vivarium_sys::btrfs;

use super::{Bench, Error, median, runtime, shell};
use crate::application::{Application, Home};
use crate::place::Place;
use crate::rng::Rng;

/// File system in memory.
const MEMORY: &str = "/dev/shm";
const PACE: Duration = Duration::from_secs(1);
/// Files of the tree.
const FILES: usize = 20_000;

/// What is done, and how.
type Workload = (&'static str, Box<dyn Fn() -> Result<(), Error>>);

pub fn run(bench: &Bench, runs: usize) -> Result<(), Error> {
    println!(
        "| workload, median of {runs} | alone | with snapshots | more | with commits | more |\n|---|---|---|---|---|---|"
    );
    // A store is on other disks than those of the tenant that is measured.
    let elsewhere = tempfile::Builder::new().prefix("vivarium-bench").tempdir_in(MEMORY)?;
    let place = bench.place_with(0, "overhead", false, elsewhere.path())?;
    let runtime = runtime()?;
    let (mut journal, _) = runtime.block_on(place.begin(1))?;
    let home = place.live().join("data");
    for (what, workload) in workloads(&home)? {
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        for run in 0..runs * times.len() {
            place.pool.sync()?;
            runtime.block_on(journal.commit())?;
            let number = run % times.len();
            let mut beside = match number {
                0 => Beside::Nothing,
                1 => Beside::Snapshots { place: &place, taken: 0 },
                _ => Beside::Commits { place: &place, runtime: &runtime, journal: &mut journal },
            };
            let stop = AtomicBool::new(false);
            let taken = std::thread::scope(|scope| {
                let rounds = scope.spawn(|| beside.rounds(&stop).map_err(|error| error.to_string()));
                let begun = Instant::now();
                let worked = workload();
                let taken = begun.elapsed();
                stop.store(true, Ordering::Relaxed);
                rounds.join().unwrap_or_else(|_| Err("what ran beside the workload failed".into()))?;
                worked.map(|()| taken)
            })?;
            times[number].push(taken);
        }
        let [alone, snapshots, commits] = times.each_mut().map(|times| median(times).as_secs_f64());
        let more = |with: f64| (with / alone - 1.0) * 100.0;
        println!(
            "| {what} | {alone:.2} s | {snapshots:.2} s | {:+.0} % | {commits:.2} s | {:+.0} % |",
            more(snapshots),
            more(commits)
        );
    }
    println!();
    fits(&place)
}

/// What runs beside a workload.
enum Beside<'a> {
    Nothing,
    /// What no journal on btrfs can do without: a snapshot, in place of the one before.
    Snapshots {
        place: &'a Place,
        taken: u64,
    },
    Commits {
        place: &'a Place,
        runtime: &'a Runtime,
        journal: &'a mut Journal,
    },
}

impl Beside<'_> {
    /// One round a second until it is to stop.
    fn rounds(&mut self, stop: &AtomicBool) -> Result<(), Error> {
        while !stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            self.round()?;
            while begun.elapsed() < PACE && !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        if let Self::Snapshots { place, taken: taken @ 1.. } = self {
            drop_snapshot(place, *taken)?;
        }
        Ok(())
    }

    fn round(&mut self) -> Result<(), Error> {
        match self {
            Self::Nothing => {}
            Self::Snapshots { place, taken } => {
                place.pool.sync()?;
                let [live, parent] = ["", ".."].map(|below| place.directory(below));
                btrfs::snapshot(live?.as_fd(), parent?.as_fd(), &snapshot(*taken + 1)?, true)?;
                if *taken > 0 {
                    drop_snapshot(place, *taken)?;
                }
                *taken += 1;
            }
            Self::Commits { place, runtime, journal } => {
                place.pool.sync()?;
                runtime.block_on(journal.commit())?;
            }
        }
        Ok(())
    }
}

fn snapshot(number: u64) -> Result<CString, Error> {
    Ok(CString::new(format!("snapshot{number}"))?)
}

fn drop_snapshot(place: &Place, number: u64) -> Result<(), Error> {
    Ok(btrfs::destroy_subvolume(place.directory("..")?.as_fd(), &snapshot(number)?)?)
}

/// Each takes long enough that some commits fall into it. What they start from is made here.
fn workloads(home: &Path) -> Result<Vec<Workload>, Error> {
    lay_tree(home)?;
    let at = home.display().to_string();
    let script = |script: String| Box::new(move || shell(&script).map(drop));
    // Nobody but benchmarks reserves the space of a file before writing it.
    let fio = |job: &str| format!("fio --output=/dev/null --directory={at} --fallocate=none {job}");
    shell(&fio("--name=random --filename=random --rw=write --bs=1M --size=256M --end_fsync=1"))?;
    let database = Home::open(Application::Postgres, home, &std::env::temp_dir())?;
    let server = database.serve()?;
    server.pgbench(&["--initialize", "--quiet", "--scale=10"])?;
    Ok(vec![
        (
            "fio: 1 GB written one after the other, then fsync",
            script(fio("--name=sequential --rw=write --bs=1M --size=1000M --end_fsync=1 --unlink=1")),
        ),
        (
            "fio: 32,768 blocks of 4 KiB overwritten in 256 MB in random order, fsync after every 32",
            script(fio("--name=random --filename=random --rw=randwrite --bs=4k --size=256M --io_size=128M --fsync=32")),
        ),
        (
            "fio: 2,048 times 4 KiB appended and fsync",
            script(fio("--name=appended --rw=write --bs=4k --size=8M --fsync=1 --unlink=1")),
        ),
        (
            "a tree of 20,000 files unpacked from a tar file",
            script(format!("rm -rf {at}/untarred; mkdir {at}/untarred; tar -C {at}/untarred -xf {at}/tree.tar")),
        ),
        (
            "git status, 20 times, in a tree of 20,000 files",
            script(format!("for i in $(seq 20); do git -C {at}/repository status -s; done")),
        ),
        (
            "pgbench, scale 10, two clients: 4,000 transactions",
            Box::new(move || {
                // The server's socket is there for as long as this is.
                let _database = &database;
                Ok(server.pgbench(&["--no-vacuum", "--client=2", "--jobs=2", "--transactions=2000"])?)
            }),
        ),
    ])
}

/// What is measured is what was meant.
fn fits(place: &Place) -> Result<(), Error> {
    let files = shell(&format!("find {} -type f | wc -l", place.live().join("data/untarred").display()))?;
    if files == FILES.to_string() { Ok(()) } else { Err(format!("{files} files were unpacked").into()) }
}

fn lay_tree(home: &Path) -> Result<(), Error> {
    let mut rng = Rng::new(3, 3);
    let tree = home.join("repository/tree");
    for number in 0..FILES {
        let folder = tree.join(format!("d{}", number / 50));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("f{number}")), rng.noise(number % 7000))?;
    }
    let at = home.display();
    shell(&format!("tar -C {at}/repository -cf {at}/tree.tar tree"))?;
    shell(&format!("cd {at}/repository; git init -q; git add -A; git -c user.name=v -c user.email=v@v commit -qm all"))
        .map(drop)
}
