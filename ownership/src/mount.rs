//! Opening an epoch of a volume (rule 12): what stands between holding the volume and starting on it.
//!
//! The barrier takes the number that the former owner would need next, so that nothing of an earlier epoch is acknowledged
//! after it. Only then it is asked again whether the volume is still ours: what was known before may be old.

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read the end of the log.
    ReadTail,
    /// Create a barrier of this epoch at this number, behind the end of the log.
    CreateBarrier {
        /// The number.
        number: u64,
    },
    /// Bring what the first store of the set has up to this number, the barrier with it, into this one.
    Mend {
        /// Which of the others, from 0.
        other: usize,
        /// The number.
        to: u64,
    },
    /// Ask whether the volume is still ours.
    AskAgain,
    /// Bring the volume to the state of the log up to this number, ask whether it may start, and start.
    Restore {
        /// The number.
        to: u64,
    },
    /// Never: the log has a later epoch.
    Superseded {
        /// The epoch.
        current: u64,
    },
    /// The volume is not ours any more.
    Lost,
}

/// The opening of one epoch.
#[derive(Clone, Copy, Debug)]
pub struct Mount {
    epoch: u64,
    /// How many stores there are beside the first.
    others: usize,
    /// The number that the volume will be restored to.
    to: u64,
    step: Step,
}

impl Mount {
    /// Begins. Who has begun it must be the only one who does on this node.
    #[must_use]
    pub fn new(epoch: u64) -> Self {
        Self::of_set(epoch, 0)
    }

    /// The same with a set of stores, which are the first and that many others. The end of the log is that in the first
    /// store, in which each number is decided; a barrier is created there.
    #[must_use]
    pub fn of_set(epoch: u64, others: usize) -> Self {
        Self { epoch, others, to: 0, step: Step::ReadTail }
    }

    /// The epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What is to be done.
    #[must_use]
    pub fn step(&self) -> Step {
        self.step
    }

    /// The last transaction of the log. `here`: the volume is on this node in just this state. Who finds his own epoch then
    /// has opened it before, and needs no other barrier.
    pub fn saw_tail(&mut self, number: u64, epoch: u64, here: bool) {
        if self.step != Step::ReadTail {
            return;
        }
        self.step = if epoch > self.epoch {
            Step::Superseded { current: epoch }
        } else if here && epoch == self.epoch {
            self.to = number;
            self.mend(0)
        } else {
            Step::CreateBarrier { number: number + 1 }
        };
    }

    /// Whether the barrier is there, or somebody else was faster.
    pub fn created(&mut self, number: u64, created: bool) {
        if self.step != (Step::CreateBarrier { number }) {
            return;
        }
        self.to = number;
        self.step = if created { self.mend(0) } else { Step::ReadTail };
    }

    fn mend(&self, other: usize) -> Step {
        if other < self.others { Step::Mend { other, to: self.to } } else { Step::AskAgain }
    }

    /// Another store has all that the first one has, up to this number.
    pub fn mended(&mut self, other: usize, to: u64) {
        if self.step == (Step::Mend { other, to }) {
            self.step = self.mend(other + 1);
        }
    }

    /// Whether the volume is still ours, asked after the barrier.
    pub fn still_ours(&mut self, ours: bool) {
        if self.step == Step::AskAgain {
            self.step = if ours { Step::Restore { to: self.to } } else { Step::Lost };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_barrier_comes_first_and_who_is_slower_reads_again() {
        let mut mount = Mount::new(3);
        mount.saw_tail(7, 2, true);
        assert_eq!(mount.step(), Step::CreateBarrier { number: 8 });
        mount.created(8, false);
        assert_eq!(mount.step(), Step::ReadTail);
        mount.saw_tail(8, 2, false);
        mount.created(9, true);
        assert_eq!(mount.step(), Step::AskAgain);
        mount.saw_tail(100, 100, false);
        mount.still_ours(true);
        assert_eq!(mount.step(), Step::Restore { to: 9 });
        mount.still_ours(false);
        assert_eq!(mount.step(), Step::Restore { to: 9 }, "what was asked before counts");
    }

    #[test]
    fn what_is_here_under_this_epoch_needs_no_other_barrier() {
        let mut mount = Mount::new(3);
        mount.saw_tail(7, 3, true);
        assert_eq!(mount.step(), Step::AskAgain);
        mount.still_ours(true);
        assert_eq!(mount.step(), Step::Restore { to: 7 });
        let mut from_afar = Mount::new(3);
        from_afar.saw_tail(7, 3, false);
        assert_eq!(from_afar.step(), Step::CreateBarrier { number: 8 });
    }

    #[test]
    fn every_store_of_a_set_has_the_barrier_before_it_is_asked_again() {
        let mut mount = Mount::of_set(3, 2);
        mount.saw_tail(7, 2, true);
        mount.created(8, true);
        assert_eq!(mount.step(), Step::Mend { other: 0, to: 8 });
        mount.mended(1, 8);
        mount.still_ours(true);
        mount.mended(0, 7);
        assert_eq!(mount.step(), Step::Mend { other: 0, to: 8 }, "an answer to what an earlier epoch asked");
        mount.mended(0, 8);
        assert_eq!(mount.step(), Step::Mend { other: 1, to: 8 });
        mount.mended(1, 8);
        assert_eq!(mount.step(), Step::AskAgain);
        let mut again = Mount::of_set(3, 1);
        again.saw_tail(8, 3, true);
        assert_eq!(again.step(), Step::Mend { other: 0, to: 8 }, "the last one may have come to the first alone");
    }

    #[test]
    fn a_later_epoch_or_a_volume_that_was_given_on_is_the_end() {
        let mut mount = Mount::new(3);
        mount.saw_tail(7, 4, false);
        assert_eq!(mount.step(), Step::Superseded { current: 4 });
        let mut mount = Mount::new(3);
        mount.saw_tail(7, 2, false);
        mount.created(8, true);
        mount.still_ours(false);
        assert_eq!(mount.step(), Step::Lost);
    }
}
