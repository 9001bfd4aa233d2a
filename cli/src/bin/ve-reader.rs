//! `ve-reader`: reads trees that are mounted into its pod, for `kubectl ve`. It writes nothing but its standard output.

use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;
use vivarium_cli::{compare, quote, tree};

#[derive(Parser)]
#[command(name = "ve-reader", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Waits until the pod is deleted.
    Hold,
    /// Prints what the names in a directory stand for, one JSON document a line.
    List { root: PathBuf, path: PathBuf },
    /// Prints the content of a file.
    Cat { root: PathBuf, path: PathBuf },
    /// Prints a tar archive of a directory.
    Pack { root: PathBuf, path: PathBuf },
    /// Prints the differences between two trees, one JSON document a line.
    Compare {
        before: PathBuf,
        after: PathBuf,
        /// Reads files even if size and time are the same.
        #[arg(long)]
        read_all: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    let named = |path: &Path| {
        let shown = quote::name(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()));
        move |error: io::Error| io::Error::new(error.kind(), format!("{shown}: {error}"))
    };
    match command {
        Command::Hold => loop {
            std::thread::park();
        },
        Command::List { root, path } => {
            for entry in tree::list(tree::root(&root)?.as_fd(), &path).map_err(named(&path))? {
                line(&mut out, &entry)?;
            }
        }
        Command::Cat { root, path } => {
            let mut file = tree::file(tree::root(&root)?.as_fd(), &path).map_err(named(&path))?;
            io::copy(&mut file, &mut out).map_err(named(&path))?;
        }
        Command::Pack { root, path } => {
            let mut left_out = |path: &[u8]| eprintln!("left out: {} (no file, directory or link)", quote::name(path));
            tree::pack(tree::root(&root)?.as_fd(), &path, &mut out, &mut left_out).map_err(named(&path))?;
        }
        Command::Compare { before, after, read_all } => {
            let (before, after) = (tree::root(&before)?, tree::root(&after)?);
            compare::compare(before, after, read_all, &mut |change| line(&mut out, &change))?;
        }
    }
    out.flush()
}

fn line(out: &mut impl Write, document: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, document)?;
    out.write_all(b"\n")
}
