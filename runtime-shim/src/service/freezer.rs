//! Whether a container stands still. Two may want it to: whoever asked for Pause, and the lease of an environment's node.
//! It runs when neither does.

use tokio::sync::Mutex;

use crate::cgroup::Group;
use crate::error::{Error, Result};

/// Who wants the container to stand still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// containerd.
    paused: bool,
    /// The lease has lapsed.
    halted: bool,
}

/// The freezer of one container.
pub(super) struct Freezer {
    group: Group,
    wanted: Mutex<Wanted>,
}

impl Freezer {
    pub fn new(group: Group) -> Self {
        Self { group, wanted: Mutex::default() }
    }

    /// Pauses or resumes for containerd: done when every process stands still, or else not done at all.
    pub async fn pause(&self, paused: bool) -> Result<()> {
        let mut wanted = self.wanted.lock().await;
        if !wanted.halted {
            self.apply(move |group| group.freeze(paused)).await?;
        }
        wanted.paused = paused;
        Ok(())
    }

    /// Halts the container or lets it go on. A process that is deep in the kernel stops on its way out of it, where it
    /// would otherwise go on with the guest's program; nobody waits for that.
    pub async fn halt(&self, halted: bool) -> Result<()> {
        let mut wanted = self.wanted.lock().await;
        if !wanted.paused {
            self.apply(move |group| group.ask_to_freeze(halted).map(drop)).await?;
        }
        wanted.halted = halted;
        Ok(())
    }

    async fn apply(&self, work: impl FnOnce(&Group) -> Result<()> + Send + 'static) -> Result<()> {
        let group = self.group.clone();
        tokio::task::spawn_blocking(move || work(&group))
            .await
            .map_err(|e| Error::Failed(format!("The container was not frozen or thawed: {e}.")))?
    }
}
