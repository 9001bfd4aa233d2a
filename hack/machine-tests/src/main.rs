//! Runs inside the emulated machine. `run` is started by the machine's one unit at boot: it prepares what a node driver
//! and a kubelet would, drives containerd through crictl, reports over the serial line and ends, which powers the
//! machine off. Every other word is a [`payload`]: what the containers under test do.

use std::process::ExitCode;

mod checks;
mod command;
mod cri;
mod environment;
mod failure;
mod groups;
mod leftovers;
mod payload;
mod prepare;
mod processes;
mod report;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["run"] => report::run(),
        words => payload::run(words),
    }
}
