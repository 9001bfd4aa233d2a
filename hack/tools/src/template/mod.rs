//! The Debian template: an operating system as an OCI image of two layers, built from the Debian archive by
//! mmdebstrap(1). The lower layer is a minimal Debian, the upper one what turns it into a system that boots.
//!
//! Both trees are built whole and the upper layer is their difference, so no step has to know what a package touches.
//! The result stays in the cache under the digest of the [`recipe`]; a second run costs nothing.

pub mod difference;
pub mod layer;
pub mod recipe;
pub mod tree;

use std::{
    error::Error,
    fs::{self, File},
    io::{self, BufWriter},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use recipe::Layer;
use tree::Tree;

use crate::{
    build, cache, command, image,
    oci::{self, Compression, ImageBuilder},
    progress::Progress,
};

/// Repository and tag of the template.
const NAME: &str = "vivarium/debian:13";

/// Arguments of `templates`.
#[derive(clap::Args)]
pub struct Args {
    /// Push the template to the lab's registry.
    #[arg(long)]
    push: bool,
    /// Build it again, with what the Debian archive holds today.
    #[arg(long)]
    rebuild: bool,
}

/// The subcommand: prints the reference of the template and, unless it was pushed, where its archive is.
pub fn run(arguments: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let template = build(arguments.rebuild)?;
    if arguments.push {
        image::push(&template.archive)?;
        println!("{}", template.reference);
    } else {
        println!("{} {}", template.reference, template.archive.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// A template in the cache.
#[derive(Debug)]
pub struct Template {
    /// Full reference in the lab's registry.
    pub reference: String,
    /// Archive of an image layout.
    pub archive: PathBuf,
}

/// Builds the template unless the cache has one of this recipe; with `again`, in any case.
pub fn build(again: bool) -> Result<Template, TemplateError> {
    let folder = cache::root().join("templates").join(recipe::key());
    let template = Template { reference: format!("{}/{NAME}", image::REGISTRY), archive: folder.join("image.tar") };
    let _lock = cache::lock("templates").map_err(at(&folder))?;
    if template.archive.exists() && !again {
        return Ok(template);
    }
    build::ensure_packages()?;
    fs::create_dir_all(&folder).map_err(at(&folder))?;
    let mut progress = Progress::new(5);
    // What an interrupted build left in the same place is of no use.
    let work = folder.join("work");
    clear(&work)?;
    fs::create_dir_all(&work).map_err(at(&work))?;
    let layers = build_layers(&work, &mut progress)?;
    let _step = progress.step("packing the image");
    let mut image = ImageBuilder::new(&template.reference)?.command(["/sbin/init"]).stop_signal("SIGRTMIN+3");
    for layer in layers {
        image = image.layer_from_tar(&layer, Compression::Gzip)?;
    }
    let unfinished = work.join("image.tar");
    image.write_archive(&unfinished)?;
    fs::rename(&unfinished, &template.archive).map_err(at(&template.archive))?;
    clear(&work)?;
    Ok(template)
}

fn clear(folder: &Path) -> Result<(), TemplateError> {
    match fs::remove_dir_all(folder) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(at(folder)(cause)),
        _ => Ok(()),
    }
}

/// Builds the layers of the template into `directory`, which must be on a file system that keeps owners and extended
/// attributes; gives the archives, lowest first.
fn build_layers(directory: &Path, progress: &mut Progress) -> Result<Vec<PathBuf>, TemplateError> {
    let mut lower = Tree::new();
    let mut archives = Vec::new();
    for (number, which) in [Layer::Base, Layer::System].into_iter().enumerate() {
        let root = directory.join(format!("tree-{number}"));
        let step = progress.step(format!("installing {} packages and what they need", which.packages().len()));
        bootstrap(which, &root)?;
        finish(which, &root)?;
        drop(step);
        let _step = progress.step(format!("writing layer {}", number + 1));
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
    let mut bootstrap = Command::new("unshare");
    bootstrap.args(["--mount", "--propagation", "private", "--", "mmdebstrap"]);
    bootstrap.args(recipe::arguments(which, &root.to_string_lossy())).env("LC_ALL", "C.UTF-8");
    command::run(&mut bootstrap).map(drop).map_err(|source| TemplateError::Bootstrap { suite: recipe::SUITE, source })
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
    move |source| TemplateError::File { path: path.into(), source }
}

/// The template could not be built.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// mmdebstrap failed.
    #[error(
        "cannot make a tree of Debian {suite}: is the Debian archive reachable, and is the package \
         debian-archive-keyring new enough for {suite}?"
    )]
    Bootstrap {
        /// Debian release.
        suite: &'static str,
        /// Cause.
        source: command::Error,
    },
    /// Debian packages.
    #[error(transparent)]
    Packages(#[from] build::Error),
    /// Image.
    #[error(transparent)]
    Image(#[from] oci::Error),
    /// A file of the tree or the cache.
    #[error("cannot build the template at {path}", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Reading a tree.
    #[error(transparent)]
    Tree(#[from] tree::TreeError),
    /// Writing a layer.
    #[error(transparent)]
    Layer(#[from] layer::LayerError),
}
