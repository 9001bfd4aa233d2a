//! `kubectl-ve`, found by kubectl as `kubectl ve`: reads the command line and hands over.

mod at;
mod commands;
mod kubectl;
mod place;
mod reader;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use at::At;
use kubectl::Kubectl;
use place::Place;

/// Virtual environments: what was, and what to do when a node fails.
#[derive(Debug, Parser)]
#[command(name = "kubectl-ve", bin_name = "kubectl ve", version)]
struct Cli {
    #[command(flatten)]
    cluster: Cluster,
    #[command(subcommand)]
    command: Command,
}

/// Which cluster, and where in it; as kubectl takes them.
#[derive(Debug, Args)]
struct Cluster {
    /// Namespace of the environment.
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    /// Context of the kubeconfig.
    #[arg(long, global = true)]
    context: Option<String>,
    /// The kubeconfig.
    #[arg(long, global = true)]
    kubeconfig: Option<PathBuf>,
}

/// How trees are read.
#[derive(Clone, Debug, Args)]
struct Reading {
    /// Image with ve-reader in it, instead of the one that the installation names.
    #[arg(long, env = "VIVARIUM_READER_IMAGE")]
    image: Option<String>,
    /// Namespace that Vivarium is installed in.
    #[arg(long, env = "VIVARIUM_NAMESPACE", default_value = "vivarium-system")]
    system_namespace: String,
    /// Node to read on [default: one that has the data at hand].
    #[arg(long)]
    node: Option<String>,
}

/// Which tree.
#[derive(Clone, Debug, Args)]
struct Tree {
    /// Instant: a time (2026-01-31T12:00:00Z), how long ago (10m, 2h30m), or the number of a transaction [default: the last
    /// commit].
    #[arg(long)]
    at: Option<At>,
    /// What a node set aside when it came back, instead: NODE/EPOCH as `kubectl get evol -o yaml` shows it.
    #[arg(long, conflicts_with_all = ["at", "node"], value_name = "NODE/EPOCH")]
    diverged: Option<String>,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows the instants that an environment can be read at or taken back to.
    History {
        /// The environment.
        name: String,
        /// How many of the newest transactions are shown.
        #[arg(long, default_value_t = 20)]
        limit: usize,
        /// Prints everything that is known as JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        reading: Reading,
    },
    /// Shows what changed between two instants.
    Diff {
        /// The environment.
        name: String,
        /// The earlier instant, as for --at of `ls`.
        #[arg(long)]
        from: At,
        /// The later instant [default: the last commit].
        #[arg(long)]
        to: Option<At>,
        /// Reads files of which size and time of change are the same, too.
        #[arg(long)]
        read_all: bool,
        /// Prints a JSON document for each difference.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        reading: Reading,
    },
    /// Lists a directory of an environment.
    Ls {
        /// ENVIRONMENT:PATH
        place: Place,
        #[command(flatten)]
        tree: Tree,
    },
    /// Prints a file of an environment.
    Cat {
        /// ENVIRONMENT:PATH
        place: Place,
        #[command(flatten)]
        tree: Tree,
    },
    /// Copies a file or directory of an environment to this machine.
    Cp {
        /// ENVIRONMENT:PATH
        place: Place,
        /// Where to: a directory that is there, or the name of the copy.
        to: PathBuf,
        #[command(flatten)]
        tree: Tree,
    },
    /// Takes an environment, or some of its files and directories, back to an instant: it is shut down for that and starts
    /// again.
    Restore {
        /// The environment.
        name: String,
        /// Files and directories, by their absolute paths in the environment [default: all of it].
        paths: Vec<String>,
        /// Instant, as for --at of `ls`.
        #[arg(long)]
        at: At,
        #[command(flatten)]
        consent: Consent,
    },
    /// Attaches to the console of an environment.
    Console {
        /// The environment.
        name: String,
    },
    /// Ends the authority of a node: its environments start elsewhere.
    Fence {
        /// The node.
        node: String,
        #[command(flatten)]
        consent: Consent,
        /// Namespace that Vivarium is installed in.
        #[arg(long, env = "VIVARIUM_NAMESPACE", default_value = "vivarium-system")]
        system_namespace: String,
    },
    /// Starts an environment on another node.
    Failover {
        /// The environment.
        name: String,
        #[command(flatten)]
        consent: Consent,
    },
}

/// That somebody knows what he does.
#[derive(Clone, Copy, Debug, Args)]
struct Consent {
    /// Does it; without this it is only told what would be done.
    #[arg(long)]
    yes: bool,
}

/// What went wrong, for a person.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// Said by this program.
    #[error("{0}")]
    Said(String),
    /// kubectl has said what is wrong already.
    #[error("`kubectl {0}` failed: {1}")]
    Kubectl(String, String),
    /// A program, pipe or file.
    #[error("cannot {0}: {1}")]
    Io(String, std::io::Error),
    /// An answer that is not understood.
    #[error("what {0} says is not understood: {1}. Are this program and the installation of one version?")]
    NotUnderstood(&'static str, serde_json::Error),
}

impl Error {
    fn said(text: impl Into<String>) -> Self {
        Self::Said(text.into())
    }

    fn io(attempt: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io(attempt.into(), source)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let Cluster { namespace, context, kubeconfig } = &cli.cluster;
    let kubectl = Kubectl::new(namespace.as_deref(), context.as_deref(), kubeconfig.as_deref());
    let done = match cli.command {
        Command::History { name, limit, json, reading } => {
            commands::history::run(&kubectl, &name, limit, json, &reading)
        }
        Command::Diff { name, from, to, read_all, json, reading } => {
            commands::diff::run(&kubectl, &name, (from, to), read_all, json, &reading)
        }
        Command::Ls { place, tree } => commands::files::list(&kubectl, &place, &tree),
        Command::Cat { place, tree } => commands::files::print(&kubectl, &place, &tree),
        Command::Cp { place, to, tree } => commands::files::copy(&kubectl, &place, &to, &tree),
        Command::Restore { name, paths, at, consent } => {
            commands::restore::run(&kubectl, &name, at, &paths, consent.yes)
        }
        Command::Console { name } => commands::console(&kubectl, &name),
        Command::Fence { node, consent, system_namespace } => {
            commands::failover::fence(&kubectl, &node, &system_namespace, consent.yes)
        }
        Command::Failover { name, consent } => commands::failover::failover(&kubectl, &name, consent.yes),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read has had enough.
        Err(Error::Io(_, error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_kubectl_stand_before_or_after_the_command() {
        for line in [
            &["kubectl-ve", "-n", "a", "ls", "shop:/etc", "--at", "10m"][..],
            &["kubectl-ve", "ls", "shop:/etc", "--at", "2026-01-31T12:00:00Z", "-n", "a"],
            &["kubectl-ve", "restore", "shop", "/etc/ssh", "/srv", "--at", "10m", "-n", "a"],
        ] {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.cluster.namespace.as_deref(), Some("a"));
        }
        for line in [
            &["kubectl-ve", "ls", "shop"][..],
            &["kubectl-ve", "ls", "shop:/", "--at", "soon"],
            &["kubectl-ve", "diff", "shop"],
            &["kubectl-ve", "restore", "shop", "/etc/ssh"],
            &["kubectl-ve", "cat", "shop:/x", "--at", "1", "--diverged", "n1/2"],
        ] {
            assert!(Cli::try_parse_from(line).is_err(), "{line:?}");
        }
    }
}
