//! Boots an operating system's tree under the shim, without Kubernetes, and reports what it takes:
//! `boot <shim binary> <tree directory>`. Needs root and btrfs-progs.
#![allow(missing_docs, reason = "a tool for developers")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "it stops at the first surprise")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use support::environment::{POD_UID, Pool, boot_config, write_config};
use support::{Lab, Plan, until};
use vivarium_api::node::guest::GuestState;

fn milliseconds(begin: Instant) -> u128 {
    begin.elapsed().as_millis()
}

fn memory(pid: i32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let field = |name: &str| {
        text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim().trim_end_matches(" kB").to_owned()
    };
    format!("Pss {} kB, Private_Dirty {} kB, Rss {} kB", field("Pss:"), field("Private_Dirty:"), field("Rss:"))
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, shim, tree] = arguments.as_slice() else { panic!("boot <shim binary> <tree directory>") };
    let mut pool = Pool::new("3G");
    let layer = pool.layer("layer", |dir| {
        let copied = Command::new("cp").args(["-a", &format!("{tree}/."), dir.to_str().unwrap()]).status();
        assert!(copied.unwrap().success());
    });
    let volume = pool.volume("live", &[layer], POD_UID, None);
    let lab = Lab::new(shim).await;
    let config = lab.dir.path().join("config");
    std::fs::create_dir(&config).unwrap();
    let mut boot = boot_config();
    boot.timezone = Some("Europe/Prague".into());
    boot.locale = Some("C.UTF-8".into());
    write_config(&config, &boot, "ssh-ed25519 AAAA test\n");
    let _sandbox = lab.up_sandbox(POD_UID).await;

    let begin = Instant::now();
    let console = lab.up_environment("ve", &volume, &config).await;
    println!("created and started in {} ms", milliseconds(begin));
    let running = |boots: u32| lab.report().is_some_and(|r| r.state == GuestState::Running && r.boots == boots);
    wait_ready(&lab, &console, || running(1)).await;
    println!("READY=1 after {} ms", milliseconds(begin));
    let (status, output) =
        lab.exec("ve", "settle", &Plan::shell("systemctl is-system-running --wait; systemctl --failed")).await;
    println!("settled ({status}) after {} ms: {output}", milliseconds(begin));
    let show = "id; hostname; cat /proc/self/uid_map; ls -l /etc/localtime /etc/resolv.conf; cat /etc/resolv.conf \
                /etc/locale.conf /run/host/vivarium/authorized_keys/root; mount | grep -E 'cgroup|/run|/sys '; \
                grep -E 'Seccomp|NoNewPrivs|CapEff' /proc/self/status; ls /dev; sshd -T 2>/dev/null | grep -i \
                authorizedkeysfile; cat /proc/self/cgroup; systemctl list-units --state=failed --no-legend";
    println!("{}", lab.exec("ve", "show", &Plan::shell(show)).await.1);

    let mut times = Vec::new();
    for index in 0..20 {
        let begin = Instant::now();
        lab.exec("ve", &format!("t{index}"), &Plan::new(&["/bin/true"])).await;
        times.push(milliseconds(begin));
    }
    times.sort_unstable();
    println!("exec, start to end: median {} ms, worst {} ms", times[10], times[19]);
    println!("shim: {}", memory(lab.shim_pid));

    for boots in 2..4 {
        let begin = Instant::now();
        lab.exec("ve", &format!("reboot{boots}"), &Plan::shell("systemctl reboot")).await;
        until("the guest to go down", || !running(boots - 1)).await;
        let down = milliseconds(begin);
        wait_ready(&lab, &console, || running(boots)).await;
        println!("reboot: down after {down} ms, READY=1 after {} ms", milliseconds(begin));
    }
    let begin = Instant::now();
    lab.kill("ve", "", 15).await.unwrap();
    let status = lab.wait("ve", "").await;
    println!("SIGTERM to end: {} ms, status {status}, report {:?}", milliseconds(begin), lab.report());
    lab.delete("ve", "").await.unwrap();
    lab.down(&lab.shim_id).await;
    println!("left over: {:?}", lab.leftovers("ve"));
    println!("owners on disk: {:?}", owners(&volume.join("upper")));
    println!("{}", lab.log());
}

async fn wait_ready(lab: &Lab, console: &support::Streams, ready: impl Fn() -> bool) {
    let begin = Instant::now();
    while !ready() {
        assert!(
            begin.elapsed().as_secs() <= 40,
            "not ready; console:\n{}\nlog:\n{}\nreport: {:?}",
            console.text(),
            lab.log(),
            lab.report()
        );
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

fn owners(dir: &Path) -> std::collections::BTreeSet<String> {
    let output = Command::new("find").arg(dir).args(["-printf", "%U:%G\n"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(String::from).collect()
}
