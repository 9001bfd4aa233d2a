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
    /// The number that the volume will be restored to.
    to: u64,
    step: Step,
}

impl Mount {
    /// Begins. Who has begun it must be the only one who does on this node.
    #[must_use]
    pub fn new(epoch: u64) -> Self {
        Self { epoch, to: 0, step: Step::ReadTail }
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
            Step::AskAgain
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
        self.step = if created { Step::AskAgain } else { Step::ReadTail };
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
