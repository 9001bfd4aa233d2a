//! What the next node may find, judged by what the nodes before it have said.
//!
//! A volume of class `async` is restored to one committed instant: the tree as it was at the beginning of some commit, and
//! of none before the last one that was acknowledged. So what is lost was written after that one began; and since a node
//! begins the next commit as soon as one is over, that is one commit and the pause before it, where the store is well.

use std::time::Duration;

use crate::said::{Line, Origin, Said};

/// What must not be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Violation {
    /// Written, still on the same node, and another now.
    #[error("the tree that was here all the time is another one")]
    HereDiffers,
    /// Restored to what the tree never was when a commit began.
    #[error("the tree is that of no committed instant")]
    NoInstant,
    /// Restored to what it was once, and an acknowledged commit is missing.
    #[error(
        "the tree is older than the last commit that was acknowledged: instant {found}, and {acked} was acknowledged"
    )]
    TooOld {
        /// The newest instant with that tree.
        found: usize,
        /// The instant of the last acknowledged commit.
        acked: usize,
    },
    /// A new volume where something was acknowledged.
    #[error("the volume is new, although a commit of it was acknowledged")]
    Forgotten,
    /// A node's own snapshot of the newest commit is something else.
    #[error("the snapshot that the next commit is to be counted from is the tree of no committed instant")]
    BaseDiffers,
    /// fsync(2) had returned, the disk was there all the time, and it is not on it.
    #[error("record {synced} was synced to a disk that stayed on its node, and {found} is the last one there")]
    NotOnDisk {
        /// The last that had to be there.
        synced: u64,
        /// The last that is.
        found: u64,
    },
    /// Records that were synced before an acknowledged commit began.
    #[error(
        "record {synced} was synced before a commit began that was acknowledged, and {found} is the last one there"
    )]
    RecordLost {
        /// The last that had to be there.
        synced: u64,
        /// The last that is.
        found: u64,
    },
    /// A commit began while the one before was under way.
    #[error("a commit began while the one before was under way")]
    Overlapping,
}

/// Trees at the instants at which commits began.
#[derive(Clone, Debug, Default)]
pub struct Trees {
    instants: Vec<String>,
    acked: Option<usize>,
    /// The last node that opened an epoch, and the tree that it left.
    live: Option<(usize, String)>,
    /// A node has died since, while it opened one: nobody knows how far it came.
    died_opening: bool,
    /// The power of this node was cut: of the tree that it left, its disk may have any part that was not synced.
    cut: Option<usize>,
}

impl Trees {
    /// Listens to a life of a node.
    ///
    /// # Errors
    /// What it found was not what it had to find.
    pub fn hear(&mut self, node: usize, life: &[Line]) -> Result<(), Violation> {
        self.died_opening |= !life.iter().any(|line| matches!(line.said, Said::Begun(..)));
        for line in life {
            match &line.said {
                Said::Begun(origin, tree) => self.begun(node, *origin, tree)?,
                Said::Base(tree) => self.snapshot(tree)?,
                Said::Wrote(tree) => self.live = Some((node, tree.clone())),
                Said::Tick => self.instants.extend(self.live.as_ref().map(|(_, tree)| tree.clone())),
                Said::Acked(_) => self.acked = self.instants.len().checked_sub(1),
                Said::Found(_) | Said::Synced(_) | Said::Failed => {}
            }
        }
        Ok(())
    }

    /// A node has lost its power. What it comes back with is for the file system to decide; but what it
    /// has of a commit must be that, and the trees that are committed from then on must be those that others restore.
    pub fn cut(&mut self, node: usize) {
        self.cut = Some(node);
    }

    /// A snapshot is of an instant, and no commit is acknowledged whose snapshot is not on the disk.
    fn snapshot(&self, tree: &str) -> Result<(), Violation> {
        let found = self.instants.iter().rposition(|instant| instant == tree).ok_or(Violation::BaseDiffers)?;
        match self.acked.filter(|acked| found < *acked) {
            Some(acked) => Err(Violation::TooOld { found, acked }),
            None => Ok(()),
        }
    }

    fn begun(&mut self, node: usize, origin: Origin, tree: &str) -> Result<(), Violation> {
        let left = self.live.as_ref().filter(|(left_on, _)| *left_on == node);
        let is_as_left = left.is_some_and(|(_, left)| left == tree);
        match origin {
            Origin::Here if is_as_left => {}
            Origin::Here if self.cut == Some(node) && left.is_some() => {}
            // The one who died had brought it here.
            Origin::Here if self.died_opening && self.acked.is_none() => *self = Self::default(),
            Origin::Here if self.died_opening => self.restored(tree)?,
            Origin::Here => return Err(Violation::HereDiffers),
            Origin::New if self.acked.is_some() => return Err(Violation::Forgotten),
            Origin::New => *self = Self::default(),
            Origin::Restored => self.restored(tree)?,
        }
        (self.live, self.died_opening, self.cut) = (Some((node, tree.to_owned())), false, None);
        Ok(())
    }

    fn restored(&mut self, tree: &str) -> Result<(), Violation> {
        let Some(found) = self.instants.iter().rposition(|instant| instant == tree) else {
            return Err(Violation::NoInstant);
        };
        if let Some(acked) = self.acked.filter(|acked| found < *acked) {
            return Err(Violation::TooOld { found, acked });
        }
        // It is in the store, or it could not have been restored; and nobody else's instants count any more.
        *self = Self { instants: vec![tree.to_owned()], acked: Some(0), ..Self::default() };
        Ok(())
    }
}

/// Records that a tenant appends to a file one after the other, with fsync(2) after some.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// The last of which fsync(2) returned.
    synced: Option<(u64, Duration)>,
    /// Where that was when the last commit began.
    at_tick: Option<(u64, Duration)>,
    /// The last that has to be in the store.
    must: Option<u64>,
    /// When the commit began that was acknowledged last, and when something was last heard.
    acked_tick: Option<Duration>,
    tick: Option<Duration>,
    last: Duration,
}

impl Records {
    /// Listens to a life of a node.
    ///
    /// # Errors
    /// It does not commit as it should.
    pub fn hear(&mut self, life: &[Line]) -> Result<(), Violation> {
        // Who died before it began has written nothing, and has not said what it had found.
        if life.is_empty() {
            return Ok(());
        }
        let before = self.synced.map(|(record, _)| record);
        (self.tick, self.acked_tick, self.synced, self.at_tick) = (None, None, None, None);
        let mut is_here = false;
        for Line { at, said } in life {
            self.last = *at;
            match said {
                Said::Begun(origin, _) => is_here = *origin == Origin::Here,
                Said::Found(found) => {
                    if let Some(synced) = before.filter(|synced| is_here && synced > found) {
                        return Err(Violation::NotOnDisk { synced, found: *found });
                    }
                    if !is_here {
                        self.restored(*found)?;
                    }
                    self.synced = Some((*found, *at));
                }
                Said::Synced(record) => self.synced = Some((*record, *at)),
                Said::Tick if self.tick.is_some() => return Err(Violation::Overlapping),
                Said::Tick => (self.tick, self.at_tick) = (Some(*at), self.synced),
                Said::Acked(_) => {
                    self.must = self.at_tick.map(|(record, _)| record).max(self.must);
                    (self.acked_tick, self.tick) = (self.tick, None);
                }
                Said::Failed => self.tick = None,
                Said::Base(_) | Said::Wrote(_) => {}
            }
        }
        Ok(())
    }

    /// Another node found records up to `found` in what it restored. Tells how much time of what had been synced is lost
    /// at most, if something is: from the beginning of the last acknowledged commit to the end.
    ///
    /// # Errors
    /// Some are missing.
    pub fn restored(&mut self, found: u64) -> Result<Option<Duration>, Violation> {
        if let Some(synced) = self.must.filter(|synced| *synced > found) {
            return Err(Violation::RecordLost { synced, found });
        }
        let lost = self.synced.is_some_and(|(record, _)| record > found);
        let window = self.last.saturating_sub(self.acked_tick.unwrap_or_default());
        *self = Self { must: Some(found), ..Self::default() };
        Ok(lost.then_some(window))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(text: &str) -> Vec<Line> {
        let said = text.split(", ").filter(|said| !said.is_empty()).enumerate();
        said.map(|(at, said)| format!("{}000 {said}", at + 1).parse().unwrap()).collect()
    }

    fn trees(lives: &[(usize, &str)]) -> Result<(), Violation> {
        let mut ledger = Trees::default();
        lives.iter().try_for_each(|(node, text)| ledger.hear(*node, &life(text)))
    }

    #[test]
    fn a_restored_tree_is_that_of_an_instant_from_the_last_acknowledged_one_on() {
        const FIRST: &str = "begun New t0, wrote t1, tick, acked 2, wrote t2, tick, acked 3, wrote t3, tick, wrote t4";
        for (node, second, outcome) in [
            (1, "begun Restored t2", Ok(())),
            (1, "begun Restored t3", Ok(())),
            (1, "begun Restored t1", Err(Violation::TooOld { found: 0, acked: 1 })),
            (1, "begun Restored t4", Err(Violation::NoInstant)),
            (1, "begun Restored t0", Err(Violation::NoInstant)),
            (1, "begun New t0", Err(Violation::Forgotten)),
            (1, "begun Here t4", Err(Violation::HereDiffers)),
            (0, "begun Here t4", Ok(())),
            (0, "begun Here t3", Err(Violation::HereDiffers)),
        ] {
            assert_eq!(trees(&[(0, FIRST), (node, second)]), outcome, "{node}: {second}");
        }
    }

    #[test]
    fn one_that_died_opening_may_have_brought_the_tree_here() {
        const FIRST: &str = "begun New t0, wrote t1, tick, acked 2, wrote t2, tick, wrote t3";
        for (lives, outcome) in [
            (&[(0, FIRST), (1, ""), (1, "begun Here t1")][..], Ok(())),
            (&[(0, FIRST), (1, ""), (1, "begun Here t2")], Ok(())),
            (&[(0, FIRST), (1, ""), (1, "begun Here t3")], Err(Violation::NoInstant)),
            (&[(0, FIRST), (1, ""), (0, "begun Here t3")], Ok(())),
            (&[(0, FIRST), (1, ""), (0, "begun Here t2")], Ok(())),
            (&[(0, FIRST), (1, ""), (1, "begun Here t1"), (0, "begun Here t1")], Err(Violation::HereDiffers)),
            (&[(0, ""), (0, "begun Here t0")], Ok(())),
        ] {
            assert_eq!(trees(lives), outcome, "{lives:?}");
        }
    }

    #[test]
    fn after_a_power_cut_the_disk_decides_what_is_here_but_not_what_was_committed() {
        const FIRST: &str = "begun New t0, wrote t1, tick, acked 2, wrote t2, tick, acked 3, wrote t3, tick, wrote t4";
        for (node, second, third, outcome) in [
            (0, "begun Here t9, base t2", "", Ok(())),
            (0, "begun Here t9, base t3", "", Ok(())),
            (0, "begun Here t9, base t1", "", Err(Violation::TooOld { found: 0, acked: 1 })),
            (0, "begun Here t9, base t9", "", Err(Violation::BaseDiffers)),
            (1, "begun Here t9", "", Err(Violation::HereDiffers)),
            (0, "begun Restored t9", "", Err(Violation::NoInstant)),
            (0, "begun Here t9, tick, acked 4", "begun Restored t9", Ok(())),
            (0, "begun Here t9, tick", "begun Restored t2", Ok(())),
            (0, "begun Here t9, tick, acked 4", "begun Restored t4", Err(Violation::NoInstant)),
            (0, "begun Here t9", "begun Restored t9", Err(Violation::NoInstant)),
            (0, "begun Here t9", "begun Restored t3", Ok(())),
        ] {
            let mut ledger = Trees::default();
            ledger.hear(0, &life(FIRST)).unwrap();
            ledger.cut(0);
            let heard = ledger.hear(node, &life(second)).and_then(|()| match third {
                "" => Ok(()),
                third => ledger.hear(1, &life(third)),
            });
            assert_eq!(heard, outcome, "{node}: {second}; {third}");
        }
        let mut ledger = Trees::default();
        ledger.hear(0, &life(FIRST)).unwrap();
        ledger.cut(0);
        ledger.hear(0, &life("begun Here t9")).unwrap();
        assert_eq!(ledger.hear(0, &life("begun Here t8")), Err(Violation::HereDiffers), "no cut this time");
        ledger.cut(1);
        assert_eq!(ledger.hear(0, &life("begun Here t8")), Err(Violation::HereDiffers), "of another's power");
    }

    #[test]
    fn what_was_restored_counts_from_then_on() {
        const FIRST: (usize, &str) = (0, "begun New t0, wrote t1, tick, acked 2, wrote t2, tick");
        const SECOND: (usize, &str) = (1, "begun Restored t2, wrote t3, tick");
        assert_eq!(trees(&[FIRST, SECOND, (0, "begun Restored t2")]), Ok(()));
        assert_eq!(trees(&[FIRST, SECOND, (0, "begun Restored t1")]), Err(Violation::NoInstant));
        let begun = "begun New t0, wrote t1, tick";
        assert_eq!(trees(&[(0, begun), (1, "begun New t0"), (0, "begun New t0")]), Ok(()));
        assert_eq!(trees(&[(0, begun), (1, "begun Restored t1")]), Ok(()), "the answer was lost");
        let same = "begun New t0, wrote t1, tick, acked 1, wrote t2, tick, wrote t1, tick, acked 3";
        assert_eq!(trees(&[(0, same), (1, "begun Restored t1")]), Ok(()), "a tree may come again");
    }

    #[test]
    fn records_that_were_synced_before_an_acknowledged_commit_are_there() {
        const LIFE: &str = "synced 3, tick, synced 5, acked 1, synced 8, tick, synced 9";
        for (found, outcome) in [
            (2, Err(Violation::RecordLost { synced: 3, found: 2 })),
            (3, Ok(Some(Duration::from_millis(5)))),
            (8, Ok(Some(Duration::from_millis(5)))),
            (9, Ok(None)),
        ] {
            let mut records = Records::default();
            records.hear(&life(LIFE)).unwrap();
            assert_eq!(records.restored(found), outcome, "{found}");
        }
        let mut records = Records::default();
        records.hear(&life("synced 3, tick, acked 1")).unwrap();
        records.hear(&life("synced 4, tick, failed, tick")).unwrap();
        assert_eq!(records.restored(2), Err(Violation::RecordLost { synced: 3, found: 2 }), "from a life before");
        assert_eq!(Records::default().hear(&life("tick, tick")), Err(Violation::Overlapping));
    }

    #[test]
    fn records_that_were_synced_are_on_the_disk_of_their_node() {
        const FIRST: &str = "begun New t, found 0, synced 3, tick, acked 1, synced 5";
        for (second, outcome) in [
            ("begun Here t, found 5", Ok(())),
            ("begun Here t, found 9", Ok(())),
            ("begun Here t, found 4", Err(Violation::NotOnDisk { synced: 5, found: 4 })),
            ("begun Restored t, found 3", Ok(())),
            ("begun Restored t, found 2", Err(Violation::RecordLost { synced: 3, found: 2 })),
            ("begun New t, found 0", Err(Violation::RecordLost { synced: 3, found: 0 })),
        ] {
            for between in [&[][..], &[""]] {
                let mut records = Records::default();
                let mut lives = [FIRST].iter().chain(between).chain([&second]);
                let heard = lives.try_for_each(|said| records.hear(&life(said)));
                assert_eq!(heard, outcome, "{between:?} {second}");
            }
        }
        let mut records = Records::default();
        records.hear(&life("begun New t, found 0, synced 3")).unwrap();
        records.hear(&life("begun Here t, found 4, tick, acked 1")).unwrap();
        let found = life("begun Restored t, found 3");
        assert_eq!(records.hear(&found), Err(Violation::RecordLost { synced: 4, found: 3 }), "found, then committed");
    }
}
