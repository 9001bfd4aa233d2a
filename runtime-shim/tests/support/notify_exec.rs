//! A stand-in for the part of an init that talks: sends its first argument to `$NOTIFY_SOCKET` (sd_notify(3)) and then
//! becomes the program of the others, so that a shell script can be an init that says `READY=1`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "it runs in tests only")]

use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let message = arguments.next().expect("a message");
    let program = arguments.next().expect("a program");
    let socket = std::env::var_os("NOTIFY_SOCKET").expect("NOTIFY_SOCKET");
    UnixDatagram::unbound().unwrap().send_to(message.as_encoded_bytes(), socket).unwrap();
    let error = std::process::Command::new(program).args(arguments).exec();
    eprintln!("{error}");
}
