//! A node from outside: its names and numbers, and its power and network switches. What happens inside is
//! [`super::node_init`]'s business. A node is a process that is the init of a pid namespace, with a mount, UTS and
//! network namespace; killing it takes every process and mount of the node along, which is what a power cut does.

use std::{fmt, path::PathBuf, process::Command, time::Duration};

use rustix::process::Signal;

use super::{
    cgroup,
    config::CONTAINERD_SOCKET,
    error::{Error, io, refused},
    hurt, loops, network, partition,
    process::{self, Record},
    state::{self, Cluster, Layout},
    wait,
};
use crate::command;

/// A node by its number, which counts from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node(u8);

impl Node {
    pub fn new(number: u8) -> Self {
        Self(number)
    }

    pub fn number(self) -> u8 {
        self.0
    }

    pub fn name(self) -> String {
        format!("n{}", self.0)
    }

    pub fn namespace(self) -> String {
        format!("viv-n{}", self.0)
    }

    pub fn address(self) -> String {
        format!("10.250.0.{}", 10 + u16::from(self.0))
    }

    /// Addresses of its pods.
    pub fn pods(self) -> String {
        format!("10.244.{}.0/24", self.0)
    }

    /// Record of the init process, which the node writes itself.
    pub fn init(self) -> String {
        format!("{}-init", self.name())
    }

    /// Record of the process that holds the init process.
    fn holder(self) -> String {
        self.name()
    }

    /// Its init process, if the node is on.
    pub fn running(self, layout: &Layout) -> Result<Option<Record>, Error> {
        Record::load_alive(layout, &self.init())
    }
}

impl fmt::Display for Node {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "n{}", self.0)
    }
}

/// A killed node is gone when its last process is.
const POWER_CUT: Duration = Duration::from_secs(30);

/// Starts a node that is off. Returns as soon as its init process runs.
pub fn power_on(layout: &Layout, cluster: &Cluster, node: Node) -> Result<(), Error> {
    if node.running(layout)?.is_some() {
        return Ok(());
    }
    // One that was killed, not switched off, has left its loop devices, and perhaps the process that held it.
    power_off(layout, node)?;
    network::create_node(node, cluster.nodes())?;
    cgroup::clean(node)?;
    cgroup::create(node)?;
    state::create(&layout.node(node))?;
    let init = ["unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child", "--uts", "--ipc"];
    let program = std::env::current_exe().map_err(io("find", "this program"))?;
    let mut words: Vec<String> = network::enter(&node.namespace()).into();
    words.extend(init.map(Into::into));
    words.push(program.display().to_string());
    words.extend(["lab", "node-init"].map(Into::into));
    words.extend([node.number(), cluster.size()].map(|number| number.to_string()));
    process::start(layout, &node.holder(), &words)?;
    let what = format!("the start of node {node}");
    let hint = format!("see {}", layout.log(&node.name()).display());
    wait::until(Duration::from_secs(10), Duration::from_millis(10), &what, &hint, || {
        process::expect_alive(layout, &node.holder())?;
        node.running(layout)
    })
    .map(drop)
}

/// Cuts a node's power: everything that runs on it ends at once, its disk stays.
pub fn power_off(layout: &Layout, node: Node) -> Result<(), Error> {
    if network::is_linked(node) {
        network::link(node, false)?;
    }
    cgroup::thaw(node)?;
    let pool = hurt::Pool::of(layout, node)?;
    let mut records = Vec::new();
    for name in [node.init(), node.holder()] {
        records.extend(Record::load(layout, &name)?);
    }
    // What waits for a disk that hangs dies only when the disk goes on.
    records.iter().try_for_each(|record| record.signal(Signal::KILL))?;
    pool.go_on();
    records.iter().try_for_each(|record| record.kill(POWER_CUT))?;
    // The kernel keeps a loop device when its user is killed; a machine without power has none.
    loops::detach_below(&layout.node(node))
}

/// Whether nothing of its network is cut.
pub fn is_connected(node: Node) -> bool {
    network::is_linked(node) && !partition::is_cut(node)
}

/// Undoes what was done to a node that is on.
pub fn heal(layout: &Layout, node: Node) -> Result<(), Error> {
    hurt::heal(layout, node)?;
    partition::heal(node)?;
    network::link(node, true)
}

/// Waits until the node's containerd answers.
pub fn wait_for_containerd(layout: &Layout, node: Node) -> Result<(), Error> {
    let limit = Duration::from_secs(60);
    let what = format!("an answer of containerd on {node}");
    let hint = format!("see {}", layout.log(&format!("{node}-containerd")).display());
    wait::until(limit, Duration::from_millis(100), &what, &hint, || {
        process::expect_alive(layout, &node.init())?;
        Ok(command::run(inside(layout, node, &ctr(layout, &["version"]))?.env_remove("TERM")).is_ok().then_some(()))
    })
}

/// Words that call `ctr` of the kubelet's images.
pub fn ctr(layout: &Layout, arguments: &[&str]) -> Vec<String> {
    let program = layout.program("ctr").display().to_string();
    let fixed =
        [program, "--address".to_owned(), CONTAINERD_SOCKET.to_owned(), "--namespace".to_owned(), "k8s.io".to_owned()];
    fixed.into_iter().chain(arguments.iter().map(ToString::to_string)).collect()
}

/// A command that runs in all namespaces of a node.
pub fn inside(layout: &Layout, node: Node, words: &[String]) -> Result<Command, Error> {
    let init =
        node.running(layout)?.ok_or_else(|| refused(format!("node {node} is off: hack/lab node power-on {node}")))?;
    let mut command = Command::new("nsenter");
    let target = format!("--target={}", init.pid());
    command.args([target.as_str(), "--mount", "--pid", "--net", "--uts", "--ipc", "--"]).args(words);
    command.env("PATH", layout.search_path()).env("CRI_CONFIG_FILE", "/run/crictl.yaml");
    command.env("KUBECONFIG", layout.inner_kubeconfig());
    Ok(command)
}

/// Puts image archives into the containerd of every node that is on, all nodes at once.
pub fn load_images(layout: &Layout, nodes: &[Node], files: &[PathBuf]) -> Result<(), Error> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = nodes.iter().map(|node| scope.spawn(|| load_into(layout, *node, files))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn load_into(layout: &Layout, node: Node, files: &[PathBuf]) -> Result<(), Error> {
    wait_for_containerd(layout, node)?;
    for path in files {
        // The node's /run, /opt and some others are its own: the archive comes by standard input.
        let archive = std::fs::File::open(path).map_err(io("open", path.display()))?;
        let mut import = inside(layout, node, &ctr(layout, &["images", "import", "-"]))?;
        command::run_with(&mut import, archive.into())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_give_names_and_addresses() {
        let node = Node::new(3);
        assert_eq!(
            [node.name(), node.namespace(), node.address(), node.pods(), node.init()],
            ["n3", "viv-n3", "10.250.0.13", "10.244.3.0/24", "n3-init"]
        );
    }
}
