//! `hack/quickstart`: from nothing to a virtual environment that answers, on one machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::install::{self, Installation};
use crate::workspace;

/// Why there is no environment.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Vivarium could not be installed.
    #[error(transparent)]
    Install(#[from] install::Error),
    /// The workspace could not be found.
    #[error(transparent)]
    Workspace(#[from] workspace::Error),
    /// The key pair could not be kept.
    #[error("cannot keep the key pair in {path}: {source}")]
    Key {
        /// Folder.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
}

/// Installs everything and shows the first environment.
pub fn run() -> Result<(), Error> {
    let begun = Instant::now();
    let installation = install::install()?;
    let key = key_pair(installation.kubeconfig().parent().unwrap_or(Path::new("/root")))?;
    let manifest = format!("--from-file=authorized_keys={}.pub", key.display());
    let secret = install::output(installation.command("kubectl").args([
        "create",
        "secret",
        "generic",
        "first-keys",
        &manifest,
        "--dry-run=client",
        "-o",
        "json",
    ]))?;
    let file = key.with_extension("secret.json");
    std::fs::write(&file, secret).map_err(|source| Error::Key { path: file.clone(), source })?;
    let kubectl = |arguments: &[&str]| install::check(installation.command("kubectl").args(arguments));
    let example = workspace::root()?.join("examples/first.yaml");
    // One that is being deleted becomes Ready no more; another of its name can be made when it is gone.
    let deleted = ["get", "ve/first", "--ignore-not-found", "--output=jsonpath={.metadata.deletionTimestamp}"];
    if !install::output(installation.command("kubectl").args(deleted))?.is_empty() {
        println!("waiting until the former `first` is deleted");
        kubectl(&["wait", "--for=delete", "ve/first", "--timeout=180s"])?;
    }
    let applied = Instant::now();
    kubectl(&["apply", "-f", &file.to_string_lossy()])?;
    kubectl(&["apply", "-f", &example.to_string_lossy()])?;
    kubectl(&["wait", "--for=condition=Ready", "ve/first", "--timeout=180s"])?;
    println!(
        "\nready {:.1} s after kubectl apply; {} s for everything\n",
        applied.elapsed().as_secs_f32(),
        begun.elapsed().as_secs()
    );
    kubectl(&["get", "ve"])?;
    show(&installation, &key)
}

/// What the person can do now.
fn show(installation: &Installation, key: &Path) -> Result<(), Error> {
    let get = |path: &str| {
        let template = format!("jsonpath={{{path}}}");
        install::output(installation.command("kubectl").args(["get", "ve", "first", "-o", &template]))
    };
    let (pod, address) = (get(".status.podName")?, get(".status.serviceIP")?);
    let kubectl = installation.command("kubectl");
    println!(
        "\nWhat to try:\n  export KUBECONFIG={}\n  export PATH=$PATH:{}\n  kubectl exec -it {pod} -- bash\n  kubectl ve history first     # kubectl-ve lies beside kubectl\n  kubectl ve ls first:/root --at 1m\n  hack/lab run -- ssh -i {} root@{address}\n  kubectl delete pod {pod}     # it comes back with all that was written\n  hack/lab down                # takes everything away\n",
        installation.kubeconfig().display(),
        Path::new(kubectl.get_program()).parent().unwrap_or(Path::new("")).display(),
        key.display(),
    );
    Ok(())
}

/// Name of the file, beside the kubeconfig, that holds the private key.
pub const KEY: &str = "first-key";

/// A key pair of the lab; made once.
fn key_pair(folder: &Path) -> Result<PathBuf, Error> {
    let key = folder.join(KEY);
    if !key.exists() {
        let mut command = Command::new("ssh-keygen");
        install::check(
            command.args(["-q", "-t", "ed25519", "-N", "", "-C", "quickstart", "-f"]).arg(&key).stdout(Stdio::null()),
        )?;
    }
    Ok(key)
}
