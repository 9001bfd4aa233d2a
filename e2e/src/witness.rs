//! What an outside witness saw of environments that number what they write: whether two incarnations ran at once, how
//! long nobody answered, and how much of what had been acknowledged is gone.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{Environment, lab, run_with};

/// Something that an environment said.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    /// When, in milliseconds since 1970, by the clock of the witness (and of the test).
    at: u64,
    /// Start of the writer: another one after each boot.
    life: String,
    /// Number of the write.
    number: u64,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// It is on disk.
    Wrote,
    /// Not a write, but what the writer found when it began.
    Found,
    /// The same, and the database is damaged.
    Broken(String),
}

/// Now, by the same clock.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

fn parse(line: &str) -> Option<(String, Said)> {
    let fields: Vec<&str> = line.split(' ').collect();
    let [at, name, writer, number, what] = fields[..] else { return None };
    let what = match what {
        "wrote" => What::Wrote,
        "found" => What::Found,
        other => What::Broken(other.strip_prefix("broken:")?.into()),
    };
    Some((name.into(), Said { at: at.parse().ok()?, life: writer.into(), number: number.parse().ok()?, what }))
}

/// From the last word of one life of an environment to the first of the next. Instants as of [`now`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// The last word.
    pub last: u64,
    /// The first one of the next life: the database is open again, and whole.
    pub answered: u64,
    /// Writes that were acknowledged to the witness and are gone.
    pub lost: u64,
    /// How long before the last word the oldest of them was acknowledged.
    pub window: Duration,
}

impl Outage {
    /// How long nothing was heard.
    #[must_use]
    pub fn silent(&self) -> Duration {
        Duration::from_millis(self.answered.saturating_sub(self.last))
    }

    /// From an instant to the first answer after it.
    #[must_use]
    pub fn since(&self, instant: u64) -> Duration {
        Duration::from_millis(self.answered.saturating_sub(instant))
    }
}

/// Writes that are older than this when their life ends are not told apart any more.
const REMEMBERED: u64 = 1_200_000;

/// All that one environment said, judged as it is heard.
#[derive(Clone, Debug, Default)]
pub struct Testimony {
    /// Lives that were followed by another.
    ended: Vec<String>,
    life: Option<String>,
    /// Writes of this life, with when.
    writes: VecDeque<(u64, u64)>,
    number: u64,
    at: u64,
    outages: Vec<Outage>,
    offence: Option<String>,
}

impl Testimony {
    fn hear(&mut self, said: &Said) {
        if let Err(offence) = self.judge(said) {
            self.offence.get_or_insert(offence);
        }
        self.at = said.at;
    }

    /// Two lives spoke at once, or the later one does not continue the former: what is wrong.
    fn judge(&mut self, said: &Said) -> Result<(), String> {
        let Said { at, life, number, what } = said;
        if self.ended.contains(life) {
            return Err(format!("life {life} spoke (write {number}, at {at}) after another had begun"));
        }
        if let What::Broken(how) = what {
            return Err(format!("life {life} found its database damaged: {how}"));
        }
        let former = self.life.replace(life.clone());
        if former.as_ref() == Some(life) {
            // It says the same again when it was not answered.
            if *number < self.number {
                return Err(format!("life {life} went back from {} to {number}", self.number));
            }
        } else if let Some(former) = former {
            self.ended.push(former);
            if *what != What::Found {
                return Err(format!("life {life} did not say what it found"));
            }
            // One more than was acknowledged may be there: its answer was on the way.
            if *number > self.number + 1 {
                return Err(format!("life {life} found {number}, of which only {} were written", self.number));
            }
            let oldest = self.writes.iter().find(|(_, write)| write > number);
            self.outages.push(Outage {
                last: self.at,
                answered: *at,
                lost: self.number.saturating_sub(*number),
                window: Duration::from_millis(oldest.map_or(0, |(when, _)| self.at.saturating_sub(*when))),
            });
            self.writes.clear();
        }
        self.number = *number;
        if *what == What::Wrote {
            self.writes.push_back((*at, *number));
        }
        while self.writes.front().is_some_and(|(when, _)| when + REMEMBERED < *at) {
            self.writes.pop_front();
        }
        Ok(())
    }

    /// When the last word was heard; 0 if none.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.at
    }

    /// The longest time without a word of this life, from an instant until the last word.
    #[must_use]
    pub fn longest_pause(&self, since: u64) -> Duration {
        let times = self.writes.iter().map(|(when, _)| *when).filter(|when| *when >= since);
        let pause = |(last, longest): (u64, u64), when: u64| (when, longest.max(when - last));
        Duration::from_millis(times.fold((since, 0), pause).1)
    }

    /// Every change of lives so far.
    ///
    /// # Errors
    /// What must never be was seen: two lives at once, a life that does not continue the former, a damaged database.
    pub fn outages(&self) -> Result<&[Outage], String> {
        self.offence.as_ref().map_or(Ok(&self.outages), |offence| Err(offence.clone()))
    }
}

/// The witness.
pub struct Witness {
    child: Child,
    port: u16,
    testimonies: Arc<Mutex<BTreeMap<String, Testimony>>>,
    /// It hears nobody any more.
    ended: Arc<AtomicBool>,
}

/// A program of this package.
fn program(name: &str) -> std::path::PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    // Beside the tests' own directory.
    test.parent().and_then(|deps| deps.parent()).expect("a directory").join(name)
}

/// A program without what only a debugger needs.
#[must_use]
pub fn stripped(program: &std::path::Path) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a directory");
    let stripped = folder.path().join("stripped");
    let path = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let ran = run_with("strip", &["-o", &path(&stripped), &path(program)], "");
    assert!(ran.ok, "{}", ran.stderr);
    std::fs::read(stripped).expect("what strip made")
}

impl Witness {
    /// Starts it in the network of the control plane.
    #[must_use]
    pub fn start(port: u16) -> Self {
        let program = program("witness");
        let mut child = Command::new(lab::program())
            .args(["lab", "run", "--"])
            .arg(&program)
            .arg(port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display()));
        let testimonies: Arc<Mutex<BTreeMap<String, Testimony>>> = Arc::default();
        let (lines, sink) = (BufReader::new(child.stdout.take().expect("stdout is piped")), testimonies.clone());
        let ended = Arc::<AtomicBool>::default();
        let over = ended.clone();
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                if let Some((name, one)) = parse(&line) {
                    sink.lock().expect("no test panics with it").entry(name).or_default().hear(&one);
                }
            }
            over.store(true, Ordering::Relaxed);
        });
        Self { child, port, testimonies, ended }
    }

    /// Puts a bank into environments that tells this witness of each transaction, from now on and after each boot. Each
    /// is known by its `name`.
    pub fn watch(&self, environments: &[(String, &Environment)]) {
        let ledger = stripped(&program("ledger"));
        for (name, ve) in environments {
            let to = format!("{} {}:{}", name, lab::CONTROL_PLANE, self.port);
            let unit = format!(
                "[Service]\\nExecStart=/usr/local/bin/ledger {to} /srv/ledger.db\\nRestart=on-failure\\n\
                 [Install]\\nWantedBy=multi-user.target\\n"
            );
            ve.install("ledger", &ledger);
            ve.sh(&format!(
                "printf '{unit}' > /etc/systemd/system/ledger.service && systemctl enable --now ledger 2>&1"
            ));
        }
    }

    /// What an environment said so far.
    #[must_use]
    pub fn of(&self, name: &str) -> Testimony {
        assert!(!self.ended.load(Ordering::Relaxed), "the witness has ended: its messages are above");
        self.testimonies.lock().expect("no test panics with it").get(name).cloned().unwrap_or_default()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &str) -> Testimony {
        let mut testimony = Testimony::default();
        for line in lines.split(", ") {
            let (_, said) = parse(line).unwrap_or_else(|| panic!("{line}"));
            testimony.hear(&said);
        }
        testimony
    }

    #[test]
    fn an_outage_is_measured() {
        let testimony = heard(
            "0 ve a 0 found, 100 ve a 1 wrote, 200 ve a 2 wrote, 300 ve a 3 wrote, 9000 ve b 1 found, 9100 ve b 2 wrote",
        );
        let expected = Outage { last: 300, answered: 9000, lost: 2, window: Duration::from_millis(100) };
        assert_eq!(testimony.outages(), Ok(&[expected][..]));
        assert_eq!(
            (expected.silent(), expected.since(400)),
            (Duration::from_millis(8700), Duration::from_millis(8600))
        );
        assert_eq!(testimony.last(), 9100);
        for found in [1, 2] {
            let nothing = heard(&format!("0 ve a 1 wrote, 5 ve b {found} found"));
            let expected = Outage { last: 0, answered: 5, lost: 0, window: Duration::ZERO };
            assert_eq!(nothing.outages(), Ok(&[expected][..]));
        }
    }

    #[test]
    fn what_must_never_be_is_found() {
        for (lines, what) in [
            ("0 ve a 1 wrote, 1 ve b 0 found, 2 ve a 2 wrote, 3 ve b 1 wrote", "life a spoke"),
            ("0 ve a 2 wrote, 1 ve a 1 wrote", "went back"),
            ("0 ve a 2 wrote, 1 ve b 3 wrote", "did not say"),
            ("0 ve a 2 wrote, 1 ve b 4 found", "found 4"),
            ("0 ve a 2 broken:sum-1", "damaged: sum-1"),
        ] {
            let error = heard(lines).outages().unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn a_pause_is_between_words() {
        let testimony = heard("0 ve a 0 found, 100 ve a 1 wrote, 900 ve a 2 wrote, 1300 ve a 3 wrote");
        let pauses = [0, 800, 900, 2000].map(|since| testimony.longest_pause(since).as_millis());
        assert_eq!(pauses, [800, 400, 400, 0]);
    }

    #[test]
    fn what_is_old_is_forgotten_and_still_counted() {
        let mut testimony = heard("0 ve a 0 found, 1 ve a 1 wrote, 1300000 ve a 2 wrote");
        assert_eq!(testimony.writes.len(), 1);
        testimony.hear(&parse("1300500 ve b 0 found").unwrap().1);
        assert_eq!(testimony.outages().unwrap()[0].lost, 2);
    }
}
