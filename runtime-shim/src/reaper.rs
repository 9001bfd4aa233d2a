//! Reaps every child of the shim, which as a subreaper is the parent of all that its helpers leave behind. One zombie
//! that nobody waits for keeps a pid namespace, and with it a pod, from ever going away, so nothing else in the shim
//! waits for processes: whoever is interested [`watch`](Reaper::watch)es a pid.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::WaitOptions;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::error::{Attempt, Result};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It exited with this status.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
}

impl End {
    /// Exit status as shells and container runtimes write it.
    #[must_use]
    pub fn status(self) -> u32 {
        match self {
            Self::Exited(status) => status as u32,
            Self::Signaled(signal) => 128 + signal as u32,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    watched: HashMap<i32, oneshot::Sender<End>>,
    /// Ends that came before anybody watched. Kept only while a launch is going on, which is when a pid can be known to
    /// a helper and not yet to us; later the number may belong to another process.
    early: HashMap<i32, End>,
    launches: usize,
}

/// The one place where children are waited for.
#[derive(Debug, Default)]
pub struct Reaper {
    state: Mutex<State>,
}

impl Reaper {
    /// Starts reaping in the background.
    pub fn start() -> Result<Arc<Self>> {
        let reaper = Arc::new(Self::default());
        let mut children = signal(SignalKind::child()).attempt(|| "listen for SIGCHLD")?;
        let worker = reaper.clone();
        tokio::spawn(async move {
            loop {
                worker.reap_all();
                if children.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reap_all(&self) {
        // Several children may share one SIGCHLD. ECHILD: there are none.
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let end = match (status.exit_status(), status.terminating_signal()) {
                (Some(status), _) => End::Exited(status),
                (None, Some(signal)) => End::Signaled(signal),
                (None, None) => continue,
            };
            self.ended(pid.as_raw_nonzero().get(), end);
        }
    }

    fn ended(&self, pid: i32, end: End) {
        let mut state = self.lock();
        match state.watched.remove(&pid) {
            // The watcher may have gone away; then nobody needs to know.
            Some(watcher) => drop(watcher.send(end)),
            None if state.launches > 0 => drop(state.early.insert(pid, end)),
            None => log::debug!("reaped process {pid}, which nobody asked about: {end:?}"),
        }
    }

    /// To be held from before a helper is started until all pids that it reports are watched.
    #[must_use]
    pub fn launch(self: &Arc<Self>) -> Launch {
        self.lock().launches += 1;
        Launch { reaper: self.clone() }
    }
}

/// A launch that is going on.
#[derive(Debug)]
pub struct Launch {
    reaper: Arc<Reaper>,
}

impl Launch {
    /// Resolves when the process has ended, which it may have already.
    #[must_use]
    pub fn watch(&self, pid: i32) -> oneshot::Receiver<End> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.reaper.lock();
        match state.early.remove(&pid) {
            Some(end) => drop(sender.send(end)),
            None => drop(state.watched.insert(pid, sender)),
        }
        receiver
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        let mut state = self.reaper.lock();
        state.launches -= 1;
        if state.launches == 0 {
            state.early.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_before_the_watch_is_not_lost() {
        let reaper = Arc::new(Reaper::default());
        let launch = reaper.launch();
        reaper.ended(7, End::Exited(3));
        assert_eq!(launch.watch(7).try_recv(), Ok(End::Exited(3)));
    }

    #[test]
    fn an_end_after_the_watch_is_told_once_to_its_watcher() {
        let reaper = Arc::new(Reaper::default());
        let mut watch = reaper.launch().watch(7);
        reaper.ended(8, End::Exited(0));
        assert!(watch.try_recv().is_err());
        reaper.ended(7, End::Signaled(9));
        assert_eq!(watch.try_recv(), Ok(End::Signaled(9)));
        assert_eq!(End::Signaled(9).status(), 137);
    }

    #[test]
    fn ends_outside_of_launches_are_forgotten() {
        let reaper = Arc::new(Reaper::default());
        reaper.ended(7, End::Exited(3));
        drop(reaper.launch());
        let launch = reaper.launch();
        reaper.ended(9, End::Exited(1));
        drop(launch);
        assert!(reaper.launch().watch(9).try_recv().is_err());
        assert!(reaper.launch().watch(7).try_recv().is_err());
    }
}
