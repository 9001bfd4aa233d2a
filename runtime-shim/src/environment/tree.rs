//! Files of the guest's tree that carry out its spec: host name, resolver, time zone, locale, keys for sshd. The tree is
//! the tenant's, who may have put a symlink anywhere: every lookup is confined to the guest's root by the kernel
//! (`openat2` with `RESOLVE_IN_ROOT`), and files are replaced by rename, never opened for writing. The caller works with
//! the guest root's ids, so that owners and quotas are the guest's.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use vivarium_api::node::boot::BootConfig;

use super::limits;
use crate::error::{Attempt, Error, Result};

/// Programs that are tried as init, in this order.
const INITS: &[&str] = &["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd"];
/// Largest file that is compared with what it should be.
const FILE_MAX: u64 = 64 << 10;
/// What is said to `pam_limits`; a file of the owner with a later name overrides it.
const LIMITS: &str = "50-vivarium.conf";
const SSHD: &str = "AuthorizedKeysFile .ssh/authorized_keys .ssh/authorized_keys2 \
                    /run/host/vivarium/authorized_keys/%u\n";

/// The root directory of a guest.
#[derive(Clone, Copy, Debug)]
pub struct Tree<'fd> {
    root: BorrowedFd<'fd>,
}

impl<'fd> Tree<'fd> {
    /// Takes the root directory.
    #[must_use]
    pub fn new(root: BorrowedFd<'fd>) -> Self {
        Self { root }
    }

    /// Finds the program that boots the tree.
    pub fn find_init(self) -> Result<String> {
        for path in INITS {
            if let Ok(file) = self.open(path, OFlags::PATH)
                && let Ok(stat) = rustix::fs::fstat(&file)
                && FileType::from_raw_mode(stat.st_mode).is_file()
                && Mode::from_raw_mode(stat.st_mode).contains(Mode::XUSR)
            {
                return Ok((*path).into());
            }
        }
        Err(Error::Refused(format!(
            "the template is no operating system: it has none of {}; use an image with an init",
            INITS.join(", ")
        )))
    }

    /// Puts what the boot configuration asks for in place. Files that are as they should be are not touched.
    pub fn prepare(self, boot: &BootConfig) -> Result<()> {
        let etc = self.directory("etc")?;
        replace(&etc, "hostname", &format!("{}\n", boot.hostname))?;
        if is_missing_or_empty(&etc, "resolv.conf")? {
            replace_link(&etc, "resolv.conf", "../run/host/vivarium/resolv.conf")?;
        }
        if is_missing_or_empty(&etc, "hosts")? {
            replace(&etc, "hosts", &hosts(&boot.hostname))?;
        }
        if let Some(zone) = &boot.timezone {
            self.set_timezone(&etc, zone)?;
        }
        if let Some(locale) = &boot.locale {
            self.set_locale(&etc, locale)?;
        }
        if boot.authorized_keys > 0 {
            // No sshd in the template: nothing to tell.
            if let Ok(dir) = self.directory("etc/ssh/sshd_config.d") {
                replace(&dir, "10-vivarium.conf", SSHD)?;
            }
        }
        // No PAM in the template: nobody would read it.
        if let Ok(dir) = self.directory("etc/security/limits.d") {
            match limits::of_logins(&limits::posix(&boot.limits)?) {
                Some(text) => replace(&dir, LIMITS, &text)?,
                None => remove_if_there(&dir, LIMITS).attempt(|| format!("remove {LIMITS} of the guest"))?,
            }
        }
        Ok(())
    }

    fn set_timezone(self, etc: &OwnedFd, zone: &str) -> Result<()> {
        let plain = zone.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'+' | b'-'))
        });
        let known = plain
            && self.open(&format!("usr/share/zoneinfo/{zone}"), OFlags::PATH).is_ok_and(|file| is_file(file.as_fd()));
        if !known {
            return Err(Error::Refused(format!(
                "the time zone {zone:?} of spec.os.timezone does not exist in the template (usr/share/zoneinfo); \
                 correct it, or install tzdata in the template"
            )));
        }
        replace_link(etc, "localtime", &format!("../usr/share/zoneinfo/{zone}"))?;
        replace(etc, "timezone", &format!("{zone}\n"))
    }

    fn set_locale(self, etc: &OwnedFd, locale: &str) -> Result<()> {
        if !locale.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'@')) {
            return Err(Error::Refused(format!("the locale {locale:?} of spec.os.locale is not a locale's name")));
        }
        let text = format!("LANG={locale}\n");
        replace(etc, "locale.conf", &text)?;
        // Debian before 13 reads this one; later it is a symlink to the other.
        if let Ok(dir) = self.directory("etc/default")
            && kind(&dir, "locale")?.is_some_and(FileType::is_file)
        {
            replace(&dir, "locale", &text)?;
        }
        Ok(())
    }

    fn directory(self, path: &str) -> Result<OwnedFd> {
        self.open(path, OFlags::RDONLY | OFlags::DIRECTORY).attempt(|| format!("open /{path} of the guest"))
    }

    fn open(self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(rustix::fs::openat2(self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
    }
}

fn hosts(hostname: &str) -> String {
    format!(
        "127.0.0.1\tlocalhost\n127.0.1.1\t{hostname}\n\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\t\
         ip6-allnodes\nff02::2\tip6-allrouters\n"
    )
}

fn is_file(file: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file())
}

/// What a name in a directory is, itself and not what it may point to.
fn kind(dir: &OwnedFd, name: &str) -> Result<Option<FileType>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error).attempt(|| format!("look at {name} of the guest")),
    }
}

/// Images often hold empty files where a builder had mounted its own.
fn is_missing_or_empty(dir: &OwnedFd, name: &str) -> Result<bool> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_size == 0),
        Err(rustix::io::Errno::NOENT) => Ok(true),
        Err(error) => Err(error).attempt(|| format!("look at {name} of the guest")),
    }
}

/// The content of a regular file that is not too large, for comparison.
fn content(dir: &OwnedFd, name: &str) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty()).ok()?;
    if !is_file(file.as_fd()) {
        return None;
    }
    let mut bytes = Vec::new();
    File::from(file).take(FILE_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// Name of a file on its way to its place. Left over only if the node dies in between, and then reused.
const TEMPORARY: &str = ".vivarium-new";

fn replace(dir: &OwnedFd, name: &str, text: &str) -> Result<()> {
    if content(dir, name).as_deref() == Some(text.as_bytes()) {
        return Ok(());
    }
    let write = || -> io::Result<()> {
        remove_if_there(dir, TEMPORARY)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, TEMPORARY, flags, Mode::from_raw_mode(0o644))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?;
        File::from(file).write_all(text.as_bytes())?;
        Ok(rustix::fs::renameat(dir, TEMPORARY, dir, name)?)
    };
    write().attempt(|| format!("write {name} of the guest"))
}

fn replace_link(dir: &OwnedFd, name: &str, target: &str) -> Result<()> {
    if rustix::fs::readlinkat(dir, name, Vec::new()).is_ok_and(|present| present.to_bytes() == target.as_bytes()) {
        return Ok(());
    }
    let write = || -> io::Result<()> {
        remove_if_there(dir, TEMPORARY)?;
        rustix::fs::symlinkat(target, dir, TEMPORARY)?;
        Ok(rustix::fs::renameat(dir, TEMPORARY, dir, name)?)
    };
    write().attempt(|| format!("link {} of the guest", Path::new(name).display()))
}

fn remove_if_there(dir: &OwnedFd, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(error) if error != rustix::io::Errno::NOENT => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use vivarium_api::node::boot::ResourceLimit;

    fn boot() -> BootConfig {
        BootConfig {
            version: 1,
            machine_uuid: String::new(),
            hostname: "shop".into(),
            timezone: Some("Europe/Prague".into()),
            locale: Some("C.UTF-8".into()),
            sysctls: Vec::new(),
            limits: Vec::new(),
            authorized_keys: 1,
        }
    }

    fn guest() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in
            ["etc/ssh/sshd_config.d", "etc/security/limits.d", "etc/default", "usr/share/zoneinfo/Europe", "sbin"]
        {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        fs::write(dir.path().join("usr/share/zoneinfo/Europe/Prague"), "TZif").unwrap();
        fs::write(dir.path().join("etc/default/locale"), "").unwrap();
        dir
    }

    fn with_tree<T>(dir: &tempfile::TempDir, action: impl FnOnce(Tree<'_>) -> T) -> T {
        let root = File::open(dir.path()).unwrap();
        action(Tree::new(root.as_fd()))
    }

    #[test]
    fn the_spec_arrives_in_the_tree() {
        let dir = guest();
        with_tree(&dir, |tree| tree.prepare(&boot())).unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
        assert_eq!(read("etc/hostname"), "shop\n");
        assert_eq!(read("etc/timezone"), "Europe/Prague\n");
        assert_eq!(read("etc/locale.conf"), "LANG=C.UTF-8\n");
        assert_eq!(read("etc/default/locale"), "LANG=C.UTF-8\n");
        assert!(read("etc/hosts").contains("127.0.1.1\tshop\n"));
        assert!(read("etc/ssh/sshd_config.d/10-vivarium.conf").contains("/run/host/vivarium/authorized_keys/%u"));
        let link = |path: &str| fs::read_link(dir.path().join(path)).unwrap();
        assert_eq!(link("etc/localtime"), Path::new("../usr/share/zoneinfo/Europe/Prague"));
        assert_eq!(link("etc/resolv.conf"), Path::new("../run/host/vivarium/resolv.conf"));
        assert!(!dir.path().join("etc").join(TEMPORARY).exists());
    }

    #[test]
    fn limits_of_logins_come_and_go_with_the_spec() {
        let dir = guest();
        let file = dir.path().join("etc/security/limits.d").join(LIMITS);
        let limit = ResourceLimit { name: "nofile".into(), soft: "2048".into(), hard: "4096".into() };
        with_tree(&dir, |tree| tree.prepare(&BootConfig { limits: vec![limit], ..boot() })).unwrap();
        assert!(fs::read_to_string(&file).unwrap().contains("\nroot soft nofile 2048\n"));
        with_tree(&dir, |tree| tree.prepare(&boot())).unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn what_the_guest_wrote_itself_stays() {
        let dir = guest();
        fs::write(dir.path().join("etc/hosts"), "mine").unwrap();
        symlink("elsewhere", dir.path().join("etc/resolv.conf")).unwrap();
        with_tree(&dir, |tree| tree.prepare(&boot())).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("etc/hosts")).unwrap(), "mine");
        assert_eq!(fs::read_link(dir.path().join("etc/resolv.conf")).unwrap(), Path::new("elsewhere"));
    }

    #[test]
    fn symlinks_never_lead_out_of_the_tree() {
        let outside = tempfile::tempdir().unwrap();
        for name in ["hostname", "canary"] {
            fs::write(outside.path().join(name), "untouched").unwrap();
        }
        let dir = guest();
        // A file that points out: the link is replaced, its target left alone.
        symlink(outside.path().join("hostname"), dir.path().join("etc/hostname")).unwrap();
        // A directory that points out: resolved inside the tree, where it does not exist.
        fs::remove_dir_all(dir.path().join("etc/ssh")).unwrap();
        symlink(outside.path(), dir.path().join("etc/ssh")).unwrap();
        with_tree(&dir, |tree| tree.prepare(&boot())).unwrap();
        assert_eq!(fs::read_to_string(outside.path().join("hostname")).unwrap(), "untouched");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2);
        // All of /etc pointing out: an error, since inside the tree there is nothing.
        fs::remove_dir_all(dir.path().join("etc")).unwrap();
        symlink(outside.path(), dir.path().join("etc")).unwrap();
        assert!(with_tree(&dir, |tree| tree.prepare(&boot())).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_zone_that_the_template_lacks_is_refused() {
        let dir = guest();
        for zone in ["Europe/Nowhere", "../../etc/default/locale", "/etc/passwd", "Europe", ""] {
            let boot = BootConfig { timezone: Some(zone.into()), ..boot() };
            let error = with_tree(&dir, |tree| tree.prepare(&boot)).unwrap_err();
            assert!(matches!(error, Error::Refused(_)), "{zone:?}: {error}");
        }
    }

    fn init_of(tree: Tree<'_>) -> Result<String> {
        tree.find_init()
    }

    #[test]
    fn init_is_found_and_its_lack_explained() {
        let dir = guest();
        let error = with_tree(&dir, init_of).unwrap_err().to_string();
        assert!(error.contains("/sbin/init"), "{error}");
        let systemd = dir.path().join("usr/lib/systemd/systemd");
        fs::create_dir_all(systemd.parent().unwrap()).unwrap();
        fs::write(&systemd, "").unwrap();
        fs::set_permissions(&systemd, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(with_tree(&dir, init_of).unwrap(), "/usr/lib/systemd/systemd");
        symlink("/usr/lib/systemd/systemd", dir.path().join("sbin/init")).unwrap();
        assert_eq!(with_tree(&dir, init_of).unwrap(), "/sbin/init");
    }
}
