//! The part of `hack/bench` that runs on a node: memory of the processes of a pod, of the shims, and how much of the
//! pool's files is in memory. Only what is ours is looked at, so other programs of the machine do not matter.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat};
use serde::{Deserialize, Serialize};
use vivarium_sys::pagecache::cached_pages;

/// What to measure. Prints JSON.
#[derive(clap::Subcommand)]
pub enum What {
    /// Processes of a pod.
    Pod {
        /// UID of the pod.
        uid: String,
    },
    /// All shims whose program has that name.
    Shims {
        /// Name of the program.
        program: String,
    },
    /// Page cache of the pool's files.
    Cache,
}

/// Pss of one pod, in KiB.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Pod {
    /// What runs in its containers.
    pub guest: u64,
    /// Its shim.
    pub shim: u64,
    /// What holds its namespaces, and whatever else the shim has started outside the pod.
    pub helpers: u64,
}

/// Pss and private memory of shims, in KiB.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Shims {
    /// How many.
    pub count: u64,
    /// Pss of all.
    pub pss: u64,
    /// What would be free without them.
    pub private: u64,
}

/// Bytes of the pool's files in memory.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Cache {
    /// Of template layers, shared by all environments.
    pub templates: u64,
    /// Of volumes, each of one environment.
    pub volumes: u64,
}

/// Measures and prints.
///
/// # Errors
/// The kernel is too old to tell, or a directory cannot be read.
pub fn run(what: &What) -> io::Result<()> {
    let json = match what {
        What::Pod { uid } => serde_json::to_string(&pod(uid)),
        What::Shims { program } => serde_json::to_string(&shims(program)),
        What::Cache => {
            let pool = Path::new("/var/lib/vivarium/pool");
            let [templates, volumes] = ["templates", "volumes"].map(|name| resident(&pool.join(name)));
            serde_json::to_string(&Cache { templates: templates?, volumes: volumes? })
        }
    };
    println!("{}", json.map_err(io::Error::other)?);
    Ok(())
}

/// A process, as /proc has it. Empty strings of one that is gone.
struct Process {
    pid: u32,
    parent: u32,
    /// When it began, in clock ticks after boot.
    start: u64,
    program: String,
    cgroups: String,
}

fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.map(|pid| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        Process {
            pid,
            parent: field(&read("status"), "PPid:"),
            start: start(&read("stat")),
            program: program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            cgroups: read("cgroup"),
        }
    })
    .collect()
}

/// Field 22 of `proc_pid_stat(5)`; the name in parentheses may hold anything.
fn start(stat: &str) -> u64 {
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().nth(19).and_then(|field| field.parse().ok()).unwrap_or_default()
}

/// Number behind the first line that begins with `name`; 0 if there is none.
fn field<T: std::str::FromStr + Default>(text: &str, name: &str) -> T {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

/// (Pss, private) of a process in KiB; 0 of one that is gone.
fn memory(pid: u32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let number = |name| field::<u64>(&text, name);
    (number("Pss:"), number("Private_Clean:") + number("Private_Dirty:"))
}

fn pod(uid: &str) -> Pod {
    let all = processes();
    let inside = |process: &Process| process.cgroups.contains(uid);
    let mut found = Pod::default();
    // The shim is the parent of the pod's first processes, and not of the pod itself.
    let shim = all.iter().filter(|p| inside(p)).find_map(|child| {
        all.iter().find(|p| p.pid == child.parent && !inside(p) && p.program.starts_with("containerd-shim"))
    });
    // The first of all holds the namespaces, whatever its program is called.
    let first_ones = all.iter().filter(|p| inside(p) && shim.is_some_and(|shim| p.parent == shim.pid));
    let pause = first_ones.min_by_key(|p| p.start).map(|p| p.pid);
    for process in all.iter().filter(|p| inside(p)) {
        let sum = if Some(process.pid) == pause { &mut found.helpers } else { &mut found.guest };
        *sum += memory(process.pid).0;
    }
    if let Some(shim) = shim {
        found.shim = memory(shim.pid).0;
        let others = all.iter().filter(|p| p.parent == shim.pid && !inside(p));
        found.helpers += others.map(|p| memory(p.pid).0).sum::<u64>();
    }
    found
}

fn shims(program: &str) -> Shims {
    let mut found = Shims::default();
    for process in processes().iter().filter(|process| process.program == program) {
        let (pss, private) = memory(process.pid);
        found = Shims { count: found.count + 1, pss: found.pss + pss, private: found.private + private };
    }
    found
}

/// Bytes of all files below a directory that are in memory, each file counted once however many names it has.
fn resident(folder: &Path) -> io::Result<u64> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = openat(CWD, folder, flags, Mode::empty())?;
    let mut pages = 0;
    walk(&root, &mut HashSet::new(), &mut pages)?;
    Ok(pages * rustix::param::page_size() as u64)
}

/// Never leaves by a link: tenants write below this.
fn walk(folder: &OwnedFd, seen: &mut HashSet<(u64, u64)>, pages: &mut u64) -> io::Result<()> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        // What vanishes meanwhile is not in memory.
        let Ok(stat) = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if kind == FileType::Directory {
            if let Ok(inner) = openat(folder, name, flags | OFlags::DIRECTORY, Mode::empty()) {
                walk(&inner, seen, pages)?;
            }
        } else if kind == FileType::RegularFile
            && seen.insert((stat.st_dev, stat.st_ino))
            && let Ok(file) = openat(folder, name, flags, Mode::empty())
        {
            *pages += cached_pages(file.as_fd())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_in_memory_are_counted_once_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let page = rustix::param::page_size();
        fs::create_dir(folder.path().join("d")).unwrap();
        fs::write(folder.path().join("d/file"), vec![1; 3 * page]).unwrap();
        fs::hard_link(folder.path().join("d/file"), folder.path().join("again")).unwrap();
        fs::write(outside.path().join("other"), vec![1; 7 * page]).unwrap();
        std::os::unix::fs::symlink(outside.path(), folder.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("other"), folder.path().join("d/link")).unwrap();
        assert_eq!(resident(folder.path()).unwrap(), 3 * page as u64);
    }

    #[test]
    fn the_start_of_a_process_is_found_behind_its_name() {
        assert_eq!(start("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20"), 777);
        assert_eq!(start(""), 0);
    }

    #[test]
    fn numbers_are_found_behind_their_names() {
        let text = "Pss:                 123 kB\nPss_Dirty:            45 kB\n";
        assert_eq!(field::<u64>(text, "Pss:"), 123);
        assert_eq!(field::<u64>(text, "Swap:"), 0);
    }
}
