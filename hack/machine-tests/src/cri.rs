//! containerd's CRI, spoken through crictl, and the few things that only ctr can do.

use std::{process::Command, time::Duration};

use serde_json::Value;
use vivarium_machine_tests::{
    config::{Container, Pod},
    options::PROGRAMS,
};

use crate::{
    command::{self, Finished},
    failure::{self, Failure, directory},
};

/// Where the files for crictl are.
const DIRECTORY: &str = "/run/machine-tests";
/// crictl's configuration.
pub const CONFIGURATION: &str = "/run/machine-tests/crictl.yaml";
/// containerd's socket.
pub const SOCKET: &str = "/run/containerd/containerd.sock";
/// Patience with one call: emulation is ten to fifty times slower than the processor.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs a pod sandbox; gives its id.
pub fn run_pod(handler: &str, pod: &Pod) -> Result<String, Failure> {
    directory(DIRECTORY)?;
    directory(pod.log_directory())?;
    let file = pod_file(pod);
    failure::write(&file, pod.render().to_string())?;
    Ok(crictl(&["runp", "--runtime", handler, &file])?.trim().to_owned())
}

/// Creates a container; gives its id.
pub fn create(sandbox: &str, container: &Container, pod: &Pod) -> Result<String, Failure> {
    let file = format!("{DIRECTORY}/{}-{}.json", pod.uid, container.name);
    failure::write(&file, container.render(pod).to_string())?;
    directory(format!("{}/{}", pod.log_directory(), container.name))?;
    Ok(crictl(&["create", sandbox, &file, &pod_file(pod)])?.trim().to_owned())
}

/// Creates and starts a container; gives its id.
pub fn launch(sandbox: &str, container: &Container, pod: &Pod) -> Result<String, Failure> {
    let id = create(sandbox, container, pod)?;
    crictl(&["start", &id])?;
    Ok(id)
}

/// Runs a command in a container by the synchronous call; whatever its status is.
pub fn exec(container: &str, words: &[&str]) -> Result<Finished, Failure> {
    let mut command = base();
    command.args(["exec", "--sync", "--timeout", "110", container]).args(words);
    Ok(command::run(&mut command, LIMIT)?)
}

/// Runs a command in a container by the streaming server, as `kubectl exec` does.
pub fn exec_streaming(container: &str, words: &[&str]) -> Result<Finished, Failure> {
    let mut command = base();
    command.args(["exec", container]).args(words);
    Ok(command::run(&mut command, LIMIT)?)
}

/// Like [`exec`], wants status 0 and gives what was printed.
pub fn exec_output(container: &str, words: &[&str]) -> Result<String, Failure> {
    let finished = exec(container, words)?;
    failure::ensure(finished.code == Some(0), || {
        let Finished { code, stdout, stderr } = &finished;
        format!("`{}` in the container ended with status {code:?}: {stdout}{stderr}", words.join(" "))
    })?;
    Ok(finished.stdout.trim().to_owned())
}

/// The status of a container.
pub fn inspect(container: &str) -> Result<Value, Failure> {
    Ok(serde_json::from_str(&crictl(&["inspect", container])?)?)
}

/// Runs crictl and wants success.
pub fn crictl(words: &[&str]) -> Result<String, Failure> {
    Ok(command::output(base().args(words), LIMIT)?)
}

/// Runs ctr in the CRI's namespace and wants success.
pub fn ctr(words: &[&str]) -> Result<String, Failure> {
    let mut command = Command::new(format!("{PROGRAMS}/bin/ctr"));
    command.args(["--address", SOCKET, "--namespace", "k8s.io"]).args(words);
    Ok(command::output(&mut command, LIMIT)?)
}

fn base() -> Command {
    let mut command = Command::new(format!("{PROGRAMS}/bin/crictl"));
    command.args(["--config", CONFIGURATION]);
    command
}

fn pod_file(pod: &Pod) -> String {
    format!("{DIRECTORY}/{}.json", pod.uid)
}
