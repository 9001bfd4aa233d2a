//! Processes: those system calls of creating, entering and ending them that `rustix` has no safe form of.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Proof that the process had one thread when it was asked. What follows from it ([`fork`], moving between namespaces)
/// holds as long as the holder starts no thread.
#[derive(Clone, Copy, Debug)]
pub struct SingleThreaded(());

impl SingleThreaded {
    /// Counts the threads of this process.
    pub fn prove() -> io::Result<Self> {
        let threads = std::fs::read_dir("/proc/self/task")?.count();
        if threads == 1 {
            Ok(Self(()))
        } else {
            Err(io::Error::other(format!("the process has {threads} threads where one is needed")))
        }
    }
}

/// Which side of [`fork`] one is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The caller; holds the child's pid as the caller's pid namespace sees it.
    Parent(i32),
    /// The child.
    Child,
}

/// fork(2). With one thread there is no lock that another thread could hold for ever in the child.
pub fn fork(_proof: SingleThreaded) -> io::Result<Fork> {
    // SAFETY: the process has a single thread, so the child's memory is consistent and it may go on running any code.
    match check(libc::c_long::from(unsafe { libc::fork() }))? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid as i32)),
    }
}

/// Gives the calling process a mount namespace of its own, a copy of the present one.
pub fn new_mount_namespace(_proof: SingleThreaded) -> io::Result<()> {
    // SAFETY: CLONE_NEWNS touches neither memory nor descriptors of the process.
    check(libc::c_long::from(unsafe { libc::unshare(libc::CLONE_NEWNS) })).map(|_| ())
}

/// Namespaces that [`enter_namespaces`] can change to.
pub const NAMESPACES: &[(&str, libc::c_int)] = &[
    ("user", libc::CLONE_NEWUSER),
    ("mnt", libc::CLONE_NEWNS),
    ("pid", libc::CLONE_NEWPID),
    ("net", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("time", libc::CLONE_NEWTIME),
];

/// setns(2) with a pidfd: enters all of the given namespaces of that process at once or none.
pub fn enter_namespaces(_proof: SingleThreaded, process: BorrowedFd<'_>, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: changes kernel state of the only thread; no memory is passed.
    check(libc::c_long::from(unsafe { libc::setns(process.as_raw_fd(), flags) })).map(|_| ())
}

/// Sets the identity used for file access only (setfsuid(2)); the capabilities stay if `SECBIT_NO_SETUID_FIXUP` is set.
pub fn set_file_access_ids(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: no memory is passed. The calls return the previous id and no error, hence the second call of each.
    let (taken_group, taken_user) = unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        (libc::setfsgid(u32::MAX), libc::setfsuid(u32::MAX))
    };
    if taken_group as u32 == gid && taken_user as u32 == uid {
        Ok(())
    } else {
        Err(io::Error::other(format!("the kernel did not take {uid}:{gid} as identity for file access")))
    }
}

/// Sends any signal, a realtime one too, to exactly the process that the pidfd was opened for.
pub fn send_signal(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed and means that of kill(2).
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, no_info, 0) }).map(|_| ())
}

/// execve(2). Returns only to say why it failed.
#[must_use]
pub fn execute(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
    };
    let (argv, envp) = (pointers(arguments), pointers(environment));
    // SAFETY: all strings are NUL-terminated, both arrays end with a null pointer, and all outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends the calling process at once, without running exit handlers that belong to the parent it was forked from.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory.
    unsafe { libc::_exit(status) }
}

/// Marks every descriptor from `first` on to be closed at execve.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: no descriptor is closed now, so none that somebody owns becomes invalid.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }).map(|_| ())
}

/// Takes over a descriptor that the parent process left open at a number agreed on, and marks it close-on-exec.
pub fn inherited_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the number is only asked about; an unused one gives EBADF.
    check(libc::c_long::from(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }))?;
    // SAFETY: it is open, and by the agreement with the parent nothing else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Starts a command with a descriptor at the number `target` besides the standard three.
pub fn spawn_with_descriptor(command: &mut Command, descriptor: BorrowedFd<'_>, target: RawFd) -> io::Result<Child> {
    let source = descriptor.as_raw_fd();
    let place = move || {
        // SAFETY: both calls are async-signal-safe; `source` stays open in the parent until spawn has returned.
        let result = unsafe {
            if source == target { libc::fcntl(source, libc::F_SETFD, 0) } else { libc::dup2(source, target) }
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: the closure allocates nothing and only makes the async-signal-safe calls above.
    unsafe { command.pre_exec(place) };
    command.spawn()
}
