//! Where the lab keeps what: `$VIVARIUM_LAB`, else `/var/lib/vivarium-lab`. Everything in it goes with `lab down`.
//!
//! | path | content |
//! |---|---|
//! | `lab.json` | [`Cluster`]: written first, so that the directory is known for a lab's |
//! | `kubeconfig` | for this machine; `pki/admin.kubeconfig` is for the control plane's network |
//! | `bin/` | links to all programs; on the `PATH` of the nodes |
//! | `run/NAME.json` | [`super::process::Record`] of each process that the lab started |
//! | `logs/NAME.log` | their output |
//! | `nodes/NAME/` | the disk of a node |
//! | `pki/`, `etcd/`, `registry/`, `ceph/` | of the control plane |

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    error::{Error, io},
    node::Node,
};

/// Paths of one lab.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    pub fn from_environment() -> Self {
        let root = std::env::var_os("VIVARIUM_LAB").map_or_else(|| "/var/lib/vivarium-lab".into(), PathBuf::from);
        Self { root }
    }

    #[cfg(test)]
    pub fn at(root: &Path) -> Self {
        Self { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    /// Works in the control plane's network.
    pub fn inner_kubeconfig(&self) -> PathBuf {
        self.kubeconfig_of("admin")
    }

    /// Of a component, in the nodes' networks.
    pub fn kubeconfig_of(&self, name: &str) -> PathBuf {
        self.pki(&format!("{name}.kubeconfig"))
    }

    pub fn programs(&self) -> PathBuf {
        self.root.join("bin")
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    pub fn records(&self) -> PathBuf {
        self.root.join("run")
    }

    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    pub fn pki(&self, file: &str) -> PathBuf {
        self.root.join("pki").join(file)
    }

    /// Disk of a node.
    pub fn node(&self, node: Node) -> PathBuf {
        self.root.join("nodes").join(node.name())
    }

    pub fn marker(&self) -> PathBuf {
        self.root.join("lab.json")
    }

    /// The lab that this directory belongs to; none if there is none.
    pub fn cluster(&self) -> Result<Option<Cluster>, Error> {
        let path = self.marker();
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| Error::Record { path: path.display().to_string(), source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io("read", path.display())(error)),
        }
    }

    /// `PATH` of everything that the lab starts.
    pub fn search_path(&self) -> String {
        format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", self.programs().display())
    }
}

/// What keeps journals in a lab.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// Ceph, its data replicated over the nodes.
    Ceph,
    /// A directory of each node.
    #[default]
    Local,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    nodes: u8,
    #[serde(default)]
    store: StoreKind,
}

impl Cluster {
    pub fn new(nodes: u8, store: StoreKind) -> Self {
        Self { nodes, store }
    }

    pub fn store(&self) -> StoreKind {
        self.store
    }

    pub fn size(&self) -> u8 {
        self.nodes
    }

    pub fn nodes(&self) -> impl Iterator<Item = Node> + use<> {
        (1..=self.nodes).map(Node::new)
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Result<Node, Error> {
        self.nodes().find(|node| node.name() == name).ok_or_else(|| {
            let names: Vec<_> = self.nodes().map(Node::name).collect();
            Error::Refused(format!("there is no node `{name}`; there are {}", names.join(", ")))
        })
    }
}

/// Writes a file that belongs to the lab, with its directory.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<(), Error> {
    if let Some(parent) = path.parent() {
        create(parent)?;
    }
    fs::write(path, content).map_err(io("write", path.display()))
}

/// Makes a directory with its parents.
pub fn create(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(io("create", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_found_by_its_name_alone() {
        let cluster = Cluster::new(3, StoreKind::Local);
        assert_eq!(cluster.node("n2").unwrap(), Node::new(2));
        for name in ["n4", "n0", "2", "", "n02"] {
            let message = cluster.node(name).unwrap_err().to_string();
            assert!(message.contains("there are n1, n2, n3"), "{message}");
        }
    }
}
