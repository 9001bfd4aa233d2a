//! How long a commit of many volumes takes, beside a snapshot and `btrfs send` into a synced file for each.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use vivarium_node::journal::commit::Journal;

use super::{Bench, Error, runtime, shell, timed};
use crate::place::Place;

/// As the keeper does it (`volume-driver/src/journal/keeper.rs`).
const AT_ONCE: usize = 32;

pub fn run(bench: &Bench) -> Result<(), Error> {
    println!(
        "| volumes with 4 KiB of changes each | all committed | of that, syncfs | snapshot and `btrfs send` of each, one by one | ratio |\n|---|---|---|---|---|"
    );
    let place = bench.place(1, "none", false)?;
    let runtime = runtime()?;
    let mut volumes: Vec<(Place, Journal)> = Vec::new();
    for count in [1, 10, 100, 500] {
        while volumes.len() < count {
            let volume = place.with(&format!("v{}", volumes.len()))?;
            let (journal, _) = runtime.block_on(volume.begin(1))?;
            volumes.push((volume, journal));
        }
        // The first commit of a volume is of all of it.
        for (round, fill) in [(0, "a"), (1, "b")] {
            for (volume, _) in &volumes {
                fs::write(volume.live().join("upper/file"), fill.repeat(4096))?;
            }
            if round == 1 {
                prepare_peer(&volumes)?;
            }
            let (synced, ()) = timed(|| Ok(place.pool.sync()?))?;
            let (committed, ()) = timed(|| runtime.block_on(commit(&mut volumes)))?;
            if round == 1 {
                let (peer, ()) = timed(|| send_each(&volumes))?;
                let ours = synced + committed;
                let ms = |time: Duration| time.as_secs_f64() * 1000.0;
                println!(
                    "| {count} | {:.0} ms | {:.0} ms | {:.0} ms | {:.2} |",
                    ms(ours),
                    ms(synced),
                    ms(peer),
                    ms(ours) / ms(peer)
                );
            }
        }
    }
    println!();
    Ok(())
}

async fn commit(volumes: &mut Vec<(Place, Journal)>) -> Result<(), Error> {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let tasks: Vec<_> = std::mem::take(volumes)
        .into_iter()
        .map(|(place, mut journal)| {
            let permits = permits.clone();
            tokio::spawn(async move {
                let _permit = permits.acquire_owned().await;
                let committed = journal.commit().await;
                (place, journal, committed)
            })
        })
        .collect();
    for task in tasks {
        let (place, journal, committed) = task.await?;
        if committed?.bytes == 0 {
            return Err("a volume that had changed was not committed".into());
        }
        volumes.push((place, journal));
    }
    Ok(())
}

/// The peer's base: a snapshot before the change.
fn prepare_peer(volumes: &[(Place, Journal)]) -> Result<(), Error> {
    for (volume, _) in volumes {
        let (live, directory) = (volume.live(), volume.live().with_file_name("peer"));
        fs::create_dir_all(&directory)?;
        shell(&format!(
            "cd {d}; for s in old new; do [ ! -e $s ] || btrfs -q subvolume delete $s; done; \
             btrfs -q subvolume snapshot -r {l} old; printf c >> {l}/upper/file",
            d = directory.display(),
            l = live.display()
        ))?;
    }
    Ok(())
}

fn send_each(volumes: &[(Place, Journal)]) -> Result<(), Error> {
    for (volume, _) in volumes {
        let (live, directory) = (volume.live(), volume.live().with_file_name("peer"));
        shell(&format!(
            "cd {d}; btrfs -q subvolume snapshot -r {l} new; btrfs -q send -p old -f stream new; sync stream",
            d = directory.display(),
            l = live.display()
        ))?;
    }
    Ok(())
}
