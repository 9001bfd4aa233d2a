//! Lets environments reach the archives of Debian, and nothing else outside of the lab: a process that listens where the
//! cluster's DNS says the archives are, and connects from this machine's own network. Plain HTTP, as apt(8) uses it:
//! what it fetches is signed.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream, ToSocketAddrs},
    thread,
    time::Duration,
};

use super::{
    error::{Error, io},
    forward::pump,
    network,
};

/// Names of archives. The file `coredns.yaml` has the same ones.
const ARCHIVES: &[&str] = &["deb.debian.org", "security.debian.org"];
const PORT: u16 = 80;
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest head of a request.
const LONGEST_HEAD: usize = 16 << 10;

/// Runs until it is killed.
pub fn serve() -> Result<(), Error> {
    // A socket stays in the namespace that it was made in; the threads that connect are in this machine's.
    let listener = network::inside(network::CONTROL_PLANE, || TcpListener::bind((network::ADDRESS, PORT)))?
        .map_err(io("listen on port 80 of", network::ADDRESS))?;
    for client in listener.incoming() {
        match client {
            Ok(client) => {
                thread::spawn(move || {
                    if let Err(error) = answer(&client) {
                        eprintln!("a request for an archive was not answered: {error}");
                    }
                });
            }
            Err(error) => {
                eprintln!("a connection for an archive could not be taken: {error}");
                thread::sleep(Duration::from_millis(100));
            }
        }
    }
    Ok(())
}

/// Passes a connection on to the archive that its first request is for. Later requests of the same connection go there too,
/// whatever they say.
fn answer(mut client: &TcpStream) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    let head = read_head(client)?;
    let Some(archive) = archive_of(&head) else {
        let text = format!("The lab has a way out to {} alone.\n", ARCHIVES.join(" and "));
        let length = text.len();
        let lines = "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nConnection: close\r\n";
        return client.write_all(format!("{lines}Content-Length: {length}\r\n\r\n{text}").as_bytes());
    };
    let mut server = connect(archive)?;
    client.set_read_timeout(None)?;
    server.write_all(&head)?;
    thread::scope(|scope| {
        scope.spawn(|| pump(client, &server));
        pump(&server, client);
    });
    Ok(())
}

fn connect(archive: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{archive} has no address"));
    for address in (archive, PORT).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(server) => return Ok(server),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What a client sent, at least up to the end of its first head.
fn read_head(mut client: impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut piece = [0; 4096];
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let length = client.read(&mut piece)?;
        if length == 0 || head.len() + length > LONGEST_HEAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its head has no end"));
        }
        head.extend_from_slice(&piece[..length]);
    }
    Ok(head)
}

/// The archive that the first request in `head` is for, if one of them.
fn archive_of(head: &[u8]) -> Option<&'static str> {
    let text = String::from_utf8_lossy(head);
    let hosts = text.split("\r\n").skip(1).take_while(|line| !line.is_empty()).filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("host").then(|| value.trim())
    });
    let [host] = hosts.collect::<Vec<_>>()[..] else { return None };
    let host = host.strip_suffix(":80").unwrap_or(host);
    ARCHIVES.iter().copied().find(|archive| archive.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_archives_are_reached() {
        for (head, archive) in [
            ("GET /debian/x HTTP/1.1\r\nHost: deb.debian.org\r\n\r\n", Some("deb.debian.org")),
            ("GET / HTTP/1.1\r\nAccept: */*\r\nhost:security.debian.org:80\r\n\r\n", Some("security.debian.org")),
            ("GET / HTTP/1.1\r\nHost: example.org\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost: deb.debian.org:22\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost: deb.debian.org\r\nHost: example.org\r\n\r\n", None),
            ("GET / HTTP/1.1\r\n\r\nHost: deb.debian.org\r\n\r\n", None),
            ("Host: deb.debian.org\r\n\r\n", None),
        ] {
            assert_eq!(archive_of(head.as_bytes()), archive, "{head:?}");
        }
    }

    #[test]
    fn a_head_without_an_end_is_given_up() {
        assert_eq!(read_head(&b"GET /\r\n\r\nrest"[..]).unwrap(), b"GET /\r\n\r\nrest");
        assert!(read_head(&b"GET /\r\n"[..]).is_err());
        assert!(read_head(io::repeat(b'x')).is_err());
    }

    #[test]
    fn the_clusters_dns_sends_for_the_same_archives() {
        let line = format!("{} {}\n", network::ADDRESS, ARCHIVES.join(" "));
        assert!(include_str!("coredns.yaml").contains(&line), "{line}");
    }
}
