//! The Debian template: an operating system as an OCI image of two layers, built from the Debian archive by
//! mmdebstrap(1). The lower layer is a minimal Debian, the upper one what turns it into a system that boots.
//!
//! Both trees are built whole and the upper layer is their difference, so no step has to know what a package touches.
//! The result stays in the cache under the digest of the [`recipe`]; a second run costs nothing.

pub mod difference;
pub mod layer;
pub mod recipe;
pub mod tree;

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use recipe::Layer;
use tree::Tree;

/// Arguments of `templates`.
#[derive(clap::Args)]
pub struct Args {}

/// Builds the layers of the template into the cache.
pub fn run(_arguments: Args) -> Result<std::process::ExitCode, Box<dyn std::error::Error>> {
    let directory = crate::workspace::cache().join("templates").join(recipe::key());
    fs::create_dir_all(&directory)?;
    for archive in build_layers(&directory, &mut |step| eprintln!("template: {step}"))? {
        println!("{}", archive.display());
    }
    Ok(std::process::ExitCode::SUCCESS)
}

/// Builds the layers of the template into `directory`, which must be on a file system that keeps owners and extended
/// attributes; gives the archives, lowest first. `tell` is called with each step as it begins.
pub fn build_layers(directory: &Path, tell: &mut dyn FnMut(&str)) -> Result<Vec<PathBuf>, TemplateError> {
    let mut lower = Tree::new();
    let mut archives = Vec::new();
    for (number, which) in [Layer::Base, Layer::System].into_iter().enumerate() {
        let root = directory.join(format!("tree-{number}"));
        tell(&format!("installing {} packages and what they need", which.packages().len()));
        bootstrap(which, &root)?;
        finish(which, &root)?;
        tell(&format!("writing layer {}", number + 1));
        let upper = tree::read(&root)?;
        let archive = directory.join(format!("layer-{number}.tar"));
        let out = File::create(&archive).map_err(at(&archive))?;
        layer::write(&root, &upper, &difference::difference(&lower, &upper), BufWriter::new(out))?;
        fs::remove_dir_all(&root).map_err(at(&root))?;
        lower = upper;
        archives.push(archive);
    }
    Ok(archives)
}

/// Runs mmdebstrap in a mount namespace of its own, so that whatever becomes of it no mount stays behind.
fn bootstrap(which: Layer, root: &Path) -> Result<(), TemplateError> {
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--", "mmdebstrap"])
        .args(recipe::arguments(which, &root.to_string_lossy()))
        .env("LC_ALL", "C.UTF-8")
        .output()
        .map_err(|cause| TemplateError::NoBootstrap { cause })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().collect();
    let last = lines[lines.len().saturating_sub(12)..].join("\n");
    Err(TemplateError::Bootstrap { suite: recipe::SUITE, status: output.status.to_string(), last })
}

/// Turns what the packages left into what a template is.
fn finish(which: Layer, root: &Path) -> Result<(), TemplateError> {
    for addition in which.additions() {
        let path = root.join(addition.path);
        let directory = path.parent().unwrap_or(root);
        fs::create_dir_all(directory).map_err(at(directory))?;
        fs::write(&path, addition.content).map_err(at(&path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(at(&path))?;
    }
    for path in recipe::REMOVED.iter().map(|path| root.join(path)) {
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(at(&path)(cause)),
            _ => {}
        }
    }
    for path in recipe::EMPTIED.iter().map(|path| root.join(path)).filter(|path| path.exists()) {
        File::create(&path).map_err(at(&path))?;
    }
    empty(&root.join("dev"))?;
    if which == Layer::System { stamp(root) } else { Ok(()) }
}

/// Marks `/etc` and `/var` as made for the present `/usr`. Archives keep whole seconds, so all three get one.
fn stamp(root: &Path) -> Result<(), TemplateError> {
    let usr = root.join("usr");
    let time = fs::metadata(&usr).and_then(|metadata| metadata.modified()).map_err(at(&usr))?;
    let second = time.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(second);
    for path in recipe::STAMPS.iter().map(|path| root.join(path)) {
        File::create(&path).and_then(|file| file.set_modified(time)).map_err(at(&path))?;
    }
    Ok(())
}

fn empty(directory: &Path) -> Result<(), TemplateError> {
    for found in fs::read_dir(directory).map_err(at(directory))? {
        let found = found.map_err(at(directory))?;
        let path = found.path();
        let is_directory = found.file_type().map_err(at(&path))?.is_dir();
        if is_directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.map_err(at(&path))?;
    }
    Ok(())
}

fn at(path: &Path) -> impl Fn(io::Error) -> TemplateError + '_ {
    move |cause| TemplateError::File { path: path.into(), cause }
}

/// The template could not be built.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// mmdebstrap did not run.
    #[error("mmdebstrap could not be run: {cause}. Install the Debian package mmdebstrap.")]
    NoBootstrap {
        /// Why.
        cause: io::Error,
    },
    /// mmdebstrap failed.
    #[error(
        "mmdebstrap could not make a tree of Debian {suite} ({status}). Is the Debian archive reachable, and is \
         debian-archive-keyring new enough for {suite}? It said last:\n{last}"
    )]
    Bootstrap {
        /// Debian release.
        suite: &'static str,
        /// Exit status.
        status: String,
        /// End of what it printed.
        last: String,
    },
    /// A file of the tree or the cache.
    #[error("Cannot build the template at {path}: {cause}.", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Reading a tree.
    #[error(transparent)]
    Tree(#[from] tree::TreeError),
    /// Writing a layer.
    #[error(transparent)]
    Layer(#[from] layer::LayerError),
}
