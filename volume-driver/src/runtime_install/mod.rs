//! Making the runtime shim known to the node's containerd, and taking it back.
//!
//! The shim is copied to the node, a drop-in file ([`drop_in`]) names it, and containerd is restarted only if that file
//! changed or was not taken in yet; pods survive that, because shims do not depend on containerd. Afterwards containerd
//! itself is asked ([`containerd`]) whether it has the runtime.

mod containerd;
mod drop_in;

use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use vivarium_api::names;
use vivarium_sys::kernel;

use crate::files;
use crate::settings::RuntimeArgs;
pub use containerd::ContainerdError;

/// Name of the drop-in file.
const DROP_IN: &str = "vivarium.toml";

/// Why the runtime was not installed or taken back.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The kernel lacks what environments stand on.
    #[error(
        "this node runs Linux {release}, and environments need {}.{} or newer (overlayfs that takes layers one by one, simple quotas of btrfs): upgrade its kernel, or keep the node driver off it (the chart's node.nodeSelector)",
        kernel::OLDEST.0,
        kernel::OLDEST.1
    )]
    Kernel {
        /// What runs.
        release: String,
    },
    /// A file failed.
    #[error("cannot {attempt} {}: {source}", path.display())]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// containerd failed.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    /// containerd does not read the drop-in.
    #[error("containerd was restarted and still has no runtime '{}': it does not read {}. Add imports = [\"{}/*.toml\"] to the top of its configuration (for containerd as a service: /etc/containerd/config.toml), or set the chart's drop-in directory to one that it imports", names::RUNTIME_CLASS, path.display(), directory.display())]
    NotRead {
        /// The drop-in.
        path: PathBuf,
        /// Its directory.
        directory: PathBuf,
    },
}

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::Io { attempt, path, source }
}

/// Installs the runtime; a second time it changes nothing.
///
/// # Errors
/// [`InstallError`].
pub async fn install(args: &RuntimeArgs) -> Result<(), InstallError> {
    let release = kernel::release();
    if kernel::is_too_old(&release) {
        return Err(InstallError::Kernel { release });
    }
    let shim = args.host_bin_dir.join(names::SHIM_BINARY);
    if copy(&args.shim_source, &shim)? {
        tracing::info!(path = %shim.display(), "put the runtime shim in place");
    }
    let path = args.conf_dir().join(DROP_IN);
    let wanted = drop_in::render(&shim);
    std::fs::create_dir_all(args.conf_dir()).map_err(failed("make the directory", args.conf_dir()))?;
    let present = std::fs::read_to_string(&path).ok();
    let changed = present.as_deref() != Some(wanted.as_str());
    if changed {
        files::write(&path, wanted.as_bytes(), 0o644).map_err(failed("write", &path))?;
        tracing::info!(path = %path.display(), "told containerd of the runtime");
    }
    // After an attempt that was cut off between file and restart the file is there, and containerd does not know of it.
    if changed || !containerd::has_runtime(args.socket()).await? {
        containerd::restart(args.socket()).await?;
        if !containerd::has_runtime(args.socket()).await? {
            return Err(InstallError::NotRead { path, directory: args.conf_dir().to_owned() });
        }
    }
    tracing::info!("containerd has the runtime '{}'", names::RUNTIME_CLASS);
    Ok(())
}

/// Whether the runtime could be taken back, as far as that can be known without doing it: containerd answers.
///
/// # Errors
/// [`InstallError`].
pub async fn can_uninstall(args: &RuntimeArgs) -> Result<(), InstallError> {
    containerd::has_runtime(args.socket()).await?;
    Ok(())
}

/// Takes the runtime back; a second time it changes nothing.
///
/// # Errors
/// [`InstallError`].
pub async fn uninstall(args: &RuntimeArgs) -> Result<(), InstallError> {
    let path = args.conf_dir().join(DROP_IN);
    let there = path.exists();
    files::remove(&path).map_err(failed("remove", &path))?;
    if there || containerd::has_runtime(args.socket()).await? {
        containerd::restart(args.socket()).await?;
    }
    let shim = args.host_bin_dir.join(names::SHIM_BINARY);
    files::remove(&shim).map_err(failed("remove", &shim))?;
    tracing::info!("took the runtime '{}' back", names::RUNTIME_CLASS);
    Ok(())
}

/// Copies a program, unless the same is there. By rename: shims that run keep the file that they were started from.
fn copy(from: &Path, to: &Path) -> Result<bool, InstallError> {
    let digest = |path: &Path| -> io::Result<_> {
        let mut hash = Sha256::new();
        io::copy(&mut std::fs::File::open(path)?, &mut hash)?;
        Ok(hash.finalize())
    };
    let wanted = digest(from).map_err(failed("read the shim", from))?;
    let same = digest(to).is_ok_and(|found| found == wanted)
        && std::fs::metadata(to).is_ok_and(|found| found.mode() & 0o7777 == 0o755);
    if same {
        return Ok(false);
    }
    if let Some(directory) = to.parent() {
        std::fs::create_dir_all(directory).map_err(failed("make the directory", directory))?;
    }
    let fresh = to.with_extension("new");
    files::remove(&fresh).map_err(failed("remove", &fresh))?;
    let write = || -> io::Result<()> {
        let mut file = std::fs::File::options().write(true).create_new(true).mode(0o755).open(&fresh)?;
        io::copy(&mut std::fs::File::open(from)?, &mut file)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
        file.sync_all()?;
        std::fs::rename(&fresh, to)
    };
    write().map_err(failed("put the shim at", to))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shim_is_replaced_only_when_it_differs() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("bin/shim"));
        std::fs::write(&from, "one").unwrap();
        assert!(copy(&from, &to).unwrap());
        assert_eq!(std::fs::metadata(&to).unwrap().mode() & 0o7777, 0o755);
        let running = std::fs::metadata(&to).unwrap().ino();
        assert!(!copy(&from, &to).unwrap());
        assert_eq!(std::fs::metadata(&to).unwrap().ino(), running);
        std::fs::write(&from, "two").unwrap();
        assert!(copy(&from, &to).unwrap());
        assert_ne!(std::fs::metadata(&to).unwrap().ino(), running, "a running shim keeps its file");
        assert_eq!(std::fs::read(&to).unwrap(), b"two");
        assert!(matches!(copy(&dir.path().join("none"), &to), Err(InstallError::Io { attempt: "read the shim", .. })));
    }
}
