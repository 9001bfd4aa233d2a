//! Two roots on one node are strangers to each other and to the node.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::json;
use vivarium_e2e::{DEADLINE, Namespace, eventually, lab};

fn base(map: &str) -> u64 {
    map.split_whitespace().nth(1).and_then(|f| f.parse().ok()).unwrap_or_else(|| panic!("no uid_map: {map}"))
}

#[test]
fn two_environments_on_a_node_have_disjoint_users_and_full_power_only_inside() {
    let namespace = Namespace::new("isolation");
    let node = lab::nodes()[0].clone();
    let on = |name: &str| {
        namespace.environment(name).with("/placement/nodeSelector", json!({"kubernetes.io/hostname": node})).up()
    };
    let (a, b) = (on("a"), on("b"));
    assert_eq!(a.node(), b.node());
    let (of_a, of_b) = (base(&a.sh("cat /proc/1/uid_map")), base(&b.sh("cat /proc/1/uid_map")));
    assert!(of_a.abs_diff(of_b) >= 65536, "ranges {of_a} and {of_b} overlap");

    // Outside, init is an ordinary user of a user namespace that is not the node's.
    for (ve, base) in [(&a, of_a), (&b, of_b)] {
        let marker = format!("marker-{}", ve.name);
        ve.sh(&format!("systemd-run --unit {marker} --quiet bash -c 'exec -a {marker} sleep 1000'"));
        let find = format!(
            "for p in /proc/[0-9]*; do case $(tr '\\0' ' ' < $p/cmdline 2>/dev/null) in '{marker} '*) grep ^Uid: $p/status; readlink $p/ns/user;; esac; done"
        );
        let seen = eventually("the marked process on the node", DEADLINE, || {
            let seen = lab::node_sh(&node, &find);
            if seen.contains("user:") { Ok(seen) } else { Err("it is not there".into()) }
        });
        assert!(seen.contains(&format!("{base}")), "uid 0 of {} is not {base} outside: {seen}", ve.name);
        let of_node = lab::node_sh(&node, "readlink /proc/1/ns/user");
        assert!(!seen.contains(&of_node), "{} runs in the node's user namespace", ve.name);
    }

    // Inside, all capabilities that there are.
    let effective = a.sh("grep CapEff /proc/self/status | cut -f2");
    let mask = u64::from_str_radix(&effective, 16).unwrap();
    let last: u32 = a.sh("cat /proc/sys/kernel/cap_last_cap").parse().unwrap();
    assert_eq!(mask, (1 << (last + 1)) - 1, "exec has {effective}");
    a.sh("mkdir -p /mnt/t && mount -t tmpfs none /mnt/t && umount /mnt/t");
    a.sh("ip link add dummy7 type dummy || ip tuntap add dev tap7 mode tap || ip link add veth7 type veth peer name veth8");

    // Outside, none: each of these must be refused.
    for attack in [
        "echo b > /proc/sysrq-trigger",
        "echo 1 > /proc/sys/vm/drop_caches",
        "echo /tmp/x > /proc/sys/kernel/core_pattern",
        "mknod /tmp/disk b 254 0 && head -c1 /tmp/disk",
        "date -s 2001-01-01",
        "mount -t ext4 /dev/vda /mnt",
        "mount -o remount,rw /sys",
        "mount -o remount,rw /run/host && touch /run/host/x",
        "touch /run/host/x",
        "dmesg -C",
        "echo 0 > /sys/kernel/mm/ksm/run",
        "sysctl -w kernel.panic=1",
        "chown 70000 /tmp",
    ] {
        let ran = a.exec(&["sh", "-c", attack]);
        assert!(!ran.ok, "`{attack}` succeeded: {}{}", ran.stdout, ran.stderr);
    }
    // What one does to itself the other does not see.
    a.sh("touch /tmp/mine /root/mine && kill -STOP $(systemctl show -P MainPID cron)");
    assert!(!b.exec(&["test", "-e", "/root/mine"]).ok);
    assert_eq!(b.sh("systemctl is-active cron"), "active");
    assert_eq!(b.sh("pgrep -c -f [m]arker-a || true"), "0", "b sees the processes of a");
}

#[test]
fn dangerous_system_calls_are_denied() {
    let namespace = Namespace::new("seccomp");
    let ve = namespace.environment("shop").up();
    // Sockets of address families with a record of local root exploits do not open, though root asks.
    let perl = |code: &str| ve.exec(&["perl", "-e", code]);
    assert!(perl("exit 0").ok, "perl is part of Debian's minimal system");
    for (name, family) in [("AF_ALG", 38), ("AF_VSOCK", 40), ("AF_RXRPC", 33), ("AF_KEY", 15)] {
        let ran = perl(&format!(
            "socket(my $s, {family}, 3, 0) or socket($s, {family}, 5, 0) or socket($s, {family}, 2, 0) or exit 1; exit 0"
        ));
        assert!(!ran.ok, "{name} opens");
    }
    assert!(perl("socket(my $s, 2, 1, 0) or exit 1").ok, "AF_INET must open");
    // bpf(2) 321, perf_event_open(2) 298, userfaultfd(2) 323, io_uring_setup(2) 425, kexec_load(2) 246, open_by_handle_at(2) 304.
    for number in [321, 298, 323, 425, 246, 304] {
        let ran = perl(&format!(
            "$! = 0; my $r = syscall({number}, 0, 0, 0, 0, 0, 0); exit(($r == -1 && ($! == 1 || $! == 38)) ? 0 : 1)"
        ));
        assert!(ran.ok, "system call {number} is not denied");
    }
}
