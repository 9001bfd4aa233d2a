//! `hack/test`: everything that CI runs, in one command. Each step says what it does, how far it is and how long it
//! took; the first failure ends the run and names the step, so that it can be repeated alone with `--only`.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use clap::Args;

mod restarts;
mod uninstall;

use restarts::Restarts;

use crate::build;
use crate::image::binaries;
use crate::install::{self, Installation};
use crate::sources::{self, Sources};
use crate::{checked, drill, oracle, quickstart, workspace};

/// Arguments of `hack/test`.
#[derive(Args)]
pub struct Arguments {
    /// Run only these steps (see `--list`); may be repeated.
    #[arg(long)]
    only: Vec<String>,
    /// Print the names of the steps.
    #[arg(long)]
    list: bool,
    /// Leave the lab running at the end.
    #[arg(long)]
    keep_lab: bool,
    /// Pass this to the end-to-end tests as a filter on their names.
    #[arg(long)]
    filter: Option<String>,
}

/// Why the tests did not pass.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step failed.
    #[error("step `{0}` failed; its messages are above. Repeat it alone with: hack/test --only {0}")]
    Failed(&'static str),
    /// A name that is no step.
    #[error("there is no step `{0}`; hack/test --list prints them")]
    NoSuchStep(String),
    /// A command could not be run at all.
    #[error("cannot run {program}: {source}")]
    Run {
        /// Program.
        program: String,
        /// Cause.
        source: std::io::Error,
    },
    /// Vivarium could not be built or installed.
    #[error(transparent)]
    Install(#[from] install::Error),
    /// A program that only tests need could not be built.
    #[error(transparent)]
    Build(#[from] build::Error),
    /// What was built could not be noted.
    #[error(transparent)]
    Sources(#[from] sources::Error),
    /// There is no way to run tests.
    #[error(transparent)]
    Checked(#[from] checked::Error),
    /// The oracle could not be built.
    #[error(transparent)]
    Oracle(#[from] oracle::Error),
    /// The workspace could not be found.
    #[error(transparent)]
    Workspace(#[from] workspace::Error),
}

struct Context {
    root: PathBuf,
    filter: Option<String>,
    installation: Option<Installation>,
    /// How often the containers of Vivarium had been started again before it was installed.
    restarts: Option<Restarts>,
}

type Step = (&'static str, &'static str, fn(&mut Context) -> Result<bool, Error>);

/// Cheapest first, so that a mistake shows early; what disturbs the machine last.
const STEPS: &[Step] = &[
    ("format", "source is formatted", |c| cargo(c, &["fmt", "--all", "--check"])),
    ("lint", "everything compiles, without a warning of the compiler or clippy", |c| {
        tests(c, &["--quiet", "--tests", "--no-run"])
    }),
    ("deny", "licences, advisories and sources of dependencies", |c| own(c, &["deny"])),
    ("unit", "pure parts, and the parts that meet the kernel, as root", |c| {
        build::ensure_tested()?;
        // Of the end-to-end tests only what they are made of: the rest needs the lab.
        Ok(tests(c, &["--quiet", "--tests", "--exclude", "vivarium-e2e", "--", "--test-threads", "3"])?
            && cargo(c, &["test", "-p", "vivarium-e2e", "--lib", "--locked", "--quiet"])?)
    }),
    ("csi-sanity", "the driver keeps to the CSI specification, by the specification's own test", csi_sanity),
    ("charts", "charts lint, render and hold what they promise", |c| own(c, &["charts"])),
    ("install", "the lab is up, Vivarium is installed with Helm", |c| {
        c.restarts = Some(Restarts::of_what_is_there());
        c.installation = Some(install::install()?);
        Ok(true)
    }),
    ("quickstart", "the first environment, twice, and a login by ssh", quickstart),
    ("store", "objects are created once in the lab's S3 too", store),
    ("e2e", "what a user does with kubectl", end_to_end),
    ("lab", "power cuts, pulled cables and killed supervisors, with environments on them", |c| {
        on_the_lab(c, &["lab"], "1")
    }),
    ("drills", "nodes that die or are cut off, outages, and what becomes of environments", |c| {
        on_the_lab(c, DRILLS, "1")
    }),
    ("helm-test", "the chart's own test, and that it says how to go on", helm_test),
    ("uninstall", "Helm refuses while environments run, then takes everything away and harms nobody", |c| {
        Ok(uninstall::test(installed(c)?)?)
    }),
    ("crash", "a lab that lost half of its processes is cleaned up and made anew", crash),
    ("cgroup2", "the runtime on a machine with pure cgroup v2", |c| own(c, &["machine", "--short"])),
    ("power", "volumes on a machine whose power is cut and whose disk loses its cache", |c| {
        own(c, &["power", "--short"])
    }),
];

/// Runs the steps.
pub fn run_tests(arguments: &Arguments) -> Result<(), Error> {
    if arguments.list {
        for (name, what, _) in STEPS {
            println!("{name:10} {what}");
        }
        return Ok(());
    }
    if let Some(unknown) = arguments.only.iter().find(|only| !STEPS.iter().any(|(name, ..)| name == only)) {
        return Err(Error::NoSuchStep(unknown.clone()));
    }
    let wanted = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == name);
    let steps: Vec<_> = STEPS.iter().filter(|(name, ..)| wanted(name)).collect();
    if !arguments.keep_lab {
        warn_of_loss(&steps);
    }
    let installs = steps.iter().position(|(name, ..)| *name == "install");
    let _ahead = installs.filter(|before| *before > 0).map(|_| Ahead::begin()).transpose()?;
    let filter = arguments.filter.clone();
    let mut context = Context { root: workspace::root()?, filter, installation: None, restarts: None };
    // Of what is no clone of the repository nothing can be said.
    let sources = Sources::now(&context.root).ok();
    let begun = Instant::now();
    let mut failed = None;
    for (number, (name, what, step)) in steps.iter().enumerate() {
        println!("\n=== [{}/{}] {name}: {what}", number + 1, steps.len());
        let started = Instant::now();
        let passed = step(&mut context)?;
        let verdict = if passed { "passed" } else { "FAILED" };
        println!(
            "=== {name} {verdict} after {} s ({} s in all)",
            started.elapsed().as_secs(),
            begun.elapsed().as_secs()
        );
        if let Some(sources) = &sources {
            sources.built(&context.root)?;
        }
        if !passed {
            failed = Some(*name);
            break;
        }
    }
    // A lab that this run brought up is taken down also after a failure: the next run finds a clean machine.
    let down = installs.is_none() || arguments.keep_lab || own(&mut context, &["lab", "down"])?;
    match failed {
        Some(name) => Err(Error::Failed(name)),
        None if !down => Err(Error::Failed("lab down")),
        None => {
            println!("\nall {} steps passed in {} s", steps.len(), begun.elapsed().as_secs());
            Ok(())
        }
    }
}

/// Builds what the lab consists of and what is installed in it.
pub fn build_programs() -> Result<(), Error> {
    build::ensure_all()?;
    Ok(binaries::build().map(drop).map_err(install::Error::from)?)
}

/// A process that does so while the steps before `install` wait for disks and for the last thread of a compiler. It ends with
/// this value.
struct Ahead(Child);

impl Ahead {
    fn begin() -> Result<Self, Error> {
        build::ensure_packages()?;
        println!("what is installed later is built beside the first steps");
        let mut nice = Command::new("nice");
        nice.args(["-n", "10"]).arg(workspace::program()).arg("build-programs").stdin(Stdio::null());
        Ok(Self(nice.spawn().map_err(|source| Error::Run { program: "nice".into(), source })?))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // It may be over. What it started ends with it, and nothing half done passes for done.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Says which environments of a lab that is up will be gone in the end.
fn warn_of_loss(steps: &[&Step]) {
    let takes_away = |(name, ..): &&&Step| ["install", "uninstall", "crash"].contains(name);
    if !steps.iter().any(|step| takes_away(&step)) {
        return;
    }
    let Ok(installation) = install::connect() else { return };
    let mut list = installation.command("kubectl");
    list.args(["get", "ve", "--all-namespaces", "--request-timeout=5s", "--output"]);
    list.arg("jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.name} {end}").stderr(Stdio::null());
    let there = install::output(&mut list).unwrap_or_default();
    if !there.trim().is_empty() {
        println!(
            "The lab that is up is used and taken away in the end, with these environments in it: {}",
            there.trim()
        );
    }
}

fn run(command: &mut Command) -> Result<bool, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.status().map(|status| status.success()).map_err(|source| Error::Run { program, source })
}

fn cargo(context: &mut Context, arguments: &[&str]) -> Result<bool, Error> {
    run(Command::new("cargo").args(arguments).current_dir(&context.root))
}

/// `cargo test` of the workspace.
fn tests(context: &mut Context, arguments: &[&str]) -> Result<bool, Error> {
    run(checked::test(&mut Command::new("cargo"), &context.root)?.args(arguments))
}

/// Runs those tests of a test program that its arguments pick. Arguments that pick none are a mistake.
fn picked(arguments: &[&str], program: impl Fn() -> Result<Command, Error>) -> Result<bool, Error> {
    let list = install::output(program()?.args(arguments).arg("--list"))?;
    if drill::listed(&list).is_empty() {
        println!("no test is picked by: {}", arguments.join(" "));
        return Ok(false);
    }
    run(program()?.args(arguments))
}

/// Another subcommand of this program.
fn own(context: &mut Context, arguments: &[&str]) -> Result<bool, Error> {
    run(Command::new(workspace::program()).args(arguments).current_dir(&context.root))
}

fn installed(context: &mut Context) -> Result<&Installation, Error> {
    if context.installation.is_none() {
        context.installation = Some(install::connect()?);
    }
    context.installation.as_ref().ok_or(Error::Failed("install"))
}

/// End-to-end tests that take nodes from under all others, and so run by themselves.
const ALONE: &[&str] = &["lab"];

/// So do these, which `hack/drill` knows too: a file for each family of disasters.
pub const DRILLS: &[&str] =
    &["drill_power", "drill_network", "drill_processes", "drill_outages", "drill_returns", ORACLE];

/// The one that needs the programs of the oracle.
const ORACLE: &str = "drill_oracle";

/// The tests of the crate that need a real S3, in the network where the lab has one.
fn store(context: &mut Context) -> Result<bool, Error> {
    let Some(store) = install::store()? else {
        println!("the lab that is up has no object store; it needs `hack/lab up --store ceph`");
        return Ok(false);
    };
    picked(&["--ignored"], || {
        let mut tests = Command::new(workspace::program());
        checked::test(tests.args(["lab", "run", "--", "cargo"]), &context.root)?;
        tests.args(["--offline", "--test", "store", "--"]);
        tests.env("VIVARIUM_TEST_S3", &store.endpoint).env("VIVARIUM_TEST_S3_BUCKET", &store.bucket);
        tests.env("VIVARIUM_TEST_S3_ACCESS_KEY", &store.access_key);
        tests.env("VIVARIUM_TEST_S3_SECRET_KEY", &store.secret_key);
        Ok(tests)
    })
}

fn end_to_end(context: &mut Context) -> Result<bool, Error> {
    let directory = context.root.join("e2e/tests");
    let unread = |source| Error::Run { program: directory.display().to_string(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&directory).map_err(unread)? {
        let path = entry.map_err(unread)?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.retain(|name| !ALONE.iter().chain(DRILLS).any(|alone| alone == name));
    names.sort_unstable();
    let before = match context.restarts.take() {
        Some(before) => before,
        None => Restarts::now(installed(context)?)?,
    };
    // Each test waits most of its time; a few side by side keep two cores busy without starving the cluster.
    let passed = on_the_lab(context, &names.iter().map(String::as_str).collect::<Vec<_>>(), "3")?;
    // None of them kills what it tests: what is replaced on purpose is in another pod then.
    Ok(before.none_since(installed(context)?)? && passed)
}

/// Runs end-to-end tests by the names of their files.
fn on_the_lab(context: &mut Context, names: &[&str], threads: &str) -> Result<bool, Error> {
    let root = context.root.clone();
    let filter = context.filter.clone();
    let installation = installed(context)?;
    let programs = if names.contains(&ORACLE) { Some(oracle::programs()?) } else { None };
    let mut arguments = vec!["--test-threads", threads];
    arguments.extend(filter.as_deref());
    if threads == "1" {
        arguments.push("--nocapture");
    }
    picked(&arguments, || {
        let mut command = installation.command("cargo");
        checked::test(&mut command, &root)?.arg("--no-fail-fast");
        command.args(names.iter().flat_map(|name| ["--test", name])).arg("--");
        command.envs(programs.iter().map(|programs| (oracle::VARIABLE, programs)));
        Ok(command)
    })
}

/// What a newcomer runs, also when it has been run before. The lab and what is installed in it are those of the step before.
fn quickstart(context: &mut Context) -> Result<bool, Error> {
    if !own(context, &["quickstart"])? || !own(context, &["quickstart"])? {
        return Ok(false);
    }
    let installation = installed(context)?;
    let key = installation.kubeconfig().with_file_name(quickstart::KEY);
    let address = ["get", "ve", "first", "--output=jsonpath={.status.serviceIP}"];
    let address = install::output(installation.command("kubectl").args(address))?;
    let mut ssh = Command::new(workspace::program());
    ssh.args(["lab", "run", "--", "ssh", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
    ssh.args(["-o", "LogLevel=ERROR", "-i"]).arg(key).arg(format!("root@{address}")).arg("systemctl is-system-running");
    let said = install::output(&mut ssh)?;
    println!("first says by ssh that it is {}", said.trim());
    let removed = run(installation.command("kubectl").args(["delete", "ve", "first", "--timeout=180s"]))?;
    Ok(said.trim() == "running" && removed)
}

/// All of csi-sanity, against the driver's services on a socket and a pool of their own.
fn csi_sanity(context: &mut Context) -> Result<bool, Error> {
    let program = build::ensure_test_programs()?.path("csi-sanity");
    picked(&["--ignored", "--nocapture", "csi_sanity::"], || {
        let mut cargo = Command::new("cargo");
        checked::test(&mut cargo, &context.root)?.args(["--quiet", "--test", "driver", "--"]);
        cargo.env("VIVARIUM_CSI_SANITY", &program);
        Ok(cargo)
    })
}

/// The chart's own test; and whoever has installed it was told how to make a first environment.
fn helm_test(context: &mut Context) -> Result<bool, Error> {
    let installation = installed(context)?;
    let of_release = [install::RELEASE, "--namespace", install::NAMESPACE];
    let notes = install::output(installation.command("helm").args(["get", "notes"]).args(of_release))?;
    let names_it = notes.lines().any(|line| line.trim() == "kind: VirtualEnvironment");
    if !names_it {
        println!("the notes of the release have no first environment in them:\n{notes}");
    }
    Ok(run(installation.command("helm").arg("test").args(of_release).args(["--timeout", "180s"]))? && names_it)
}

/// What is left of a crashed lab must not stand in the way of the next, which has one node. Its control plane is new,
/// so what was installed is gone: this comes after everything that needs it.
fn crash(context: &mut Context) -> Result<bool, Error> {
    let mut passed = own(context, &["lab", "crash"])?;
    if own(context, &["lab", "status"])? {
        println!("`lab status` calls a crashed lab healthy");
        passed = false;
    }
    context.installation = None;
    let begun = Instant::now();
    let up = own(context, &["lab", "up", "--nodes", "1"])?;
    println!("`lab up` of one node took {:.1} s; it should be less than 60 s", begun.elapsed().as_secs_f32());
    // With --keep-lab the next run would take it for the one that it needs. A broken one is left to be looked at.
    Ok(up && own(context, &["lab", "status"])? && own(context, &["lab", "down"])? && passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_steps_are_unique() {
        let mut names: Vec<_> = STEPS.iter().map(|(name, ..)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), STEPS.len());
    }
}
