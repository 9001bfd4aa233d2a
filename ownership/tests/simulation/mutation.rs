//! What is broken on purpose, to see that the checker finds it. Each is a rule that is left out where the machines are
//! used; nothing of it is in the machines.

use crate::plan::Class;
use crate::world::Invariant;

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
    /// A volume's object is written whatever became of it meanwhile.
    NoCompareAndSwap,
    /// Who holds a volume is a node, under whatever session.
    NoSession,
    /// A node that was fenced or has booted goes on with the session that it had, and takes the fence away.
    SessionReused,
    /// What was released is started again.
    RestartAfterRelease,
    /// A pod mounts what its node holds, whatever its own epoch and UID are.
    PodNotBound,
    /// The longer lease of an announced restart is taken back at once.
    LoweredEarly,
    /// A node begins a session without killing what ran under the last.
    NoKillFirst,
    /// Barriers are deleted with the rest.
    BarriersCollected,
    /// The next transaction is sent before the last is known.
    Pipelined,
    /// A commit whose outcome is not known is repeated with what has changed since.
    LargerRetry,
    /// Whether the volume is still ours is not asked after the barrier.
    NoReread,
    /// A log that has a later epoch is gone on with.
    TailUnchecked,
    /// An incarnation gets the epoch of the last one.
    EpochNotRaised,
    /// The lease is closed before the store.
    LeaseFirst,
    /// A node that the API server does not hear shows no sign of life.
    NoBeats,
    /// An observer that was cut off goes on counting.
    BlindTimers,
    /// An announced restart is not waited for.
    AnnouncementIgnored,
    /// Neither the log nor the volume nor the lease is looked at before a start: stale incarnations start late.
    StaleStart,
    /// An environment without a shim is left alone.
    OrphansLeft,
    /// Nodes are ended at once in a storm too.
    NoStormBrake,
    /// What is over in one store is taken to be over in all.
    OneStoreForAll,
    /// Nothing of a session is taken over until it is over in all stores.
    AllStoresFirst,
    /// A transaction counts as soon as the first store of a set has it.
    FirstAlone,
    /// The first store of a set is the last to get a transaction.
    AnyOrder,
    /// The other stores of a set do not get what the first one has before an incarnation starts.
    NotMended,
    /// An environment with a set of stores runs as long as any of them grants.
    AnyStoreGrants,
    /// What was committed while the new log was made is not copied into it.
    SwitchBehind,
    /// What is under way when stores are changed does not have to be in the new log.
    SwitchUnsettled,
    /// An environment goes on being bound by the store that its journal has left.
    SwitchUnbound,
    /// The stores of a volume are changed whatever became of its object meanwhile.
    SwitchBlind,
    /// A driver that does not know whether the stores were changed goes on with the old ones.
    DoubtIgnored,
    /// What was to be added to a log that was left is added to the one that decides.
    AttemptAnywhere,
}

/// A row: what is broken, in which schedules it shows, what is violated then, and whether it is found in the small world too.
pub struct Row {
    pub mutation: Mutation,
    pub class: Class,
    pub violates: &'static [Invariant],
    pub small: bool,
}

const fn row(mutation: Mutation, class: Class, violates: &'static [Invariant], small: bool) -> Row {
    Row { mutation, class, violates, small }
}

/// Every rule that is left out. What is found counts only if it is what the rule is for.
pub const TABLE: [Row; 40] = {
    use Invariant::{Holder, I1, I2, I3, I4, I5, I6, Storm};
    use Mutation as M;
    [
        row(M::NoBarrier, Class::Late, &[I2, I3], true),
        row(M::NoWait, Class::Adversary, &[I1], true),
        row(M::LeaseOpen, Class::Adversary, &[I1], true),
        row(M::StoreOpen, Class::Adversary, &[I1], true),
        row(M::WaitFromFirst, Class::Split, &[I1], false),
        row(M::PromiseFromAnswer, Class::Sleepy, &[I1], false),
        row(M::NoMargin, Class::Skew, &[I1], false),
        row(M::WaitConfigured, Class::Adversary, &[I1], true),
        row(M::NoCompareAndSwap, Class::Swaps, &[I1, I6], false),
        row(M::NoSession, Class::Moves, &[I1, I6], true),
        row(M::SessionReused, Class::Moves, &[I1], false),
        row(M::RestartAfterRelease, Class::Moves, &[I1], false),
        row(M::PodNotBound, Class::Moves, &[I1], false),
        row(M::LoweredEarly, Class::Adversary, &[I1], false),
        row(M::NoKillFirst, Class::Any, &[I1], false),
        row(M::BarriersCollected, Class::Late, &[I3], false),
        row(M::Pipelined, Class::Late, &[I3], true),
        row(M::LargerRetry, Class::Late, &[I3], true),
        row(M::NoReread, Class::Stale, &[I2], false),
        row(M::TailUnchecked, Class::Stale, &[Holder], false),
        row(M::EpochNotRaised, Class::Late, &[Holder], false),
        row(M::LeaseFirst, Class::Harmless, &[I4], false),
        row(M::NoBeats, Class::Harmless, &[I4], false),
        row(M::BlindTimers, Class::Harmless, &[I4, I5], false),
        row(M::AnnouncementIgnored, Class::Harmless, &[I5], false),
        row(M::StaleStart, Class::Stale, &[I2], false),
        row(M::OrphansLeft, Class::Shims, &[I1], false),
        row(M::NoStormBrake, Class::Storm, &[Storm], false),
        row(M::OneStoreForAll, Class::Stores, &[I1], false),
        row(M::AllStoresFirst, Class::Stores, &[I6], false),
        row(M::FirstAlone, Class::Sets, &[I2], false),
        row(M::AnyOrder, Class::Sets, &[I2, Holder], false),
        row(M::NotMended, Class::Sets, &[I2], false),
        row(M::AnyStoreGrants, Class::Sets, &[I1], false),
        row(M::SwitchBehind, Class::Changes, &[I2], false),
        row(M::SwitchUnsettled, Class::Changes, &[I2], false),
        row(M::SwitchUnbound, Class::Changes, &[I1], false),
        row(M::SwitchBlind, Class::Changes, &[I2, I3, Holder], false),
        row(M::DoubtIgnored, Class::Changes, &[I2], false),
        row(M::AttemptAnywhere, Class::Changes, &[I2, I3], false),
    ]
};

impl Mutation {
    /// What must be seen violated.
    pub fn violates(self) -> &'static [Invariant] {
        TABLE.iter().find(|row| row.mutation == self).map_or(&[], |row| row.violates)
    }
}
