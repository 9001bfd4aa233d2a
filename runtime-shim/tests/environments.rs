//! Environments through the task API, with a busybox script for an init: what the shim does for any init is shown with
//! one that can be bent to everything.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what must hold")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{ResizePtyRequest, Status};
use serde_json::json;
use support::environment::{Lease, POD_UID, Pool, boot_config, write_config};
use support::{Lab, Plan, Streams, deadline, until};
use vivarium_api::names;
use vivarium_api::node::boot::BootConfig;
use vivarium_api::node::guest::GuestState;

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-vivarium-v1");

/// An init that counts its boots on disk, says that it is ready, and powers off at SIGRTMIN+3.
const INIT: &str = "#!/bin/sh
echo boot >> /boots
trap 'echo stopping; poweroff -f' 37
if [ -e /reboots ]; then
    left=$(cat /reboots)
    if [ $left -gt 0 ]; then echo $((left-1)) > /reboots; sync; sleep 0.2; reboot -f; fi
fi
echo up; cat /proc/self/uid_map
exec /bin/notify READY=1 /bin/sh -c '
trap \"poweroff -f\" 37
while :; do
  if [ -e /do-reboot ]; then rm /do-reboot; reboot -f; fi
  sleep 0.02
done'
";

/// A pod with one environment that is made of busybox.
struct Bed {
    lab: Lab,
    pool: Pool,
    volume: PathBuf,
    config: PathBuf,
}

/// Puts the talking part of the init into a tree: a static program, compiled once.
fn install_notify(root: &Path) {
    static PROGRAM: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = PROGRAM.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let output = Command::new(option_env!("RUSTC").unwrap_or("rustc"))
            .args(["--edition", "2024", "-C", "target-feature=+crt-static", "-C", "opt-level=1", "-o"])
            .arg(dir.path().join("notify"))
            .arg("tests/support/notify_exec.rs")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        dir
    });
    fs::copy(dir.path().join("notify"), root.join("bin/notify")).unwrap();
}

impl Bed {
    async fn new() -> Self {
        Self::with(&boot_config(), |_| {}).await
    }

    async fn with(boot: &BootConfig, change: impl FnOnce(&Path)) -> Self {
        Self::leased(boot, change, None).await
    }

    async fn leased(boot: &BootConfig, change: impl FnOnce(&Path), lease: Option<&Lease>) -> Self {
        Self::of_pod(POD_UID, boot, change, lease).await
    }

    async fn of_pod(uid: &str, boot: &BootConfig, change: impl FnOnce(&Path), lease: Option<&Lease>) -> Self {
        let mut pool = Pool::new("400M");
        let layer = pool.layer("layer", |root| {
            support::rootfs::busybox(root);
            support::rootfs::script(&root.join("sbin/init"), INIT);
            install_notify(root);
            fs::create_dir_all(root.join("etc/ssh/sshd_config.d")).unwrap();
            change(root);
        });
        let volume = pool.volume("live", &[layer], uid, lease);
        let lab = Lab::new(SHIM).await;
        let config = lab.dir.path().join("config");
        fs::create_dir(&config).unwrap();
        write_config(&config, boot, "key one");
        lab.up_sandbox(uid).await;
        Self { lab, pool, volume, config }
    }

    async fn up(&self) -> Streams {
        let console = self.lab.up_environment("ve", &self.volume, &self.config).await;
        self.running(1).await;
        console
    }

    async fn running(&self, boots: u32) {
        let running = || self.lab.report().is_some_and(|r| r.state == GuestState::Running && r.boots == boots);
        let begin = Instant::now();
        while !running() {
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "boot {boots} is not up: {:?}\n{}",
                self.lab.report(),
                self.lab.log()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn shell(&self, script: &str) -> String {
        let id = format!("x{}", self.lab.topics().len());
        self.lab.exec("ve", &id, &Plan::shell(script)).await.1
    }

    async fn refused(&self, id: &str, volume: &Path) -> String {
        let mut plan = Plan::new(&["/stub"]);
        plan.terminal = true;
        let spec = self.lab.environment_spec(id, volume, &self.config);
        let (_streams, created) = self.lab.create_from(id, &plan, &spec).await;
        let error = created.unwrap_err().to_string();
        assert!(!self.lab.state_dir(id).exists());
        error
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_boots_and_stops_when_asked() {
    let bed = Bed::new().await;
    let console = bed.up().await;
    console.wait_for(&bed.lab.base.to_string()).await;
    let report = bed.lab.report().unwrap();
    assert_eq!((report.volume_id.as_str(), report.epoch), ("volume-live", 7));
    assert_eq!(report.pod.uid, POD_UID);
    bed.lab.kill("ve", "", 15).await.unwrap();
    assert_eq!(bed.lab.wait("ve", "").await, 0);
    assert_eq!(bed.lab.report().unwrap().state, GuestState::PoweredOff);
    bed.lab.delete("ve", "").await.unwrap();
    assert!(bed.lab.report().is_none());
    assert!(!bed.lab.state_dir("ve").exists());
    // On disk everything belongs to ids from 0 on.
    assert_eq!(fs::metadata(bed.volume.join("upper/boots")).unwrap().uid(), 0);
    let text = console.finish();
    assert!(text.contains("up"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_is_held_back_is_told_later_and_a_kill_is_not_held_back() {
    fs::create_dir_all(names::HELD_BACK).unwrap();
    for (uid, killed) in [("held-back-1", false), ("held-back-2", true)] {
        let bed = Bed::of_pod(uid, &boot_config(), |_| {}, None).await;
        let _console = bed.up().await;
        let file = Path::new(names::HELD_BACK).join(uid);
        fs::write(&file, "").unwrap();
        // A kubelet that was started anew asks again.
        for _ in 0..2 {
            bed.lab.kill("ve", "", 15).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let report = bed.lab.report().unwrap();
        assert_eq!((report.state, report.leaving), (GuestState::Running, true));
        assert_eq!(bed.shell("echo goes on").await.trim(), "goes on");
        if killed {
            bed.lab.kill("ve", "", 9).await.unwrap();
            assert_eq!(bed.lab.wait("ve", "").await, 137);
            fs::remove_file(&file).unwrap();
        } else {
            fs::remove_file(&file).unwrap();
            assert_eq!(bed.lab.wait("ve", "").await, 0);
        }
        bed.lab.delete("ve", "").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_inside_keeps_the_pod_and_the_console() {
    let bed = Bed::new().await;
    let console = bed.up().await;
    let first = bed.lab.pid("ve").await;
    let exec = bed.lab.add_exec("ve", "open", &Plan::new(&["/bin/sleep", "1000"])).await.unwrap();
    bed.lab.start("ve", "open").await.unwrap();
    for boots in 2..=4 {
        bed.shell("touch /do-reboot").await;
        bed.running(boots).await;
    }
    assert!(bed.lab.wait("ve", "open").await > 128);
    drop(exec);
    assert_ne!(bed.lab.pid("ve").await, first);
    assert_eq!(bed.lab.state("ve", "").await, Status::RUNNING);
    assert_eq!(bed.shell("cat /boots | wc -l").await.trim(), "4");
    let map = bed.shell("cat /proc/self/uid_map").await;
    assert_eq!(map.split_whitespace().nth(1), Some(bed.lab.base.to_string().as_str()));
    until("four boots on one console", || console.text().matches("up").count() == 4).await;
    assert!(!bed.lab.topics()[2..].contains(&"delete".to_owned()));
    let exits = || bed.lab.topics().iter().filter(|topic| *topic == "exit").count();
    until("the exits of the execs", || exits() >= 3 + 1 + 2).await;
    assert_eq!(exits(), 3 + 1 + 2, "execs only: {:?}", bed.lab.topics());

    // containerd goes on using the first pid; a container that joins by it gets the present one's namespaces.
    let plan = Plan::shell("cat /proc/self/uid_map; exec sleep 1000");
    let mut spec = bed.lab.spec("debug", &plan);
    for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == "pid" {
            namespace["path"] = json!(format!("/proc/{first}/ns/pid"));
        }
    }
    let (streams, created) = bed.lab.create_from("debug", &plan, &spec).await;
    created.unwrap();
    let current = bed.lab.pid("ve").await;
    let debug = bed.lab.pid("debug").await;
    let pid_namespace = |pid| fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    assert_eq!(pid_namespace(debug), pid_namespace(current));
    // To see another's processes is not to be root of the node among them.
    bed.lab.start("debug", "").await.unwrap();
    streams.wait_for("\n").await;
    let map = streams.text();
    let expected = ["0", &bed.lab.base.to_string(), "65536"].map(String::from);
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), expected);
    bed.lab.down("debug").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_keeps_its_size_over_a_reboot() {
    let bed = Bed::new().await;
    let _console = bed.up().await;
    let size = ResizePtyRequest { id: "ve".into(), width: 132, height: 43, ..Default::default() };
    bed.lab.tasks.resize_pty(deadline(), &size).await.unwrap();
    assert_eq!(bed.shell("stty size </dev/console").await, "43 132\n");
    // The new boot has a new terminal.
    bed.shell("touch /do-reboot").await;
    bed.running(2).await;
    assert_eq!(bed.shell("stty size </dev/console").await, "43 132\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn execs_go_on_over_reboots() {
    let bed = Bed::new().await;
    let _console = bed.up().await;
    bed.shell("echo 3 > /reboots; touch /do-reboot").await;
    for index in 0..30 {
        let (status, output) = bed.lab.exec("ve", &format!("loop{index}"), &Plan::shell("sleep 0.05; echo ok")).await;
        // One that was running when the guest went down has been killed with it.
        assert!(status == 137 || output == "ok\n", "{status} {output}");
    }
    bed.running(5).await;
    bed.lab.down("ve").await;
    assert!(!bed.lab.state_dir("ve").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_that_is_killed_while_it_reboots_ends() {
    let bed = Bed::with(&boot_config(), |root| fs::write(root.join("reboots"), "100000").unwrap()).await;
    let _console = bed.lab.up_environment("ve", &bed.volume, &bed.config).await;
    until("a second boot", || bed.lab.report().is_some_and(|r| r.boots >= 2)).await;
    bed.lab.kill("ve", "", 9).await.unwrap();
    bed.lab.wait("ve", "").await;
    bed.lab.delete("ve", "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_reboot_ends_the_container_with_the_reason() {
    let bed = Bed::new().await;
    let _console = bed.up().await;
    bed.shell("rm /sbin/init; touch /do-reboot").await;
    assert_eq!(bed.lab.wait("ve", "").await, 125);
    let report = bed.lab.report().unwrap();
    assert_eq!(report.state, GuestState::Failed);
    assert!(report.message.contains("/sbin/init"), "{}", report.message);
    bed.lab.delete("ve", "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn poweroff_inside_is_a_clean_end() {
    let bed = Bed::new().await;
    let _console = bed.up().await;
    bed.lab.add_exec("ve", "off", &Plan::new(&["/bin/poweroff", "-f"])).await.unwrap();
    bed.lab.start("ve", "off").await.ok();
    assert_eq!(bed.lab.wait("ve", "").await, 0);
    assert_eq!(bed.lab.report().unwrap().state, GuestState::PoweredOff);
    bed.lab.delete("ve", "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_init_can_say_that_it_is_ready() {
    let silent =
        "#!/bin/sh\n/bin/notify READY=1 /bin/true\ntrap 'poweroff -f' 37\necho up\nwhile :; do sleep 0.1; done\n";
    let bed = Bed::with(&boot_config(), |root| support::rootfs::script(&root.join("sbin/init"), silent)).await;
    let console = bed.lab.up_environment("ve", &bed.volume, &bed.config).await;
    console.wait_for("up").await;
    bed.shell("NOTIFY_SOCKET=/run/host/notify /bin/notify READY=1 /bin/true").await;
    let socket = bed.lab.state_dir("ve").join("host/notify");
    std::os::unix::net::UnixDatagram::unbound().unwrap().send_to(b"READY=1", socket).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bed.lab.report().unwrap().state, GuestState::Booting);
}

#[tokio::test(flavor = "multi_thread")]
async fn run_host_is_read_only_for_ever_and_keys_follow() {
    let bed = Bed::new().await;
    let _console = bed.up().await;
    let script = "touch /run/host/x; mount -o remount,rw /run/host; mount -o remount,bind,rw /run/host; \
                  touch /run/host/x; unshare -m sh -c 'mount -o remount,bind,rw /run/host; \
                  echo owned > /run/host/vivarium/resolv.conf'; \
                  unshare -Urm sh -c 'mount -o remount,bind,rw /run/host; echo owned > /run/host/container-manager'; \
                  ls /run/host; cat /run/host/vivarium/resolv.conf /run/host/container-manager";
    let output = bed.shell(&format!("({script}) 2>/dev/null")).await;
    assert_eq!(
        output, "container-manager\ncredentials\nnotify\nvivarium\nnameserver 192.0.2.53\nvivarium\n",
        "{output}"
    );
    // A guest that hides the directory from itself harms itself alone.
    bed.shell("umount -l /run/host; mkdir -p /run/host/vivarium; echo owned > /run/host/vivarium/resolv.conf").await;
    let host = bed.lab.state_dir("ve").join("host");
    assert_eq!(fs::read_to_string(host.join("vivarium/resolv.conf")).unwrap(), "nameserver 192.0.2.53\n");
    bed.shell("touch /do-reboot").await;
    bed.running(2).await;
    let keys = "/run/host/vivarium/authorized_keys/root";
    assert_eq!(bed.shell(&format!("cat {keys}; stat -c %A:%u {keys}")).await, "key one\n-rw-r--r--:0\n");
    write_config(&bed.config, &boot_config(), "key two");
    let file = bed.lab.state_dir("ve").join("host/vivarium/authorized_keys/root");
    until("the new key", || fs::read_to_string(&file).unwrap() == "key two\n").await;
    assert_eq!(bed.shell(&format!("cat {keys}")).await, "key two\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_finds_what_it_was_promised() {
    let mut boot = boot_config();
    boot.sysctls = vec![vivarium_api::node::boot::Sysctl { name: "net.ipv4.ip_forward".into(), value: "1".into() }];
    let bed = Bed::with(&boot, |_| {}).await;
    let _console = bed.up().await;
    let output = bed
        .shell(
            "cat /etc/hostname /proc/sys/net/ipv4/ip_forward; grep -E '^(CapEff|Seccomp):' /proc/1/status; \
             tr '\\0' '\\n' </proc/1/environ | sort; readlink /etc/resolv.conf; mkdir /sys/fs/cgroup/made && echo \
             delegated; touch /var/lib/docker/x && echo data; \
             echo kernel $(for file in kcore kpageflags vmallocinfo; do \
             dd if=/proc/$file of=/dev/null bs=8 count=1 2>&1; done | grep -c denied); \
             echo vivarium $(ls -d /.vivarium 2>/dev/null | wc -l); echo $HOME $USER",
        )
        .await;
    // Nothing of /proc is masked in a guest. What tells of the memory of the node is there as far as its kernel has it,
    // and closed to all but its own root. Not every kernel has the first.
    let secrets = ["kcore", "kpageflags", "vmallocinfo"];
    let existing = secrets.iter().filter(|file| Path::new("/proc").join(file).exists()).count();
    assert!(existing > 0, "the node's kernel has none of {secrets:?}, so nothing is shown");
    let closed = format!("data\nkernel {existing}\nvivarium 0\n");
    for expected in [
        closed.as_str(),
        "shop\n1\n",
        "CapEff:\t000001ffffffffff",
        "Seccomp:\t2",
        "container=vivarium\ncontainer_uuid=6b2c9a34-11d2-4c7e-9f0a-5d8e7a6b4c3d",
        "NOTIFY_SOCKET=/run/host/notify",
        "CREDENTIALS_DIRECTORY=/run/host/credentials",
        "../run/host/vivarium/resolv.conf",
        "delegated\ndata\n",
        "/root",
    ] {
        assert!(output.contains(expected), "{expected:?} is missing:\n{output}");
    }
    assert!(bed.volume.join("data/docker/x").exists());
    // Where the pod mounts the volume is no place of the guest's, not even an empty directory.
    assert!(!bed.volume.join("upper/.vivarium").exists());
    assert!(!fs::metadata(bed.volume.join("upper/etc/hostname")).unwrap().file_type().is_symlink());
    bed.lab.down("ve").await;
    assert!(bed.lab.leftovers("ve").iter().all(|left| left.starts_with("process")), "{:?}", bed.lab.leftovers("ve"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_is_no_published_volume_is_refused() {
    let mut bed = Bed::new().await;
    let plain = bed.lab.dir.path().join("plain");
    fs::create_dir_all(plain.join("upper")).unwrap();
    let error = bed.refused("a", &plain).await;
    assert!(error.contains("not a btrfs subvolume"), "{error}");
    let inside = bed.volume.join("data");
    assert!(bed.refused("b", &inside).await.contains("not a btrfs subvolume"));
    let unpublished = bed.pool.layer("unpublished", |root| fs::create_dir(root.join("upper")).unwrap());
    assert!(bed.refused("c", &unpublished).await.contains("has not published"));
    let layers = [bed.pool.path().join("layer")];
    let foreign = bed.pool.volume("foreign", &layers, "another-pod", None);
    assert!(bed.refused("d", &foreign).await.contains("published to the pod with UID another-pod"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_with_links_in_place_of_its_directories_is_refused() {
    let bed = Bed::new().await;
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::create_dir_all(outside.path().join("docker")).unwrap();
    for name in ["data", "work", "upper"] {
        let id = &format!("linked-{name}");
        fs::remove_dir_all(bed.volume.join(name)).unwrap();
        std::os::unix::fs::symlink(outside.path(), bed.volume.join(name)).unwrap();
        assert!(bed.refused(id, &bed.volume).await.contains("of the volume"));
    }
    assert_eq!(fs::read_dir(outside.path().join("docker")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_without_an_init_is_refused_with_the_reason() {
    let bed = Bed::with(&boot_config(), |root| fs::remove_file(root.join("sbin/init")).unwrap()).await;
    let error = bed.refused("a", &bed.volume).await;
    assert!(error.contains("is no operating system"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn denied_sockets_and_calls_look_as_if_the_kernel_lacked_them() {
    let bed = Bed::new().await;
    let _console = bed.up().await;
    // busybox has nothing that opens such sockets; the number of filters and their kind are what can be seen.
    let output = bed.shell("grep -E '^Seccomp' /proc/self/status; insmod /bin/busybox; echo $?").await;
    assert!(output.contains("Seccomp:\t2") && !output.contains("\n0\n"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_freezes_itself_does_not_hang_an_exec_for_ever() {
    let bed = Bed::new().await;
    let _console = bed.up().await;
    // The guest moves its init to a group of its own and freezes that.
    let script = "mkdir /sys/fs/cgroup/trap && echo 1 > /sys/fs/cgroup/trap/cgroup.procs && sleep 0.1; \
                  (sleep 0.2; echo 1 > /sys/fs/cgroup/trap/cgroup.freeze) &";
    bed.shell(script).await;
    let pid = bed.lab.pid("ve").await;
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(group.contains("/trap"), "{group}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let _streams = bed.lab.add_exec("ve", "stuck", &Plan::shell("true")).await.unwrap();
    let begin = Instant::now();
    let error = bed.lab.start("ve", "stuck").await.unwrap_err().to_string();
    assert!(error.contains("frozen"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(20));
    bed.lab.down("ve").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_volume_moves_to_another_range_of_ids() {
    let bed = Bed::new().await;
    let _console = bed.up().await;
    bed.shell("mkdir /kept && echo x > /kept/file && chown 33:33 /kept/file && rm -r /etc/ssh && mv /var /var2; sync")
        .await;
    bed.lab.down("ve").await;
    let next = Lab::new(SHIM).await;
    next.up_sandbox(POD_UID).await;
    assert_ne!(next.base, bed.lab.base);
    let _console = next.up_environment("ve", &bed.volume, &bed.config).await;
    let (_, output) = next
        .exec(
            "ve",
            "look",
            &Plan::shell("stat -c %u:%g /kept/file /kept; ls -d /etc/ssh /var2; echo more >> /kept/file"),
        )
        .await;
    assert!(output.contains("33:33\n0:0\n/var2\n"), "{output}");
    assert_eq!(fs::metadata(bed.volume.join("upper/kept/file")).unwrap().uid(), 33);
    next.down("ve").await;
}

/// An init whose only work is to count, so that one sees whether it goes on.
fn counting(root: &Path) {
    let init = INIT.replace("sleep 0.02", "sleep 0.02; echo >> /ticks");
    support::rootfs::script(&root.join("sbin/init"), &init);
}

impl Bed {
    fn ticks(&self) -> u64 {
        fs::metadata(self.volume.join("upper/ticks")).map_or(0, |ticks| ticks.len())
    }

    async fn ticking(&self) {
        let before = self.ticks();
        until("the guest to go on", || self.ticks() > before).await;
    }

    /// Waits until the guest stands still, and sees that it does.
    async fn still(&self) {
        let frozen = || {
            let pid = self.lab.report().unwrap().init.pid;
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
            ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
                .iter()
                .filter_map(|mount| fs::read_to_string(Path::new(mount).join(group).join("cgroup.events")).ok())
                .any(|events| events.contains("frozen 1"))
        };
        until("the guest to stand still", frozen).await;
        let before = self.ticks();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(self.ticks(), before, "it runs although its lease has lapsed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_stands_still_without_a_lease_and_goes_on_with_it() {
    let lease = Lease::new();
    let bed = Bed::leased(&boot_config(), counting, Some(&lease)).await;
    // It is made under this one, which passes once it is started.
    lease.lapse_in(5000);
    let _console = bed.up().await;
    let init = bed.lab.report().unwrap().init;
    bed.ticking().await;
    bed.still().await;
    let error = bed.lab.add_exec("ve", "late", &Plan::shell("true")).await;
    let error = match error {
        Ok(_) => bed.lab.start("ve", "late").await.unwrap_err(),
        Err(error) => error,
    };
    assert!(error.to_string().contains("stands still"), "{error}");
    lease.renew();
    bed.ticking().await;
    assert_eq!(bed.lab.report().unwrap().init, init, "the guest was not started anew");
    assert_eq!(bed.shell("echo works").await, "works\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_dies_with_the_session_that_it_was_started_under() {
    let lease = Lease::new();
    let bed = Bed::leased(&boot_config(), counting, Some(&lease)).await;
    lease.lapse_in(5000);
    let _console = bed.up().await;
    bed.still().await;
    dies(&bed, &lease).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_that_runs_dies_with_its_session_at_once() {
    let lease = Lease::new();
    let bed = Bed::leased(&boot_config(), counting, Some(&lease)).await;
    let _console = bed.up().await;
    bed.ticking().await;
    dies(&bed, &lease).await;
}

async fn dies(bed: &Bed, lease: &Lease) {
    lease.end();
    assert_eq!(bed.lab.wait("ve", "").await, 137);
    let report = bed.lab.report().unwrap();
    assert_eq!(report.state, GuestState::Failed);
    assert!(report.message.contains("session"), "{}", report.message);
    let ticks = bed.ticks();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bed.ticks(), ticks);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_does_not_boot_again_without_a_lease() {
    let lease = Lease::new();
    let reboots = |root: &Path| {
        counting(root);
        fs::write(root.join("reboots"), "100000").unwrap();
    };
    let bed = Bed::leased(&boot_config(), reboots, Some(&lease)).await;
    lease.lapse_in(3000);
    let _console = bed.lab.up_environment("ve", &bed.volume, &bed.config).await;
    tokio::time::sleep(Duration::from_millis(4500)).await;
    let boots = bed.lab.report().unwrap().boots;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(bed.lab.report().unwrap().boots, boots, "it boots although its lease has lapsed");
    lease.renew();
    until("the next boot", || bed.lab.report().unwrap().boots > boots).await;
    lease.end();
    bed.lab.kill("ve", "", 9).await.unwrap();
    bed.lab.wait("ve", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_is_not_made_under_a_lease_that_has_lapsed_or_ended() {
    let lease = Lease::new();
    let bed = Bed::leased(&boot_config(), counting, Some(&lease)).await;
    lease.lapse_in(0);
    let error = bed.refused("lapsed", &bed.volume).await;
    assert!(error.contains("neither from the API server nor from the store"), "{error}");
    lease.end();
    let error = bed.refused("over", &bed.volume).await;
    assert!(error.contains("is over"), "{error}");
    lease.renew();
    bed.up().await;
}

/// An init that eats more memory than there is when it is told to.
const HUNGRY: &str = "#!/bin/sh\ntrap 'poweroff -f' 37\necho up\nwhile [ ! -e /eat ]; do sleep 0.05; done\nexec dd if=/dev/zero of=/dev/null bs=200M count=1\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_for_lack_of_memory_is_not_the_end_of_an_environment() {
    let bed = Bed::with(&boot_config(), |root| support::rootfs::script(&root.join("sbin/init"), HUNGRY)).await;
    let mut plan = Plan::new(&["/stub"]);
    plan.terminal = true;
    for (id, what) in [("ve", "dd if=/dev/zero of=/dev/null bs=200M count=1; echo status $?"), ("hungry", "touch /eat")]
    {
        let mut spec = bed.lab.environment_spec(id, &bed.volume, &bed.config);
        spec["linux"]["resources"]["memory"] = json!({"limit": 67_108_864});
        let (console, created) = bed.lab.create_from(id, &plan, &spec).await;
        created.unwrap();
        bed.lab.start(id, "").await.unwrap();
        console.wait_for("up").await;
        let (_, said) = bed.lab.exec(id, "x", &Plan::shell(what)).await;
        let told = |topic: &str| bed.lab.topics().iter().any(|told| told == topic);
        if id == "ve" {
            assert_eq!(said.trim(), "status 137", "{said}");
            bed.lab.kill(id, "", 15).await.unwrap();
            assert_eq!(bed.lab.wait(id, "").await, 0);
            assert_eq!(bed.lab.report().unwrap().state, GuestState::PoweredOff);
            bed.lab.delete(id, "").await.unwrap();
            assert!(!told("oom"), "an end in order would be taken for a kill: {:?}", bed.lab.topics());
        } else {
            assert_eq!(bed.lab.wait(id, "").await, 137);
            let report = bed.lab.report().unwrap();
            assert!(report.message.contains("memory"), "{}", report.message);
            bed.lab.delete(id, "").await.unwrap();
            assert!(told("oom"), "{:?}", bed.lab.topics());
        }
    }
}
