//! Uninstalling with Helm: refused while an environment runs, harmless to the pods of others, and complete.

use std::process::{Command, Stdio};

use serde_json::json;

use crate::command;
use crate::install::{self, Error, Installation};
use crate::workspace;

/// An environment, and a pod of somebody who has nothing to do with Vivarium.
const ENVIRONMENT: &str = "last";
const BYSTANDER: &str = "bystander";

/// Runs the test; whether it passed.
pub fn test(installation: &Installation) -> Result<bool, Error> {
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "vivarium.dev/v1alpha1", "kind": "VirtualEnvironment", "metadata": {"name": ENVIRONMENT},
            "spec": {"template": {"name": "debian-13"}, "resources": {"disk": "1Gi"}}},
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": BYSTANDER},
            "spec": {"selector": {"matchLabels": {"app": BYSTANDER}}, "template": {
                "metadata": {"labels": {"app": BYSTANDER}},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "docker.io/library/busybox:lab",
                    "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000000"]}]}}}}]});
    let mut kubectl = installation.command("kubectl");
    command::run_with_input(kubectl.args(["apply", "-f", "-"]), &objects.to_string())?;
    let kubectl = |arguments: &[&str]| install::check(installation.command("kubectl").args(arguments));
    kubectl(&["wait", "--for=condition=Ready", &format!("ve/{ENVIRONMENT}"), "--timeout=180s"])?;
    kubectl(&["rollout", "status", &format!("ds/{BYSTANDER}"), "--timeout=120s"])?;
    let containers = bystanders(installation)?;

    let mut passed = true;
    let mut expect = |holds: bool, otherwise: &str| {
        if !holds {
            println!("{otherwise}");
        }
        passed &= holds;
    };
    let refused = !helm_uninstall(installation)?;
    expect(refused, "Helm uninstalls Vivarium under an environment that runs");
    let mut logs = installation.command("kubectl");
    logs.args(["logs", "--namespace", install::NAMESPACE, "job/vivarium-uninstall"]);
    let said = install::output(&mut logs)?;
    let names_it = said.contains(&format!("default/{ENVIRONMENT}-"));
    expect(names_it, &format!("the refusal does not name the environment that runs: {said}"));
    kubectl(&["wait", "--for=condition=Ready", &format!("ve/{ENVIRONMENT}"), "--timeout=60s"])?;

    kubectl(&["delete", "ve", "--all", "--all-namespaces", "--timeout=180s"])?;
    expect(helm_uninstall(installation)?, "Helm does not uninstall Vivarium although nothing runs");
    for node in installation.nodes()? {
        for path in ["/etc/containerd/conf.d/vivarium.toml", "/opt/vivarium/bin/containerd-shim-vivarium-v1"] {
            expect(on_node(&node, &format!("test ! -e {path}"))?, &format!("{path} is left on {node}"));
        }
        let knows = on_node(&node, "crictl info | grep -q containerd-shim-vivarium")?;
        expect(!knows, &format!("containerd on {node} still has the runtime"));
    }
    let after = bystanders(installation)?;
    expect(after == containers, &format!("pods of others were harmed: {containers} before, {after} after"));
    kubectl(&["delete", "ds", BYSTANDER, "--timeout=60s"])?;
    Ok(passed)
}

/// Containers of the bystanders, with the number of their restarts.
fn bystanders(installation: &Installation) -> Result<String, Error> {
    let mut get = installation.command("kubectl");
    get.args(["get", "pods", "--selector", &format!("app={BYSTANDER}"), "--sort-by=.spec.nodeName", "--output"]);
    let of_one = "{.spec.nodeName} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount} \
                  {.status.phase}";
    install::output(get.arg(format!("jsonpath={{range .items[*]}}{of_one};{{end}}")))
}

fn helm_uninstall(installation: &Installation) -> Result<bool, Error> {
    let mut helm = installation.command("helm");
    helm.args(["uninstall", install::RELEASE, "--namespace", install::NAMESPACE, "--wait", "--timeout", "180s"]);
    succeeds(&mut helm)
}

fn on_node(node: &str, line: &str) -> Result<bool, Error> {
    let mut shell = Command::new(workspace::program());
    succeeds(shell.args(["lab", "node", "shell", node, "--", "sh", "-c", line]).stdout(Stdio::null()))
}

fn succeeds(command: &mut Command) -> Result<bool, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.status().map(|status| status.success()).map_err(|source| Error::Run { program, source })
}
