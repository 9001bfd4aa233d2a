//! How long it takes to bring a volume to another node.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;

use vivarium_sys::btrfs;

use super::{Bench, Error, restic, runtime, shell, timed};
use crate::rng::Rng;

const FILES: usize = 20_000;
const LENGTH: usize = 50_000;

pub fn run(bench: &Bench, transactions: u64) -> Result<(), Error> {
    println!("| restored on another node | from the journal | peer | ratio |\n|---|---|---|---|");
    let runtime = runtime()?;
    let (from, to) = (bench.place(0, "large", false)?, bench.place(1, "large", false)?);
    let (mut journal, _) = runtime.block_on(from.begin(1))?;
    let mut rng = Rng::new(1, 3);
    for number in 0..FILES {
        let folder = from.live().join(format!("upper/d{}", number / 100));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("f{number}")), rng.noise(LENGTH))?;
    }
    from.pool.sync()?;
    runtime.block_on(journal.commit())?;
    let (restored, _) = timed(|| Ok(runtime.block_on(to.begin(2))?))?;
    btrfs::snapshot(from.directory("")?.as_fd(), from.pool.root(), c"sent", true)?;
    let (sent, received) = (from.pool.path().join("sent"), to.pool.path());
    let ((peer, _), copied) = (
        timed(|| shell(&format!("btrfs -q send {} | btrfs -q receive {}", sent.display(), received.display())))?,
        received.join("copied"),
    );
    let row = |what: &str, peer_is: &str, ours: std::time::Duration, peer: std::time::Duration| {
        let (ours, peer) = (ours.as_secs_f64(), peer.as_secs_f64());
        println!("| {what} | {ours:.1} s | {peer:.1} s: {peer_is} | {:.2} |", ours / peer);
    };
    row("1 GB in 20,000 files, one transaction", "`btrfs send` and `receive`", restored, peer);
    let copied = copied.display();
    let copy = |name: &str, script: &str| -> Result<(), Error> {
        let (peer, _) = timed(|| shell(&format!("{script}; sync -f {}", received.display())))?;
        row("the same", name, restored, peer);
        Ok(())
    };
    copy("rsync -aHAX", &format!("rsync -aHAX {}/ {copied}", sent.display()))?;
    copy("cp -a", &format!("cp -a --reflink=never {} {copied}.cp", sent.display()))?;
    let restic = restic(&bench.path("backup"));
    shell(&format!("{restic} init; cd {}; {restic} backup .", sent.display()))?;
    copy("restic restore", &format!("{restic} restore latest --target {copied}.restic"))?;

    let (from, to) = (from.with("deltas")?, to.with("deltas")?);
    let (mut journal, _) = runtime.block_on(from.begin(1))?;
    for number in 0..transactions {
        let path = from.live().join(format!("upper/f{}", number % 50));
        File::options().create(true).append(true).open(path)?.write_all(&rng.noise(100))?;
        from.pool.sync()?;
        runtime.block_on(journal.commit())?;
    }
    let (restored, _) = timed(|| Ok(runtime.block_on(to.begin(2))?))?;
    println!(
        "| {transactions} transactions of 100 bytes, no checkpoint | {:.1} s, {:.2} ms each | | |\n",
        restored.as_secs_f64(),
        restored.as_secs_f64() * 1000.0 / transactions as f64
    );
    Ok(())
}
