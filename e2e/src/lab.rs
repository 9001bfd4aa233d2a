//! What an administrator does on the nodes of the lab.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::{Ran, run_with};

pub(crate) fn program() -> String {
    std::env::var("VIVARIUM_HACK")
        .expect("VIVARIUM_HACK names the program behind hack/lab: run the tests with hack/test")
}

/// Address of the control plane: what runs there is reached by nodes and environments.
pub const CONTROL_PLANE: &str = "10.250.0.1";
/// Registry of the lab.
pub const REGISTRY: &str = "10.250.0.1:5000";

/// Runs a command on a node.
#[must_use]
pub fn on_node(node: &str, command: &[&str]) -> Ran {
    let mut all = vec!["lab", "node", "shell", node, "--"];
    all.extend(command);
    run_with(&program(), &all, "")
}

/// Runs a shell line on a node that must succeed, and returns what it printed, trimmed.
pub fn node_sh(node: &str, line: &str) -> String {
    let ran = on_node(node, &["sh", "-c", line]);
    assert!(ran.ok, "on {node}: `{line}` ended with {}: {}{}", ran.code, ran.stdout, ran.stderr);
    ran.stdout.trim().to_owned()
}

/// Runs a command in the network of the control plane, from where pod and service addresses can be reached.
#[must_use]
pub fn in_network(command: &[&str]) -> Ran {
    in_network_with(command, "")
}

/// Like [`in_network`] with something on its standard input.
#[must_use]
pub fn in_network_with(command: &[&str], input: impl AsRef<[u8]>) -> Ran {
    let mut all = vec!["lab", "run", "--"];
    all.extend(command);
    run_with(&program(), &all, input)
}

/// Makes an image of the `layer.tar` of a directory, as OCI's image specification says, and pushes it, as its
/// distribution specification says. Prints the digest of the layer.
const PUSH: &str = r#"set -e
cd "$1"; registry=http://$2; repository=$registry/v2/$3
http() { curl --silent --show-error --fail --noproxy '*' --max-time 60 --output /dev/null "$@"; }
digest() { echo "sha256:$(sha256sum "$1" | cut -d' ' -f1)"; }
blob() {
    to=$(http --data '' --write-out '%header{location}' "$repository/blobs/uploads/")
    case $to in /*) to=$registry$to ;; esac
    case $to in *\?*) to="$to&" ;; *) to="$to?" ;; esac
    http --request PUT --header 'Content-Type: application/octet-stream' --data-binary "@$1" \
        "${to}digest=$(digest "$1")"
}
kind=application/vnd.oci.image
printf '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["%s"]}}' \
    "$(digest layer.tar)" > config.json
printf '{"schemaVersion":2,"mediaType":"%s","config":{"mediaType":"%s","digest":"%s","size":%s},' \
    $kind.manifest.v1+json $kind.config.v1+json "$(digest config.json)" "$(stat -c %s config.json)" > manifest.json
printf '"layers":[{"mediaType":"%s","digest":"%s","size":%s}]}' \
    $kind.layer.v1.tar "$(digest layer.tar)" "$(stat -c %s layer.tar)" >> manifest.json
blob config.json; blob layer.tar
http --request PUT --header "Content-Type: $kind.manifest.v1+json" --data-binary @manifest.json \
    "$repository/manifests/$4"
digest layer.tar
"#;

/// Pushes an image of one layer, which is the `layer.tar` of a directory, to the registry of the lab as `path:tag`.
/// Gives its full reference and the digest of the layer.
#[must_use]
pub fn push_image(directory: &Path, name: &str) -> (String, String) {
    let (repository, tag) = name.split_once(':').expect("path:tag");
    let directory = directory.to_str().expect("UTF-8");
    let ran = in_network(&["sh", "-c", PUSH, "sh", directory, REGISTRY, repository, tag]);
    assert!(ran.ok, "{name} cannot be pushed: {}{}", ran.stdout, ran.stderr);
    (format!("{REGISTRY}/{name}"), ran.stdout.trim().to_owned())
}

/// A program that runs in the network of the control plane until this is dropped.
pub struct Background(Child);

impl Background {
    /// Starts it.
    #[must_use]
    pub fn start(command: &[&str]) -> Self {
        let mut all = vec!["lab", "run", "--"];
        all.extend(command);
        let child = Command::new(program()).args(&all).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Self(child.unwrap_or_else(|error| panic!("cannot run {}: {error}", command.join(" "))))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `hack/lab`; its end is the test's to judge.
#[must_use]
pub fn lab(arguments: &[&str]) -> Ran {
    let mut all = vec!["lab"];
    all.extend(arguments);
    run_with(&program(), &all, "")
}

/// Runs `hack/lab`; fails the test if it fails.
pub fn lab_ok(arguments: &[&str]) {
    let ran = lab(arguments);
    assert!(ran.ok, "hack/lab {} failed: {}{}", arguments.join(" "), ran.stdout, ran.stderr);
}

/// Names of the nodes.
#[must_use]
pub fn nodes() -> Vec<String> {
    crate::kubectl_ok(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"])
        .split_whitespace()
        .map(Into::into)
        .collect()
}

/// Directory of the lab.
#[must_use]
pub fn directory() -> PathBuf {
    std::env::var_os("VIVARIUM_LAB").map_or_else(|| "/var/lib/vivarium-lab".into(), PathBuf::from)
}

/// Process that the lab has a record of under that name.
#[must_use]
pub fn recorded(record: &str) -> u32 {
    let bytes = std::fs::read(directory().join("run").join(format!("{record}.json")));
    let record: serde_json::Value = serde_json::from_slice(&bytes.expect("a record of the lab")).unwrap();
    record["pid"].as_u64().and_then(|pid| pid.try_into().ok()).unwrap()
}

/// Sends a signal to such a process.
pub fn signal(record: &str, signal: &str) {
    let ran = run_with("kill", &[&format!("-{signal}"), &recorded(record).to_string()], "");
    assert!(ran.ok, "{}", ran.stderr);
}
