//! `vivarium-node`: reads the command line and hands over to the library.

use clap::Parser;
use vivarium_node::settings::Cli;

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    eprintln!("this build knows its command line only: {:?} is not built yet", cli.command);
    std::process::ExitCode::FAILURE
}
