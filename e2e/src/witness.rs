//! What an outside witness saw of environments that number what they write: whether two incarnations ran at once, how
//! long nobody answered, and how much of what had been acknowledged is gone.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{Environment, lab};

/// Something that an environment said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// When, in milliseconds since 1970, by the clock of the witness (and of the test).
    pub at: u64,
    /// Start of the writer: another one after each boot.
    pub life: String,
    /// Number of the write.
    pub number: u64,
    /// Whether this is not a write but what the writer found when it began.
    pub found: bool,
}

/// The witness.
pub struct Witness {
    child: Child,
    port: u16,
    said: Arc<Mutex<BTreeMap<String, Vec<Said>>>>,
}

/// Now, by the same clock.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

fn parse(line: &str) -> Option<(String, Said)> {
    let fields: Vec<&str> = line.split(' ').collect();
    let [at, name, writer, number, what] = fields[..] else { return None };
    let said = Said { at: at.parse().ok()?, life: writer.into(), number: number.parse().ok()?, found: what == "found" };
    Some((name.into(), said))
}

impl Witness {
    /// Starts it in the network of the control plane.
    #[must_use]
    pub fn start(port: u16) -> Self {
        let program = std::env::current_exe().expect("the path of this test");
        // Beside the tests' own directory.
        let program = program.parent().and_then(|deps| deps.parent()).expect("a directory").join("witness");
        let mut child = Command::new(lab::program())
            .args(["lab", "run", "--"])
            .arg(&program)
            .arg(port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display()));
        let said: Arc<Mutex<BTreeMap<String, Vec<Said>>>> = Arc::default();
        let (lines, sink) = (BufReader::new(child.stdout.take().expect("stdout is piped")), said.clone());
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                if let Some((name, one)) = parse(&line) {
                    sink.lock().expect("no test panics with it").entry(name).or_default().push(one);
                }
            }
        });
        Self { child, port, said }
    }

    /// Makes an environment number what it writes, ten times a second, from now on and after each boot.
    pub fn watch(&self, ve: &Environment, name: &str) {
        let script = WRITER.replace("NAME", name).replace("PORT", &self.port.to_string());
        let unit =
            "[Service]\\nExecStart=/usr/local/bin/writer\\nRestart=always\\n[Install]\\nWantedBy=multi-user.target\\n";
        let ran =
            ve.exec_with(&["sh", "-c", "cat > /usr/local/bin/writer && chmod 755 /usr/local/bin/writer"], &script);
        assert!(ran.ok, "{}", ran.stderr);
        ve.sh(&format!("printf '{unit}' > /etc/systemd/system/writer.service && systemctl enable --now writer 2>&1"));
    }

    /// Everything that an environment said so far.
    #[must_use]
    pub fn of(&self, name: &str) -> Vec<Said> {
        self.said.lock().expect("no test panics with it").get(name).cloned().unwrap_or_default()
    }

    /// Whether an environment has said something since an instant.
    #[must_use]
    pub fn heard_since(&self, name: &str, instant: u64) -> bool {
        self.of(name).last().is_some_and(|last| last.at >= instant)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What became of an environment whose node was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// From the last word of the incarnation that was lost to the first of the next.
    pub silent: Duration,
    /// Writes that were acknowledged to the witness and are gone.
    pub lost: u64,
    /// How long before the last word the oldest of them was acknowledged.
    pub window: Duration,
}

/// Judges what was said around one change of lives.
///
/// # Errors
/// Two lives spoke at once, or the later one does not continue the former: what was wrong.
pub fn judge(said: &[Said]) -> Result<Vec<Outage>, String> {
    let mut outages = Vec::new();
    let mut ended: Vec<&str> = Vec::new();
    let mut former: Option<&Said> = None;
    for one in said {
        if ended.contains(&one.life.as_str()) {
            return Err(format!("life {} spoke (write {}) after another had begun", one.life, one.number));
        }
        if let Some(before) = former {
            if before.life == one.life {
                if one.number < before.number {
                    return Err(format!("life {} went back from {} to {}", one.life, before.number, one.number));
                }
            } else {
                if !one.found {
                    return Err(format!("life {} did not say what it found", one.life));
                }
                ended.push(&before.life);
                // One more than was acknowledged may be there: its answer was on the way.
                let lost = before.number.saturating_sub(one.number);
                let first_lost = said.iter().find(|s| s.life == before.life && !s.found && s.number > one.number);
                let window = first_lost.filter(|_| lost > 0).map_or(0, |first| before.at.saturating_sub(first.at));
                outages.push(Outage {
                    silent: Duration::from_millis(one.at.saturating_sub(before.at)),
                    lost,
                    window: Duration::from_millis(window),
                });
            }
        }
        former = Some(one);
    }
    Ok(outages)
}

const WRITER: &str = r#"#!/bin/bash
life=$(cat /proc/sys/kernel/random/uuid)
n=$(cat /srv/written 2>/dev/null || echo 0)
say() { printf 'NAME %s %s %s\n' "$life" "$n" "$1" >&3 && read -t 5 -r answer <&3; }
while :; do
    if { exec 3<>/dev/tcp/10.250.0.1/PORT; } 2>/dev/null; then
        [ -n "$begun" ] || { say found && begun=yes; }
        while [ -n "$begun" ]; do
            n=$((n + 1))
            echo "$n" > /srv/written.new && sync /srv/written.new && mv /srv/written.new /srv/written
            say wrote || break
            sleep 0.1
        done
    fi
    sleep 0.2
done
"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn said(lines: &[(u64, &str, u64, bool)]) -> Vec<Said> {
        lines
            .iter()
            .map(|(at, life, number, found)| Said { at: *at, life: (*life).into(), number: *number, found: *found })
            .collect()
    }

    #[test]
    fn an_outage_is_measured() {
        let outages = judge(&said(&[
            (0, "a", 0, true),
            (100, "a", 1, false),
            (200, "a", 2, false),
            (300, "a", 3, false),
            (9000, "b", 1, true),
            (9100, "b", 2, false),
        ]));
        let expected = Outage { silent: Duration::from_millis(8700), lost: 2, window: Duration::from_millis(100) };
        assert_eq!(outages, Ok(vec![expected]));
        let nothing = judge(&said(&[(0, "a", 1, false), (5, "b", 2, true)])).unwrap();
        assert_eq!((nothing[0].lost, nothing[0].window), (0, Duration::ZERO));
    }

    #[test]
    fn two_lives_at_once_are_found() {
        let error = judge(&said(&[(0, "a", 1, false), (1, "b", 0, true), (2, "a", 2, false)])).unwrap_err();
        assert!(error.contains("life a spoke"), "{error}");
        assert!(judge(&said(&[(0, "a", 2, false), (1, "a", 1, false)])).is_err());
        assert!(judge(&said(&[(0, "a", 2, false), (1, "b", 3, false)])).is_err());
    }
}
