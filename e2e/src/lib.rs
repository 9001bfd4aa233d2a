//! Harness of the end-to-end tests: what a user does with `kubectl`, as functions. Everything goes through the real
//! command line against a running lab with Vivarium installed; `hack/test` sets that up and runs `cargo test` here.
//!
//! The environment says where: `KUBECONFIG`, `kubectl` on the `PATH`, and `VIVARIUM_HACK`, the program behind
//! `hack/lab`. Each test works in a namespace of its own, which is deleted at its end; when a test fails, the
//! namespace is described first.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking"
)]

pub mod contents;
pub mod drill;
pub mod environment;
pub mod lab;
pub mod story;
pub mod terminal;
pub mod witness;

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub use environment::{Environment, condition_of};

/// Longest that anything is waited for unless a test says otherwise. Generous: the machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(240);

/// Name of the template that `hack/test` installs.
pub const TEMPLATE: &str = "debian-13";

/// What a command printed and how it ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Whether it ended with 0.
    pub ok: bool,
    /// Its exit code; -1 when it was killed.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            ok: output.status.success(),
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs a program to its end, with something on its standard input.
#[must_use]
pub fn run_with(program: &str, arguments: &[&str], input: impl AsRef<[u8]>) -> Ran {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    // A program that does not read its input closes the pipe: no fault of the test.
    let _ = child.stdin.take().expect("stdin is piped").write_all(input.as_ref());
    child.wait_with_output().unwrap_or_else(|error| panic!("{program}: {error}")).into()
}

/// Runs `kubectl`.
#[must_use]
pub fn kubectl(arguments: &[&str]) -> Ran {
    run_with("kubectl", arguments, "")
}

/// Runs `kubectl` and returns what it printed; fails the test if it fails.
pub fn kubectl_ok(arguments: &[&str]) -> String {
    let ran = kubectl(arguments);
    assert!(ran.ok, "kubectl {} failed: {}{}", arguments.join(" "), ran.stdout, ran.stderr);
    ran.stdout
}

/// Applies objects with `kubectl apply -f -`.
#[must_use]
pub fn apply(objects: &[Value]) -> Ran {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    run_with("kubectl", &["apply", "-f", "-"], list.to_string())
}

/// An object as JSON; `None` if there is none of that name.
#[must_use]
pub fn get(arguments: &[&str]) -> Option<Value> {
    let mut all = vec!["get", "-o", "json", "--ignore-not-found"];
    all.extend(arguments);
    let printed = kubectl_ok(&all);
    (!printed.trim().is_empty()).then(|| serde_json::from_str(&printed).expect("kubectl prints JSON"))
}

/// Asks again and again until there is an answer; fails the test with `what` and the last refusal after `deadline`.
pub fn eventually<T>(what: &str, deadline: Duration, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(refusal) if begun.elapsed() > deadline => {
                panic!("{what}: not within {} s: {refusal}", deadline.as_secs())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(250)),
        }
    }
}

/// Whether a `uid_map` or `gid_map` is one range of 65536 that begins far from the host's own users.
#[must_use]
pub fn is_a_users_range(map: &str) -> bool {
    let fields: Vec<u64> = map.split_whitespace().filter_map(|f| f.parse().ok()).collect();
    matches!(fields[..], [0, base, 65536] if base >= 65536)
}

/// A namespace of one test. Deleted with everything in it when the test ends.
pub struct Namespace {
    /// Its name.
    pub name: String,
}

impl Namespace {
    /// Makes a namespace called `e2e-<test>`; what an earlier, interrupted run left of it is deleted first.
    #[must_use]
    pub fn new(test: &str) -> Self {
        kubectl_ok(&["delete", "namespace", &format!("e2e-{test}"), "--ignore-not-found", "--timeout=180s"]);
        Self::kept(test)
    }

    /// The same with what an earlier run left of it.
    #[must_use]
    pub fn kept(test: &str) -> Self {
        let name = format!("e2e-{test}");
        // One that goes takes along whatever is made in it.
        let phase = kubectl_ok(&["get", "namespace", &name, "--ignore-not-found", "-o", "jsonpath={.status.phase}"]);
        if phase == "Terminating" {
            kubectl_ok(&["wait", "--for=delete", &format!("namespace/{name}"), "--timeout=240s"]);
        }
        // `baseline` is what tenants usually get: environments must run under it.
        let labels = json!({"pod-security.kubernetes.io/enforce": "baseline"});
        let made =
            apply(&[json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})]);
        assert!(made.ok, "{}", made.stderr);
        Self { name }
    }

    /// Leaves it and what is in it to whoever comes next.
    pub fn keep(self) {
        std::mem::forget(self);
    }

    /// Starts to describe an environment of this namespace.
    #[must_use]
    pub fn environment(&self, name: &str) -> Environment {
        Environment::new(&self.name, name)
    }

    /// An object of this namespace.
    #[must_use]
    pub fn get(&self, kind: &str, name: &str) -> Option<Value> {
        get(&["-n", &self.name, kind, name])
    }

    /// Names of all objects of a kind in this namespace.
    #[must_use]
    pub fn names(&self, kind: &str) -> Vec<String> {
        // kubectl prints nothing at all for an empty list.
        let list = get(&["-n", &self.name, kind]).unwrap_or_default();
        let items = list["items"].as_array().into_iter().flatten();
        items.filter_map(|item| item["metadata"]["name"].as_str().map(Into::into)).collect()
    }

    /// Makes a Secret with one key.
    pub fn secret(&self, name: &str, key: &str, value: &str) {
        let made = apply(&[json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": name, "namespace": self.name}, "stringData": {key: value}})]);
        assert!(made.ok, "{}", made.stderr);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for arguments in [
                &["get", "ve,evol,pods,pvc,services", "-o", "wide"][..],
                &["get", "ve,evol", "-o", "yaml", "--show-managed-fields=false"],
                &["describe", "pods"],
                &["get", "events", "--sort-by=.lastTimestamp"],
            ] {
                let mut all = vec!["-n", &self.name];
                all.extend(arguments);
                let ran = kubectl(&all);
                eprintln!("--- kubectl {}\n{}{}", all.join(" "), ran.stdout, ran.stderr);
            }
        }
        let _ = kubectl(&["delete", "namespace", &self.name, "--ignore-not-found", "--wait=false"]);
    }
}
