//! A fresh environment is an operating system: init, journal, packages, users, units, timers, logins.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::json;
use vivarium_e2e::lab::{self, Background};
use vivarium_e2e::{DEADLINE, Environment, Namespace, TEMPLATE, eventually, is_a_users_range, kubectl_ok, run_with};

#[test]
fn systemd_runs_and_no_unit_failed() {
    let namespace = Namespace::new("systemd");
    let ve = namespace.environment("fresh").up();
    assert_eq!(
        ve.sh("systemctl is-system-running || true"),
        "running",
        "{}",
        ve.sh("systemctl --failed --no-legend --plain")
    );
    assert_eq!(ve.sh("systemctl --failed --no-legend --plain"), "");
    assert_eq!(ve.sh("cat /proc/1/comm"), "systemd");
    assert_eq!(ve.sh("id -un"), "root");
    assert_eq!(ve.sh("hostname"), "fresh");
    assert!(ve.sh("journalctl --no-pager -b | wc -l").parse::<u32>().unwrap() > 20, "the journal is empty");
    assert_eq!(ve.sh("getent hosts fresh >/dev/null && echo known"), "known", "the host name does not resolve");
    // Identity is its own: the machine id is the object's UID, the ssh host keys were made here.
    let uid = ve.object()["metadata"]["uid"].as_str().unwrap().replace('-', "");
    assert_eq!(ve.sh("cat /etc/machine-id"), uid);
    let other = namespace.environment("other").up();
    assert_ne!(ve.sh("cat /etc/ssh/ssh_host_ed25519_key.pub"), other.sh("cat /etc/ssh/ssh_host_ed25519_key.pub"));
}

#[test]
fn users_units_timers_and_setuid_programs_work() {
    let namespace = Namespace::new("system");
    let ve = namespace.environment("shop").up();
    ve.sh("useradd -m alice && touch /srv/hers && chown alice:alice /srv/hers");
    assert_eq!(ve.sh("stat -c %U:%G /srv/hers"), "alice:alice");
    assert_eq!(ve.sh("su alice -c 'id -un'"), "alice");
    // A set-user-id program gives its owner's rights, within the environment.
    ve.sh("install -m 4755 /usr/bin/id /usr/local/bin/rootid");
    assert_eq!(ve.sh("su alice -c '/usr/local/bin/rootid -u'"), "0");
    // A system unit, and one in a user's own manager.
    ve.sh("printf '[Service]\\nExecStart=/bin/sleep infinity\\n' > /etc/systemd/system/worker.service && systemctl daemon-reload && systemctl start worker");
    assert_eq!(ve.sh("systemctl is-active worker"), "active");
    let unit = "/home/alice/.config/systemd/user";
    ve.sh(&format!("mkdir -p {unit} && printf '[Service]\\nExecStart=/bin/sleep infinity\\n' > {unit}/mine.service && chown -R alice: /home/alice"));
    ve.sh("loginctl enable-linger alice");
    ve.sh_eventually("systemctl --user -M alice@ start mine && systemctl --user -M alice@ is-active mine");
    // kill -9 is healed by the environment's own init.
    ve.sh("systemctl kill -s KILL cron && sleep 1; systemctl is-active cron || systemctl reset-failed cron");
    ve.sh("systemctl start cron && echo '* * * * * root touch /run/cron-was-here' > /etc/cron.d/proof && chmod 644 /etc/cron.d/proof");
    ve.sh_eventually("test -e /run/cron-was-here");
}

#[test]
fn packages_install_from_an_archive() {
    let archive = tempfile::tempdir().unwrap();
    package_archive(archive.path());
    let server = format!("{}:8099", lab::CONTROL_PLANE);
    let root = archive.path().to_str().unwrap();
    let _http = Background::start(&["busybox", "httpd", "-f", "-p", &server, "-h", root]);
    let namespace = Namespace::new("apt");
    let ve = namespace.environment("shop").up();
    ve.sh(&format!("rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* && echo 'deb [trusted=yes] http://{server}/ ./' > /etc/apt/sources.list"));
    ve.sh_eventually("apt-get update -qq");
    ve.sh("DEBIAN_FRONTEND=noninteractive apt-get install -y -qq greeter");
    assert_eq!(ve.sh("greeter"), "hello from a package");
    assert_eq!(ve.sh("dpkg-query -W -f '${Status}' greeter"), "install ok installed");
    // Its postinst started a service.
    assert_eq!(ve.sh("systemctl is-active greeter.service"), "active");
    ve.sh("apt-get purge -y -qq greeter");
    assert!(!ve.exec(&["test", "-e", "/usr/bin/greeter"]).ok);
}

/// What the first user does: a package of the distribution, a reboot, another pod.
#[test]
fn nginx_from_debians_archive_serves_after_a_reboot_and_in_the_next_pod() {
    let namespace = Namespace::new("nginx");
    let ve = namespace.environment("shop").with("/services", json!([{"name": "web", "port": 80}])).up();
    ve.sh_eventually("apt-get update -qq");
    ve.sh("DEBIAN_FRONTEND=noninteractive apt-get install -y -qq nginx-light >&2 && echo hello from nginx > /var/www/html/index.html");
    let address = ve.service_ip();
    let serves = |when: &str| {
        eventually(&format!("an answer of nginx {when}"), DEADLINE, || {
            let ran =
                lab::in_network(&["curl", "--silent", "--fail", "--max-time", "5", &format!("http://{address}/")]);
            if ran.stdout == "hello from nginx\n" { Ok(()) } else { Err(format!("{}{}", ran.stdout, ran.stderr)) }
        });
    };
    serves("once it is installed");
    let boot = ve.boot();
    let _ = ve.exec(&["systemctl", "reboot"]);
    eventually("another boot", DEADLINE, || {
        let ran = ve.exec(&["cut", "-d ", "-f22", "/proc/1/stat"]);
        if ran.ok && ran.stdout.trim() != boot { Ok(()) } else { Err(ran.stderr) }
    });
    ve.wait_ready();
    serves("after a reboot");
    let pod = ve.pod();
    ve.delete_pod();
    eventually("the next pod", DEADLINE, || if ve.pod() == pod { Err(pod.clone()) } else { Ok(()) });
    ve.wait_ready();
    serves("in the next pod");
}

/// A flat package archive with one package that brings a program and a service.
fn package_archive(archive: &std::path::Path) {
    let script = r#"set -e
cd "$1"; mkdir -p p/DEBIAN p/usr/bin p/lib/systemd/system
printf '#!/bin/sh\necho hello from a package\n' > p/usr/bin/greeter; chmod 755 p/usr/bin/greeter
printf '[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n' > p/lib/systemd/system/greeter.service
printf 'Package: greeter\nVersion: 1.0\nArchitecture: all\nMaintainer: Vivarium <nobody@example.org>\nDescription: test package\n' > p/DEBIAN/control
printf '#!/bin/sh\nset -e\nsystemctl daemon-reload\nsystemctl enable --now greeter.service\n' > p/DEBIAN/postinst
printf '#!/bin/sh\nset -e\nsystemctl disable --now greeter.service || true\n' > p/DEBIAN/prerm
chmod 755 p/DEBIAN/postinst p/DEBIAN/prerm
dpkg-deb --root-owner-group -b p greeter_1.0_all.deb >/dev/null
{ cat p/DEBIAN/control; echo "Filename: ./greeter_1.0_all.deb"; echo "Size: $(stat -c %s greeter_1.0_all.deb)"; echo "SHA256: $(sha256sum greeter_1.0_all.deb | cut -d' ' -f1)"; } > Packages
chmod -R a+rX .
"#;
    let ran = run_with("sh", &["-c", script, "sh", archive.to_str().unwrap()], "");
    assert!(ran.ok, "{}{}", ran.stdout, ran.stderr);
}

#[test]
fn root_logs_in_by_ssh_with_the_key_of_the_secret_and_a_new_key_arrives_live() {
    let keys = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        let file = keys.path().join(name).to_str().unwrap().to_owned();
        let ran = run_with("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &file], "");
        assert!(ran.ok, "{}", ran.stderr);
        (file.clone(), std::fs::read_to_string(format!("{file}.pub")).unwrap())
    };
    let (first, first_public) = make("first");
    let (second, second_public) = make("second");
    let namespace = Namespace::new("ssh");
    namespace.secret("keys", "authorized_keys", &first_public);
    let ve = namespace
        .environment("shop")
        .with("/services", json!([{"name": "ssh", "port": 22}]))
        .with("/root/authorizedKeysFrom", json!([{"secretRef": {"name": "keys"}}]))
        .up();
    let address = ve.service_ip();
    let ssh = |key: &str, command: &str| {
        lab::in_network(&[
            "ssh",
            "-i",
            key,
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=5",
            "-o",
            "LogLevel=ERROR",
            &format!("root@{address}"),
            command,
        ])
    };
    let login = |key: &str, wanted: bool| {
        eventually(&format!("login by ssh to end with {wanted}"), vivarium_e2e::DEADLINE, || {
            let ran = ssh(key, "id -un; cat /proc/self/uid_map");
            if ran.ok == wanted { Ok(ran.stdout) } else { Err(format!("{}{}", ran.stdout, ran.stderr)) }
        })
    };
    let seen = login(&first, true);
    assert!(seen.starts_with("root\n"), "{seen}");
    assert!(is_a_users_range(&seen["root\n".len()..]), "{seen}");
    assert!(!ssh(&second, "true").ok, "a key that nobody gave logs in");
    // The Secret changes: the kubelet brings it, no restart.
    let boot = ve.boot();
    namespace.secret("keys", "authorized_keys", &second_public);
    login(&second, true);
    assert!(!ssh(&first, "true").ok, "the old key still logs in");
    assert_eq!(ve.boot(), boot, "it was restarted for a key");
}

#[test]
fn every_way_in_is_inside_the_user_namespace() {
    let namespace = Namespace::new("uidmap");
    let ve = namespace.environment("shop").up();
    let inside = |what: &str, map: &str| assert!(is_a_users_range(map), "{what}: {map}");
    inside("init", &ve.sh("cat /proc/1/uid_map"));
    inside("exec", &ve.sh("cat /proc/self/uid_map"));
    inside("exec -t", &with_terminal(&ve, "cat /proc/self/uid_map"));
    ve.sh("printf '[Service]\\nType=oneshot\\nExecStart=/bin/sh -c \"cat /proc/self/uid_map > /run/map\"\\n' > /run/systemd/system/map.service && systemctl daemon-reload && systemctl start map");
    inside("unit", &ve.sh("cat /run/map"));
}

/// Runs a shell line with `kubectl exec -it`.
fn with_terminal(ve: &Environment, line: &str) -> String {
    let command = format!("kubectl -n {} exec -it {} -- sh -c '{line}; tty'", ve.namespace, ve.pod());
    let ran = run_with("script", &["-qec", &command, "/dev/null"], "");
    assert!(ran.ok && ran.stdout.contains("/dev/pts/"), "no terminal: {}{}", ran.stdout, ran.stderr);
    // The terminal may echo the end of the input as ^D in front.
    let line = ran.stdout.lines().find(|line| line.contains("65536")).unwrap_or_default();
    line.split_whitespace().filter(|word| word.parse::<u64>().is_ok()).collect::<Vec<_>>().join(" ")
}

#[test]
fn kubectl_says_what_a_person_wants_to_know() {
    let namespace = Namespace::new("printed");
    let ve = namespace.environment("shop").up();
    let table = kubectl_ok(&["-n", &namespace.name, "get", "ve"]);
    let mut lines = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    assert_eq!(lines.next().unwrap(), ["NAME", "STATUS", "READY", "NODE", "TEMPLATE", "IP", "AGE"]);
    let row = lines.next().unwrap();
    assert_eq!(row[..3], ["shop", "Running", "True"], "{table}");
    assert_eq!(row[3], ve.node());
    let logs = kubectl_ok(&["-n", &namespace.name, "logs", &ve.pod()]);
    assert!(logs.contains("Debian"), "the console log does not show the boot: {logs}");
    let explained = kubectl_ok(&["explain", "ve.spec.resources.disk"]);
    assert!(explained.contains("never shrinks"), "{explained}");
}

#[test]
fn one_name_lists_everything_and_short_names_list_each_kind() {
    let namespace = Namespace::new("names");
    let _ve = namespace.environment("shop").up();
    let list = |kind: &str| kubectl_ok(&["-n", &namespace.name, "get", kind, "-o", "name"]);
    let everything = list("vivarium");
    for (short, kind, name) in [
        ("ve", "virtualenvironment", "shop"),
        ("evol", "environmentvolume", "shop"),
        ("et", "environmenttemplate", TEMPLATE),
        ("js", "journalstore", "default"),
    ] {
        let object = format!("{kind}.vivarium.dev/{name}");
        for (asked, listed) in [("vivarium", &everything), (short, &list(short))] {
            assert!(listed.lines().any(|line| line == object), "`kubectl get {asked}` lists no {object}: {listed}");
        }
    }
}
