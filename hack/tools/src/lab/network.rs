//! The lab's networks. The control plane's namespace holds a bridge, each node's a veth on it; pods of a node have a
//! range that the others route through the node. Nothing is in the root namespace: from there only the API server is
//! reached, through the forwarder. Service addresses are routed from the control plane through a node, whose kube-proxy
//! translates them.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    os::fd::AsFd,
    path::Path,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{
    error::{Error, errno, io, refused},
    node::Node,
};
use crate::command;

/// Namespace of the control plane.
pub const CONTROL_PLANE: &str = "viv-cp";
/// Address of the control plane on the bridge.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 1);
/// Pods of all nodes.
pub const PODS: &str = "10.244.0.0/16";
pub const SERVICES: &str = "10.96.0.0/16";
/// Cluster DNS.
pub const DNS: &str = "10.96.0.10";
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

fn handle(namespace: &str) -> String {
    format!("/run/netns/{namespace}")
}

/// Words that start a program in a namespace. ip-netns(8) would hide `/sys/fs/cgroup`.
pub fn enter(namespace: &str) -> [String; 2] {
    ["nsenter".to_owned(), format!("--net={}", handle(namespace))]
}

/// Moves the calling thread, and what it starts from then on, into a namespace.
pub fn join(namespace: &str) -> Result<(), Error> {
    let path = handle(namespace);
    let file = File::open(&path).map_err(|_| refused("the lab is not up: hack/lab up"))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(errno("enter", path))
}

/// Makes the control plane's side.
pub fn create() -> Result<(), Error> {
    words(&format!("ip netns add {CONTROL_PLANE}"))?;
    let inside = format!("ip -n {CONTROL_PLANE}");
    words(&format!("{inside} link set lo up"))?;
    words(&format!("{inside} link add br0 type bridge"))?;
    words(&format!("{inside} addr add {ADDRESS}/24 dev br0"))?;
    words(&format!("{inside} link set br0 up"))?;
    forward(CONTROL_PLANE)
}

/// Makes the namespace of a node afresh: what a power cut left in it is gone. `all` are the nodes of the lab.
pub fn create_node(node: Node, all: impl Iterator<Item = Node>) -> Result<(), Error> {
    remove(&node.namespace())?;
    let (name, namespace) = (node.name(), node.namespace());
    let outside = format!("ip -n {CONTROL_PLANE}");
    // The kernel takes a namespace apart in its own time, and the cable's end in this one goes with it.
    if !shown(node).is_empty()
        && let Err(error) = words(&format!("{outside} link del {name}"))
        && !shown(node).is_empty()
    {
        return Err(error);
    }
    words(&format!("ip netns add {namespace}"))?;
    let inside = format!("ip -n {namespace}");
    words(&format!("{inside} link set lo up"))?;
    words(&format!("{outside} link add {name} type veth peer name eth0 netns {namespace}"))?;
    words(&format!("{outside} link set {name} master br0 up"))?;
    words(&format!("{inside} addr add {}/24 dev eth0", node.address()))?;
    words(&format!("{inside} link set eth0 up"))?;
    words(&format!("{inside} route add default via {ADDRESS}"))?;
    words(&format!("{outside} route replace {} via {}", node.pods(), node.address()))?;
    for other in all.filter(|other| *other != node) {
        words(&format!("{inside} route add {} via {}", other.pods(), other.address()))?;
    }
    forward(&namespace)
}

/// Pulls a node's cable or puts it back.
pub fn link(node: Node, up: bool) -> Result<(), Error> {
    let state = if up { "up" } else { "down" };
    words(&format!("ip -n {CONTROL_PLANE} link set {} {state}", node.name()))
}

/// Whether a node's cable is in. False when the node has no network at all.
pub fn is_linked(node: Node) -> bool {
    is_up(&shown(node))
}

/// The cable's end at the bridge as ip-link(8) shows it; nothing when there is none.
fn shown(node: Node) -> String {
    command::words(&format!("ip -n {CONTROL_PLANE} -o link show {}", node.name())).unwrap_or_default()
}

/// Whether the administrator of a link in the output of `ip -o link` has it up (`LOWER_UP` is the other end).
fn is_up(shown: &str) -> bool {
    let flags = shown.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(flags, _)| flags);
    flags.split(',').any(|flag| flag == "UP")
}

/// Sends what the control plane's namespace has for service addresses through this node.
pub fn route_services(node: Node) -> Result<(), Error> {
    words(&format!("ip -n {CONTROL_PLANE} route replace {SERVICES} via {}", node.address()))
}

/// Removes a namespace with all that is in it.
pub fn remove(namespace: &str) -> Result<(), Error> {
    if Path::new(&handle(namespace)).exists() { words(&format!("ip netns del {namespace}")) } else { Ok(()) }
}

/// Names of all namespaces that belong to a lab.
pub fn present() -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|n| is_ours(n)).collect();
    names.sort();
    names
}

fn is_ours(name: &str) -> bool {
    let node = name.strip_prefix("viv-n").is_some_and(|number| number.parse::<u8>().is_ok());
    name == CONTROL_PLANE || node
}

/// Processes in a namespace, as `pid (name)`.
pub fn processes(namespace: &str) -> Vec<String> {
    let pids = command::words(&format!("ip netns pids {namespace}")).unwrap_or_default();
    let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    pids.split_whitespace().map(|pid| format!("{pid} ({})", name(pid).trim())).collect()
}

fn words(line: &str) -> Result<(), Error> {
    command::words(line).map(drop).map_err(Error::from)
}

/// `/proc/sys/net` shows the namespace of the thread that opens it.
fn forward(namespace: &str) -> Result<(), Error> {
    inside(namespace, || fs::write(FORWARDING, "1").map_err(io("write", FORWARDING)))?
}

/// Runs a function on a thread that is in a namespace, and returns its result.
pub fn inside<T: Send>(namespace: &str, function: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let ended = std::thread::scope(|scope| scope.spawn(|| join(namespace).map(|()| function())).join());
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_up_when_the_administrator_says_so() {
        assert!(is_up("7: n1@if2: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 state UP"));
        assert!(is_up("7: n1@if2: <NO-CARRIER,BROADCAST,MULTICAST,UP> mtu 1500 state DOWN"));
        assert!(!is_up("7: n1@if2: <BROADCAST,MULTICAST> mtu 1500 state DOWN"));
        assert!(!is_up("7: n1@if2: <BROADCAST,LOWER_UP> mtu 1500"));
        assert!(!is_up(""));
    }

    #[test]
    fn only_namespaces_of_the_lab_are_its_own() {
        for (name, ours) in [
            ("viv-cp", true),
            ("viv-n1", true),
            ("viv-n12", true),
            ("viv-test", false),
            ("viv-nx", false),
            ("cni-1", false),
        ] {
            assert_eq!(is_ours(name), ours, "{name}");
        }
    }
}
