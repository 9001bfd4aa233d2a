//! What a case does: a seed, and which of its steps are taken.
//!
//! Each change has its own random numbers, made from the seed and its place in the full plan. So steps can be left out and
//! the others still do the same, as far as the tree lets them: that is what makes a failing plan shrinkable.

use std::fmt;
use std::str::FromStr;

use crate::rng::Rng;

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The change with this number.
    Change(u32),
    /// A commit of what there is.
    Commit,
}

/// A case. As text: the seed, a colon, then numbers of changes and `c` for commits, separated by commas; numbers that
/// follow each other as `first-last`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where all random numbers come from.
    pub seed: u64,
    /// The steps; a commit always follows the last.
    pub steps: Vec<Step>,
}

impl Plan {
    /// The full plan of a seed: some rounds of few or many changes, each but the last ended by a commit.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed, 0);
        let mut steps = Vec::new();
        let mut number = 0;
        for round in 0..rng.between(2, 6) {
            if round > 0 {
                steps.push(Step::Commit);
            }
            let (least, most) = *rng.pick(&[(1, 4), (4, 20), (20, 50)]).unwrap_or(&(1, 2));
            for _ in 0..rng.between(least, most) {
                steps.push(Step::Change(number));
                number += 1;
            }
        }
        Self { seed, steps }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.seed)?;
        let mut rest = &self.steps[..];
        let mut comma = "";
        while let Some((step, mut behind)) = rest.split_first() {
            match *step {
                Step::Commit => write!(f, "{comma}c")?,
                Step::Change(first) => {
                    let mut last = first;
                    while let Some((Step::Change(next), further)) = behind.split_first()
                        && *next == last + 1
                    {
                        (last, behind) = (*next, further);
                    }
                    if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
                }
            }
            (comma, rest) = (",", behind);
        }
        Ok(())
    }
}

/// Text that is no plan.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is no plan: give a seed, or as printed by a failed case 'SEED:STEPS', for example '17:0-3,c,5'")]
pub struct PlanError(String);

impl FromStr for Plan {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let number = |part: &str| part.parse::<u32>().map_err(|_| PlanError(text.to_owned()));
        let (seed, list) = text.split_once(':').map_or((text, None), |(seed, steps)| (seed, Some(steps)));
        let seed = seed.parse().map_err(|_| PlanError(text.to_owned()))?;
        let Some(list) = list else { return Ok(Self::of(seed)) };
        let mut steps = Vec::new();
        for part in list.split(',').filter(|part| !part.is_empty()) {
            match part.split_once('-') {
                _ if part == "c" => steps.push(Step::Commit),
                Some((from, to)) => steps.extend((number(from)?..=number(to)?).map(Step::Change)),
                None => steps.push(Step::Change(number(part)?)),
            }
        }
        Ok(Self { seed, steps })
    }
}

/// Leaves out steps as long as `fails` says that the rest still fails: halves first, then ever smaller parts, then single
/// ones (delta debugging). At most `tries` runs.
pub fn shrink(plan: &Plan, tries: usize, mut fails: impl FnMut(&Plan) -> bool) -> Plan {
    let mut smallest = plan.clone();
    let mut left = tries;
    let mut part = smallest.steps.len().div_ceil(2);
    while part > 0 {
        let mut at = 0;
        let mut any = false;
        while at < smallest.steps.len() {
            if left == 0 {
                return smallest;
            }
            left -= 1;
            let mut steps = smallest.steps.clone();
            steps.drain(at..(at + part).min(steps.len()));
            let candidate = Plan { seed: smallest.seed, steps };
            if fails(&candidate) {
                (smallest, any) = (candidate, true);
            } else {
                at += part;
            }
        }
        if !(any && part == 1) {
            part /= 2;
        }
    }
    smallest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_comes_back_from_its_text() {
        for seed in 0..50 {
            let plan = Plan::of(seed);
            assert_eq!(plan.to_string().parse(), Ok(plan));
        }
        let plan: Plan = "17:0-2,c,5,c,c,9".parse().unwrap();
        assert_eq!(plan.steps.len(), 8);
        assert_eq!(plan.to_string(), "17:0-2,c,5,c,c,9");
        assert_eq!("17".parse(), Ok(Plan::of(17)));
        for bad in ["", "x", "1:x", "1:2-", "-1"] {
            assert!(bad.parse::<Plan>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_plan_shrinks_to_the_steps_that_matter() {
        let plan = Plan { seed: 1, steps: (0..100).map(Step::Change).collect() };
        let matter = [Step::Change(7), Step::Change(50), Step::Change(51)];
        let smallest = shrink(&plan, 1000, |plan| matter.iter().all(|step| plan.steps.contains(step)));
        assert_eq!(smallest.steps, matter);
    }
}
