//! What is broken on purpose, to see that the checker finds it. Each is a rule that is left out where the machines are
//! used; nothing of it is in the machines.

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The next incarnation starts from the end of the log as it is.
    NoBarrier,
    /// The volume is given on as soon as both witnesses are closed.
    NoWait,
    /// The lease is not closed.
    LeaseOpen,
    /// The store is not closed.
    StoreOpen,
    /// The wait counts from the first witness that was closed.
    WaitFromFirst,
    /// A promise counts from the answer.
    PromiseFromAnswer,
    /// Clocks are taken to run at the same speed.
    NoMargin,
    /// What is waited is what is configured, not what the lease says.
    WaitConfigured,
    /// The volume is given on whatever became of it meanwhile.
    NoCompareAndSwap,
    /// A node that was fenced or has booted goes on with the session that it had.
    SessionReused,
    /// A node begins a session without killing what ran under the last.
    NoKillFirst,
    /// The longer lease of an announced restart is taken back at once.
    LoweredEarly,
    /// A commit whose outcome is not known is repeated with what has changed since.
    LargerRetry,
    /// Whether the volume is still ours is not asked after the barrier.
    NoReread,
    /// The lease is closed before the store.
    LeaseFirst,
    /// A node that the API server does not hear shows no sign of life.
    NoBeats,
    /// An observer that was cut off goes on counting.
    BlindTimers,
    /// An announced restart is not waited for.
    AnnouncementIgnored,
}

impl Mutation {
    /// Those that no schedule leads to. Another rule covers most of them: with the times as they are, a node that fell silent
    /// has hardly anything of its promise left when its end begins, and who starts a volume asks once more whether it may.
    pub const COVERED: [Self; 7] = [
        Self::NoBarrier,
        Self::WaitFromFirst,
        Self::PromiseFromAnswer,
        Self::NoMargin,
        Self::NoCompareAndSwap,
        Self::NoReread,
        Self::BlindTimers,
    ];
}
