//! Installs Vivarium into the lab as a user would: images, template, the two charts with Helm, and the template object.
//! Can be repeated at any moment; what is done already is only looked at.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::image::binaries;
use crate::{build, command, workspace};

/// Name of the Helm release.
pub const RELEASE: &str = "vivarium";
/// Namespace that it is installed in.
pub const NAMESPACE: &str = "vivarium-system";

/// Why Vivarium could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing to connect to.
    #[error("no lab is up; hack/quickstart starts one and installs Vivarium in it")]
    NoLab,
    /// A command failed.
    #[error("`{0}` failed; its messages are above")]
    Failed(String),
    /// A command could not be run.
    #[error("cannot run {program}: {source}")]
    Run {
        /// Program.
        program: String,
        /// Cause.
        source: std::io::Error,
    },
    /// The programs could not be built.
    #[error(transparent)]
    Binaries(#[from] binaries::BuildError),
    /// The plugin could not be put in place.
    #[error("cannot put kubectl-ve into {path}: {source}", path = path.display())]
    Plugin {
        /// Folder.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The workspace could not be found.
    #[error(transparent)]
    Workspace(#[from] workspace::Error),
    /// The custom resources of snapshots were not found.
    #[error(transparent)]
    Build(#[from] build::Error),
    /// A command with an input failed.
    #[error(transparent)]
    Command(#[from] command::Error),
    /// What the lab says of its store is not understood.
    #[error("what `hack/lab store` prints is not JSON: {0}")]
    Store(#[from] serde_json::Error),
}

/// Secret with the credentials of the lab's store.
const STORE_SECRET: &str = "vivarium-store";

/// What is needed to use the lab's object store.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Store {
    /// URL, reachable from the control plane's network and from pods.
    pub endpoint: String,
    /// The bucket.
    pub bucket: String,
    /// Who asks.
    pub access_key: String,
    /// Proof of it.
    pub secret_key: String,
}

/// The lab's object store, if it has one.
pub fn store() -> Result<Option<Store>, Error> {
    let printed = output(Command::new(workspace::program()).args(["lab", "store"]))?;
    if printed.trim().is_empty() { Ok(None) } else { Ok(Some(serde_json::from_str(&printed)?)) }
}

/// A lab with Vivarium in it.
pub struct Installation {
    kubeconfig: PathBuf,
    programs: PathBuf,
}

impl Installation {
    /// A command that finds the cluster: `KUBECONFIG`, and `kubectl` and `helm` of the lab on the `PATH`.
    pub fn command(&self, program: &str) -> Command {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut all = vec![self.programs.clone()];
        all.extend(std::env::split_paths(&path));
        let path = std::env::join_paths(all).unwrap_or(path);
        // `Command` looks a program up on the parent's PATH, not on the one it is given.
        let own = self.programs.join(program);
        let mut command = if own.is_file() { Command::new(own) } else { Command::new(program) };
        command.env("PATH", path).env("KUBECONFIG", &self.kubeconfig).env("VIVARIUM_HACK", workspace::program());
        command
    }

    /// Puts the plugin beside kubectl, so that `kubectl ve` works wherever kubectl is found.
    fn add_plugin(&self, plugin: &Path) -> Result<(), Error> {
        let failed = |source| Error::Plugin { path: self.programs.clone(), source };
        let fresh = self.programs.join(".kubectl-ve");
        std::fs::copy(plugin, &fresh).map_err(failed)?;
        std::fs::rename(&fresh, self.programs.join("kubectl-ve")).map_err(failed)
    }

    /// Path of the kubeconfig.
    pub fn kubeconfig(&self) -> &PathBuf {
        &self.kubeconfig
    }

    /// Names of the nodes.
    pub fn nodes(&self) -> Result<Vec<String>, Error> {
        let mut command = self.command("kubectl");
        let printed = output(command.args(["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"]))?;
        Ok(printed.split_whitespace().map(Into::into).collect())
    }
}

/// Finds a lab that is up.
///
/// # Errors
/// [`Error::NoLab`].
pub fn connect() -> Result<Installation, Error> {
    let kubeconfig = output(Command::new(workspace::program()).args(["lab", "kubeconfig"]))?;
    let kubeconfig = PathBuf::from(kubeconfig.trim());
    // It is written when the lab starts, and goes with it.
    if !kubeconfig.exists() {
        return Err(Error::NoLab);
    }
    // The lab puts links to its programs beside it.
    let programs = kubeconfig.with_file_name("bin");
    Ok(Installation { kubeconfig, programs })
}

/// Brings the lab up and Vivarium into it.
pub fn install() -> Result<Installation, Error> {
    let root = workspace::root()?;
    own(&["lab", "up"])?;
    let installation = connect()?;
    // Prints which image of this checkout has which reference.
    let values = output(Command::new(workspace::program()).args(["images", "--push"]).stderr(Stdio::inherit()))?;
    replace_csi_driver(&installation)?;
    // It was built with the images.
    installation.add_plugin(&binaries::build()?.plugin)?;
    let template = output(Command::new(workspace::program()).args(["templates", "--push"]).stderr(Stdio::inherit()))?;
    let charts = root.join("charts");
    let helm = |chart: &str, release: &str, settings: &[String]| {
        let mut command = installation.command("helm");
        command.args(["upgrade", "--install", release]).arg(charts.join(chart)).args([
            "--namespace",
            NAMESPACE,
            "--create-namespace",
        ]);
        command.args(["--wait", "--timeout", "300s"]).args(settings.iter().flat_map(|setting| ["--set", setting]));
        check(command.stdout(Stdio::null()))
    };
    helm("vivarium-crds", "vivarium-crds", &[])?;
    let mut kubectl = installation.command("kubectl");
    let label = "pod-security.kubernetes.io/enforce=privileged";
    check(kubectl.args(["label", "--overwrite", "namespace", NAMESPACE, label]).stdout(Stdio::null()))?;
    let mut settings: Vec<String> = values.lines().map(Into::into).collect();
    settings.push("node.plainHttpRegistries={10.250.0.1:5000}".into());
    // Sparse, and the nodes share one disk.
    settings.push("node.pool.size=20Gi".into());
    match store()? {
        Some(store) => settings.extend(use_store(&installation, &store)?),
        None => settings.push("store.local.path=/var/lib/vivarium/store".to_owned()),
    }
    let definitions = build::snapshot_definitions()?;
    for kind in ["volumesnapshotclasses", "volumesnapshotcontents", "volumesnapshots"] {
        let file = definitions.join(format!("snapshot.storage.k8s.io_{kind}.yaml"));
        check(installation.command("kubectl").args(["apply", "--server-side", "-f"]).arg(file).stdout(Stdio::null()))?;
    }
    for setting in ["enabled", "snapshots.enabled", "snapshots.controller"] {
        settings.push(format!("claims.{setting}=true"));
    }
    helm("vivarium", RELEASE, &settings)?;
    println!("Vivarium is installed in namespace {NAMESPACE}; the template is {}", template.trim());
    check(installation.command("kubectl").args(["apply", "-f"]).arg(root.join("examples/template-debian.yaml")))?;
    check(installation.command("kubectl").args(["wait", "--for=condition=Ready", "js/default", "--timeout=120s"]))?;
    check(installation.command("kubectl").args(["wait", "--for=condition=Ready", "et/debian-13", "--timeout=300s"]))?;
    Ok(installation)
}

/// What the object of an older checkout says of ephemeral volumes cannot be changed; Helm makes a new one.
fn replace_csi_driver(installation: &Installation) -> Result<(), Error> {
    let driver = ["csidriver", "csi.vivarium.dev", "--ignore-not-found"];
    let mut get = installation.command("kubectl");
    let modes = output(get.arg("get").args(driver).args(["-o", "jsonpath={.spec.volumeLifecycleModes}"]))?;
    if modes.is_empty() || modes.contains("Ephemeral") {
        return Ok(());
    }
    check(installation.command("kubectl").arg("delete").args(driver).stdout(Stdio::null()))
}

/// Puts the credentials into the cluster; gives the chart's values.
fn use_store(installation: &Installation, store: &Store) -> Result<Vec<String>, Error> {
    let secret = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": STORE_SECRET, "namespace": NAMESPACE },
        "stringData": { "AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key },
    });
    let mut kubectl = installation.command("kubectl");
    command::run_with_input(kubectl.args(["apply", "-f", "-"]), &secret.to_string())?;
    let mut settings = vec![
        format!("store.s3.endpoint={}", store.endpoint),
        format!("store.s3.bucket={}", store.bucket),
        format!("store.s3.credentialsSecret={STORE_SECRET}"),
        "store.s3.allowHttp=true".to_owned(),
    ];
    // Every node holds a copy of everything, and one may be lost.
    if installation.nodes()?.len() > 1 {
        settings.push("store.tolerates.failures=1".to_owned());
    }
    Ok(settings)
}

/// Another subcommand of this program.
fn own(arguments: &[&str]) -> Result<(), Error> {
    check(Command::new(workspace::program()).args(arguments))
}

/// Runs a command to its end.
pub fn check(command: &mut Command) -> Result<(), Error> {
    let status = command.status().map_err(|source| not_run(command, source))?;
    if status.success() { Ok(()) } else { Err(Error::Failed(shown(command))) }
}

/// Runs a command and returns what it printed.
pub fn output(command: &mut Command) -> Result<String, Error> {
    let output = command.stdout(Stdio::piped()).output().map_err(|source| not_run(command, source))?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        return Err(Error::Failed(shown(command)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn not_run(command: &Command, source: std::io::Error) -> Error {
    Error::Run { program: command.get_program().to_string_lossy().into_owned(), source }
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
