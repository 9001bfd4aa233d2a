//! The subcommand `deny`: what `deny.toml` holds against the dependencies. cargo-deny is built into the cache once.
//!
//! Advisories come from a repository on GitHub. Where that cannot be reached they are not checked, and it is said.

use std::{
    error::Error,
    path::PathBuf,
    process::{Command, ExitCode},
};

use crate::{cache, command, progress::Step, workspace};

/// Version of cargo-deny; a newer one may find something new in an old checkout.
const VERSION: &str = "0.20.2";

/// The subcommand.
pub fn run() -> Result<ExitCode, Box<dyn Error>> {
    let program = ensure()?;
    let root = workspace::root()?;
    let deny = |arguments: &[&str]| {
        let mut deny = Command::new(&program);
        deny.args(["--workspace", "--locked"]).args(arguments).current_dir(&root);
        deny
    };
    let mut checks = vec!["--log-level", "error", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"];
    match command::run(&mut deny(&["fetch", "db"])) {
        Ok(_) => checks.push("advisories"),
        Err(_) => {
            eprintln!("deny: advisories are NOT checked: github.com/RustSec/advisory-db cannot be reached from here");
        }
    }
    let passed = deny(&checks).status()?.success();
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// cargo-deny in the cache.
fn ensure() -> Result<PathBuf, Box<dyn Error>> {
    let place = cache::root().join(format!("bin/cargo-deny-{VERSION}"));
    let program = place.join("bin/cargo-deny");
    let _lock = cache::lock("cargo-deny")?;
    if !program.exists() {
        let _step = Step::begin(format!("building cargo-deny {VERSION} (some minutes, once)"));
        let mut install = Command::new("cargo");
        // Unoptimised it checks in seconds and is built in half the time.
        install.args(["install", "cargo-deny", "--locked", "--debug", "--version", VERSION, "--root"]).arg(&place);
        // What is built must not end up among the artefacts of this checkout.
        install.env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS").current_dir(cache::root());
        command::run(&mut install)?;
    }
    Ok(program)
}
