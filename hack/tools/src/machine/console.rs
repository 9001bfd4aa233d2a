//! The serial line of the machine: bytes from the emulator become lines without the marks that are meant for terminals.

use std::{
    io::{BufRead, BufReader, Read},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::Duration,
};

/// What happened on the line.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A whole line, or what there was of one at the end.
    Line(String),
    /// Nothing, for as long as the caller would wait.
    Silence,
    /// The emulator ended.
    End,
}

/// The line.
#[derive(Debug)]
pub struct Console(Receiver<String>);

impl Console {
    /// Reads `source` to its end, in a thread of its own so that the machine never waits for us.
    pub fn new(source: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut bytes = Vec::new();
            while source.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
                // The receiver is gone when nobody wants to know any more.
                if sender.send(clean(&String::from_utf8_lossy(&bytes))).is_err() {
                    break;
                }
                bytes.clear();
            }
        });
        Self(receiver)
    }

    /// The next event; waits for it no longer than `patience`.
    pub fn next(&mut self, patience: Duration) -> Event {
        match self.0.recv_timeout(patience) {
            Ok(line) => Event::Line(line),
            Err(RecvTimeoutError::Timeout) => Event::Silence,
            Err(RecvTimeoutError::Disconnected) => Event::End,
        }
    }
}

/// Without control characters and escape sequences (ECMA-48: CSI up to its final byte, OSC up to its terminator).
fn clean(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line.chars();
    while let Some(character) = rest.next() {
        if character != '\u{1b}' {
            text.extend((!character.is_control()).then_some(character));
            continue;
        }
        match rest.next() {
            Some('[') => drop(rest.find(|c| ('@'..='~').contains(c))),
            Some(']') => drop(rest.find(|c| matches!(c, '\u{7}' | '\\'))),
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_for_terminals_are_taken_out() {
        for (line, text) in [
            ("ok 1 - x\r\n", "ok 1 - x"),
            ("\u{1b}[0;1;31mFailed\u{1b}[0m\r\n", "Failed"),
            ("\u{1b}[!p\u{1b}]104\u{7}\u{1b}[?7hok", "ok"),
            ("\u{1b}]0;title\u{1b}\\x", "x"),
            ("cut \u{1b}[0", "cut "),
        ] {
            assert_eq!(clean(line), text, "{line:?}");
        }
    }

    #[test]
    fn lines_come_in_order_and_then_the_end() {
        let mut console = Console::new(&b"1..2\r\nok 1 - a\r\nhalf"[..]);
        let long = Duration::from_secs(10);
        for line in ["1..2", "ok 1 - a", "half"] {
            assert_eq!(console.next(long), Event::Line(line.into()));
        }
        assert_eq!(console.next(long), Event::End);
    }

    #[test]
    fn silence_is_told_from_the_end() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut console = Console::new(reader);
        assert_eq!(console.next(Duration::from_millis(50)), Event::Silence);
        drop(writer);
        assert_eq!(console.next(Duration::from_secs(10)), Event::End);
    }
}
