//! Runs other programs and turns what goes wrong into one sentence with the end of what the program said.

use std::{
    ffi::OsStr,
    io::{self, Write},
    process::{Command, Output, Stdio},
};

/// Why a program did not do what it was called for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot start `{0}`")]
    Start(String, #[source] io::Error),
    #[error("`{command}` ended with {status}: {said}")]
    Failed { command: String, status: std::process::ExitStatus, said: String },
}

/// A command of words, to be shaped further by the caller.
pub fn command<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// A command of a program that gets the signal when the thread that starts it ends, however it does: nobody would look at it
/// any more.
pub fn mortal(signal: &str, program: &str) -> Command {
    command("setpriv", ["--pdeathsig", signal, "--", program])
}

/// Runs it to its end and returns its standard output.
pub fn run(command: &mut Command) -> Result<String, Error> {
    run_with(command, Stdio::null())
}

/// Like [`run`] with a text on its standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String, Error> {
    let output = fed(command, input).map_err(|source| Error::Start(shown(command), source))?;
    checked(command, &output)
}

/// Like [`run`] with a file or nothing as its standard input.
pub fn run_with(command: &mut Command, input: Stdio) -> Result<String, Error> {
    let output = command.stdin(input).output().map_err(|source| Error::Start(shown(command), source))?;
    checked(command, &output)
}

/// `ip -n viv-cp link ...` as one line of words.
pub fn words(line: &str) -> Result<String, Error> {
    let mut words = line.split_whitespace();
    run(&mut command(words.next().unwrap_or_default(), words))
}

/// A program that ends without reading its input says why on its standard error.
fn fed(command: &mut Command, input: &str) -> io::Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut pipe) = child.stdin.take() {
        let _ = pipe.write_all(input.as_bytes());
    }
    child.wait_with_output()
}

fn checked(command: &Command, output: &Output) -> Result<String, Error> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    let said = end_of(&String::from_utf8_lossy(said), 15);
    Err(Error::Failed { command: shown(command), status: output.status, said })
}

/// The last lines of a text.
pub fn end_of(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.trim().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_the_program_said() {
        let error = run(&mut command("sh", ["-c", "echo out; echo reason >&2; exit 3"])).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("exit status: 3") && message.ends_with("reason"), "{message}");
    }

    #[test]
    fn input_reaches_the_program() {
        assert_eq!(run_with_input(&mut command("cat", [""; 0]), "x\n").unwrap(), "x\n");
    }

    #[test]
    fn the_end_of_a_text_is_its_last_lines() {
        assert_eq!(end_of("a\nb\nc\n", 2), "b\nc");
        assert_eq!(end_of("a", 2), "a");
    }
}
