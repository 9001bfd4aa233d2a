//! How large a transaction is, beside what others write of the same change: plain `btrfs send`, which knows of no template;
//! restic's repository grows; rsync would send.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use vivarium_node::journal::commit::Journal;
use vivarium_sys::btrfs;

use super::{Bench, Error, bytes, restic, runtime, shell};
use crate::place::Place;
use crate::rng::Rng;
use crate::template;

const LARGE: usize = 200_000_000;
/// Files of the template, and of a package.
const FILES: usize = 5000;
const PACKAGE: usize = 300;

pub fn run(bench: &Bench) -> Result<(), Error> {
    lay_template(bench)?;
    let place = bench.place(0, "sizes", true)?;
    let runtime = runtime()?;
    let (mut journal, _) = runtime.block_on(place.begin(1))?;
    let root = template::overlay(&place.layers, place.directory("")?.as_fd())?;
    place.pool.sync()?;
    runtime.block_on(journal.commit())?;
    let merged = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&root));
    let peers = Peers::begin(bench, &merged)?;
    println!(
        "| change | transaction | `btrfs send -p` | the same with zstd | restic | rsync |\n|---|---|---|---|---|---|"
    );
    let mut row = |what: &str, change: &dyn Fn() -> Result<(), Error>| -> Result<(), Error> {
        let (size, plain, packed) = commit(&place, &mut journal, &runtime, change)?;
        let (grown, sent) = peers.follow()?;
        println!(
            "| {what} | {} | {} | {} | {} | {} |",
            bytes(size),
            bytes(plain),
            bytes(packed),
            bytes(grown),
            bytes(sent)
        );
        Ok(())
    };
    let large = Path::new(&merged).join("large");
    row("one byte at the end of a file of the template with 200 MB", &|| {
        Ok(File::options().append(true).open(&large)?.write_all(b"x")?)
    })?;
    row("one more byte at its end", &|| Ok(File::options().append(true).open(&large)?.write_all(b"y")?))?;
    row("`chmod -R` of 5,000 files of the template", &|| shell(&format!("chmod -R go-r {merged}/tree")).map(drop))?;
    row("`chmod -R` of the same files again", &|| shell(&format!("chmod -R go+r {merged}/tree")).map(drop))?;
    let package = package(bench)?;
    shell(&format!(
        "mkdir -p {merged}/var/lib/dpkg/info {merged}/var/lib/dpkg/updates; : > {merged}/var/lib/dpkg/status"
    ))?;
    let install = format!("dpkg --root={merged} --log=/dev/null --force-bad-path --install {}", package.display());
    row("a package of 300 files and 3 MB that do not compress is installed", &|| shell(&install).map(drop))?;
    row("it is installed again", &|| shell(&install).map(drop))?;
    drop(root);
    println!();
    Ok(())
}

/// Those that look at the tree as the tenant sees it.
struct Peers<'a> {
    merged: &'a str,
    repository: PathBuf,
    mirror: PathBuf,
    batch: PathBuf,
}

impl<'a> Peers<'a> {
    fn begin(bench: &Bench, merged: &'a str) -> Result<Self, Error> {
        let [repository, mirror, batch] = ["restic", "mirror", "batch"].map(|name| bench.path(name));
        shell(&format!("{} init", restic(&repository)))?;
        let peers = Self { merged, repository, mirror, batch };
        peers.follow()?;
        Ok(peers)
    }

    /// By how much restic's repository grows, and how much rsync sends, since the last time.
    fn follow(&self) -> Result<(u64, u64), Error> {
        let (merged, mirror, batch) = (self.merged, self.mirror.display(), self.batch.display());
        let size = || -> Result<u64, Error> {
            Ok(shell(&format!("du -sb {} | cut -f 1", self.repository.display()))?.parse()?)
        };
        let before = size()?;
        shell(&format!("cd {merged}; {} backup .", restic(&self.repository)))?;
        let grown = size()? - before;
        shell(&format!("rsync -aHAX --delete --no-whole-file --write-batch={batch} {merged}/ {mirror}"))?;
        Ok((grown, fs::metadata(&self.batch)?.len()))
    }
}

/// One commit, and what the kernel's stream is for the same difference.
fn commit(
    place: &Place,
    journal: &mut Journal,
    runtime: &tokio::runtime::Runtime,
    change: &dyn Fn() -> Result<(), Error>,
) -> Result<(u64, u64, u64), Error> {
    let directory = place.aside().join("pool");
    let (before, after) = (directory.join("before"), directory.join("after"));
    let snapshot = |name| -> Result<(), Error> {
        Ok(btrfs::snapshot(place.directory("")?.as_fd(), place.pool.root(), name, true)?)
    };
    place.pool.sync()?;
    snapshot(c"before")?;
    change()?;
    place.pool.sync()?;
    let committed = runtime.block_on(journal.commit())?;
    snapshot(c"after")?;
    let send = format!("btrfs --quiet send -p {} {}", before.display(), after.display());
    let count = |script: &str| -> Result<u64, Error> { Ok(shell(script)?.parse()?) };
    let sizes = (committed.bytes, count(&format!("{send} | wc -c"))?, count(&format!("{send} | zstd -q -3 | wc -c"))?);
    for name in [c"before", c"after"] {
        btrfs::destroy_subvolume(place.pool.root(), name)?;
    }
    Ok(sizes)
}

/// Puts two layers where the place looks for them.
fn lay_template(bench: &Bench) -> Result<(), Error> {
    let place = bench.place(0, "none", false)?;
    for digit in ["1", "2"] {
        let path = place.pool.templates_path().join(format!("sha256-{}", digit.repeat(64)));
        let name = std::ffi::CString::new(path.file_name().unwrap_or_default().as_encoded_bytes())?;
        btrfs::create_subvolume(place.pool.templates(), &name)?;
        if digit == "1" {
            let mut rng = Rng::new(1, 1);
            fs::write(path.join("large"), rng.noise(LARGE))?;
            for number in 0..FILES {
                let folder = path.join("tree").join(format!("d{}", number / 50));
                fs::create_dir_all(&folder)?;
                let length = 200 + number % 9000;
                fs::write(folder.join(format!("f{number}")), rng.noise(length))?;
            }
        }
        btrfs::set_read_only(File::open(&path)?.as_fd(), true)?;
    }
    Ok(())
}

fn package(bench: &Bench) -> Result<std::path::PathBuf, Error> {
    let (tree, file) = (bench.path("package"), bench.path("package.deb"));
    let mut rng = Rng::new(2, 2);
    fs::create_dir_all(tree.join("DEBIAN"))?;
    fs::create_dir_all(tree.join("usr/share/package"))?;
    for number in 0..PACKAGE {
        fs::write(tree.join(format!("usr/share/package/f{number}")), rng.noise(10_000))?;
    }
    let control =
        "Package: package\nVersion: 1\nArchitecture: all\nMaintainer: v <v@example.org>\nDescription: a package\n";
    fs::write(tree.join("DEBIAN/control"), control)?;
    shell(&format!("dpkg-deb -Znone --build {} {}", tree.display(), file.display()))?;
    Ok(file)
}
