//! Standard streams. containerd gives fifos; a process never gets one of them but a pipe (or a terminal) of the shim's,
//! from which the shim copies: a fifo breaks when containerd restarts, a pipe does not. Copying holds one buffer per
//! stream: whoever does not read stops the writer.

mod copy;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::{Attempt, Error, Result};
use copy::{Input, Stream, copy_input, copy_output};

/// How long output may still flow after a process has ended: its children may hold the pipe for ever.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// Streams as a task API request names them; an empty path is a stream that nobody wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// fifo that is read.
    pub stdin: String,
    /// fifo that is written.
    pub stdout: String,
    /// fifo that is written; unused with a terminal.
    pub stderr: String,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

/// The shim's side of a process's streams.
#[derive(Debug)]
pub struct ProcessIo {
    outputs: Vec<JoinHandle<()>>,
    input: Option<JoinHandle<()>>,
    close_input: watch::Sender<bool>,
    /// Where input goes; changes when an environment boots again.
    target: Input,
    /// fifo of the console, kept open over boots, or a reader would see its end.
    console: Option<Arc<Stream>>,
    /// A slave of the console's terminal: without one the master fails as soon as init closes its own.
    slave: Option<OwnedFd>,
    size: Option<Winsize>,
}

/// Opens the streams of a process without a terminal, and the pipes' ends that it gets. They belong to `owner`, for
/// otherwise a program could not reopen `/proc/self/fd/1`.
pub fn pipes(names: &Names, owner: (u32, u32)) -> Result<([OwnedFd; 3], ProcessIo)> {
    let mut io = ProcessIo::new();
    let stdin = if names.stdin.is_empty() {
        null()?
    } else {
        let (read, write) = pipe(owner)?;
        io.target = Input::to(Stream::new(write)?);
        io.start_input(&names.stdin, true)?;
        read
    };
    let mut output = |name: &str| -> Result<OwnedFd> {
        if name.is_empty() {
            return null();
        }
        let fifo = Arc::new(Stream::new(open_output(name)?)?);
        let (read, write) = pipe(owner)?;
        io.outputs.push(tokio::spawn(copy_output(Stream::new(read)?, fifo)));
        Ok(write)
    };
    let stdout = output(&names.stdout)?;
    let stderr = output(&names.stderr)?;
    Ok(([stdin, stdout, stderr], io))
}

/// Keeps the fifos of a process open, so that nobody at their other ends sees an end while it is made, perhaps twice.
pub fn hold(names: &Names) -> Result<Vec<OwnedFd>> {
    let outputs = [&names.stdout, &names.stderr].into_iter().filter(|name| !name.is_empty());
    let mut held = outputs.map(|name| open_output(name)).collect::<Result<Vec<_>>>()?;
    if !names.stdin.is_empty() {
        held.push(open_input(&names.stdin)?);
    }
    Ok(held)
}

/// Streams for a process that has a terminal, or nothing yet.
pub fn nothing() -> Result<[OwnedFd; 3]> {
    Ok([null()?, null()?, null()?])
}

impl ProcessIo {
    fn new() -> Self {
        Self {
            outputs: Vec::new(),
            input: None,
            close_input: watch::Sender::new(false),
            target: Input::default(),
            console: None,
            slave: None,
            size: None,
        }
    }

    /// Opens the fifos of a process with a terminal; `keep` is for a console that outlives its init.
    pub fn terminal(names: &Names, master: OwnedFd, keep: bool) -> Result<Self> {
        let mut io = Self::new();
        if !names.stdout.is_empty() {
            io.console = Some(Arc::new(Stream::new(open_output(&names.stdout)?)?));
        }
        io.connect_terminal(master, keep)?;
        if !names.stdin.is_empty() {
            io.start_input(&names.stdin, false)?;
        }
        if !keep {
            io.console = None;
        }
        Ok(io)
    }

    /// Connects the terminal of a new boot to the streams that are open.
    pub fn connect_terminal(&mut self, master: OwnedFd, keep: bool) -> Result<()> {
        self.slave = None;
        if keep {
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).attempt(|| "open the console's slave")?;
            self.slave = Some(slave);
        }
        if let Some(size) = self.size {
            rustix::termios::tcsetwinsize(&master, size).attempt(|| "size the console")?;
        }
        let master = Arc::new(Stream::new(master)?);
        self.target.set(Some(master.clone()));
        if let Some(fifo) = &self.console {
            self.outputs.retain(|task| !task.is_finished());
            self.outputs.push(tokio::spawn(copy::copy_shared(master, fifo.clone())));
        }
        Ok(())
    }

    fn start_input(&mut self, name: &str, close_at_end: bool) -> Result<()> {
        let fifo = Stream::new(open_input(name)?)?;
        let task = copy_input(fifo, self.target.clone(), self.close_input.subscribe(), close_at_end);
        self.input = Some(tokio::spawn(task));
        Ok(())
    }

    /// Ends the process's input once what has arrived is copied.
    pub fn close_input(&self) {
        self.close_input.send_replace(true);
    }

    /// Sets the size of the terminal; remembered for the next boot.
    pub fn resize(&mut self, columns: u32, rows: u32) -> Result<()> {
        let size = Winsize { ws_row: rows as u16, ws_col: columns as u16, ws_xpixel: 0, ws_ypixel: 0 };
        self.size = Some(size);
        match self.target.get() {
            Some(master) => rustix::termios::tcsetwinsize(master.as_fd(), size).attempt(|| "resize the terminal"),
            None => Ok(()),
        }
    }

    /// The process has ended for good: what it wrote still flows.
    pub fn ended(&mut self) {
        self.slave = None;
        self.console = None;
        if let Some(task) = self.input.take() {
            task.abort();
        }
        self.target.set(None);
    }

    /// Takes the copying that still goes on, to be finished by [`drain`].
    pub fn take_outputs(&mut self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut self.outputs)
    }
}

/// Waits for the last output, for a bounded time.
pub async fn drain(outputs: Vec<JoinHandle<()>>) {
    let deadline = tokio::time::Instant::now() + DRAIN_LIMIT;
    for mut task in outputs {
        if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
            task.abort();
        }
    }
}

impl Drop for ProcessIo {
    fn drop(&mut self) {
        if let Some(task) = &self.input {
            task.abort();
        }
        for task in &self.outputs {
            task.abort();
        }
    }
}

fn null() -> Result<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).attempt(|| "open /dev/null")
}

fn pipe(owner: (u32, u32)) -> Result<(OwnedFd, OwnedFd)> {
    use rustix::process::{Gid, Uid};
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).attempt(|| "make a pipe")?;
    rustix::fs::fchown(&read, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))
        .attempt(|| "give a pipe to the container's user")?;
    Ok((read, write))
}

fn open(name: &str, flags: OFlags) -> Result<OwnedFd> {
    if name.contains("://") {
        return Err(Error::Refused(format!(
            "the stream {name:?} is not a fifo; this runtime takes fifos only, as the kubelet and ctr give them"
        )));
    }
    rustix::fs::openat(CWD, name, flags | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        .attempt(|| format!("open the stream {name}"))
}

/// Opened for reading too, so that it stays usable when the reader goes away and another comes.
fn open_output(name: &str) -> Result<OwnedFd> {
    open(name, OFlags::RDWR)
}

fn open_input(name: &str) -> Result<OwnedFd> {
    open(name, OFlags::RDONLY)
}

/// Shared access to what may be replaced; a poisoned lock means a panic, after which the shim has aborted anyway.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
