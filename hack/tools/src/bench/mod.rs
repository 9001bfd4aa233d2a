//! `hack/bench`: what an environment costs, beside a peer measured in the same run. Machines are shared and noisy, so
//! every figure of ours stands next to one of runc's, taken in turn, and the ratio is what to read. Prints Markdown.

pub mod measure;
mod shim;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::build;
use crate::install::{self, Error, Installation};
use crate::workspace;

/// Arguments of `hack/bench`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    /// Runs of each kind.
    #[arg(long, default_value_t = 20)]
    runs: usize,
}

/// What else can be measured.
#[derive(Subcommand)]
enum What {
    /// What journals cost a tenant and a node, on this machine as root, without a lab.
    Journal {
        /// Where the pools are made; several GB are needed.
        #[arg(long, default_value = "/var/tmp")]
        directory: PathBuf,
        /// Runs of each workload.
        #[arg(long, default_value_t = 3)]
        runs: usize,
        /// Transactions of which a volume is restored.
        #[arg(long, default_value_t = 10_000)]
        transactions: u64,
    },
}

const NAMESPACE: &str = "bench";
/// After this something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);
/// Milliseconds; shares no divisor with a second.
const STAGGER_MS: u64 = 137;
/// Programs of the shims, ours and the peer's.
const SHIMS: [&str; 2] = ["containerd-shim-vivarium-v1", "containerd-shim-runc-v2"];
const PEER_IMAGE: &str = "docker.io/library/busybox:lab";

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    if let Some(What::Journal { directory, runs, transactions }) = &arguments.what {
        build::ensure_measured()?;
        let mut command = Command::new("cargo");
        command.args([
            "run",
            "--release",
            "--quiet",
            "--locked",
            "-p",
            "vivarium-oracle",
            "--bin",
            "vivarium-oracle-bench",
        ]);
        command.arg("--").arg(directory).args([runs.to_string(), transactions.to_string()]);
        return install::check(command.current_dir(workspace::root()?));
    }
    let cluster = Cluster { installation: install::connect()? };
    let node = cluster.installation.nodes()?.first().cloned().unwrap_or_default();
    let log = shim::Log::from_now(&cluster.installation, &node).map_err(unread)?;
    cluster.fresh_namespace()?;
    println!(
        "All on node {node}, one after another; times in milliseconds: minimum, median, maximum of {} runs.\n",
        arguments.runs
    );
    println!("| what | virtual environment | busybox pod under runc | ratio of medians |\n|---|---|---|---|");

    let (mut booted, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..arguments.runs {
        // The kubelet looks once a second at what its containers do: runs that follow each other in step with it would all
        // meet it in the same place.
        std::thread::sleep(Duration::from_millis(run as u64 * STAGGER_MS % 1000));
        let (name, peer) = (format!("ve{run}"), format!("pod{run}"));
        let begun = Instant::now();
        booted.push(cluster.until(&environment(&name, &node), &format!("ve/{name}"), "condition=Booted")?);
        cluster.wait(&format!("ve/{name}"), "condition=Ready")?;
        ours.push(begun.elapsed());
        theirs.push(cluster.until(&busybox(&peer, &node), &format!("pod/{peer}"), "condition=Ready")?);
        cluster.delete(&format!("ve/{name}"))?;
        cluster.delete(&format!("pod/{peer}"))?;
    }
    row("apply to READY=1 of init", &booted, &theirs);
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
    let (mut commands, mut ready) = (Vec::new(), Vec::new());
    for _ in 0..arguments.runs.div_ceil(2) {
        let [command, again] = cluster.reboot("ve", &pod)?;
        commands.push(command);
        ready.push(again);
    }
    for (until, times) in [("a command runs again", &commands), ("init says READY=1 again", &ready)] {
        let [least, median, most] = spread(times);
        println!("| reboot inside until {until} | {least:.0} / {median:.0} / {most:.0} | | |");
    }

    println!("\n| memory of one idle pod (Pss, MiB) | virtual environment | busybox pod under runc |\n|---|---|---|");
    let (ours, theirs) = (cluster.memory(&node, &pod)?, cluster.memory(&node, "pod")?);
    println!("| guest processes | {:.1} | {:.1} |", mib(ours.guest), mib(theirs.guest));
    println!("| shim | {:.1} | {:.1} |", mib(ours.shim), mib(theirs.shim));
    println!("| pause and helpers | {:.1} | {:.1} |", mib(ours.helpers), mib(theirs.helpers));
    cluster.delete("ve/ve")?;
    cluster.delete("pod/pod")?;
    // Before many at once are made, whose times would be others.
    inside(&log.times().map_err(unread)?);
    cluster.moves(arguments.runs.div_ceil(3))?;
    cluster.many(&node)?;
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

    /// From the order to reboot until a command runs in the next boot, and until the status says that init is ready.
    fn reboot(&self, environment: &str, pod: &str) -> Result<[Duration; 2], Error> {
        // Init's start, which is another one after each boot.
        let boot = || {
            let mut read = self.kubectl(&["exec", pod, "--", "cut", "-d ", "-f22", "/proc/1/stat"]);
            install::output(read.stderr(Stdio::null()))
        };
        // In the middle of a boot systemd was seen to take ten seconds to begin with a shutdown.
        let state = || {
            let mut asked = self.kubectl(&["exec", pod, "--", "systemctl", "is-system-running"]);
            install::output(asked.stderr(Stdio::null()))
        };
        let asked = Instant::now();
        while state().is_err() && asked.elapsed() < PATIENCE {}
        let before = boot()?;
        let counted = self.reboots(environment)?.unwrap_or_default();
        let begun = Instant::now();
        // It may end before it can say so.
        let _ = install::output(self.kubectl(&["exec", pod, "--", "systemctl", "reboot"]).stderr(Stdio::null()));
        let until = |so: &dyn Fn() -> Result<bool, Error>| -> Result<Duration, Error> {
            while begun.elapsed() < PATIENCE {
                if so()? {
                    return Ok(begun.elapsed());
                }
            }
            Err(Error::Failed(format!("the reboot of pod {pod}")))
        };
        let command = until(&|| Ok(boot().is_ok_and(|now| now != before)))?;
        // Not at the same time: each would slow the other one down. Init can be entered before it is ready.
        let ready = until(&|| Ok(self.reboots(environment)?.is_some_and(|now| now > counted)))?;
        Ok([command, ready])
    }

    /// How often an environment has booted again since its pod was made, once its init has said READY=1.
    fn reboots(&self, environment: &str) -> Result<Option<u64>, Error> {
        let field = |name: &str| format!("{{.status.conditions[?(@.type==\"Booted\")].{name}}}");
        let shown = format!("jsonpath={} {}", field("status"), field("message"));
        Ok(reboots(&install::output(&mut self.kubectl(&["get", "ve", environment, "--output", &shown]))?))
    }

    /// From the deletion of a pod until the environment is Ready again, on the node where it was and on another one in turn.
    fn moves(&self, runs: usize) -> Result<(), Error> {
        let nodes = self.installation.nodes()?;
        let [here, there, ..] = nodes.as_slice() else { return Ok(()) };
        self.until(&environment("mover", here), "ve/mover", "condition=Ready")?;
        let (mut stays, mut moved) = (Vec::new(), Vec::new());
        for run in 0..runs {
            stays.push(self.again("mover", if run % 2 == 0 { here } else { there })?);
            moved.push(self.again("mover", if run % 2 == 0 { there } else { here })?);
        }
        println!("\n| deleting the pod until Ready again, ms | |\n|---|---|");
        for (what, times) in [("on the same node", &stays), ("on another node, from the journal", &moved)] {
            let [least, median, most] = spread(times);
            println!("| {what} | {least:.0} / {median:.0} / {most:.0} |");
        }
        self.delete("ve/mover")
    }

    /// Starts an environment anew on a node.
    fn again(&self, name: &str, node: &str) -> Result<Duration, Error> {
        self.apply(&environment(name, node))?;
        let (pod, ve) = (self.pod_of(name)?, format!("ve/{name}"));
        let begun = Instant::now();
        self.delete(&format!("pod/{pod}"))?;
        // That it is not Ready may be over already.
        while self.pod_of(name)? == pod && begun.elapsed() < PATIENCE {}
        self.wait(&ve, "condition=Ready")?;
        Ok(begun.elapsed())
    }

    /// Memory of a pod.
    fn memory(&self, node: &str, pod: &str) -> Result<measure::Pod, Error> {
        let uid = install::output(&mut self.kubectl(&["get", "pod", pod, "-o", "jsonpath={.metadata.uid}"]))?;
        measured(node, &["pod", &uid])
    }

    /// What more and more environments cost together. Beside each a busybox pod, for the peer's shims.
    fn many(&self, node: &str) -> Result<(), Error> {
        println!(
            "\n| environments on the node | disk of the pool, MiB more | template files in memory, MiB | volume files in \
             memory, MiB | Pss of a shim (private), MiB | Pss of runc's shim (private), MiB |\n|---|---|---|---|---|---|"
        );
        let disk = pool_used(node)?;
        let mut there = 0;
        for count in [1, 8, 10, 20] {
            for number in there..count {
                self.apply(&environment(&format!("many{number}"), node))?;
                self.apply(&busybox(&format!("peer{number}"), node))?;
            }
            for number in there..count {
                self.wait(&format!("ve/many{number}"), "condition=Ready")?;
                self.wait(&format!("pod/peer{number}"), "condition=Ready")?;
            }
            there = count;
            let cache: measure::Cache = measured(node, &["cache"])?;
            let [ours, theirs] = SHIMS.map(|program| measured::<measure::Shims>(node, &["shims", program]));
            println!(
                "| {count} | {:.1} | {:.1} | {:.1} | {} | {} |",
                pool_used(node)? - disk,
                mib(cache.templates / 1024),
                mib(cache.volumes / 1024),
                of_one(&ours?),
                of_one(&theirs?)
            );
        }
        Ok(())
    }
}

/// Runs [`measure`] on a node.
fn measured<T: DeserializeOwned>(node: &str, what: &[&str]) -> Result<T, Error> {
    let program = crate::workspace::program();
    let mut command = Command::new(&program);
    command.args(["lab", "node", "shell", node, "--"]).arg(&program).arg("measure").args(what);
    let printed = install::output(&mut command)?;
    serde_json::from_str(&printed).map_err(|source| Error::Run { program: "measure".into(), source: source.into() })
}

/// MiB of KiB.
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// Mean over some shims.
fn of_one(shims: &measure::Shims) -> String {
    let each = |kib: u64| mib(kib) / shims.count.max(1) as f64;
    format!("{:.1} ({:.1}) of {}", each(shims.pss), each(shims.private), shims.count)
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

/// Reboots that the condition Booted tells of, given as status and message; none while it does not hold. The message is
/// the node driver's (`volume-driver/src/kube/guests.rs`).
fn reboots(booted: &str) -> Option<u64> {
    let message = booted.strip_prefix("True")?.trim();
    if message.is_empty() { Some(0) } else { message.rsplit_once(": ")?.1.parse().ok() }
}

/// Prints what shims said of what they did.
fn inside(times: &shim::Times) {
    println!("\n| inside the runtime, by its own log | median, ms | samples |\n|---|---|---|");
    for (what, times) in [
        ("container of an environment made", &times.created),
        ("exec started", &times.executed),
        ("stop, until init has ended", &times.stopped),
    ] {
        let [_, median, _] = spread(times);
        let median = if times.is_empty() { "not in the log".to_owned() } else { format!("{median:.1}") };
        println!("| {what} | {median} | {} |", times.len());
    }
}

fn unread(source: std::io::Error) -> Error {
    Error::Run { program: "the log of containerd".into(), source }
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
    fn reboots_count_once_init_is_ready() {
        for (booted, expected) in [
            ("True ", Some(0)),
            ("True reboots since the pod was started: 2", Some(2)),
            ("False reboots since the pod was started: 2", None),
            ("True another message", None),
            ("", None),
        ] {
            assert_eq!(reboots(booted), expected, "{booted}");
        }
    }

    #[test]
    fn the_spread_is_minimum_median_maximum() {
        let times = [30, 10, 20].map(Duration::from_millis);
        assert_eq!(spread(&times).map(f64::round).map(|time| time as u32), [10, 20, 30]);
    }
}
