//! `hack/bench`: what an environment costs, beside a peer measured in the same run. Machines are shared and noisy, so
//! every figure of ours stands next to one of runc's, taken in turn, and the ratio is what to read. Prints Markdown.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use crate::install::{self, Error, Installation};

/// Arguments of `hack/bench`.
#[derive(Args)]
pub struct Arguments {
    /// Runs of each kind.
    #[arg(long, default_value_t = 20)]
    runs: usize,
}

const NAMESPACE: &str = "bench";
const PEER_IMAGE: &str = "docker.io/library/busybox:lab";

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    let cluster = Cluster { installation: install::connect()? };
    let node = cluster.installation.nodes()?.first().cloned().unwrap_or_default();
    cluster.fresh_namespace()?;
    println!(
        "All on node {node}, one after another; times in milliseconds: minimum, median, maximum of {} runs.\n",
        arguments.runs
    );
    println!("| what | virtual environment | busybox pod under runc | ratio of medians |\n|---|---|---|---|");

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..arguments.runs {
        let (name, peer) = (format!("ve{run}"), format!("pod{run}"));
        ours.push(cluster.until(&environment(&name, &node), &format!("ve/{name}"), "condition=Ready")?);
        theirs.push(cluster.until(&busybox(&peer, &node), &format!("pod/{peer}"), "condition=Ready")?);
        cluster.delete(&format!("ve/{name}"))?;
        cluster.delete(&format!("pod/{peer}"))?;
    }
    row("apply to Ready", &ours, &theirs);

    cluster.until(&environment("ve", &node), "ve/ve", "condition=Ready")?;
    cluster.until(&busybox("pod", &node), "pod/pod", "condition=Ready")?;
    let pod = cluster.pod_of("ve")?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..arguments.runs {
        ours.push(cluster.exec(&pod)?);
        theirs.push(cluster.exec("pod")?);
    }
    row("kubectl exec true", &ours, &theirs);

    println!("\n| memory of one idle pod (Pss, MiB) | virtual environment | busybox pod under runc |\n|---|---|---|");
    let (ours, theirs) = (cluster.memory(&node, &pod)?, cluster.memory(&node, "pod")?);
    println!("| guest processes | {:.1} | {:.1} |", ours.0, theirs.0);
    println!("| shim | {:.1} | {:.1} |", ours.1, theirs.1);

    println!(
        "\n| environments on the node | disk of the pool, MiB more | page cache of the machine, MiB more |\n|---|---|---|"
    );
    let (disk, cache) = (pool_used(&node)?, cached());
    let mut names: Vec<String> = Vec::new();
    for count in [1, 10, 20] {
        let more: Vec<String> = (names.len()..count).map(|i| format!("many{i}")).collect();
        for name in &more {
            cluster.apply(&environment(name, &node))?;
        }
        for name in &more {
            cluster.wait(&format!("ve/{name}"), "condition=Ready")?;
        }
        names.extend(more);
        println!("| {count} | {:.1} | {:.1} |", pool_used(&node)? - disk, cached() - cache);
    }
    install::check(cluster.kubectl(&["delete", "namespace", NAMESPACE]).stdout(Stdio::null()))
}

fn environment(name: &str, node: &str) -> Value {
    json!({"apiVersion": "vivarium.dev/v1alpha1", "kind": "VirtualEnvironment", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"template": {"name": "debian-13"}, "resources": {"disk": "1Gi"},
            "placement": {"nodeSelector": {"kubernetes.io/hostname": node}}}})
}

fn busybox(name: &str, node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"hostUsers": false, "terminationGracePeriodSeconds": 0, "nodeSelector": {"kubernetes.io/hostname": node},
            "containers": [{"name": "c", "image": PEER_IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1000000"]}]}})
}

struct Cluster {
    installation: Installation,
}

impl Cluster {
    fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = self.installation.command("kubectl");
        command.args(["--namespace", NAMESPACE]).args(arguments);
        command
    }

    fn fresh_namespace(&self) -> Result<(), Error> {
        install::output(&mut self.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found"]))?;
        install::output(&mut self.kubectl(&["create", "namespace", NAMESPACE])).map(drop)
    }

    fn apply(&self, object: &Value) -> Result<(), Error> {
        let file = std::env::temp_dir().join(format!("bench-{}.json", std::process::id()));
        std::fs::write(&file, object.to_string())
            .map_err(|source| Error::Run { program: file.display().to_string(), source })?;
        let applied = install::output(&mut self.kubectl(&["apply", "-f", &file.to_string_lossy()]));
        let _ = std::fs::remove_file(&file);
        applied.map(drop)
    }

    fn wait(&self, object: &str, state: &str) -> Result<(), Error> {
        install::output(&mut self.kubectl(&["wait", &format!("--for={state}"), object, "--timeout=180s"])).map(drop)
    }

    fn until(&self, object: &Value, name: &str, state: &str) -> Result<Duration, Error> {
        let begun = Instant::now();
        self.apply(object)?;
        self.wait(name, state)?;
        Ok(begun.elapsed())
    }

    fn delete(&self, object: &str) -> Result<(), Error> {
        install::output(&mut self.kubectl(&["delete", object, "--timeout=180s"])).map(drop)
    }

    fn pod_of(&self, environment: &str) -> Result<String, Error> {
        install::output(&mut self.kubectl(&["get", "ve", environment, "-o", "jsonpath={.status.podName}"]))
    }

    fn exec(&self, pod: &str) -> Result<Duration, Error> {
        let begun = Instant::now();
        install::output(&mut self.kubectl(&["exec", pod, "--", "true"]))?;
        Ok(begun.elapsed())
    }

    /// Pss in MiB of the processes in a pod's cgroup (the pause process among them), and of its shim.
    fn memory(&self, node: &str, pod: &str) -> Result<(f64, f64), Error> {
        let uid = install::output(&mut self.kubectl(&["get", "pod", pod, "-o", "jsonpath={.metadata.uid}"]))?;
        // The shim is the parent, in the node's pid namespace, of the pod's first processes.
        let script = format!(
            "guest=0; shims=; for p in /proc/[0-9]*; do grep -q -s {uid} $p/cgroup || continue; \
             s=$(awk '/^Pss:/ {{print $2}}' $p/smaps_rollup 2>/dev/null); guest=$((guest + ${{s:-0}})); \
             q=$(awk '/^PPid:/ {{print $2}}' $p/status); grep -q -s {uid} /proc/$q/cgroup || shims=$q; done; \
             echo $guest $(awk '/^Pss:/ {{print $2}}' /proc/$shims/smaps_rollup)"
        );
        let printed = on_node(node, &script)?;
        let mut fields = printed.split_whitespace().map(|f| f.parse::<f64>().unwrap_or(f64::NAN) / 1024.0);
        Ok((fields.next().unwrap_or(f64::NAN), fields.next().unwrap_or(f64::NAN)))
    }
}

fn on_node(node: &str, script: &str) -> Result<String, Error> {
    let mut command = Command::new(crate::workspace::program());
    install::output(command.args(["lab", "node", "shell", node, "--", "sh", "-c", script]))
}

/// MiB that a node's pool occupies.
fn pool_used(node: &str) -> Result<f64, Error> {
    let printed =
        on_node(node, "sync -f /var/lib/vivarium/pool; df --output=used -B1024 /var/lib/vivarium/pool | tail -1")?;
    Ok(printed.trim().parse::<f64>().unwrap_or(f64::NAN) / 1024.0)
}

/// MiB of page cache of the machine.
fn cached() -> f64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Cached:"));
    line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
}

fn row(what: &str, ours: &[Duration], theirs: &[Duration]) {
    let (a, b) = (spread(ours), spread(theirs));
    println!(
        "| {what} | {:.0} / {:.0} / {:.0} | {:.0} / {:.0} / {:.0} | {:.2} |",
        a[0],
        a[1],
        a[2],
        b[0],
        b[1],
        b[2],
        a[1] / b[1]
    );
}

/// Minimum, median, maximum in milliseconds.
fn spread(times: &[Duration]) -> [f64; 3] {
    let mut sorted: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1000.0).collect();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    [at(0), at(sorted.len() / 2), at(sorted.len().saturating_sub(1))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_is_minimum_median_maximum() {
        let times = [30, 10, 20].map(Duration::from_millis);
        assert_eq!(spread(&times).map(f64::round).map(|time| time as u32), [10, 20, 30]);
    }
}
