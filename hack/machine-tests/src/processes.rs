//! What runs on the machine, read from /proc.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// One process.
#[derive(Debug)]
pub struct Process {
    pub pid: u32,
    /// Its program's file.
    pub program: PathBuf,
    /// Path of its cgroup from the root of the hierarchy.
    pub group: String,
}

/// Every process with a program; kernel threads have none.
pub fn all() -> Vec<Process> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).filter_map(process).collect()
}

/// A process may end while it is looked at; then it is none.
fn process(pid: u32) -> Option<Process> {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let program = fs::read_link(directory.join("exe")).ok()?;
    let group = fs::read_to_string(directory.join("cgroup")).ok()?;
    let group = group.lines().find_map(|line| line.strip_prefix("0::"))?.to_owned();
    Some(Process { pid, program, group })
}

/// One line for each process.
pub fn list() -> Vec<String> {
    let line = |p: &Process| format!("{:>6} {:<40} {}", p.pid, p.program.display(), p.group);
    all().iter().map(line).collect()
}

/// When a process began, in clock ticks since the machine's start (proc(5), field 22 of stat).
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The name in parentheses may hold blanks and parentheses.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}
