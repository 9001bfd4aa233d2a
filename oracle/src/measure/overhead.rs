//! What a tenant pays for commits once a second: workloads on a volume, with them and without in turn.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Bench, Error, median, runtime, shell};
use crate::application::{Application, Home};
use crate::place::Place;
use crate::rng::Rng;

const PACE: Duration = Duration::from_secs(1);
const BLOCK: usize = 4096;

type Workload = (&'static str, fn(&Path) -> Result<(), Error>);

const WORKLOADS: [Workload; 6] = [
    ("256 MB written one after the other, then fsync", sequential),
    ("20,000 blocks of 4 KiB overwritten in 128 MB in random order, fsync after every 1,000", random),
    ("300 times 4 KiB appended and fsync", fsync),
    ("a tree of 5,000 files unpacked from a tar file", untar),
    ("git status, 5 times, in a tree of 5,000 files", git_status),
    ("PostgreSQL: 500 transactions", transactions),
];

pub fn run(bench: &Bench, runs: usize) -> Result<(), Error> {
    println!("| workload, median of {runs} | without commits | with commits once a second | more |\n|---|---|---|---|");
    let place = bench.place(0, "overhead", false)?;
    let runtime = runtime()?;
    let (mut journal, _) = runtime.block_on(place.begin(1))?;
    let home = place.live().join("data");
    prepare(&home)?;
    for (what, workload) in WORKLOADS {
        let mut times = [Vec::new(), Vec::new()];
        for run in 0..runs * 2 {
            place.pool.sync()?;
            runtime.block_on(journal.commit())?;
            let is_committed = run % 2 == 1;
            let (stop, journal) = (AtomicBool::new(!is_committed), &mut journal);
            let taken = std::thread::scope(|scope| {
                let commits = scope.spawn(|| -> Result<(), String> {
                    while !stop.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        place.pool.sync().map_err(|error| error.to_string())?;
                        runtime.block_on(journal.commit()).map_err(|error| error.to_string())?;
                        while begun.elapsed() < PACE && !stop.load(Ordering::Relaxed) {
                            std::thread::sleep(Duration::from_millis(10));
                        }
                    }
                    Ok(())
                });
                let begun = Instant::now();
                let worked = workload(&home);
                let taken = begun.elapsed();
                stop.store(true, Ordering::Relaxed);
                commits.join().unwrap_or_else(|_| Err("the commits failed".into()))?;
                worked.map(|()| taken)
            })?;
            times[usize::from(is_committed)].push(taken);
        }
        let [without, with] = times.each_mut().map(|times| median(times).as_secs_f64());
        println!("| {what} | {without:.2} s | {with:.2} s | {:+.0} % |", (with / without - 1.0) * 100.0);
    }
    println!();
    fits(&place)
}

/// What is measured is what was meant.
fn fits(place: &Place) -> Result<(), Error> {
    let files = shell(&format!("find {} -type f | wc -l", place.live().join("data/untarred").display()))?;
    if files == "5000" { Ok(()) } else { Err(format!("{files} files were unpacked").into()) }
}

fn prepare(home: &Path) -> Result<(), Error> {
    let mut rng = Rng::new(3, 3);
    let tree = home.join("repository/tree");
    for number in 0..5000 {
        let folder = tree.join(format!("d{}", number / 50));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("f{number}")), rng.noise(number % 7000))?;
    }
    let at = home.display();
    shell(&format!("tar -C {at}/repository -cf {at}/tree.tar tree"))?;
    shell(&format!(
        "cd {at}/repository; git init -q; git add -A; git -c user.name=v -c user.email=v@v commit -qm all"
    ))?;
    let file = File::create(home.join("random"))?;
    for block in 0..128 {
        file.write_all_at(&rng.noise(1 << 20), block << 20)?;
    }
    Ok(file.sync_all()?)
}

fn sequential(home: &Path) -> Result<(), Error> {
    let block = Rng::new(4, 4).noise(1 << 20);
    let file = File::create(home.join("sequential"))?;
    for number in 0..256 {
        file.write_all_at(&block, number << 20)?;
    }
    Ok(file.sync_all()?)
}

fn random(home: &Path) -> Result<(), Error> {
    let mut rng = Rng::new(5, 5);
    let block = rng.noise(BLOCK);
    let file = File::options().write(true).open(home.join("random"))?;
    for number in 1..=20_000 {
        file.write_all_at(&block, rng.below(128 << 8) * BLOCK as u64)?;
        if number % 1000 == 0 {
            file.sync_all()?;
        }
    }
    Ok(())
}

fn fsync(home: &Path) -> Result<(), Error> {
    let file = File::create(home.join("appended"))?;
    for number in 0..300 {
        file.write_all_at(&[7; BLOCK], number * BLOCK as u64)?;
        file.sync_all()?;
    }
    Ok(())
}

fn untar(home: &Path) -> Result<(), Error> {
    let at = home.display();
    shell(&format!("rm -rf {at}/untarred; mkdir {at}/untarred; tar -C {at}/untarred -xf {at}/tree.tar")).map(drop)
}

fn git_status(home: &Path) -> Result<(), Error> {
    let at = home.display();
    shell(&format!("for i in 1 2 3 4 5; do git -C {at}/repository status -s; done")).map(drop)
}

fn transactions(home: &Path) -> Result<(), Error> {
    let mut postgres = Home::open(Application::Postgres, home, &std::env::temp_dir())?;
    let done = postgres.verify()?;
    (done + 1..=done + 500).try_for_each(|number| Ok(postgres.step(number)?))
}
