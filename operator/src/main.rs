//! `vivarium-operator`: turns `VirtualEnvironment`s into volumes and pods.
//!
//! # Permissions
//! Exactly these are used; the chart's roles are written from this list.
//!
//! | scope | API group | resource | verbs |
//! |---|---|---|---|
//! | cluster | vivarium.dev | virtualenvironments | get, list, watch, patch |
//! | cluster | vivarium.dev | virtualenvironments/status | patch |
//! | cluster | vivarium.dev | virtualenvironments/finalizers | update |
//! | cluster | vivarium.dev | environmenttemplates | get, list, watch |
//! | cluster | vivarium.dev | environmentvolumes | get, list, watch, create, update, delete |
//! | cluster | vivarium.dev | environmentvolumes/status | update |
//! | cluster | (core) | pods | get, list, watch, create, patch, delete |
//! | cluster | (core) | pods/resize | patch |
//! | cluster | (core) | services, persistentvolumeclaims, persistentvolumes | get, list, watch, create, patch, delete |
//! | cluster | (core) | secrets | get |
//! | cluster | (core) | nodes | get, list, watch |
//! | cluster | events.k8s.io | events | create, patch |
//! | install namespace | coordination.k8s.io | leases | get, list, watch, create, update, patch |
//!
//! `virtualenvironments/finalizers` is for clusters that check who may set `blockOwnerDeletion`. `uninstall` uses
//! `pods` (list) and `leases` (list, watch, patch) of the above, so its Job can run under the same service account.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use vivarium_ownership::Timing;

/// Turns `VirtualEnvironment`s into volumes and pods, watches and reports.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the controllers.
    Run(RunArguments),
    /// Prepares the nodes for the removal of Vivarium: refuses while environments run, then has each node driver take
    /// the runtime out of its node's containerd.
    Uninstall(UninstallArguments),
    /// Makes an environment, waits until it is Ready and deletes it: the test of the chart.
    Check(CheckArguments),
    /// Prints the custom resource definitions as YAML.
    Crds,
}

#[derive(clap::Args)]
struct RunArguments {
    /// Namespace that Vivarium is installed in; the leases of nodes and of the leader are there.
    #[arg(long, env = "NAMESPACE")]
    namespace: String,
    /// Image of an environment's container. Nothing of it is run: the environment's tree comes from its volume.
    #[arg(long, env = "STUB_IMAGE")]
    stub_image: String,
    /// Address of /metrics, /healthz and /readyz.
    #[arg(long, env = "METRICS_ADDR", default_value = "0.0.0.0:8080")]
    metrics_addr: SocketAddr,
    /// Name of this replica in the leader's lease: the name of its pod.
    #[arg(long, env = "POD_NAME")]
    identity: String,
    /// Whether replicas agree on one that acts. Without it, this process acts at once.
    #[arg(long, env = "LEADER_ELECT", default_value_t = true, action = clap::ArgAction::Set)]
    leader_elect: bool,
    /// How long a node may act after one of its witnesses has heard from it: the same as the node drivers have.
    #[arg(long, env = "LEASE_SECONDS", default_value_t = 4)]
    lease_seconds: u64,
    /// How long a node is silent before its session is ended.
    #[arg(long, env = "SILENCE_SECONDS", default_value_t = 3.5)]
    silence_seconds: f64,
}

impl RunArguments {
    fn settings(self) -> Result<vivarium_operator::run::Settings, vivarium_operator::error::Failure> {
        let silence = Duration::try_from_secs_f64(self.silence_seconds)?;
        Ok(vivarium_operator::run::Settings {
            timing: Timing::with(Duration::from_secs(self.lease_seconds), silence)?,
            namespace: self.namespace,
            stub_image: self.stub_image,
            metrics_addr: self.metrics_addr,
            identity: self.identity,
            leader_elect: self.leader_elect,
        })
    }
}

#[derive(clap::Args)]
struct UninstallArguments {
    /// Namespace that Vivarium is installed in.
    #[arg(long, env = "NAMESPACE")]
    namespace: String,
}

#[derive(clap::Args)]
struct CheckArguments {
    /// Namespace that the environment is made in.
    #[arg(long, env = "NAMESPACE")]
    namespace: String,
    /// Template that it is made from.
    #[arg(long)]
    template: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Command::Crds => vivarium_operator::crds::print(),
        Command::Run(run) => run.settings().and_then(vivarium_operator::run::run),
        Command::Check(check) => vivarium_operator::check::run(&check.namespace, &check.template),
        Command::Uninstall(uninstall) => vivarium_operator::uninstall::run(&uninstall.namespace),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vivarium-operator: {}", vivarium_operator::error::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
