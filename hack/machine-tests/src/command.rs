//! Runs a program to its end, or to the end of the caller's patience.

use std::{
    io::{self, Read},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

/// How long output that is already on its way may take once the program has ended.
const DRAIN: Duration = Duration::from_secs(5);

/// A program that ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit status; none when a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Why a program gave no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot run `{0}`: {1}")]
    Run(String, io::Error),
    #[error("`{command}` was still running after {seconds} s; it had said: {said}")]
    Late { command: String, seconds: u64, said: String },
    #[error("`{command}` ended with status {code:?}: {said}")]
    Failed { command: String, code: Option<i32>, said: String },
}

/// Runs it; whatever its exit status is, it has ended.
pub fn run(command: &mut Command, limit: Duration) -> Result<Finished, Error> {
    let shown = shown(command);
    let cannot = |error| Error::Run(shown.clone(), error);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(cannot)?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let in_time = ended(&child, limit).map_err(cannot)?;
    if !in_time {
        child.kill().map_err(cannot)?;
    }
    let status = child.wait().map_err(cannot)?;
    let [stdout, stderr] = [stdout, stderr].map(|output| output.recv_timeout(DRAIN).unwrap_or_default());
    if in_time {
        return Ok(Finished { code: status.code(), stdout, stderr });
    }
    Err(Error::Late { command: shown, seconds: limit.as_secs(), said: format!("{stdout}{stderr}") })
}

/// Runs it and wants success; gives what it printed.
pub fn output(command: &mut Command, limit: Duration) -> Result<String, Error> {
    let finished = run(command, limit)?;
    if finished.code == Some(0) {
        return Ok(finished.stdout);
    }
    let said = format!("{}{}", finished.stdout, finished.stderr).trim().to_owned();
    Err(Error::Failed { command: shown(command), code: finished.code, said })
}

/// A command of words.
pub fn words(words: &[&str]) -> Command {
    let mut command = Command::new(words.first().copied().unwrap_or_default());
    command.args(words.iter().skip(1));
    command
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is still worth telling.
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// Waits until the child has ended; `false` when the limit came first.
fn ended(child: &Child, limit: Duration) -> io::Result<bool> {
    let descriptor = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_late_is_ended_and_what_it_said_is_told() {
        let begun = Instant::now();
        let error =
            run(&mut words(&["sh", "-c", "echo started; exec sleep 60"]), Duration::from_millis(300)).unwrap_err();
        assert!(error.to_string().contains("had said: started"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn failure_is_told_with_status_and_output() {
        let error = output(&mut words(&["sh", "-c", "echo reason >&2; exit 3"]), DRAIN).unwrap_err().to_string();
        assert!(error.contains("Some(3)") && error.ends_with("reason"), "{error}");
        assert_eq!(output(&mut words(&["echo", "x"]), DRAIN).unwrap(), "x\n");
    }
}
