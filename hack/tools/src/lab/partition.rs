//! A network that drops a part of a node's packets: those to or from certain others, in one direction or both. A cable
//! that is pulled ([`super::network::link`]) is all of it at once. The rules are a table of nftables in the node's network
//! namespace, for the node itself and for its pods.

use super::{ceph, error::Error, network, node::Node};
use crate::command;

const TABLE: &str = "inet lab_partition";
/// Where the API server listens at the control plane's address.
const API_PORT: u16 = 6443;

/// Whom a node is cut off from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Peer {
    /// The API server.
    Api,
    /// The object store's gateway. The node's own part of the store goes on.
    Store,
    /// All other nodes and their pods.
    Nodes,
}

/// What is dropped, as the node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What it is sent: its own words still arrive, and have their effect.
    In,
    /// What it sends.
    Out,
    Both,
}

impl Direction {
    /// As told on the command line; without a word, both.
    pub fn of(incoming: bool, outgoing: bool) -> Self {
        match (incoming, outgoing) {
            (true, false) => Self::In,
            (false, true) => Self::Out,
            _ => Self::Both,
        }
    }
}

/// Hooks of the packets of a direction, with the words that name the other side's address, port and the cable there.
const IN: (&[&str], [&str; 3]) = (&["input", "forward"], ["saddr", "sport", "iifname"]);
const OUT: (&[&str], [&str; 3]) = (&["output", "forward"], ["daddr", "dport", "oifname"]);

/// The table, as nft(8) reads it. No peer at all is everybody.
fn rules(node: Node, peers: &[Peer], direction: Direction, all: &[Node]) -> String {
    let directions: &[_] = match direction {
        Direction::In => &[IN],
        Direction::Out => &[OUT],
        Direction::Both => &[IN, OUT],
    };
    let mut chains = Vec::new();
    for (hooks, words) in directions {
        for hook in *hooks {
            // Both directions pass the hook `forward`: each has a chain of its own there.
            chains.push(format!("  chain {hook}_{} {{", words[0]));
            chains.push(format!("    type filter hook {hook} priority 0"));
            chains.extend(matches(node, peers, all, *words).iter().map(|rule| format!("    {rule} drop")));
            chains.push("  }".to_owned());
        }
    }
    format!("table {TABLE} {{\n{}\n}}\n", chains.join("\n"))
}

fn matches(node: Node, peers: &[Peer], all: &[Node], [address, port, cable]: [&str; 3]) -> Vec<String> {
    if peers.is_empty() {
        return vec![format!("{cable} \"eth0\"")];
    }
    let one = |peer: &Peer| match peer {
        Peer::Api => vec![format!("ip {address} {} tcp {port} {API_PORT}", network::ADDRESS)],
        Peer::Store => vec![format!("ip {address} {} tcp {port} {}", network::ADDRESS, ceph::GATEWAY_PORT)],
        Peer::Nodes => {
            let others = all.iter().filter(|other| **other != node);
            others.map(|other| format!("ip {address} {{ {}, {} }}", other.address(), other.pods())).collect()
        }
    };
    peers.iter().flat_map(one).collect()
}

/// Cuts a node off, instead of what it was cut off from before.
pub fn cut(node: Node, peers: &[Peer], direction: Direction, all: &[Node]) -> Result<(), Error> {
    // An empty table is there to be deleted, whatever was there.
    let text = format!("table {TABLE}\ndelete table {TABLE}\n{}", rules(node, peers, direction, all));
    nft(node, &["-f", "-"], &text).map(drop)
}

/// Whether anything is dropped.
pub fn is_cut(node: Node) -> bool {
    nft(node, &["list", "tables"], "").is_ok_and(|tables| tables.contains(TABLE))
}

/// Drops nothing any more.
pub fn heal(node: Node) -> Result<(), Error> {
    nft(node, &["-f", "-"], &format!("table {TABLE}\ndelete table {TABLE}\n")).map(drop)
}

fn nft(node: Node, arguments: &[&str], input: &str) -> Result<String, Error> {
    let [nsenter, network] = network::enter(&node.namespace());
    let mut command = command::command(nsenter, [network.as_str(), "nft"]);
    Ok(command::run_with_input(command.args(arguments), input)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_direction_names_the_other_side_in_its_own_way() {
        let node = Node::new(3);
        let said = |peers: &[Peer], direction| rules(node, peers, direction, &[1, 2, 3].map(Node::new));
        let out = said(&[Peer::Api, Peer::Store], Direction::Out);
        for part in [
            "hook output priority 0\n    ip daddr 10.250.0.1 tcp dport 6443 drop\n    ip daddr 10.250.0.1 tcp dport 7480 drop\n",
            "hook forward priority 0\n    ip daddr 10.250.0.1 tcp dport 6443 drop\n",
        ] {
            assert!(out.contains(part), "{part} in {out}");
        }
        assert!(!out.contains("saddr"), "{out}");
        let into = said(&[Peer::Nodes], Direction::In);
        assert!(into.contains("hook input priority 0\n    ip saddr { 10.250.0.11, 10.244.1.0/24 } drop\n"), "{into}");
        assert!(!into.contains("10.250.0.13") && !into.contains("daddr"), "{into}");
        let all = said(&[], Direction::Both);
        for part in ["chain forward_saddr", "chain forward_daddr", "iifname \"eth0\" drop", "oifname \"eth0\" drop"] {
            assert!(all.contains(part), "{part} in {all}");
        }
    }

    #[test]
    fn no_word_is_both_directions() {
        assert_eq!(Direction::of(false, false), Direction::Both);
        assert_eq!(Direction::of(true, true), Direction::Both);
        assert_eq!(Direction::of(true, false), Direction::In);
    }
}
