//! What a guest tells: the shim writes it, the node driver turns it into the pod condition `vivarium.dev/Booted`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Version of [`GuestReport`] that this build writes and reads.
pub const VERSION: u32 = 1;

/// `/run/vivarium/guests/<sandbox>.json`, replaced by rename at every change, removed with the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestReport {
    /// [`VERSION`].
    pub version: u32,
    /// Pod, from the annotations that containerd puts on the sandbox.
    pub pod: PodReference,
    /// Volume that the guest runs on.
    pub volume_id: String,
    /// Epoch of the incarnation.
    pub epoch: u64,
    /// The lease that the guest is bound by, as its stage record names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// init as the node sees it. Its end is the end of all processes of the guest.
    pub init: Process,
    /// The shim, which alone can boot it again.
    pub shim: Process,
    /// Where the guest is in its life.
    pub state: GuestState,
    /// Since when it is there.
    pub since: Timestamp,
    /// Boots of this incarnation, the first one counted: 1 + the reboots inside.
    pub boots: u32,
    /// It was to be told to stop, which is held back ([`crate::names::HELD_BACK`]), or was.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// One sentence for a person; empty when there is nothing to add to the state.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// A process for which its number is not enough, since that may be somebody else's by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Its number on the node.
    pub pid: i32,
    /// When it was started: field 22 of `/proc/PID/stat` (`proc_pid_stat(5)`).
    pub started: u64,
}

/// A pod by all its names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReference {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// Life of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestState {
    /// init runs and has not yet said that it is ready.
    Booting,
    /// init said `READY=1` (`sd_notify(3)`).
    Running,
    /// init said that it shuts down to start again.
    Rebooting,
    /// init was told to stop, or said that it stops.
    Stopping,
    /// init ended by halt or poweroff.
    PoweredOff,
    /// init ended in any other way.
    Failed,
}

impl GuestState {
    /// Whether the guest answers: value of the pod condition.
    #[must_use]
    pub fn is_booted(self) -> bool {
        self == Self::Running
    }

    /// Whether it is the last one: an incarnation whose guest has ended never boots again.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::PoweredOff | Self::Failed)
    }

    /// The state as a condition's reason.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Booting => "Booting",
            Self::Running => "Running",
            Self::Rebooting => "Rebooting",
            Self::Stopping => "Stopping",
            Self::PoweredOff => "PoweredOff",
            Self::Failed => "Failed",
        }
    }
}
