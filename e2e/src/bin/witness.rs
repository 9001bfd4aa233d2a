//! An outside witness of what environments say they have written: prints each line that it is sent with the time of its
//! arrival, and answers `ok`. It runs where nodes do not die.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{SystemTime, UNIX_EPOCH};

fn serve(stream: TcpStream) -> std::io::Result<()> {
    let mut answer = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        let line = line?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis());
        // One write for each line: threads do not get into each other's.
        let mut out = std::io::stdout().lock();
        writeln!(out, "{now} {line}")?;
        out.flush()?;
        drop(out);
        answer.write_all(b"ok\n")?;
    }
    Ok(())
}

fn main() -> std::io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).unwrap_or(7777);
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    for stream in listener.incoming() {
        let stream = stream?;
        // A connection that breaks is a node that died.
        std::thread::spawn(move || drop(serve(stream)));
    }
    Ok(())
}
