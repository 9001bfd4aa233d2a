//! What a case does: everything of it follows from its number.

use std::ops::Range;

/// Writes and flushes that reach the disk before the power is cut: of a life that may not even begin, and of others.
const EARLY: Range<u64> = 1..400;
const LATER: Range<u64> = 400..1500;

/// Fail points of the driver at which the power is cut. What the disk has then is the question; at most of them it waits
/// for nothing, so hardly a write or flush comes when it matters.
const POINTS: [&str; 13] = [
    "snapshot-taken",
    "change-captured",
    "transaction-written-out",
    "attempt-named",
    "attempt-persisted",
    "transaction-in-store",
    "state-written",
    "state-persisted",
    "head-moved",
    "attempt-removed",
    "subvolume-filled",
    "volume-made",
    "journal-started",
];

/// Who has the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// The machine, whose power is cut at the nth write or flush, or at the nth passing of a fail point if that comes first.
    /// Of what is not flushed then, one block in so many survives; none: 0. At the fail point its kernel may panic
    /// instead.
    Machine { strike: u64, point: Option<(&'static str, u64)>, panics: bool, survives: u64 },
    /// This machine.
    Outside,
}

/// What ends with a power cut, or by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    pub node: Node,
    pub epoch: u64,
}

/// What a case does.
#[derive(Debug, PartialEq, Eq)]
pub struct Case {
    pub seed: u64,
    /// The pool is a file on ext4, as it is by default, or the disk itself.
    pub in_a_file: bool,
    pub lives: Vec<Life>,
}

impl Case {
    pub fn of(seed: u64) -> Self {
        let mut random = Random(seed);
        let (mut lives, mut epoch) = (Vec::new(), 1);
        let count = 2 + random.below(2);
        for number in 0..count {
            // Now and then it does not even live to begin.
            let strikes = if random.below(4) == 0 { EARLY } else { LATER };
            let strike = strikes.start + random.below(strikes.end - strikes.start);
            let survives = random.below(3);
            let point = POINTS[random.below(POINTS.len() as u64) as usize];
            let point = (random.below(2) == 0).then(|| (point, 1 + random.below(6)));
            // Not drawn: whatever is drawn in addition makes other cases of all numbers.
            let panics = point.is_some() && (seed % 4 + number) % 4 == 1;
            lives.push(Life { node: Node::Machine { strike, point, panics, survives }, epoch });
            match random.below(4) {
                // The driver comes back as if nothing were.
                0 => {}
                // Another takes over while it is away.
                1 if number + 1 < count => {
                    lives.push(Life { node: Node::Outside, epoch: epoch + 1 });
                    epoch += 2;
                }
                // The next incarnation, on the same node.
                _ => epoch += 1,
            }
        }
        lives.push(Life { node: Node::Outside, epoch: epoch + 1 });
        Self { seed, in_a_file: seed % 2 == 1, lives }
    }
}

/// Numbers that follow from a seed: `SplitMix64`.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{command, machine::power::CASES, workspace};

    #[test]
    fn every_case_ends_outside_and_cuts_the_power_twice() {
        for seed in CASES {
            let case = Case::of(seed);
            assert_eq!(case, Case::of(seed));
            let cuts = case.lives.iter().filter(|life| life.node != Node::Outside).count();
            assert!((2..4).contains(&cuts), "{case:?}");
            assert_eq!(case.lives.last().map(|life| life.node), Some(Node::Outside), "{case:?}");
            for pair in case.lives.windows(2) {
                let grows = pair[0].epoch < pair[1].epoch;
                let same = pair[0].epoch == pair[1].epoch && pair.iter().all(|life| life.node != Node::Outside);
                assert!(grows || same, "{case:?}");
            }
        }
    }

    #[test]
    fn the_fail_points_are_those_of_the_driver() {
        let source = workspace::root().unwrap().join("volume-driver/src");
        let mut grep = command::command("grep", ["-rhoE", r#"passed\("[a-z-]+"\)"#]);
        let found = command::run(grep.arg(source)).unwrap();
        for point in POINTS {
            assert!(found.contains(&format!("passed(\"{point}\")")), "{point} is no fail point any more");
        }
    }

    #[test]
    fn the_cases_differ_in_what_matters() {
        let all: Vec<Case> = CASES.map(Case::of).collect();
        let lives = || all.iter().flat_map(|case| &case.lives);
        for wanted in 0..3 {
            assert!(
                lives().any(|life| matches!(life.node, Node::Machine { survives, .. } if survives == wanted)),
                "{wanted}"
            );
        }
        assert!(
            lives().any(|life| matches!(life.node, Node::Machine { point: Some(("transaction-in-store", _)), .. }))
        );
        assert!(lives().any(|life| matches!(life.node, Node::Machine { point: None, .. })));
        for wanted in [true, false] {
            let at_point =
                |life: &Life| matches!(life.node, Node::Machine { point: Some(_), panics, .. } if panics == wanted);
            assert!(lives().any(at_point), "{wanted}");
        }
        assert!(lives().any(|life| matches!(life.node, Node::Machine { strike, .. } if EARLY.contains(&strike))));
        let again = |case: &Case| case.lives.windows(2).any(|pair| pair[0].epoch == pair[1].epoch);
        let away = |case: &Case| case.lives.iter().filter(|life| life.node == Node::Outside).count() > 1;
        assert!(all.iter().any(again) && all.iter().any(away) && all.iter().any(|case| case.in_a_file));
    }
}
