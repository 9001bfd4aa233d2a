//! Tells the person what is being done, how far it is and how long it took. A step that takes long says so every while,
//! so that a build of minutes is not taken for a hang.

use std::{
    fmt::Display,
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// A sign of life of a long step.
const REMINDER: Duration = Duration::from_secs(30);

/// A list of steps whose number is known.
pub struct Progress {
    total: usize,
    done: usize,
}

impl Progress {
    pub fn new(total: usize) -> Self {
        Self { total, done: 0 }
    }

    /// Announces a step; it lasts until the value is dropped.
    pub fn step(&mut self, what: impl Display) -> Step {
        self.done += 1;
        Step::begin(format!("[{:>2}/{}] {what}", self.done, self.total))
    }
}

/// A step under way.
pub struct Step {
    label: String,
    begun: Instant,
    // Dropping the sender wakes the reminder up and ends it.
    over: Option<Sender<()>>,
    reminder: Option<JoinHandle<()>>,
}

impl Step {
    /// A step that belongs to no list.
    pub fn begin(label: impl Into<String>) -> Self {
        let label = label.into();
        let begun = Instant::now();
        eprintln!("{label} ...");
        let (over, waiting) = mpsc::channel::<()>();
        let text = label.clone();
        let reminder = thread::spawn(move || {
            while waiting.recv_timeout(REMINDER) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{text} ... still at it after {} s", begun.elapsed().as_secs());
            }
        });
        Self { label, begun, over: Some(over), reminder: Some(reminder) }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.over.take();
        if let Some(reminder) = self.reminder.take() {
            // It only sleeps and prints; that it cannot fail is all there is to know.
            let _ = reminder.join();
        }
        let ending = if thread::panicking() { "broke off" } else { "took" };
        eprintln!("{} {ending} {:.1} s", self.label, self.begun.elapsed().as_secs_f32());
    }
}
