//! Hands a [`Disk`] to the emulator, over the protocol of network block devices (NBD, `doc/proto.md`: fixed newstyle
//! handshake, simple replies), and cuts it off at an instant that was chosen before.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixListener,
    path::Path,
    sync::mpsc::{self, Receiver},
    thread::{self, JoinHandle},
};

use super::disk::Disk;

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
/// `NBD_FLAG_FIXED_NEWSTYLE`, `NBD_FLAG_NO_ZEROES`.
const HANDSHAKE: u16 = 3;
/// `NBD_FLAG_HAS_FLAGS`, `NBD_FLAG_SEND_FLUSH`.
const TRANSMISSION: u16 = 5;
/// Options that a client asks for.
const ABORT: u32 = 2;
const GO: u32 = 7;
/// What an option is answered with: acknowledged, information, not supported.
const ACK: u32 = 1;
const INFO: u32 = 3;
const UNSUPPORTED: u32 = (1 << 31) + 1;
/// Commands.
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
/// `NBD_EINVAL`.
const INVALID: u32 = 22;
/// Longest request: that of qemu (`NBD_MAX_BUFFER_SIZE`).
const LONGEST: usize = 32 << 20;

/// A disk that one emulator may use.
#[derive(Debug)]
pub struct Served {
    thread: JoinHandle<Disk>,
    struck: Receiver<()>,
}

impl Served {
    /// Waits at `socket` for the emulator. At the `strike`th write or flush, before that is carried out, the disk stops to
    /// answer and says so; never: `u64::MAX`.
    pub fn start(disk: Disk, socket: &Path, strike: u64) -> io::Result<Self> {
        let listener = UnixListener::bind(socket)?;
        let (sender, struck) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut session = Session { disk, left: strike };
            let outcome = listener.accept().and_then(|(mut stream, _)| {
                drop(listener);
                let end = session.serve(&mut stream)?;
                if end == End::Struck {
                    // Nobody waits for it who has given up.
                    let _ = sender.send(());
                    // The emulator is killed meanwhile; until then its requests just hang.
                    io::copy(&mut stream, &mut io::sink())?;
                }
                Ok(())
            });
            // A connection that breaks is the end of the emulator.
            drop(outcome);
            session.disk
        });
        Ok(Self { thread, struck })
    }

    /// Gets a message at the strike, and none at all when the emulator ends before.
    pub fn struck(&self) -> &Receiver<()> {
        &self.struck
    }

    /// The disk, once the emulator has ended.
    pub fn take(self) -> Option<Disk> {
        self.thread.join().ok()
    }
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Struck,
    Left,
}

struct Session {
    disk: Disk,
    left: u64,
}

impl Session {
    fn serve(&mut self, stream: &mut (impl Read + Write)) -> io::Result<End> {
        if !self.negotiate(stream)? {
            return Ok(End::Left);
        }
        let mut buffer = Vec::new();
        loop {
            let (magic, _flags, command) = (u32_of(stream)?, u16_of(stream)?, u16_of(stream)?);
            let (cookie, offset, length) = (u64_of(stream)?, u64_of(stream)?, u32_of(stream)? as usize);
            if magic != REQUEST || length > LONGEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            buffer.resize(length, 0);
            if command == WRITE {
                stream.read_exact(&mut buffer)?;
            }
            if matches!(command, WRITE | FLUSH) {
                self.left = self.left.saturating_sub(1);
                if self.left == 0 {
                    return Ok(End::Struck);
                }
            }
            let done = match command {
                READ => self.disk.read(offset, &mut buffer),
                WRITE => self.disk.write(offset, &buffer),
                FLUSH => {
                    self.disk.flush();
                    Ok(())
                }
                DISCONNECT => return Ok(End::Left),
                _ => Err(io::ErrorKind::Unsupported.into()),
            };
            let mut reply = SIMPLE_REPLY.to_be_bytes().to_vec();
            reply.extend(if done.is_ok() { 0 } else { INVALID }.to_be_bytes());
            reply.extend(cookie.to_be_bytes());
            if command == READ && done.is_ok() {
                reply.extend(&buffer);
            }
            stream.write_all(&reply)?;
        }
    }

    /// Whether the client wants the disk.
    fn negotiate(&self, stream: &mut (impl Read + Write)) -> io::Result<bool> {
        let mut hello = [MAGIC, OPTION_MAGIC].map(u64::to_be_bytes).concat();
        hello.extend(HANDSHAKE.to_be_bytes());
        stream.write_all(&hello)?;
        u32_of(stream)?;
        loop {
            let (magic, option, length) = (u64_of(stream)?, u32_of(stream)?, u32_of(stream)? as usize);
            if magic != OPTION_MAGIC || length > LONGEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            stream.read_exact(&mut vec![0; length])?;
            match option {
                GO => {
                    // Of `NBD_INFO_EXPORT`, which is 0.
                    let mut export = vec![0, 0];
                    export.extend(self.disk.size().to_be_bytes());
                    export.extend(TRANSMISSION.to_be_bytes());
                    answer(stream, option, INFO, &export)?;
                    answer(stream, option, ACK, &[])?;
                    return Ok(true);
                }
                ABORT => {
                    answer(stream, option, ACK, &[])?;
                    return Ok(false);
                }
                _ => answer(stream, option, UNSUPPORTED, &[])?,
            }
        }
    }
}

fn answer(stream: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut reply = REPLY_MAGIC.to_be_bytes().to_vec();
    for number in [option, kind, data.len() as u32] {
        reply.extend(number.to_be_bytes());
    }
    reply.extend(data);
    stream.write_all(&reply)
}

fn u16_of(stream: &mut impl Read) -> io::Result<u16> {
    bytes(stream).map(u16::from_be_bytes)
}

fn u32_of(stream: &mut impl Read) -> io::Result<u32> {
    bytes(stream).map(u32::from_be_bytes)
}

fn u64_of(stream: &mut impl Read) -> io::Result<u64> {
    bytes(stream).map(u64::from_be_bytes)
}

fn bytes<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A client that knows what the emulator knows.
    struct Client(UnixStream);

    impl Client {
        fn connect(socket: &Path) -> Self {
            let mut stream = UnixStream::connect(socket).unwrap();
            assert_eq!(u64_of(&mut stream).unwrap(), MAGIC);
            assert_eq!((u64_of(&mut stream).unwrap(), u16_of(&mut stream).unwrap()), (OPTION_MAGIC, HANDSHAKE));
            stream.write_all(&3_u32.to_be_bytes()).unwrap();
            // Structured replies, which are not known here, then the disk with that name.
            for (option, data, kinds) in [(8_u32, &[][..], &[UNSUPPORTED][..]), (GO, &[0; 6], &[INFO, ACK])] {
                stream.write_all(&OPTION_MAGIC.to_be_bytes()).unwrap();
                stream.write_all(&[option, data.len() as u32].map(u32::to_be_bytes).concat()).unwrap();
                stream.write_all(data).unwrap();
                for kind in kinds {
                    assert_eq!(u64_of(&mut stream).unwrap(), REPLY_MAGIC);
                    assert_eq!((u32_of(&mut stream).unwrap(), u32_of(&mut stream).unwrap()), (option, *kind));
                    let mut data = vec![0; u32_of(&mut stream).unwrap() as usize];
                    stream.read_exact(&mut data).unwrap();
                    if *kind == INFO {
                        assert_eq!(data[2..10], 8192_u64.to_be_bytes());
                    }
                }
            }
            Self(stream)
        }

        fn ask(&mut self, command: u16, offset: u64, length: u32, data: &[u8]) {
            let mut request = REQUEST.to_be_bytes().to_vec();
            request.extend([0, command].map(u16::to_be_bytes).concat());
            request.extend([9, offset].map(u64::to_be_bytes).concat());
            request.extend(length.to_be_bytes());
            request.extend(data);
            self.0.write_all(&request).unwrap();
        }

        fn error(&mut self) -> u32 {
            assert_eq!(u32_of(&mut self.0).unwrap(), SIMPLE_REPLY);
            let error = u32_of(&mut self.0).unwrap();
            assert_eq!(u64_of(&mut self.0).unwrap(), 9);
            error
        }
    }

    #[test]
    fn the_disk_is_read_written_and_flushed_until_it_is_struck() {
        let directory = tempfile::tempdir().unwrap();
        let image = tempfile::tempfile().unwrap();
        image.set_len(8192).unwrap();
        let socket = directory.path().join("socket");
        let served = Served::start(Disk::new(image).unwrap(), &socket, 4).unwrap();
        let mut client = Client::connect(&socket);
        client.ask(WRITE, 4090, 10, &[5; 10]);
        assert_eq!(client.error(), 0);
        client.ask(FLUSH, 0, 0, &[]);
        assert_eq!(client.error(), 0);
        client.ask(READ, 4089, 3, &[]);
        assert_eq!((client.error(), bytes(&mut client.0).unwrap()), (0, [0, 5, 5]));
        client.ask(READ, 8190, 3, &[]);
        assert_eq!(client.error(), INVALID);
        client.ask(WRITE, 0, 1, &[6]);
        assert_eq!(client.error(), 0);
        client.ask(FLUSH, 0, 0, &[]);
        served.struck().recv().unwrap();
        drop(client);
        let mut disk = served.take().unwrap();
        assert_eq!(disk.cut(|| false), (1, 1), "the flush that was struck was never carried out");
        let mut byte = [0; 2];
        disk.read(4090, &mut byte).unwrap();
        assert_eq!(byte, [5, 5]);
    }

    #[test]
    fn an_emulator_that_ends_strikes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let image = tempfile::tempfile().unwrap();
        image.set_len(8192).unwrap();
        let socket = directory.path().join("socket");
        let served = Served::start(Disk::new(image).unwrap(), &socket, u64::MAX).unwrap();
        drop(Client::connect(&socket));
        assert!(served.struck().recv().is_err());
        assert!(served.take().is_some());
    }
}
