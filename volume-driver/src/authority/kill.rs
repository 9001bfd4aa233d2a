//! The end of everything that runs under a session (ownership protocol, rule 4): no environment may be left when the node
//! begins a new one. Also of one incarnation that has lost its volume (rule 13).
//!
//! The shims kill their environments themselves when the leases of their session are gone. That is not relied upon: what
//! a guest's report names as its init is killed too, and the kernel ends a process namespace with its init.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags};
use tokio::io::Interest;
use vivarium_api::node::guest::{GuestReport, GuestState, Process};

use super::published;
use crate::files;
use crate::ids::VolumeId;
use crate::kube::guests;
use crate::volume::record::Records;

/// Between two looks: a guest that was about to boot again has a new init then.
const AGAIN: Duration = Duration::from_millis(200);
/// How long one process may take to die before it is named in the log.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is not certain to be over.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// Something of the node failed.
    #[error("cannot {attempt}: {source}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Ends the session: no environment that was bound by it is left, and none can start under it any more. Returns how many
/// had to be killed. It takes as long as it takes; until it is done the node must not begin a session.
///
/// # Errors
/// Leases, records or reports cannot be read or removed; nothing is certain then, and it has to be called again.
pub async fn end_session(run_dir: &Path, records: &Records) -> Result<usize, KillError> {
    let io = |attempt| move |source| KillError::Io { attempt, source };
    published::end_all(run_dir).map_err(io("remove the leases"))?;
    records
        .revoke_leased()
        .map_err(|error| KillError::Io { attempt: "revoke the stage records", source: io::Error::other(error) })?;
    kill_all(run_dir, |report| report.lease.is_some()).await
}

/// Ends the incarnation of one volume that has lost it to a later one (rule 13): what runs on it is killed, and nothing can
/// start on it any more with what was staged. Returns how many had to be killed.
///
/// # Errors
/// As [`end_session`].
pub async fn end_incarnation(
    run_dir: &Path,
    records: &Records,
    volume: &VolumeId,
    epoch: u64,
) -> Result<usize, KillError> {
    records
        .revoke(volume, epoch)
        .map_err(|error| KillError::Io { attempt: "revoke a stage record", source: io::Error::other(error) })?;
    kill_all(run_dir, |report| report.volume_id == volume.as_str() && report.epoch <= epoch).await
}

/// Ends what is bound by a lease and has no shim any more, so that nobody holds it to its lease (rule 2). containerd does
/// that too, if it lives. Returns how many had to be killed.
///
/// # Errors
/// As [`end_session`].
pub async fn end_orphans(run_dir: &Path) -> Result<usize, KillError> {
    kill_all(run_dir, |report| report.lease.is_some() && alive(report.shim).is_none()).await
}

/// Kills the guests that are meant, until none is left that could boot again.
async fn kill_all(run_dir: &Path, meant: impl Fn(&GuestReport) -> bool) -> Result<usize, KillError> {
    let io = |attempt| move |source| KillError::Io { attempt, source };
    let directory = run_dir.join("guests");
    files::private_directory(&directory).map_err(io("make the directory of reports"))?;
    let mut killed = 0;
    loop {
        let mut left = false;
        for report in guests::read_reports(&directory).map_err(io("read the reports of guests"))?.into_values() {
            if !meant(&report) {
                continue;
            }
            match alive(report.init) {
                Some(init) => {
                    tracing::warn!(
                        pod = report.pod.name,
                        pid = report.init.pid,
                        "an environment is killed: its authority is over"
                    );
                    kill(&init, &report).await;
                    killed += 1;
                    left = true;
                }
                None => left |= may_come_back(&report),
            }
        }
        if !left {
            return Ok(killed);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Whether a guest without an init may get one: its shim lives and has not heard that the session is over.
fn may_come_back(report: &GuestReport) -> bool {
    let is_over = matches!(report.state, GuestState::PoweredOff | GuestState::Failed);
    !is_over && alive(report.shim).is_some()
}

/// A process, if it is the one that was meant and has not ended.
#[must_use]
pub fn alive(process: Process) -> Option<OwnedFd> {
    let pid = Pid::from_raw(process.pid)?;
    let descriptor = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).ok()?;
    // Read after the descriptor was opened: it is of this very process, or of one that has the same start.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let is_dead = matches!(fields.next()?, "Z" | "X");
    let started: u64 = fields.nth(18)?.parse().ok()?;
    (started == process.started && !is_dead).then_some(descriptor)
}

/// Kills a process and waits until it is dead: the kernel lets go of an init only when its namespace is empty.
async fn kill(process: &OwnedFd, report: &GuestReport) {
    // One that has ended already is what was wanted.
    rustix::process::pidfd_send_signal(process, rustix::process::Signal::KILL).ok();
    let Ok(watched) = process.try_clone().and_then(|process| vivarium_sys::watch::watch(process, Interest::READABLE))
    else {
        return;
    };
    while tokio::time::timeout(PATIENCE, watched.readable()).await.is_err() {
        tracing::error!(
            pod = report.pod.name,
            pid = report.init.pid,
            "an environment does not die; it hangs in the kernel"
        );
        rustix::process::pidfd_send_signal(process.as_fd(), rustix::process::Signal::KILL).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use jiff::Timestamp;
    use vivarium_api::node::guest::{PodReference, VERSION};
    use vivarium_api::node::stage::{self, StageRecord};

    use super::*;
    use crate::volume::record::Publication;

    fn sleeper() -> Child {
        Command::new("sleep").arg("1000").spawn().unwrap()
    }

    fn process(pid: u32) -> Process {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let started = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
        Process { pid: pid as i32, started }
    }

    fn report(init: Process, shim: Process, lease: Option<&str>, state: GuestState) -> GuestReport {
        GuestReport {
            version: VERSION,
            pod: PodReference { namespace: "team-a".into(), name: "shop-1".into(), uid: "u".into() },
            volume_id: "v".into(),
            epoch: 1,
            lease: lease.map(Into::into),
            init,
            shim,
            state,
            since: Timestamp::UNIX_EPOCH,
            boots: 1,
            leaving: false,
            message: String::new(),
        }
    }

    #[test]
    fn a_process_is_told_from_one_that_has_its_number_by_now() {
        let me = process(std::process::id());
        assert!(alive(me).is_some());
        assert!(alive(Process { started: me.started + 1, ..me }).is_none());
        let mut child = sleeper();
        let ended = process(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(alive(ended).is_none());
    }

    #[tokio::test]
    async fn a_session_ends_with_what_was_bound_by_it_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        assert_eq!(end_session(dir.path(), &records).await.unwrap(), 0, "a node that is new");
        let guests = dir.path().join("guests");
        let leases = published::Leases::open(dir.path(), "s", "b").unwrap();
        leases.publish("store", 1).unwrap();
        let (mut bound, mut free) = (sleeper(), sleeper());
        let me = process(std::process::id());
        let lease = vivarium_api::node::lease::file_name("s", "store");
        let write = |name: &str, report: &GuestReport| files::write_json(&guests.join(name), report).unwrap();
        write("a.json", &report(process(bound.id()), me, Some(&lease), GuestState::Running));
        write("b.json", &report(process(free.id()), me, None, GuestState::Running));
        for (id, lease) in [
            ("0b5f1e7c-0000-4000-8000-000000000001", Some(lease.clone())),
            ("0b5f1e7c-0000-4000-8000-000000000002", None),
        ] {
            let stage = StageRecord {
                version: stage::VERSION,
                volume_id: id.into(),
                subvolume_uuid: id.into(),
                pod_uid: "u".into(),
                epoch: 1,
                session: "s".into(),
                lease,
                layers: Vec::new(),
                binds: Vec::new(),
            };
            records.put(&VolumeId::parse(id).unwrap(), &Publication::new("/x".into(), stage, None)).unwrap();
        }

        let ending = end_session(dir.path(), &records);
        // Its shim says so once it has noticed.
        let dead = async {
            tokio::task::spawn_blocking(move || bound.wait().unwrap()).await.unwrap();
            write("a.json", &report(Process { pid: i32::MAX, started: 0 }, me, Some(&lease), GuestState::Failed));
        };
        let (killed, ()) = tokio::join!(ending, dead);
        assert_eq!(killed.unwrap(), 1);
        assert!(free.try_wait().unwrap().is_none(), "an environment that is bound by no lease was killed");
        free.kill().unwrap();
        free.wait().unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("leases")).unwrap().count(), 0);
        let staged: Vec<_> =
            std::fs::read_dir(dir.path().join("volumes")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(staged, ["0b5f1e7c-0000-4000-8000-000000000002.json"]);
        assert_eq!(records.list().unwrap().len(), 2, "what is mounted stays known");
    }

    #[tokio::test]
    async fn an_incarnation_that_lost_its_volume_ends_and_no_other_does() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let guests = dir.path().join("guests");
        files::private_directory(&guests).unwrap();
        let gone = Process { pid: i32::MAX, started: 0 };
        let (mut lost, mut later, mut other) = (sleeper(), sleeper(), sleeper());
        for (name, child, volume, epoch) in [("a", &lost, "v", 2), ("b", &later, "v", 3), ("c", &other, "w", 2)] {
            let report = report(process(child.id()), gone, None, GuestState::Running);
            let report = GuestReport { volume_id: volume.into(), epoch, ..report };
            files::write_json(&guests.join(format!("{name}.json")), &report).unwrap();
        }
        let stage = StageRecord {
            version: stage::VERSION,
            volume_id: "v".into(),
            subvolume_uuid: "0b5f1e7c-0000-4000-8000-000000000001".into(),
            pod_uid: "u".into(),
            epoch: 2,
            session: "s".into(),
            lease: None,
            layers: Vec::new(),
            binds: Vec::new(),
        };
        let id = VolumeId::parse("v").unwrap();
        records.put(&id, &Publication::new("/x".into(), stage, None)).unwrap();
        let staged = || std::fs::read_dir(dir.path().join("volumes")).unwrap().count();
        assert_eq!(end_incarnation(dir.path(), &records, &id, 1).await.unwrap(), 0);
        assert_eq!(staged(), 1, "what is staged is of a later epoch");
        let reaped = tokio::task::spawn_blocking(move || lost.wait().unwrap());
        assert_eq!(end_incarnation(dir.path(), &records, &id, 2).await.unwrap(), 1);
        reaped.await.unwrap();
        assert_eq!(staged(), 0);
        assert!(records.get(&id).unwrap().is_some(), "what is mounted stays known");
        for child in [&mut later, &mut other] {
            assert!(child.try_wait().unwrap().is_none(), "another incarnation was killed");
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[tokio::test]
    async fn what_has_no_shim_any_more_ends_if_it_is_bound_by_a_lease() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(end_orphans(dir.path()).await.unwrap(), 0, "a node that is new");
        let guests = dir.path().join("guests");
        let gone = Process { pid: i32::MAX, started: 0 };
        let me = process(std::process::id());
        let (mut orphan, mut held, mut free) = (sleeper(), sleeper(), sleeper());
        for (name, child, shim, lease) in
            [("a", &orphan, gone, Some("l")), ("b", &held, me, Some("l")), ("c", &free, gone, None)]
        {
            let report = report(process(child.id()), shim, lease, GuestState::Running);
            files::write_json(&guests.join(format!("{name}.json")), &report).unwrap();
        }
        let reaped = tokio::task::spawn_blocking(move || orphan.wait().unwrap());
        assert_eq!(end_orphans(dir.path()).await.unwrap(), 1);
        reaped.await.unwrap();
        for child in [&mut held, &mut free] {
            assert!(child.try_wait().unwrap().is_none(), "one that is held, or bound by no lease, was killed");
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[tokio::test]
    async fn a_guest_that_is_about_to_boot_again_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let guests = dir.path().join("guests");
        files::private_directory(&guests).unwrap();
        let mut shim = sleeper();
        let gone = Process { pid: i32::MAX, started: 0 };
        let rebooting = report(gone, process(shim.id()), Some("l"), GuestState::Rebooting);
        files::write_json(&guests.join("a.json"), &rebooting).unwrap();
        let early = tokio::time::timeout(Duration::from_millis(500), end_session(dir.path(), &records)).await;
        assert!(early.is_err(), "the session ended while its shim could boot the guest again");
        // A shim that is gone boots nothing.
        shim.kill().unwrap();
        shim.wait().unwrap();
        assert_eq!(end_session(dir.path(), &records).await.unwrap(), 0);
    }
}
