//! An emulated machine with a kernel, an init and control groups of its own, and the tests of the runtime that need one:
//! pure cgroup v2 with systemd, which the machine that the lab runs on may not have.
//!
//! [`base`] makes its operating system and [`pool`] a pool with the template, both once; [`programs`] a disk with what is
//! under test, each time. [`emulator`] runs it and can cut its power, [`console`] is its serial line, and [`verdict`]
//! compares what came over it with the plan that both sides hold. What happens inside is in `hack/machine-tests`.
//!
//! [`power`] cuts its power, for the oracle: [`disk`] has a cache to lose, [`nbd`] hands it to the emulator, and
//! [`outside`] is where everything is that must not be lost.

pub mod base;
pub mod console;
pub mod disk;
pub mod emulator;
pub mod nbd;
pub mod outside;
pub mod pool;
pub mod power;
pub mod programs;
pub mod verdict;

use std::{
    error::Error as StdError,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use console::Event;
use emulator::{Disk, Machine, Start};
use verdict::Verdict;
use vivarium_machine_tests::{
    options::Options,
    plan::{Form, plan},
    tap::Line,
};

use crate::{build, cache, command, image, oci, oracle, progress::Step, template, workspace};

/// How long the machine may be silent: longer than any single check takes on a busy machine.
const SILENCE: Duration = Duration::from_secs(300);

/// Arguments of `machine`.
#[derive(clap::Args)]
pub struct Args {
    /// Only what breaks first.
    #[arg(long)]
    short: bool,
    /// Test this shim instead of building one.
    #[arg(long, value_name = "FILE")]
    shim: Option<PathBuf>,
    /// Give up after so many seconds; 480 for the short form, else 1500.
    #[arg(long, value_name = "SECONDS")]
    limit: Option<u64>,
    /// Show everything that comes over the serial line.
    #[arg(long)]
    verbose: bool,
    /// Let the machine expect a wrong memory limit: the run must end with that check failed.
    #[arg(long, hide = true)]
    prove_it_fails: bool,
    /// Fills the disk image of a pool; started in a mount namespace of its own.
    #[arg(long, hide = true, num_args = 2, value_names = ["IMAGE", "TEMPLATE"])]
    fill_pool: Option<Vec<PathBuf>>,
}

/// The subcommand.
pub fn run(arguments: &Args) -> Result<ExitCode, Box<dyn StdError>> {
    if let Some([image, template]) = arguments.fill_pool.as_deref() {
        pool::fill(image, template)?;
        return Ok(ExitCode::SUCCESS);
    }
    let form = if arguments.short { Form::Short } else { Form::Full };
    let limit = arguments.limit.unwrap_or(if arguments.short { 480 } else { 1500 });
    let begun = Instant::now();
    build::ensure(base::PACKAGES)?;
    let machine = Machine::build()?;
    let template = template::build(false)?;
    let pool = pool::build(&template.archive)?;
    let options = Options { form, layers: pool.layers.clone(), expect_wrongly: arguments.prove_it_fails };
    let work = work_directory()?;
    let programs = programs::build(work.path(), arguments.shim.as_deref(), &options)?;
    println!("prepared in {} s", begun.elapsed().as_secs());
    // The order that the machine knows them by: PROGRAMS_DISK, POOL_DISK.
    let disks = [Disk::Forgetful(programs), Disk::Forgetful(pool.image)];
    let verdict = watch(&machine, &disks, form, Duration::from_secs(limit), arguments.verbose)?;
    println!("{verdict}");
    println!("{} s in all", begun.elapsed().as_secs());
    Ok(if verdict.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the machine until it powers itself off and tells what it reports.
fn watch(machine: &Machine, disks: &[Disk], form: Form, limit: Duration, verbose: bool) -> Result<Verdict, Error> {
    let mut verdict = Verdict::new(plan(form).into_iter().map(vivarium_machine_tests::plan::Check::name));
    let begun = Instant::now();
    let deadline = begun + limit;
    let mut running = machine.boot(&Start { disks, outside: None, kernel: "" })?;
    println!("the machine starts");
    loop {
        let patience = SILENCE.min(deadline.saturating_duration_since(Instant::now()));
        match running.console().next(patience) {
            Event::Line(text) => {
                if let Some(line) = Line::parse(&text) {
                    println!("{:6.1} {line}", begun.elapsed().as_secs_f32());
                    verdict.take(line);
                } else if verbose || verdict.is_waiting() {
                    println!("{:6.1} | {text}", begun.elapsed().as_secs_f32());
                }
            }
            Event::Silence => {
                verdict.gave_up(format!("the machine was not done after {} s", begun.elapsed().as_secs()));
                running.power_cut()?;
                break;
            }
            Event::End => {
                running.wait()?;
                break;
            }
        }
    }
    Ok(verdict)
}

/// For files of one run.
fn work_directory() -> Result<tempfile::TempDir, Error> {
    let parent = cache::root();
    let cannot = |source| Error::File { attempt: "create a directory in", path: parent.clone(), source };
    std::fs::create_dir_all(&parent).map_err(cannot)?;
    tempfile::Builder::new().prefix("machine-run-").tempdir_in(&parent).map_err(cannot)
}

/// Why there is no machine, or no verdict.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot make the operating system of the machine: is the Debian archive reachable?")]
    Bootstrap(#[source] command::Error),
    #[error("cannot make a disk of the machine")]
    Disk(#[source] command::Error),
    #[error("cannot {attempt} {path}", path = path.display())]
    File { attempt: &'static str, path: PathBuf, source: io::Error },
    #[error("the template's archive {path} is damaged: {what}; build it again with hack/run templates --rebuild", path = path.display())]
    Template { path: PathBuf, what: &'static str },
    #[error("the operating system of the machine holds no kernel in {path}", path = .0.display())]
    NoKernel(PathBuf),
    #[error("cannot run the emulator qemu-system-x86_64; install the Debian package qemu-system-x86")]
    Emulator(#[source] io::Error),
    #[error(transparent)]
    Build(#[from] build::Error),
    #[error(transparent)]
    Oracle(#[from] oracle::Error),
    #[error("the thread that serves a disk of the machine has ended early")]
    DiskLost,
    #[error("the program that runs inside the machine could not be built")]
    Programs(#[from] image::binaries::BuildError),
    #[error(transparent)]
    Image(#[from] oci::Error),
    #[error(transparent)]
    Workspace(#[from] workspace::Error),
}

/// An error of a file operation.
fn file(attempt: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Error {
    let path = path.as_ref().to_path_buf();
    move |source| Error::File { attempt, path, source }
}

/// Announces a step that makes something for the cache.
fn step(what: &str) -> Step {
    Step::begin(format!("machine: {what}"))
}
