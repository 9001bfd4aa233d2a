//! The images of this repository, built without a container engine: `vivarium/operator` and `vivarium/node` hold static
//! programs, `vivarium/stub` holds nothing, because the file tree of an environment comes from its volume, and
//! `vivarium/sidecars` holds what Kubernetes needs beside a CSI driver.
//!
//! A tag is the version and a digest of the content, so that a changed image has a new name and nodes pull it.

pub mod binaries;
mod closure;

use std::{
    collections::BTreeSet,
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{
    build, cache, lab,
    oci::{self, Archive, Entry, ImageBuilder},
    progress::Step,
};

/// Registry of the lab, where the images go by default.
pub const REGISTRY: &str = "10.250.0.1:5000";

/// What nodes need of btrfs-progs, besides the kernel.
const MKFS: &str = "/usr/sbin/mkfs.btrfs";
/// What nodes need of coreutils: volumes that begin with a tree are copied.
const CP: &str = "/usr/bin/cp";
/// Where programs look for the certificates of authorities.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Certificates of Debian's package ca-certificates, for templates that are pulled over TLS.
const AUTHORITIES: &str = "/usr/share/ca-certificates/mozilla";

/// Arguments of `images`.
#[derive(clap::Args)]
pub struct Args {
    /// Push the images to the lab's registry. Prints the values of the chart that name them, one a line, as `helm --set`
    /// takes them.
    #[arg(long)]
    push: bool,
}

/// The subcommand.
pub fn run(arguments: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let images = build_all()?;
    if arguments.push {
        for image in &images {
            push(&image.archive)?;
        }
        println!("images.registry={REGISTRY}");
        for image in &images {
            println!("images.{}.tag={}", image.name, image.tag);
        }
    } else {
        for image in &images {
            println!("{} {}", image.reference, image.archive.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// An image in the cache.
#[derive(Debug)]
pub struct BuiltImage {
    /// Last part of its repository, and its name in the chart's values.
    pub name: &'static str,
    /// Tag: version and digest of the content.
    pub tag: String,
    /// Full reference in the lab's registry.
    pub reference: String,
    /// Archive of an image layout.
    pub archive: PathBuf,
}

/// Builds the programs and what images are not in the cache yet.
pub fn build_all() -> Result<Vec<BuiltImage>, ImageError> {
    build::ensure_packages()?;
    let binaries = binaries::build()?;
    [operator(&binaries)?, node(&binaries)?, stub(), sidecars()?].into_iter().map(Recipe::build).collect()
}

/// Uploads an archive to the registry that its reference names, which must be the lab's or reachable from there.
pub fn push(archive: &Path) -> Result<(), ImageError> {
    let archive = Archive::open(archive)?;
    let host = archive.reference().split('/').next().unwrap_or_default().to_owned();
    let _step = Step::begin(format!("pushing {}", archive.reference()));
    let pushed = lab::in_control_plane(|| archive.push(&format!("http://{host}")));
    Ok(pushed.map_err(|error| ImageError::Lab(error.to_string()))??)
}

/// What an image is made of.
struct Recipe {
    name: &'static str,
    entries: Vec<Entry>,
    entrypoint: &'static str,
    user: &'static str,
}

impl Recipe {
    fn build(self) -> Result<BuiltImage, ImageError> {
        let repository = format!("{REGISTRY}/vivarium/{}", self.name);
        let image = ImageBuilder::new(&format!("{repository}:unnamed"))?
            .layer_from_files(self.entries)?
            .entrypoint([self.entrypoint])
            .user(self.user)
            .label("org.opencontainers.image.licenses", "Apache-2.0");
        let tag = tag(&image.digest());
        let reference = format!("{repository}:{tag}");
        let folder = cache::root().join("images");
        let archive = folder.join(format!("{}-{tag}.tar", self.name));
        if !archive.exists() {
            let _step = Step::begin(format!("packing {reference}"));
            fs::create_dir_all(&folder).map_err(at("create", &folder))?;
            let unfinished = archive.with_extension("unfinished");
            image.named(&reference)?.write_archive(&unfinished)?;
            fs::rename(&unfinished, &archive).map_err(at("rename", &unfinished))?;
        }
        Ok(BuiltImage { name: self.name, tag, reference, archive })
    }
}

/// Tag of an image with that digest.
fn tag(digest: &str) -> String {
    let digits: String = digest.trim_start_matches("sha256:").chars().take(10).collect();
    format!("{}-{digits}", env!("CARGO_PKG_VERSION"))
}

fn operator(binaries: &binaries::Binaries) -> Result<Recipe, ImageError> {
    let mut entries = base();
    // For stores that are reached over TLS.
    entries.push(Entry::bytes(BUNDLE, authorities()?, 0o644));
    entries.push(Entry::file("/vivarium-operator", &binaries.operator, 0o755));
    Ok(Recipe { name: "operator", entries, entrypoint: "/vivarium-operator", user: "65532:65532" })
}

fn node(binaries: &binaries::Binaries) -> Result<Recipe, ImageError> {
    let mut entries = base();
    entries.push(Entry::bytes(BUNDLE, authorities()?, 0o644));
    entries.push(Entry::file("/usr/local/bin/vivarium-node", &binaries.node, 0o755));
    // For pods that show what somebody reads with `kubectl ve`.
    entries.push(Entry::file("/usr/local/bin/ve-reader", &binaries.reader, 0o755));
    // Not run here: `install-runtime` copies it to the node.
    entries.push(Entry::file("/usr/local/bin/containerd-shim-vivarium-v1", &binaries.shim, 0o755));
    let mut files = BTreeSet::new();
    for program in [MKFS, CP] {
        files.insert(PathBuf::from(program));
        files.extend(closure::of(Path::new(program))?);
    }
    entries.extend(files.into_iter().map(|file| Entry::file(file.clone(), file, 0o755)));
    Ok(Recipe { name: "node", entries, entrypoint: "/usr/local/bin/vivarium-node", user: "0:0" })
}

/// Programs of Kubernetes' storage group, each for a container of its own.
fn sidecars() -> Result<Recipe, ImageError> {
    let mut entries = base();
    let programs = build::ensure_sidecars()?;
    entries.extend(programs.iter().map(|(name, path)| Entry::file(format!("/{name}"), path, 0o755)));
    Ok(Recipe { name: "sidecars", entries, entrypoint: "/csi-provisioner", user: "65532:65532" })
}

/// containerd asks an image for its process and the kubelet for its size; beyond that it is never looked into.
fn stub() -> Recipe {
    let text = "The file tree of this container is that of an environment: its template and its volume.\n";
    let entries = vec![Entry::bytes("/.vivarium/README", text, 0o644)];
    Recipe { name: "stub", entries, entrypoint: "/sbin/init", user: "0:0" }
}

/// What a static program asks a file tree for.
fn base() -> Vec<Entry> {
    vec![
        Entry::directory("/tmp", 0o1777),
        Entry::bytes("/etc/passwd", "root:x:0:0:root:/:/nologin\nvivarium:x:65532:65532:vivarium:/:/nologin\n", 0o644),
        Entry::bytes("/etc/group", "root:x:0:\nvivarium:x:65532:\n", 0o644),
        // What /etc/hosts and cluster DNS say, in the order that every container has.
        Entry::bytes("/etc/nsswitch.conf", "hosts: files dns\n", 0o644),
    ]
}

/// The certificates of the package alone, not what this machine trusts besides.
fn authorities() -> Result<Vec<u8>, ImageError> {
    let folder = Path::new(AUTHORITIES);
    let found = fs::read_dir(folder).and_then(|found| found.map(|entry| entry.map(|entry| entry.path())).collect());
    let mut files: Vec<PathBuf> = found.map_err(at("read", folder))?;
    files.sort();
    let mut bundle = Vec::new();
    for file in files {
        bundle.extend(fs::read(&file).map_err(at("read", &file))?);
        bundle.push(b'\n');
    }
    Ok(bundle)
}

fn at(attempt: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.into();
    move |source| ImageError::File { attempt, path, source }
}

/// Why an image could not be built or pushed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Programs.
    #[error(transparent)]
    Binaries(#[from] binaries::BuildError),
    /// Libraries.
    #[error(transparent)]
    Closure(#[from] closure::ClosureError),
    /// Debian packages.
    #[error(transparent)]
    Packages(#[from] build::Error),
    /// Image.
    #[error(transparent)]
    Image(#[from] oci::Error),
    /// The network of the lab.
    #[error("the lab's registry cannot be reached; is the lab up (hack/lab up)? {0}")]
    Lab(String),
    /// A file.
    #[error("cannot {attempt} {path}, which belongs into an image", path = .path.display())]
    File {
        /// What was tried.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}
