//! What the shims of a node say in the log of its containerd: how long it took to make the container of an environment,
//! to start an exec, and to stop. Execs are told only where containerd is told to debug.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use crate::install::Installation;

const DAY: Duration = Duration::from_secs(86_400);

/// The log of a node's containerd, from where it ended when this was made.
pub struct Log {
    path: PathBuf,
    from: u64,
}

impl Log {
    /// What is written from now on.
    pub fn from_now(installation: &Installation, node: &str) -> io::Result<Self> {
        // The lab has its logs beside the kubeconfig.
        let logs = installation.kubeconfig().with_file_name("logs");
        let path = logs.join(format!("{node}-containerd.log"));
        let from = path.metadata()?.len();
        Ok(Self { path, from })
    }

    /// What was written since.
    pub fn times(&self) -> io::Result<Times> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.from))?;
        let mut log = Vec::new();
        file.read_to_end(&mut log)?;
        Ok(times(&String::from_utf8_lossy(&log)))
    }
}

/// Durations, in the order in which they were told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// From the call to make the container of an environment until its init waits to be started.
    pub created: Vec<Duration>,
    /// From the call to start an exec until it has become its program.
    pub executed: Vec<Duration>,
    /// From the call to stop an environment, or its own decision to, until its init has ended.
    pub stopped: Vec<Duration>,
}

fn times(log: &str) -> Times {
    let mut found = Times::default();
    let mut stopping = HashMap::new();
    for line in log.lines().filter_map(parse) {
        if let Some((container, took)) = created(line.said) {
            // The first container of a pod, after which its shim is named, holds the namespaces.
            if container != line.shim {
                found.created.push(took);
            }
        } else if let Some(took) = executed(line.said) {
            found.executed.push(took);
        } else if line.said == "the environment is Stopping" {
            stopping.insert(line.shim, line.time);
        } else if line.said == "the environment is PoweredOff"
            && let Some(begun) = stopping.remove(line.shim)
        {
            found.stopped.push(line.time.checked_sub(begun).unwrap_or_else(|| (line.time + DAY).saturating_sub(begun)));
        }
    }
    found
}

/// One line of a shim, or of anybody who writes lines of that form.
struct Line<'a> {
    /// Time of the day.
    time: Duration,
    /// Between its quotes, as it stands.
    said: &'a str,
    shim: &'a str,
}

/// `time="..." level=... msg="..." id=...`, as `runtime-shim/src/logger.rs` writes it.
fn parse(line: &str) -> Option<Line<'_>> {
    let (time, rest) = line.strip_prefix("time=\"")?.split_once('"')?;
    let (_, rest) = rest.split_once(" msg=\"")?;
    let (said, shim) = rest.rsplit_once("\" id=")?;
    Some(Line { time: time_of_day(time)?, said, shim })
}

/// Of `2026-01-02T03:04:05.678Z`.
fn time_of_day(text: &str) -> Option<Duration> {
    let (_, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut parts = time.splitn(3, ':');
    let mut whole = || parts.next()?.parse::<u64>().ok();
    let minutes = whole()? * 60 + whole()?;
    let seconds = Duration::try_from_secs_f64(parts.next()?.parse().ok()?).ok()?;
    Some(Duration::from_secs(minutes * 60) + seconds)
}

/// Container and duration of `created ID as process PID in 1.5ms: [...]`.
fn created(said: &str) -> Option<(&str, Duration)> {
    let (container, rest) = said.strip_prefix("created ")?.split_once(" as process ")?;
    Some((container, between(rest, " in ")?))
}

/// Duration of `exec ID is process PID after 1.5ms: [...]`.
fn executed(said: &str) -> Option<Duration> {
    let (_, rest) = said.strip_prefix("exec ")?.split_once(" is process ")?;
    between(rest, " after ")
}

/// The duration that stands between a word and the next colon.
fn between(text: &str, word: &str) -> Option<Duration> {
    let (_, rest) = text.split_once(word)?;
    let (took, _) = rest.split_once(':')?;
    duration(took)
}

/// A duration as `{:?}` shows it.
fn duration(text: &str) -> Option<Duration> {
    // Seconds last: all units end with their letter.
    let units = [("ms", 1e-3), ("\u{b5}s", 1e-6), ("ns", 1e-9), ("s", 1.0)];
    let (number, unit) = units.into_iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * unit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn line(time: &str, said: &str, shim: &str) -> String {
        format!("time=\"2026-01-02T{time}Z\" level=info msg={said:?} id={shim}\n")
    }

    #[test]
    fn what_shims_say_of_containers_of_environments_and_of_execs_is_found() {
        let log = [
            line("00:00:00", "created NRI interface", "a"),
            line("00:00:01", "created pod as process 7 in 95.5ms: [(\"namespace\", 0)]", "pod"),
            line("00:00:02", "created inner as process 8 in 23ms: [(\"namespace\", 0), (\"mounts\", 1)]", "pod"),
            line("00:00:03", "exec 1f is process 9 after 7ms: [(\"entered\", 3)]", "pod"),
            "E0102 something else\n".to_owned(),
        ];
        let expected = Times { created: vec![23 * MILLISECOND], executed: vec![7 * MILLISECOND], ..Times::default() };
        assert_eq!(times(&log.concat()), expected);
    }

    #[test]
    fn a_stop_lasts_from_its_beginning_to_the_end_of_the_same_environment_also_over_midnight() {
        let log = [
            line("23:59:59.900", "the environment is Stopping", "a"),
            line("00:00:00", "the environment is PoweredOff", "b"),
            line("00:00:00.100", "the environment is PoweredOff", "a"),
            line("00:00:01", "the environment is PoweredOff", "a"),
        ];
        assert_eq!(times(&log.concat()).stopped, [200 * MILLISECOND]);
    }

    #[test]
    fn durations_are_read_in_every_unit() {
        for (shown, nanoseconds) in [("1.5s", 1_500_000_000), ("2ms", 2_000_000), ("3\u{b5}s", 3_000), ("7ns", 7)] {
            let read = duration(shown).unwrap();
            assert_eq!(read.as_nanos(), nanoseconds, "{shown}");
            assert_eq!(format!("{read:?}"), shown);
        }
        assert_eq!(duration("soon"), None);
    }
}
