//! Changing the stores of a volume while its environment runs: what its holder does, step by step.
//!
//! A journal is a *log* in the stores of a set, and the volume's object names the one that decides. The next one gets a
//! name that no log had before, so that what is left of an attempt that was given up is in no log that anybody reads. It begins
//! with the whole state after a transaction and follows the deciding one, transaction by transaction; only its last step
//! counts, a compare-and-swap of the volume's object. Until then the old log decides, from then on the new one, and
//! nothing is committed while it is not known which.

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Have a log named that nobody ever wrote to, in the volume's object.
    Claim,
    /// Put the state after the last transaction into it, and that transaction.
    Seed,
    /// Put this transaction of the deciding log into it, too.
    Copy {
        /// Its number.
        number: u64,
    },
    /// It has nearly all: begin no further transaction.
    Hold,
    /// See to it that the environment does not outlast what each store of the new set grants.
    Bind,
    /// Make it the deciding one, by compare-and-swap from what the object was when it named the log and the holder.
    Switch,
    /// It decides.
    Done,
    /// The volume was given to somebody else: nothing of this counts.
    Lost,
}

/// A change of stores under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    log: Option<u32>,
    /// The newest transaction in the deciding log; once held, the last that the new one has to have.
    last: u64,
    /// The newest one in the new log.
    copied: Option<u64>,
    held: bool,
    bound: bool,
    end: Option<Step>,
}

impl Change {
    /// Begins, with the deciding log up to that transaction.
    #[must_use]
    pub fn new(head: u64) -> Self {
        Self { log: None, last: head, copied: None, held: false, bound: false, end: None }
    }

    /// What is to be done.
    #[must_use]
    pub fn step(&self) -> Step {
        match (self.end, self.log, self.copied) {
            (Some(end), ..) => end,
            (_, None, _) => Step::Claim,
            (_, _, None) => Step::Seed,
            (_, _, Some(copied)) if copied < self.last => Step::Copy { number: copied + 1 },
            _ if !self.held => Step::Hold,
            _ if !self.bound => Step::Bind,
            _ => Step::Switch,
        }
    }

    /// Number of the new log, once it has a name.
    #[must_use]
    pub fn log(&self) -> Option<u32> {
        self.log
    }

    /// Whether no further transaction may be begun.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.held && self.end.is_none()
    }

    /// The object names the new log.
    pub fn claimed(&mut self, log: u32) {
        if self.step() == Step::Claim {
            self.log = Some(log);
        }
    }

    /// The new log has the state after this transaction.
    pub fn seeded(&mut self, number: u64) {
        if self.step() == Step::Seed {
            self.copied = Some(number);
        }
    }

    /// The deciding log has this transaction, acknowledged.
    pub fn committed(&mut self, number: u64) {
        if !self.held {
            self.last = self.last.max(number);
        }
    }

    /// The new log has this transaction.
    pub fn copied(&mut self, number: u64) {
        if self.step() == (Step::Copy { number }) {
            self.copied = Some(number);
        }
    }

    /// Nothing further is begun. `under_way`: a transaction that may or may not be in the deciding log; the new one has to have it.
    pub fn hold(&mut self, under_way: Option<u64>) {
        if self.step() == Step::Hold {
            self.held = true;
            self.last = under_way.unwrap_or(self.last).max(self.last);
        }
    }

    /// The environment is bound by the new set.
    pub fn bound(&mut self) {
        if self.step() == Step::Bind {
            self.bound = true;
        }
    }

    /// The object names the new log as the deciding one.
    pub fn switched(&mut self) {
        if self.step() == Step::Switch {
            self.end = Some(Step::Done);
        }
    }

    /// The object names another holder, session or epoch.
    pub fn lost(&mut self) {
        self.end.get_or_insert(Step::Lost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_log_has_everything_before_it_decides() {
        let mut change = Change::new(7);
        assert_eq!(change.step(), Step::Claim);
        change.seeded(7);
        change.switched();
        assert_eq!(change.step(), Step::Claim, "nothing is done before its turn");
        change.claimed(1);
        assert_eq!(change.step(), Step::Seed);
        change.committed(8);
        change.seeded(8);
        change.committed(10);
        assert_eq!(change.step(), Step::Copy { number: 9 });
        change.copied(9);
        change.copied(10);
        assert_eq!((change.step(), change.holds()), (Step::Hold, false));
        change.hold(Some(11));
        assert_eq!((change.step(), change.holds()), (Step::Copy { number: 11 }, true));
        change.committed(12);
        change.copied(11);
        assert_eq!(change.step(), Step::Bind);
        change.bound();
        assert_eq!(change.step(), Step::Switch);
        change.switched();
        assert_eq!((change.step(), change.holds()), (Step::Done, false));
        change.lost();
        assert_eq!(change.step(), Step::Done);
    }

    #[test]
    fn a_volume_that_was_given_on_ends_it_at_any_point() {
        let mut change = Change::new(0);
        change.claimed(1);
        change.seeded(0);
        change.hold(None);
        assert_eq!(change.step(), Step::Bind);
        change.lost();
        change.bound();
        change.switched();
        assert_eq!((change.step(), change.holds()), (Step::Lost, false));
    }
}
