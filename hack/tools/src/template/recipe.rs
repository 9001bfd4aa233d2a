//! What the Debian template is made of. Changing anything here makes another template: the digest of the recipe is the
//! key under which it is cached.
//!
//! The tree stays as Debian makes it wherever that works in any container. What differs, and why, stands beside it.

use sha2::{Digest, Sha256};

/// Release that the template holds.
pub const SUITE: &str = "trixie";

/// Packages of the lower layer, beside what Debian calls essential, and apt: what any Debian system has.
const BASE: &[&str] = &["ca-certificates", "locales", "netbase", "tzdata"];

/// Packages of the upper layer: what makes it an operating system that is started, logged into and worked in.
const SYSTEM: &[&str] = &[
    "bash-completion",
    "cron",
    "dbus",
    "dbus-user-session",
    "iproute2",
    "iputils-ping",
    "less",
    "libnss-myhostname",
    "libnss-systemd",
    "libpam-systemd",
    "nano",
    "openssh-server",
    "procps",
    "systemd",
    "systemd-sysv",
];

/// Locales that are compiled, beside `C.UTF-8`, which libc brings.
const LOCALES: &[&str] = &["en_US.UTF-8", "cs_CZ.UTF-8"];

/// Documentation that is left out while the template is built; packages that are installed later bring theirs.
const EXCLUDED: &[&str] = &[
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
];

/// One of the two layers, the lower one first. Each holds the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The package system and what everything needs.
    Base,
    /// The operating system.
    System,
}

/// A file that the template adds.
pub struct Addition {
    /// Where, below the root.
    pub path: &'static str,
    /// What is in it.
    pub content: &'static str,
}

/// For what would make device nodes.
const OWN_DEVICES: &str = "# What runs the environment has made its /dev, to which only lines of its owner could add anything.\n\
                           [Unit]\n\
                           ConditionDirectoryNotEmpty=/etc/tmpfiles.d\n";

/// Files that the upper layer adds to what the packages bring.
const ADDITIONS: &[Addition] = &[
    Addition {
        path: "usr/lib/systemd/system/sshd-keygen.service.d/10-environment.conf",
        content: "# Debian makes host keys when systemd counts the boot as the first of the machine, which an environment's is not:\n\
                  # its machine id is given from outside. One key type, because RSA would be half of the first boot's time.\n\
                  [Unit]\n\
                  ConditionFirstBoot=\n\
                  ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key\n\
                  [Service]\n\
                  ExecStart=\n\
                  ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N \"\" -f /etc/ssh/ssh_host_ed25519_key\n",
    },
    Addition {
        path: "usr/lib/systemd/journald.conf.d/10-environment.conf",
        content: "# statfs(2) shows the node's pool and not the volume's limit, so a share of the disk would be far too much;\n\
                  # and a journal file takes its room before it needs it.\n\
                  [Journal]\n\
                  SystemMaxUse=64M\n\
                  SystemMaxFileSize=512K\n\
                  SystemKeepFree=0\n\
                  RuntimeMaxUse=8M\n",
    },
    Addition {
        path: "usr/lib/systemd/system/systemd-journal-flush.timer",
        content: "# The journal goes to disk in one piece once the boot is over. Written while the system starts, and committed every\n\
                  # second meanwhile, each page of it would occupy several times its size.\n\
                  [Unit]\n\
                  Description=Flush Journal to Persistent Storage after the Boot\n\
                  [Timer]\n\
                  OnActiveSec=10s\n\
                  AccuracySec=1s\n",
    },
    Addition {
        path: "usr/lib/systemd/system/timers.target.d/10-environment.conf",
        content: "[Unit]\n\
                  Wants=systemd-journal-flush.timer\n",
    },
    Addition {
        path: "usr/lib/systemd/system/shutdown.target.d/10-environment.conf",
        content: "# For a system that goes down before the timer has elapsed.\n\
                  [Unit]\n\
                  Wants=systemd-journal-flush.service\n\
                  After=systemd-journal-flush.service\n",
    },
    Addition {
        path: "usr/lib/systemd/system/systemd-tmpfiles-setup-dev-early.service.d/10-environment.conf",
        content: OWN_DEVICES,
    },
    Addition {
        path: "usr/lib/systemd/system/systemd-tmpfiles-setup-dev.service.d/10-environment.conf",
        content: OWN_DEVICES,
    },
    Addition {
        path: "usr/lib/systemd/system/systemd-remount-fs.service.d/10-environment.conf",
        content: "# The root is mounted as it shall be, unless an owner says otherwise.\n\
                  [Unit]\n\
                  ConditionFileNotEmpty=/etc/fstab\n",
    },
    Addition {
        path: "usr/lib/systemd/system/modprobe@.service.d/10-environment.conf",
        content: "# Modules are the node's.\n\
                  [Unit]\n\
                  ConditionVirtualization=!container\n",
    },
    Addition {
        path: "usr/lib/systemd/system/ssh.service.d/10-environment.conf",
        content: "# sshd checks its configuration when it starts, and says the same.\n\
                  [Service]\n\
                  ExecStartPre=\n",
    },
    // An environment has no kernel command line, no disks with partitions, no hibernation, no TPM. An empty file hides the
    // generator of that name (systemd.generator(7)), and each is one more process that every boot waits for.
    Addition { path: "etc/systemd/system-generators/systemd-debug-generator", content: "" },
    Addition { path: "etc/systemd/system-generators/systemd-gpt-auto-generator", content: "" },
    Addition { path: "etc/systemd/system-generators/systemd-hibernate-resume-generator", content: "" },
    Addition { path: "etc/systemd/system-generators/systemd-run-generator", content: "" },
    Addition { path: "etc/systemd/system-generators/systemd-tpm2-generator", content: "" },
    Addition { path: "etc/locale.conf", content: "LANG=C.UTF-8\n" },
];

/// What the packages leave behind and no template may hold: identities, names of the building machine, and the start of
/// what a timer starts here.
pub const REMOVED: &[&str] = &[
    "etc/hostname",
    "etc/hosts",
    "etc/resolv.conf",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "etc/ssh/ssh_host_ecdsa_key",
    "etc/ssh/ssh_host_ecdsa_key.pub",
    "etc/ssh/ssh_host_ed25519_key",
    "etc/ssh/ssh_host_ed25519_key.pub",
    "etc/ssh/ssh_host_rsa_key",
    "etc/ssh/ssh_host_rsa_key.pub",
    "usr/lib/systemd/system/sysinit.target.wants/systemd-journal-flush.service",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/cache/ldconfig/aux-cache",
    "var/lib/dpkg/available-old",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/status-old",
    "var/lib/systemd/random-seed",
];

/// Files that exist and are empty.
pub const EMPTIED: &[&str] = &[
    "etc/fstab",
    // Empty, not absent: systemd then takes the id that the container manager gives and does not apply unit presets.
    "etc/machine-id",
    "var/log/alternatives.log",
    "var/log/apt/history.log",
    "var/log/apt/term.log",
    "var/log/dpkg.log",
];

/// Stamps of systemd-update-done(8), of the finished tree only. Without them the first boot rebuilds caches that the
/// packages just built.
pub const STAMPS: &[&str] = &["etc/.updated", "var/.updated"];

impl Layer {
    /// Packages that are in the tree once this layer is.
    #[must_use]
    pub fn packages(self) -> Vec<&'static str> {
        match self {
            Self::Base => BASE.to_vec(),
            Self::System => [BASE, SYSTEM].concat(),
        }
    }

    /// Files that the tree has beside those of its packages.
    #[must_use]
    pub fn additions(self) -> &'static [Addition] {
        match self {
            Self::Base => &[],
            Self::System => ADDITIONS,
        }
    }
}

/// Arguments for mmdebstrap(1) that make the tree up to `layer` in `directory`.
#[must_use]
pub fn arguments(layer: Layer, directory: &str) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["--mode=root", "--variant=minbase", "--format=directory", "--quiet"].map(Into::into).into();
    arguments.extend(EXCLUDED.iter().map(|line| format!("--dpkgopt={line}")));
    arguments.push(format!("--include={}", layer.packages().join(",")));
    arguments.push(format!("--customize-hook={}", locale_hook()));
    arguments.extend([SUITE.to_owned(), directory.to_owned()]);
    arguments
}

/// Shell line that compiles the locales in the tree at `$1`.
fn locale_hook() -> String {
    let names: Vec<String> = LOCALES.iter().map(|name| format!("{name} UTF-8\\n")).collect();
    format!("printf '{}' > \"$1/etc/locale.gen\" && chroot \"$1\" locale-gen", names.concat())
}

/// Key of the recipe: what it says, digested.
#[must_use]
pub fn key() -> String {
    let mut hash = Sha256::new();
    for layer in [Layer::Base, Layer::System] {
        hash.update(arguments(layer, "").join("\0"));
        for addition in layer.additions() {
            hash.update([addition.path, "\0", addition.content, "\0"].concat());
        }
    }
    for list in [REMOVED, EMPTIED, STAMPS] {
        hash.update(list.join("\0"));
    }
    let digest: [u8; 32] = hash.finalize().into();
    let start = digest.iter().take(8).fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    format!("{start:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_layer_holds_the_lower_one() {
        let upper = Layer::System.packages();
        assert!(Layer::Base.packages().iter().all(|package| upper.contains(package)));
        assert!(upper.contains(&"openssh-server"));
    }

    #[test]
    fn a_locale_is_a_line_of_its_own() {
        assert_eq!(
            locale_hook(),
            r#"printf 'en_US.UTF-8 UTF-8\ncs_CZ.UTF-8 UTF-8\n' > "$1/etc/locale.gen" && chroot "$1" locale-gen"#
        );
    }

    #[test]
    fn what_is_added_is_not_removed_again() {
        for addition in ADDITIONS {
            assert!(!REMOVED.contains(&addition.path) && !EMPTIED.contains(&addition.path), "{}", addition.path);
        }
    }
}
