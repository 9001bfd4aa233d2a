//! Compares what the machine reported with the plan. Only a report that names every check of the plan once, in order
//! and passed, passes: a machine that stops early, skips a check or reports another one does not.

use std::fmt;

use vivarium_machine_tests::tap::Line;

/// What is known so far.
#[derive(Debug)]
pub struct Verdict {
    expected: Vec<String>,
    outcomes: usize,
    planned: bool,
    failed: Vec<String>,
    wrong: Vec<String>,
}

impl Verdict {
    /// Nothing was reported yet; `expected` are the names of the checks in order.
    pub fn new<'n>(expected: impl IntoIterator<Item = &'n str>) -> Self {
        let expected = expected.into_iter().map(str::to_owned).collect();
        Self { expected, outcomes: 0, planned: false, failed: Vec::new(), wrong: Vec::new() }
    }

    /// Whether the machine has not said anything yet.
    pub fn is_waiting(&self) -> bool {
        !self.planned
    }

    /// Takes the next line of the report.
    pub fn take(&mut self, line: Line) {
        match line {
            Line::Plan(count) => {
                if self.planned || count != self.expected.len() {
                    self.wrong.push(format!("the machine planned {count} checks, not {}", self.expected.len()));
                }
                self.planned = true;
            }
            Line::Outcome { number, name, passed } => {
                let next = self.expected.get(self.outcomes);
                if number != self.outcomes + 1 || next != Some(&name) {
                    let next = next.map_or("nothing more", String::as_str);
                    self.wrong.push(format!("the machine reported {number} - {name} where {next} was due"));
                }
                self.outcomes += 1;
                if !passed {
                    self.failed.push(name);
                }
            }
            Line::BailOut(reason) => self.wrong.push(format!("the machine gave up: {reason}")),
            Line::Remark(_) => {}
        }
    }

    /// No more is to be expected, for a reason.
    pub fn gave_up(&mut self, reason: String) {
        self.wrong.push(reason);
    }

    /// Whether all is well; asked at the end.
    pub fn passed(&self) -> bool {
        self.planned && self.outcomes == self.expected.len() && self.failed.is_empty() && self.wrong.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for reason in &self.wrong {
            writeln!(f, "{reason}")?;
        }
        for name in &self.failed {
            writeln!(f, "failed: {name}")?;
        }
        for name in self.expected.iter().skip(self.outcomes) {
            writeln!(f, "never reported: {name}")?;
        }
        let passed = self.outcomes.saturating_sub(self.failed.len()).min(self.expected.len());
        write!(f, "{passed} of {} checks passed", self.expected.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(report: &str) -> Verdict {
        let mut verdict = Verdict::new(["boots", "holds"]);
        report.lines().filter_map(Line::parse).for_each(|line| verdict.take(line));
        verdict
    }

    #[test]
    fn a_whole_report_passes() {
        let noise = "SeaBIOS\n1..2\n# up\n[  0.1] not ok 1 - boots\nok 1 - boots\nok 2 - holds\n# done\n";
        let verdict = verdict(noise);
        assert!(verdict.passed(), "{verdict}");
        assert_eq!(verdict.to_string(), "2 of 2 checks passed");
    }

    #[test]
    fn anything_less_does_not_pass() {
        for (report, reason) in [
            ("", "never reported: boots"),
            ("1..2\nok 1 - boots\n", "never reported: holds"),
            ("1..2\nok 1 - boots\nnot ok 2 - holds\n", "failed: holds"),
            ("1..1\nok 1 - boots\n", "planned 1 checks"),
            ("ok 1 - boots\nok 2 - holds\n", "2 of 2"),
            ("1..2\nok 1 - boots\nok 1 - boots\n", "where holds was due"),
            ("1..2\nok 2 - holds\nok 1 - boots\n", "where boots was due"),
            ("1..2\nok 1 - boots\nok 2 - holds\nok 3 - more\n", "where nothing more was due"),
            ("1..2\nBail out! no pool\n", "gave up: no pool"),
        ] {
            let verdict = verdict(report);
            assert!(!verdict.passed(), "{report}");
            assert!(verdict.to_string().contains(reason), "{report}: {verdict}");
        }
    }

    #[test]
    fn a_machine_that_is_not_done_in_time_does_not_pass() {
        let mut verdict = verdict("1..2\nok 1 - boots\nok 2 - holds\n");
        verdict.gave_up("late".into());
        assert!(!verdict.passed());
    }
}
