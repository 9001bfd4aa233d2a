//! What a developer and CI run: `lab` (a real Kubernetes of several nodes on this machine), `images` (the images of this
//! repository) and `templates` (operating systems for environments). A subcommand is a module with clap `Args` and a
//! function `run`; this file only dispatches and prints the chain of causes of an error.

use std::{error::Error, process::ExitCode};

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod cache;
mod charts;
mod checked;
mod command;
mod deny;
mod drill;
mod image;
mod install;
mod lab;
mod machine;
mod oci;
mod oracle;
mod progress;
mod quickstart;
mod sources;
mod template;
mod test;
mod workspace;

#[derive(Parser)]
#[command(name = "hack", about = "What a developer and CI of Vivarium run.", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A real Kubernetes of several nodes on this machine.
    Lab(lab::Args),
    /// Container images of this repository.
    Images(image::Args),
    /// Operating systems for environments.
    Templates(template::Args),
    /// Lints and renders the charts and checks what they promise.
    Charts(charts::Args),
    /// The runtime's tests in an emulated machine with pure cgroup v2.
    Machine(machine::Args),
    /// Power cuts of an emulated machine, judged by the oracle.
    Power(machine::power::Args),
    /// Licences, advisories and sources of the dependencies.
    Deny,
    /// From nothing to a virtual environment that answers.
    Quickstart,
    /// Everything that CI runs.
    Test(test::Arguments),
    /// Disasters in a lab that is up.
    Drill(drill::Arguments),
    /// What an environment costs, beside a peer.
    Bench(bench::Arguments),
    /// Builds what `test` installs.
    #[command(hide = true)]
    BuildPrograms,
    /// What `bench` runs on a node.
    #[command(subcommand, hide = true)]
    Measure(bench::measure::What),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Lab(arguments) => lab::run(arguments),
        Command::Images(arguments) => image::run(&arguments),
        Command::Templates(arguments) => template::run(&arguments),
        Command::Charts(arguments) => charts::run(&arguments),
        Command::Machine(arguments) => machine::run(&arguments),
        Command::Power(arguments) => machine::power::run(&arguments),
        Command::Deny => deny::run(),
        Command::Quickstart => finished(quickstart::run()),
        Command::Test(arguments) => finished(test::run_tests(&arguments)),
        Command::Drill(arguments) => finished(drill::run(&arguments)),
        Command::Bench(arguments) => finished(bench::run(&arguments)),
        Command::BuildPrograms => finished(test::build_programs()),
        Command::Measure(what) => finished(bench::measure::run(&what)),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            print_chain(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

/// A subcommand that has no exit code of its own.
fn finished<E: Error + 'static>(result: Result<(), E>) -> Result<ExitCode, Box<dyn Error>> {
    result.map(|()| ExitCode::SUCCESS).map_err(Into::into)
}

/// One line for each cause.
fn print_chain(error: &dyn Error) {
    eprintln!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {error}");
        cause = error.source();
    }
}
