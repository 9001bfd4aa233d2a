//! What a person at `kubectl` sees while something happens: lines of `kubectl get ve --watch` as they change, events, and
//! the instants of the last failover.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::kubectl;
use crate::witness::now;

/// What a line that tells an event begins with.
const EVENT: &str = "event  ";

/// One line of the table, with when it was printed.
type Line = (u64, String);

/// Watches the environments of a namespace.
pub struct Story {
    namespace: String,
    lines: Arc<Mutex<Vec<Line>>>,
    over: Arc<AtomicBool>,
}

impl Story {
    /// Begins to watch.
    #[must_use]
    pub fn of(namespace: &str) -> Self {
        let story = Self { namespace: namespace.into(), lines: Arc::default(), over: Arc::default() };
        let (namespace, lines, over) = (story.namespace.clone(), story.lines.clone(), story.over.clone());
        std::thread::spawn(move || {
            // The watch ends when the API server does.
            while !over.load(Ordering::Relaxed) {
                watch(&namespace, &lines, &over);
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        story
    }

    /// Whether an event with that reason was written about an environment, from an instant on.
    #[must_use]
    pub fn has_event(&self, name: &str, reason: &str, since: u64) -> bool {
        let begins = format!("{EVENT}{reason}: ");
        events(&self.namespace, name).iter().any(|(at, what)| *at >= since && what.starts_with(&begins))
    }

    /// What was seen of one environment from an instant on, a line each, with seconds since that instant.
    #[must_use]
    pub fn told(&self, name: &str, since: u64) -> Vec<String> {
        let lines = self.lines.lock().expect("no test panics with it");
        let mut told: Vec<_> =
            changes(&lines, name, since).into_iter().map(|(at, what)| (at, format!("STATUS {what}"))).collect();
        told.extend(events(&self.namespace, name).into_iter().filter(|(at, _)| *at >= since));
        told.sort();
        told.into_iter().map(|(at, what)| format!("{} {what}", after(at, since))).collect()
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn watch(namespace: &str, lines: &Mutex<Vec<Line>>, over: &AtomicBool) {
    let columns = "NAME:.metadata.name,STATUS:.status.phase,READY:.status.conditions[?(@.type==\"Ready\")].status,\
                   REASON:.status.conditions[?(@.type==\"Ready\")].reason,NODE:.status.node";
    let mut kubectl = Command::new("kubectl");
    kubectl
        .args(["-n", namespace, "get", "ve", "--watch", "--no-headers", "-o"])
        .arg(format!("custom-columns={columns}"));
    let spawned = kubectl.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let Ok(mut child) = spawned else { return };
    let output = child.stdout.take().map(BufReader::new);
    for line in output.into_iter().flat_map(BufRead::lines).map_while(Result::ok) {
        lines.lock().expect("no test panics with it").push((now(), line));
        if over.load(Ordering::Relaxed) {
            break;
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Columns after the name, each time that they are others than before.
fn changes(lines: &[Line], name: &str, since: u64) -> Vec<Line> {
    let of_one = lines.iter().filter_map(|(at, line)| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| (*at, words.collect::<Vec<_>>().join(" ")))
    });
    let mut told: Vec<Line> = Vec::new();
    let mut last = String::new();
    for (at, what) in of_one {
        if what != last && at >= since {
            told.push((at, what.clone()));
        }
        last = what;
    }
    told
}

fn events(namespace: &str, name: &str) -> Vec<Line> {
    // While the API server is away there is nothing to be seen.
    let ran = kubectl(&["-n", namespace, "get", "events.v1.events.k8s.io", "-o", "json", "--request-timeout=5s"]);
    let list: Value = serde_json::from_str(&ran.stdout).unwrap_or_default();
    let about =
        |event: &&Value| event["regarding"]["name"] == name && event["regarding"]["kind"] == "VirtualEnvironment";
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let line = |event: &Value| {
        let when = event["series"]["lastObservedTime"].as_str().or(event["eventTime"].as_str())?;
        Some((instant(when)?, format!("{EVENT}{}: {}", text(&event["reason"]), text(&event["note"]))))
    };
    list["items"].as_array().into_iter().flatten().filter(about).filter_map(line).collect()
}

/// Milliseconds since 1970 of a time as Kubernetes writes it (RFC 3339 in UTC, with or without a fraction).
#[must_use]
pub fn instant(time: &str) -> Option<u64> {
    let (date, time) = time.strip_suffix('Z')?.split_once('T')?;
    let numbers =
        |text: &str, mark: char| text.split(mark).map(|part| part.parse::<u64>().ok()).collect::<Option<Vec<_>>>();
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [year, month, day] = numbers(date, '-')?.try_into().ok()?;
    let [hour, minute, second]: [u64; 3] = numbers(time, ':')?.try_into().ok()?;
    // Years from March on, so that the leap day is the last one (the days_from_civil algorithm).
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day.checked_sub(1)?;
    let seconds = ((days.checked_sub(719_468)? * 24 + hour) * 60 + minute) * 60 + second;
    let milliseconds = format!("{fraction:0<3}").get(..3)?.parse::<u64>().ok()?;
    Some(seconds * 1000 + milliseconds)
}

/// `+ 3.4 s`.
#[must_use]
pub fn after(at: u64, since: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "a time to be read")]
    let seconds = at.saturating_sub(since) as f64 / 1000.0;
    format!("+{seconds:5.1} s")
}

/// Phases of a failover, in their order.
pub const PHASES: [&str; 5] = ["detected", "fenced", "restored", "started", "ready"];

/// The instants of a failover, which is `status.lastFailover` of an environment, by phase.
///
/// # Errors
/// One of them has not come, or came before the one before it.
pub fn instants(failover: &Value) -> Result<[u64; PHASES.len()], String> {
    let at = |phase: &&str| failover[*phase].as_str().and_then(instant);
    let all: Option<Vec<u64>> = PHASES.iter().map(at).collect();
    let all = all.and_then(|all| <[u64; PHASES.len()]>::try_from(all).ok());
    let all = all.ok_or_else(|| format!("not all instants of the failover are told: {failover}"))?;
    if all.is_sorted() { Ok(all) } else { Err(format!("instants of the failover are out of order: {failover}")) }
}

/// Seconds from an instant to each phase of the last failovers of some environments: the median of each, as one line.
#[must_use]
pub fn phases(objects: &[Value], since: u64) -> String {
    let of = |phase: &str| {
        let times = objects.iter().filter_map(|object| instant(object["status"]["lastFailover"][phase].as_str()?));
        let mut times: Vec<_> = times.filter(|time| *time >= since).collect();
        times.sort_unstable();
        times.get(times.len() / 2).map(|time| format!("{phase} {}", after(*time, since)))
    };
    PHASES.iter().filter_map(|phase| of(phase)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_kubernetes_are_read() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T12:00:00.5Z", Some(951_825_600_500)),
            ("2026-11-25T19:14:00.123456Z", Some(1_795_634_040_123)),
            ("2026-11-25", None),
            ("1969-12-31T23:59:59Z", None),
        ] {
            assert_eq!(instant(text), expected, "{text}");
        }
    }

    #[test]
    fn only_changes_of_one_are_told() {
        let lines =
            [(1, "a Running True n1"), (2, "b Lost False n1"), (3, "a Running  True n1"), (4, "a Lost False n1")];
        let lines = lines.map(|(at, line)| (at, line.to_owned()));
        assert_eq!(changes(&lines, "a", 2), [(4, "Lost False n1".to_owned())]);
        assert_eq!(changes(&lines, "a", 0).len(), 2);
    }

    #[test]
    fn a_failover_has_all_its_instants_in_their_order() {
        let failover = |ready: Option<&str>| {
            let at = "1970-01-01T00:00:04.5Z";
            serde_json::json!({"detected": "1970-01-01T00:00:03Z", "fenced": at, "restored": at,
                "started": "1970-01-01T00:00:05.123456Z", "ready": ready})
        };
        let told = |ready| instants(&failover(ready));
        assert_eq!(told(Some("1970-01-01T00:00:06Z")), Ok([3000, 4500, 4500, 5123, 6000]));
        assert!(told(None).unwrap_err().contains("not all"));
        assert!(told(Some("1970-01-01T00:00:02Z")).unwrap_err().contains("out of order"));
        assert!(instants(&Value::Null).is_err());
    }

    #[test]
    fn phases_are_medians() {
        let failover = |fenced: &str| serde_json::json!({"status": {"lastFailover": {"detected": "1970-01-01T00:00:04Z", "fenced": fenced}}});
        let objects =
            [failover("1970-01-01T00:00:09Z"), failover("1970-01-01T00:00:08Z"), failover("1970-01-01T00:00:10.5Z")];
        assert_eq!(phases(&objects, 1000), "detected +  3.0 s, fenced +  8.0 s");
    }
}
