//! Small root file systems.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

/// A tree with a static busybox and its applets.
pub fn busybox(root: &Path) {
    for dir in ["bin", "sbin", "dev", "proc", "sys", "etc", "tmp", "run", "root", "var", "usr"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    assert!(Path::new("/bin/busybox").exists(), "install Debian's package busybox-static");
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let applets = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines().filter(|name| *name != "busybox") {
        symlink("/bin/busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
}

/// Writes an executable file.
pub fn script(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
