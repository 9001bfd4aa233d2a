//! A terminal window as a person has one: a pseudo-terminal of a size that can change, with a program in it.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

/// What was printed so far; told at each piece.
#[derive(Default)]
struct Printed {
    text: Mutex<String>,
    more: Condvar,
}

/// The window. When it is dropped it is closed, with what runs in it.
pub struct Terminal {
    child: Child,
    keyboard: std::fs::File,
    printed: Arc<Printed>,
    /// How much of what was printed the test has seen already.
    seen: usize,
}

impl Terminal {
    /// Opens a window of that many rows and columns and runs a command in it.
    #[must_use]
    pub fn open(rows: u16, columns: u16, command: &[&str]) -> Self {
        let ours = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("a pseudo-terminal");
        rustix::pty::grantpt(&ours).expect("grantpt");
        rustix::pty::unlockpt(&ours).expect("unlockpt");
        let name = rustix::pty::ptsname(&ours, Vec::new()).expect("ptsname");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let theirs = rustix::fs::open(name, flags, Mode::empty()).expect("the other end of the pseudo-terminal");
        resize(&ours, rows, columns);
        let end = || Stdio::from(theirs.try_clone().expect("another handle"));
        // A session of its own with the window as its controlling terminal: only so a change of size is signalled.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .args(command)
            .env("TERM", "dumb")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}", command.join(" ")));
        drop(theirs);
        let keyboard = std::fs::File::from(ours);
        let mut screen = keyboard.try_clone().expect("another handle");
        let printed = Arc::new(Printed::default());
        let prints = Arc::clone(&printed);
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            // Ends with an error when nobody has the other end any more.
            while let Ok(length @ 1..) = screen.read(&mut piece) {
                let text = String::from_utf8_lossy(&piece[..length]);
                prints.text.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
                prints.more.notify_all();
            }
        });
        Self { child, keyboard, printed, seen: 0 }
    }

    /// Types on the keyboard.
    pub fn types(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).expect("the window is closed");
    }

    /// Waits until something is printed behind what was waited for before; whether it was, in that time.
    #[must_use]
    pub fn prints(&mut self, wanted: &str, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        let mut text = self.printed.text.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(at) = text[self.seen..].find(wanted) {
                self.seen += at + wanted.len();
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            text = self.printed.more.wait_timeout(text, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Like [`Self::prints`], but fails the test with what was printed instead.
    pub fn must_print(&mut self, wanted: &str, deadline: Duration) {
        assert!(
            self.prints(wanted, deadline),
            "the terminal does not show {wanted:?} within {} s, but {:?}",
            deadline.as_secs(),
            self.text()
        );
    }

    /// All that was printed.
    #[must_use]
    pub fn text(&self) -> String {
        self.printed.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the size of the window.
    pub fn resize(&self, rows: u16, columns: u16) {
        resize(&self.keyboard, rows, columns);
    }
}

fn resize(window: impl std::os::fd::AsFd, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(window, size).expect("the size of a pseudo-terminal can be set");
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // setsid(1) has become the program itself, or waits for it as its parent.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
