//! The subcommand `lab`: a real Kubernetes of several nodes on this machine, from programs built by [`crate::build`].
//! This file says what can be asked; [`up`] and [`down`] are the two big answers, [`node`] is a node from outside and
//! [`node_init`] from inside, [`state`] says where everything is.

mod archive;
mod ceph;
mod cgroup;
mod checks;
mod config;
mod control_plane;
mod down;
mod error;
mod forward;
mod hurt;
mod images;
mod loops;
mod network;
mod node;
mod node_init;
mod partition;
mod pki;
mod process;
mod state;
mod status;
mod up;
mod wait;

use std::{
    error::Error as StdError,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

pub use error::Error;
use error::{io, refused};
use node::Node;
use partition::Direction;
use state::{Cluster, Layout, StoreKind};

use crate::build;

/// A process that is killed ends at once, but for one that waits for a disk.
const CRASH: Duration = Duration::from_secs(30);

/// Arguments of `lab`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Bring the lab up; what is built and running already is kept.
    Up {
        /// How many nodes; 3 unless a lab is up.
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..=i64::from(down::MOST_NODES)))]
        nodes: Option<u8>,
        /// What keeps journals; unless a lab is up, Ceph where its packages fit the release of this machine.
        #[arg(long)]
        store: Option<StoreKind>,
    },
    /// Take the lab away with all that it holds.
    Down,
    /// Show what runs. Ends with 1 unless all is well.
    Status,
    /// Print the path of the kubeconfig for this machine.
    Kubeconfig,
    /// Print the directory of kubectl, helm, crictl and all other programs.
    Programs,
    /// Build the programs into the cache and start nothing.
    Build,
    /// Print what is needed to use the object store, as JSON; nothing when there is none.
    Store,
    /// Put image archives (OCI or Docker) into the containerd of every node.
    LoadImage {
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Switches of a node, and a shell on it.
    #[command(subcommand)]
    Node(Switch),
    /// Print where the logs are, or the end of the logs whose name begins with NAME.
    Logs { name: Option<String> },
    /// Run a command in the control plane's network, from where pods and services can be reached.
    Run {
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    #[command(hide = true)]
    NodeInit { node: u8, nodes: u8 },
    #[command(hide = true)]
    Forward,
    #[command(hide = true)]
    Archive,
    /// End every second process of the lab as a crash might, for a test of what `up` makes of the rest.
    #[command(hide = true)]
    Crash,
}

#[derive(clap::Subcommand)]
enum Switch {
    /// Cut the power: everything on the node ends at once, its disk stays.
    PowerOff { name: String },
    /// Switch it on again.
    PowerOn { name: String },
    /// Pull the network cable, or drop a part of what goes through it: what runs goes on.
    Partition {
        name: String,
        /// Drop only what the node is sent.
        #[arg(long = "in")]
        incoming: bool,
        /// Drop only what the node sends.
        #[arg(long = "out")]
        outgoing: bool,
        /// Cut it off from these alone; may be repeated.
        #[arg(long, value_enum)]
        from: Vec<partition::Peer>,
    },
    /// Kill a daemon of the node and keep it dead; until `heal` nothing that ends on the node is started again.
    Stop { name: String, daemon: hurt::Daemon },
    /// Make everything that writes to the pool of the node wait.
    HangDisk { name: String },
    /// Undo it: the cable is put back, nothing is dropped, daemons are started, the disk goes on.
    Heal { name: String },
    /// Run a command on the node; a shell if there is none.
    Shell {
        name: String,
        #[arg(last = true)]
        command: Vec<String>,
    },
}

pub fn run(arguments: Args) -> Result<ExitCode, Box<dyn StdError>> {
    let layout = Layout::from_environment();
    match arguments.action {
        Action::Up { nodes, store } => up::up(&layout, nodes, store)?,
        Action::Down => down::down(&layout)?,
        Action::Status => return Ok(if status::print(&layout)? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        Action::Kubeconfig => println!("{}", layout.kubeconfig().display()),
        Action::Programs => println!("{}", layout.programs().display()),
        Action::Build => build()?,
        Action::Store if ceph::is_here(&layout) => println!("{}", ceph::access()),
        Action::Store => {}
        Action::LoadImage { files } => load_images(&layout, &files)?,
        Action::Node(switch) => node(&layout, switch)?,
        Action::Logs { name } => status::logs(&layout, name.as_deref())?,
        Action::Run { command } => run_in_network(&layout, &command)?,
        Action::NodeInit { node, nodes } => node_init::run(&layout, Node::new(node), nodes)?,
        Action::Forward => forward::serve()?,
        Action::Archive => archive::serve()?,
        Action::Crash => crash(&layout)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a function where the registry and the services of the lab can be reached, on a thread of its own.
pub fn in_control_plane<T: Send>(function: impl FnOnce() -> T + Send) -> Result<T, Error> {
    network::inside(network::CONTROL_PLANE, function)
}

fn crash(layout: &Layout) -> Result<(), Error> {
    for (name, record) in process::all(layout)?.iter().step_by(2) {
        println!("killing {name} ({})", record.pid());
        record.kill(CRASH)?;
    }
    Ok(())
}

fn build() -> Result<(), Error> {
    build::ensure_packages()?;
    for (name, path) in build::ensure_programs()?.iter() {
        println!("{name} {}", path.display());
    }
    println!("ceph {}", ceph::ensure_programs()?.display());
    Ok(())
}

fn cluster(layout: &Layout) -> Result<Cluster, Error> {
    layout.cluster()?.ok_or_else(|| refused(format!("there is no lab at {}: hack/lab up", layout.root().display())))
}

fn load_images(layout: &Layout, files: &[PathBuf]) -> Result<(), Error> {
    let mut on = Vec::new();
    for node in cluster(layout)?.nodes() {
        if node.running(layout)?.is_some() {
            on.push(node);
        } else {
            println!("node {node} is off and does not get them");
        }
    }
    node::load_images(layout, &on, files)
}

fn node(layout: &Layout, switch: Switch) -> Result<(), Error> {
    let cluster = cluster(layout)?;
    match switch {
        Switch::PowerOff { name } => {
            let node = cluster.node(&name)?;
            node::power_off(layout, node)?;
        }
        Switch::PowerOn { name } => node::power_on(layout, &cluster, cluster.node(&name)?)?,
        Switch::Partition { name, incoming, outgoing, from } => {
            let (node, direction) = (cluster.node(&name)?, Direction::of(incoming, outgoing));
            if from.is_empty() && direction == Direction::Both {
                network::link(node, false)?;
            } else {
                partition::cut(node, &from, direction, &cluster.nodes().collect::<Vec<_>>())?;
            }
        }
        Switch::Stop { name, daemon } => hurt::stop(layout, cluster.node(&name)?, daemon)?,
        Switch::HangDisk { name } => hurt::hang_disk(layout, cluster.node(&name)?)?,
        Switch::Heal { name } => node::heal(layout, cluster.node(&name)?)?,
        Switch::Shell { name, command } => {
            let shell = if command.is_empty() { vec!["/bin/bash".to_owned()] } else { command };
            return Err(replace(node::inside(layout, cluster.node(&name)?, &shell)?));
        }
    }
    up::route_services(layout, &cluster)
}

/// Becomes the command, so that whoever ends this process ends the command.
fn run_in_network(layout: &Layout, words: &[String]) -> Result<(), Error> {
    network::join(network::CONTROL_PLANE)?;
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(arguments).env("PATH", format!("{}:{path}", layout.programs().display()));
    command.env("KUBECONFIG", layout.inner_kubeconfig());
    Err(replace(command))
}

/// Returns only when the program cannot be started.
fn replace(mut command: Command) -> Error {
    let error = command.exec();
    io("start", command.get_program().display())(error)
}
