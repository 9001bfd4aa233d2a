//! Lets this machine reach the API server: a process that listens on the loopback of the root network namespace and
//! connects from inside the control plane's. A socket stays in the namespace that it was made in, so the program
//! listens first and then moves.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use super::{
    error::{Error, io, refused},
    network,
};

/// Address for this machine, in the kubeconfig and in the server's certificate.
pub const LISTEN: &str = "127.0.0.1:16443";
const CONNECT: Duration = Duration::from_secs(5);

/// Refuses when another program has the address.
pub fn check() -> Result<(), Error> {
    match TcpListener::bind(LISTEN) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(refused(format!(
            "{LISTEN} is in use by another program (ss -ltnp shows which); the API server of the lab is to be there. End that program and try again."
        ))),
        Err(error) => Err(io("listen on", LISTEN)(error)),
    }
}

/// Runs until it is killed.
pub fn serve() -> Result<(), Error> {
    let listener = TcpListener::bind(LISTEN).map_err(io("listen on", LISTEN))?;
    network::join(network::CONTROL_PLANE)?;
    for client in listener.incoming() {
        match client {
            Ok(client) => {
                thread::spawn(move || connect(&client));
            }
            // Too many open files, for one; the next may succeed.
            Err(error) => {
                eprintln!("a connection to {LISTEN} could not be taken: {error}");
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
    Ok(())
}

fn connect(client: &TcpStream) {
    let address = SocketAddr::from((network::ADDRESS, 6443));
    match TcpStream::connect_timeout(&address, CONNECT) {
        Ok(server) => thread::scope(|scope| {
            scope.spawn(|| pump(client, &server));
            pump(&server, client);
        }),
        Err(error) => eprintln!("the API server at {address} does not take a connection: {error}"),
    }
}

/// One direction, until its sender closes or either side breaks.
pub(super) fn pump(mut from: &TcpStream, mut to: &TcpStream) {
    let clean = io::copy(&mut from, &mut to).is_ok();
    // A broken connection ends both directions, a closed one its own.
    let _ = to.shutdown(if clean { Shutdown::Write } else { Shutdown::Both });
}
