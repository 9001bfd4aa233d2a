//! What an environment that stands still sends. Words that it said before lie in the kernel, which says them again until
//! they are answered, whether the process behind them is frozen or dead: long after another incarnation speaks, if the node
//! was cut off meanwhile. So the interfaces stop sending with the environment: each gets the queue that drops everything
//! (`sch_blackhole`). A root queue that the owner gave an interface is gone after that.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{Attempt, Result};

/// The interfaces of a pod that the cluster gave it.
#[derive(Clone, Debug)]
pub struct Egress {
    namespace: Arc<File>,
    /// By index: what a guest does with names changes nothing.
    interfaces: Arc<[u32]>,
}

impl Egress {
    /// Those of the network namespace of a process, before a guest can have made others.
    ///
    /// # Errors
    /// It is gone, or the kernel does not list them.
    pub fn of(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        let namespace = Arc::new(File::open(&path).attempt(|| format!("open {path}"))?);
        let interfaces = within(&namespace, |socket| {
            let dump = RouteNetlinkMessage::GetLink(LinkMessage::default());
            let answers = ask(socket, dump, NLM_F_DUMP)?;
            let outward = answers.into_iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) if !link.header.flags.contains(LinkFlags::Loopback) => {
                    Some(link.header.index)
                }
                _ => None,
            });
            Ok(outward.collect::<Vec<_>>())
        });
        let interfaces = interfaces.attempt(|| "list the interfaces of the pod")?;
        Ok(Self { namespace, interfaces: interfaces.into() })
    }

    /// Stops or resumes sending.
    ///
    /// # Errors
    /// The kernel refuses it for one of them; the others are done.
    pub fn stop(&self, stopped: bool) -> Result<()> {
        let interfaces = self.interfaces.clone();
        let set = within(&self.namespace, move |socket| {
            // All of them, also when one fails.
            let each: Vec<_> = interfaces.iter().map(|&index| set(socket, index, stopped)).collect();
            each.into_iter().collect()
        });
        set.attempt(|| if stopped { "stop what the pod sends" } else { "let the pod send again" })
    }
}

fn set(socket: &Socket, index: u32, stopped: bool) -> io::Result<()> {
    let mut queue = TcMessage::with_index(index.cast_signed());
    queue.header.parent = TcHandle::ROOT;
    let done = if stopped {
        queue.attributes.push(TcAttribute::Kind("blackhole".into()));
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        ask(socket, RouteNetlinkMessage::NewQueueDiscipline(queue), flags)
    } else {
        ask(socket, RouteNetlinkMessage::DelQueueDiscipline(queue), NLM_F_ACK)
    };
    match done.map(drop) {
        // It went, or it has the queue that it had from the beginning.
        Err(error) if [Errno::NODEV, Errno::NOENT].map(|e| Some(e.raw_os_error())).contains(&error.raw_os_error()) => {
            Ok(())
        }
        other => other,
    }
}

/// Does something with a netlink socket of a network namespace, in a thread of its own, which is in that namespace.
fn within<T: Send>(namespace: &File, work: impl FnOnce(&Socket) -> io::Result<T> + Send) -> io::Result<T> {
    let enter = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        work(&socket)
    };
    std::thread::scope(|scope| scope.spawn(enter).join())
        .unwrap_or_else(|_| Err(io::Error::other("the thread that did it ended")))
}

/// Sends a request and gives all that is answered, `rtnetlink(7)`.
fn ask(socket: &Socket, request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = usize::try_from(message.header.length).map_err(io::Error::other)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    struct Pod(Child);

    impl Drop for Pod {
        fn drop(&mut self) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }

    impl Pod {
        fn ip(&self, arguments: &str) -> String {
            let namespace = format!("--net=/proc/{}/ns/net", self.0.id());
            let mut command = Command::new("nsenter");
            let ran = command.arg(namespace).arg("ip").args(arguments.split(' ')).output().unwrap();
            assert!(ran.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&ran.stderr));
            String::from_utf8(ran.stdout).unwrap()
        }

        /// Frames that arrived at the other end.
        fn arrived(&self) -> u64 {
            let shown: serde_json::Value =
                serde_json::from_str(&self.ip("-json -stats link show dev outside")).unwrap();
            shown[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
        }

        /// Something that the kernel sends at once: who has this address?
        fn asks(&self) -> bool {
            let before = self.arrived();
            self.ip("neighbour flush dev eth0");
            let namespace = format!("--net=/proc/{}/ns/net", self.0.id());
            let mut command = Command::new("nsenter");
            let script = "echo x > /dev/udp/192.0.2.2/9";
            command.args([&namespace, "bash", "-c", script]).output().unwrap();
            self.arrived() > before
        }
    }

    #[test]
    fn nothing_leaves_a_pod_that_was_stopped_until_it_goes_on() {
        let pod = Pod(Command::new("unshare").args(["--net", "sleep", "infinity"]).spawn().unwrap());
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let path = format!("/proc/{}/ns/net", pod.0.id());
        while std::fs::read_link(&path).unwrap() == own {
            std::thread::yield_now();
        }
        pod.ip("link add eth0 type veth peer name outside");
        pod.ip("link set outside up");
        pod.ip("link set eth0 up");
        pod.ip("address add 192.0.2.1/24 dev eth0");
        let egress = Egress::of(pod.0.id().cast_signed()).unwrap();
        assert_eq!(egress.interfaces.len(), 2, "without the loopback");
        assert!(pod.asks());
        for _ in 0..2 {
            egress.stop(true).unwrap();
            assert!(!pod.asks());
        }
        for _ in 0..2 {
            egress.stop(false).unwrap();
            assert!(pod.asks());
        }
        // One that is gone is no reason to fail.
        pod.ip("link delete eth0");
        egress.stop(true).unwrap();
    }
}
