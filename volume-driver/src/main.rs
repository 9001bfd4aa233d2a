//! `vivarium-node`: reads the command line and hands over to the library.

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use vivarium_node::settings::{Cli, Command};
use vivarium_node::{runtime_install, serve, supervise};

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    // The one cryptography of the process; whoever was first, it is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let result = match Cli::parse().command {
        // Its arguments were read, so that a mistake in them shows at once.
        Command::Serve(_) => match supervise::supervise(&["drive"]).await {
            Ok(code) => return code,
            Err(error) => Err(chain(&error)),
        },
        Command::Drive(args) => match supervise::end_with_parent() {
            Ok(()) => serve::serve(*args).await.map_err(|error| chain(&error)),
            Err(error) => Err(chain(&error)),
        },
        Command::InstallRuntime(args) => runtime_install::install(&args).await.map_err(|error| chain(&error)),
        Command::UninstallRuntime(args) => runtime_install::uninstall(&args).await.map_err(|error| chain(&error)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.ends_with(&cause) { text } else { format!("{text}: {cause}") }
    })
}
