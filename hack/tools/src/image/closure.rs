//! The shared libraries that a program of this machine needs in an image.

use std::path::{Path, PathBuf};

use crate::command::{self, command};

/// Libraries and the dynamic loader, by the paths under which the loader looks for them.
pub fn of(program: &Path) -> Result<Vec<PathBuf>, ClosureError> {
    let failed = |source| ClosureError::Ldd { program: program.into(), source };
    let printed = command::run(command("ldd", [program]).env("LC_ALL", "C")).map_err(failed)?;
    libraries(&printed).map_err(|name| ClosureError::Missing { program: program.into(), name })
}

/// Reads what ldd(1) prints; the error is the name of a library that was not found.
fn libraries(printed: &str) -> Result<Vec<PathBuf>, String> {
    let mut paths = Vec::new();
    for line in printed.lines().map(str::trim) {
        // `libz.so.1 => /lib/.../libz.so.1 (0x...)`, `/lib64/ld-linux-x86-64.so.2 (0x...)`, `linux-vdso.so.1 (0x...)`.
        let (name, place) = line.split_once(" => ").unwrap_or((line, line));
        if place == "not found" {
            return Err(name.to_owned());
        }
        let place = place.split(" (").next().unwrap_or_default();
        if place.starts_with('/') {
            paths.push(place.into());
        }
    }
    Ok(paths)
}

/// Why the libraries are not known.
#[derive(Debug, thiserror::Error)]
pub enum ClosureError {
    /// ldd failed.
    #[error("cannot find out which libraries {program} needs; is the Debian package that holds it installed?", program = .program.display())]
    Ldd {
        /// Program.
        program: PathBuf,
        /// Cause.
        source: command::Error,
    },
    /// A library is missing.
    #[error("{program} needs the library {name}, which is not on this machine; install its Debian package again", program = .program.display())]
    Missing {
        /// Program.
        program: PathBuf,
        /// Library.
        name: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_loader_are_found_and_the_kernels_own_is_left_out() {
        let printed = "\tlinux-vdso.so.1 (0x1)\n\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        let expected = ["/lib/x86_64-linux-gnu/libz.so.1", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(libraries(printed), Ok(expected.into()));
    }

    #[test]
    fn a_missing_library_is_named() {
        assert_eq!(libraries("\tlibx.so.2 => not found\n"), Err("libx.so.2".into()));
    }

    #[test]
    fn a_program_runs_with_nothing_but_its_closure() {
        assert!(rustix::process::geteuid().is_root(), "run this test as root: it needs chroot(2)");
        let program = Path::new(crate::image::MKFS);
        let root = tempfile::tempdir().unwrap();
        for file in of(program).unwrap().into_iter().chain([program.into()]) {
            let copy = root.path().join(file.strip_prefix("/").unwrap());
            std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
            std::fs::copy(&file, &copy).unwrap();
        }
        let root = root.path().to_str().unwrap();
        let printed = command::run(&mut command("chroot", [root, crate::image::MKFS, "--version"])).unwrap();
        assert!(printed.contains("mkfs.btrfs"), "{printed}");
    }
}
