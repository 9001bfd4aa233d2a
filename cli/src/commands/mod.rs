//! What each command does.

pub mod diff;
pub mod failover;
pub mod files;
pub mod history;
pub mod restore;

use std::os::unix::process::CommandExt;

use crate::Error;
use crate::kubectl::Kubectl;

/// An environment's object.
fn environment(kubectl: &Kubectl, name: &str) -> Result<serde_json::Value, Error> {
    let found = kubectl.get(&["virtualenvironment", name])?;
    found.ok_or_else(|| Error::said(format!("there is no environment {name} in this namespace")))
}

/// Becomes `kubectl attach` to the console.
pub fn console(kubectl: &Kubectl, name: &str) -> Result<(), Error> {
    let object = environment(kubectl, name)?;
    let Some(pod) = object["status"]["podName"].as_str().filter(|pod| !pod.is_empty()) else {
        return Err(Error::said(format!("environment {name} does not run: see kubectl get ve {name}")));
    };
    let arguments = ["attach", "-it", pod, "-c", vivarium_api::names::CONTAINER];
    Err(Error::io("run kubectl")(kubectl.command(arguments).exec()))
}
