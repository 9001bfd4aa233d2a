//! The subcommand `charts`: the charts lint, render for every set of values in `charts/vivarium/ci`, and what they
//! render holds the [`rules`]; bad values are refused; the definitions in `charts/vivarium-crds` are those of `crds/`,
//! and so is what the book says of them.

mod crds;
mod reference;
mod render;
mod rules;

use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use render::Helm;

use crate::{build, command, workspace};

/// Arguments of `charts`.
#[derive(clap::Args)]
pub struct Args {
    /// Copy the definitions of `crds/` into the chart, and describe them in the book, first.
    #[arg(long)]
    write: bool,
}

/// Values that must be refused, as `helm --set` takes them, and a part of the reason that must be given.
const REFUSED: &[(&str, &str)] = &[
    ("images.registry=", "images.registry is not set"),
    ("node.pool.sise=1Gi", "sise"),
    ("node.pool.size=big", "/node/pool/size"),
    ("node.distribution=docker", "/node/distribution"),
    ("operator.replicas=0", "/operator/replicas"),
    ("images.node.digest=sha256:abc", "/images/node/digest"),
    ("node.kubeletDir=var/lib/kubelet", "/node/kubeletDir"),
    ("unknown=1", "unknown"),
    ("store.local.path=/srv/store", "/store/local/path"),
    ("store.s3.endpoint=ftp://x", "/store/s3/endpoint"),
    ("claims.storageClass=Big", "/claims/storageClass"),
    ("store.s3.bucket=", "store.s3.bucket is not set"),
    ("store.mirrors[1].bucket=abc", "/store/mirrors/1"),
];

/// The subcommand.
pub fn run(arguments: &Args) -> Result<ExitCode, Box<dyn Error>> {
    let root = workspace::root()?;
    if arguments.write {
        crds::copy(&root)?;
        reference::write(&root)?;
    }
    let helm = Helm::new(build::ensure_programs()?.path("helm"), root.join("charts"));
    let mut found = crds::drift(&root)?;
    found.extend(reference::drift(&root)?);
    found.extend(check(&helm, &root.join("charts/vivarium/ci"))?);
    for violation in &found {
        eprintln!("{violation}");
    }
    Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Everything that is wrong with the charts, one sentence each.
fn check(helm: &Helm, values: &Path) -> Result<Vec<String>, ChartError> {
    let mut found = Vec::new();
    helm.lint("vivarium-crds", None)?;
    for object in helm.render("vivarium-crds", None, &[])? {
        found.extend(rules::keeps_data(&object));
    }
    let sets = files(values)?;
    for set in &sets {
        helm.lint("vivarium", Some(set))?;
        let objects = helm.render("vivarium", Some(set), &[])?;
        let name = set.file_name().unwrap_or_default().to_string_lossy();
        found.extend(rules::broken(&objects).into_iter().map(|broken| format!("with {name}: {broken}")));
        eprintln!("charts: {} objects with {name}", objects.len());
    }
    for distribution in rules::DISTRIBUTIONS {
        let setting = format!("node.distribution={}", distribution.name);
        // The setting outdoes what the set says of it.
        let objects = helm.render("vivarium", sets.first().map(PathBuf::as_path), &[setting.as_str()])?;
        let broken = rules::containerd(&objects, distribution);
        found.extend(broken.into_iter().map(|broken| format!("with {setting}: {broken}")));
    }
    for (setting, reason) in REFUSED {
        match helm.render("vivarium", sets.first().map(PathBuf::as_path), &[setting]) {
            Err(ChartError::Helm(error)) if error.to_string().contains(reason) => {}
            Err(error) => found.push(format!("--set {setting} is refused for another reason than {reason}: {error:?}")),
            Ok(_) => found.push(format!("--set {setting} is not refused")),
        }
    }
    Ok(found)
}

/// Files of a folder, by name.
fn files(folder: &Path) -> Result<Vec<PathBuf>, ChartError> {
    let found = fs::read_dir(folder).and_then(|found| found.map(|entry| entry.map(|entry| entry.path())).collect());
    let mut paths: Vec<PathBuf> = found.map_err(at("read", folder))?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    Ok(paths)
}

fn at(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ChartError {
    let path = path.to_path_buf();
    move |source| ChartError::File { attempt, path, source }
}

/// Why the charts could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum ChartError {
    /// helm refused.
    #[error("helm refuses a chart")]
    Helm(#[source] command::Error),
    /// What helm printed is no YAML.
    #[error("what helm rendered of chart {chart} is not YAML: {cause}")]
    Yaml {
        /// Chart.
        chart: String,
        /// Cause.
        cause: String,
    },
    /// A definition cannot be read.
    #[error("{path} is not YAML: {cause}", path = .path.display())]
    NotYaml {
        /// File.
        path: PathBuf,
        /// Cause.
        cause: String,
    },
    /// A definition cannot be a template of a chart.
    #[error("{path} cannot be copied into the chart: {why}", path = .path.display())]
    Definition {
        /// File.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// A file.
    #[error("cannot {attempt} {path}", path = .path.display())]
    File {
        /// What was tried.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}
