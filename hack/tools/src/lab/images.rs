//! The images that every node gets: the sandbox, busybox for tests, and cluster DNS. Each archive is kept in the cache,
//! named by the digest of what is in it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{
    config::PAUSE,
    error::{Error, io, refused},
};
use crate::{
    build::Programs,
    cache, command,
    oci::{Entry, ImageBuilder},
};

/// Debian's, linked statically.
const BUSYBOX: &str = "/bin/busybox";
/// Grows with the recipes below.
const RECIPE: &str = "1";

/// Archives of all images; made when they are not in the cache.
pub fn ensure(programs: &Programs) -> Result<Vec<PathBuf>, Error> {
    let busybox = Path::new(BUSYBOX);
    Ok(vec![
        archive("pause", busybox, || pause(busybox))?,
        archive("busybox", busybox, || self::busybox(busybox))?,
        archive("coredns", &programs.path("coredns"), || coredns(&programs.path("coredns")))?,
    ])
}

fn archive(name: &str, content: &Path, image: impl FnOnce() -> Result<ImageBuilder, Error>) -> Result<PathBuf, Error> {
    let bytes = fs::read(content).map_err(io("read", content.display()))?;
    let digest = format!("{:x}", Sha256::new_with_prefix(&bytes).chain_update(RECIPE).finalize());
    let folder = cache::root().join("lab-images");
    fs::create_dir_all(&folder).map_err(io("create", folder.display()))?;
    let path = folder.join(format!("{name}-{}.tar", &digest[..12]));
    if !path.exists() {
        let half = path.with_extension("half");
        image()?.write_archive(&half)?;
        fs::rename(&half, &path).map_err(io("rename", half.display()))?;
    }
    Ok(path)
}

/// Holds the namespaces of a pod; whoever wants it gone kills it.
fn pause(program: &Path) -> Result<ImageBuilder, Error> {
    let image = ImageBuilder::new(PAUSE)?.layer_from_files([Entry::file("/bin/busybox", program, 0o755)])?;
    Ok(image.entrypoint(["/bin/busybox", "sleep", "infinity"]).user("65535:65535"))
}

fn busybox(program: &Path) -> Result<ImageBuilder, Error> {
    let applets = command::run(&mut command::command(program, ["--list"]))?;
    if applets.trim().is_empty() {
        return Err(refused(format!("{} --list names no applet", program.display())));
    }
    let mut entries = vec![
        Entry::directory("/tmp", 0o1777),
        Entry::bytes("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", 0o644),
        Entry::bytes("/etc/group", "root:x:0:\nnogroup:x:65534:\n", 0o644),
        Entry::file("/bin/busybox", program, 0o755),
    ];
    entries.extend(
        applets
            .lines()
            .filter(|name| *name != "busybox")
            .map(|name| Entry::symlink(Path::new("/bin").join(name), "busybox")),
    );
    Ok(ImageBuilder::new("docker.io/library/busybox:lab")?.layer_from_files(entries)?.command(["/bin/sh"]))
}

fn coredns(program: &Path) -> Result<ImageBuilder, Error> {
    let image = ImageBuilder::new("registry.k8s.io/coredns/coredns:lab")?;
    Ok(image.layer_from_files([Entry::file("/coredns", program, 0o755)])?.entrypoint(["/coredns"]))
}
