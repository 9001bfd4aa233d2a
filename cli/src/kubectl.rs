//! kubectl, with the options that it was called with: whatever it takes to reach the cluster is its business.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::Error;

/// How kubectl is called.
#[derive(Clone, Debug)]
pub struct Kubectl {
    options: Vec<String>,
}

impl Kubectl {
    /// With these options, where they were given.
    #[must_use]
    pub fn new(namespace: Option<&str>, context: Option<&str>, kubeconfig: Option<&Path>) -> Self {
        let kubeconfig = kubeconfig.map(|path| path.to_string_lossy());
        let all = [("--namespace", namespace), ("--context", context), ("--kubeconfig", kubeconfig.as_deref())];
        let given = all.into_iter().filter_map(|(option, value)| Some(format!("{option}={}", value?)));
        Self { options: given.collect() }
    }

    /// A command that is ready to be run.
    #[must_use]
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new("kubectl");
        command.args(&self.options).args(arguments);
        command
    }

    /// Runs it with an input, and gives what it printed.
    ///
    /// # Errors
    /// It fails; what it said is in the error.
    pub fn output(&self, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, Error> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(Error::io("run kubectl, which has to be on the PATH"))?;
        if let Some(mut to) = child.stdin.take() {
            // Whoever does not read its input says so with its exit code.
            let _ = to.write_all(input);
        }
        let Output { status, stdout, stderr } = child.wait_with_output().map_err(Error::io("run kubectl"))?;
        if status.success() {
            return Ok(stdout);
        }
        let said = String::from_utf8_lossy(&stderr).trim().to_owned();
        Err(Error::Kubectl(arguments.iter().take(3).copied().collect::<Vec<_>>().join(" "), said))
    }

    /// An object, or a list; `None`: there is none of that name.
    ///
    /// # Errors
    /// The API server does not answer, or refuses.
    pub fn get(&self, arguments: &[&str]) -> Result<Option<Value>, Error> {
        let mut all = vec!["get", "-o", "json", "--ignore-not-found"];
        all.extend(arguments);
        let printed = self.output(&all, b"")?;
        if printed.trim_ascii().is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&printed).map(Some).map_err(|error| Error::NotUnderstood("kubectl", error))
    }
}
