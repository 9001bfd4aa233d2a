//! Plain containers of a pod, through the task API.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says what must hold")]

mod support;

use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    CloseIORequest, PauseRequest, PidsRequest, ResizePtyRequest, ResumeRequest, ShutdownRequest, StatsRequest, Status,
    UpdateTaskRequest,
};
use containerd_shim_protos::cgroups::metrics::Metrics;
use containerd_shim_protos::events::task::TaskExit;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use serde_json::json;
use support::{Lab, Plan, deadline, until};

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-vivarium-v1");
const SLEEPER: &str = "trap exit TERM; while :; do sleep 1000 & wait; done";

fn nothing() -> Vec<String> {
    Vec::new()
}

fn mapping(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_and_its_exit_status_and_output_arrive() {
    let lab = Lab::new(SHIM).await;
    let (status, output) = lab.run("one", &Plan::shell("echo hello; exit 7")).await;
    assert_eq!((status, output.as_str()), (7, "hello\n"));
    assert_eq!(lab.leftovers("one"), nothing());
    // Events go through a queue: the answer to a call may be there before them.
    until("the four events", || lab.topics().len() >= 4).await;
    assert_eq!(lab.topics(), ["create", "start", "exit", "delete"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_in_is_in_the_user_namespace() {
    let lab = Lab::new(SHIM).await;
    let expected = ["0", &lab.base.to_string(), "65536"].map(String::from);
    let show = Plan::shell("cat /proc/self/uid_map /proc/self/gid_map; touch /made");
    let twice: Vec<String> = expected.iter().chain(&expected).cloned().collect();
    let init = lab.up("c", &Plan::shell(&format!("cat /proc/self/uid_map /proc/self/gid_map; {SLEEPER}"))).await;
    init.wait_for(&format!("{}", lab.base)).await;
    until("both maps", || mapping(&init.text()).len() == 6).await;
    assert_eq!(mapping(&init.text()), twice);
    let (_, output) = lab.exec("c", "plain", &show).await;
    assert_eq!(mapping(&output), twice);
    let terminal = Plan { terminal: true, ..show.clone() };
    let (_, output) = lab.exec("c", "terminal", &terminal).await;
    assert_eq!(mapping(&output), twice);
    lab.down("c").await;
    let (_, output) = lab.run("t", &Plan { terminal: true, ..show }).await;
    assert_eq!(mapping(&output), twice);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_has_a_terminal_of_its_size() {
    let lab = Lab::new(SHIM).await;
    let _init = lab.up("c", &Plan::shell(SLEEPER)).await;
    let mut plan = Plan::shell("tty; read line; stty size");
    plan.terminal = true;
    plan.stdin = Some(Vec::new());
    let mut streams = lab.add_exec("c", "e", &plan).await.unwrap();
    lab.start("c", "e").await.unwrap();
    streams.wait_for("/dev/pts/").await;
    let size = ResizePtyRequest { id: "c".into(), exec_id: "e".into(), width: 132, height: 43, ..Default::default() };
    lab.tasks.resize_pty(deadline(), &size).await.unwrap();
    let mut stdin = streams.writer.take().unwrap().join().unwrap();
    std::io::Write::write_all(&mut stdin, b"\n").unwrap();
    assert_eq!(lab.wait("c", "e").await, 0);
    streams.wait_for("43 132").await;
    lab.delete("c", "e").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_of_init_is_resized() {
    let lab = Lab::new(SHIM).await;
    let mut plan = Plan::shell("echo ready; read line; stty size </dev/console");
    plan.terminal = true;
    plan.stdin = Some(Vec::new());
    let mut streams = lab.up("c", &plan).await;
    streams.wait_for("ready").await;
    // No exec id means init, as `kubectl attach` sends it.
    let size = ResizePtyRequest { id: "c".into(), width: 132, height: 43, ..Default::default() };
    lab.tasks.resize_pty(deadline(), &size).await.unwrap();
    let mut stdin = streams.writer.take().unwrap().join().unwrap();
    std::io::Write::write_all(&mut stdin, b"\n").unwrap();
    assert_eq!(lab.wait("c", "").await, 0);
    streams.wait_for("43 132").await;
    lab.delete("c", "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_arrives_and_ends() {
    let lab = Lab::new(SHIM).await;
    let mut plan = Plan::shell("cat; echo end");
    plan.stdin = Some(b"line\n".to_vec());
    let mut streams = lab.up("c", &plan).await;
    // containerd keeps its end of the fifo open and asks for the end of input instead.
    let stdin = streams.writer.take().unwrap().join().unwrap();
    streams.wait_for("line").await;
    assert_eq!(lab.state("c", "").await, Status::RUNNING);
    let close = CloseIORequest { id: "c".into(), stdin: true, ..Default::default() };
    lab.tasks.close_io(deadline(), &close).await.unwrap();
    assert_eq!(lab.wait("c", "").await, 0);
    lab.delete("c", "").await.unwrap();
    drop(stdin);
    assert_eq!(streams.finish(), "line\nend\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn output_larger_than_any_buffer_arrives_whole() {
    let lab = Lab::new(SHIM).await;
    let (status, output) = lab.run("c", &Plan::shell("yes 0123456789abcde | head -c 4000000")).await;
    assert_eq!((status, output.len()), (0, 4_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reach_their_process() {
    let lab = Lab::new(SHIM).await;
    let init = lab.up("c", &Plan::shell("trap 'echo got; exit 3' TERM; echo set; while :; do sleep 0.05; done")).await;
    init.wait_for("set").await;
    let _exec = lab.add_exec("c", "e", &Plan::new(&["/bin/sleep", "1000"])).await.unwrap();
    lab.start("c", "e").await.unwrap();
    lab.kill("c", "e", 9).await.unwrap();
    assert_eq!(lab.wait("c", "e").await, 137);
    assert!(lab.kill("c", "e", 9).await.unwrap_err().to_string().contains("ended already"));
    lab.delete("c", "e").await.unwrap();
    lab.kill("c", "", 15).await.unwrap();
    assert_eq!(lab.wait("c", "").await, 3);
    assert!(lab.kill("none", "", 9).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_container_stands_still_and_goes_on() {
    let lab = Lab::new(SHIM).await;
    let init = lab.up("c", &Plan::shell("while :; do echo x; sleep 0.01; done")).await;
    init.wait_for("x").await;
    lab.tasks.pause(deadline(), &PauseRequest { id: "c".into(), ..Default::default() }).await.unwrap();
    assert_eq!(lab.state("c", "").await, Status::PAUSED);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let before = init.text().len();
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(init.text().len(), before);
    lab.add_exec("c", "e", &Plan::shell("true")).await.unwrap();
    let error = lab.start("c", "e").await.unwrap_err().to_string();
    assert!(error.contains("paused"), "{error}");
    lab.tasks.resume(deadline(), &ResumeRequest { id: "c".into(), ..Default::default() }).await.unwrap();
    until("output to go on", || init.text().len() > before).await;
    assert_eq!(lab.state("c", "").await, Status::RUNNING);
    lab.tasks.pause(deadline(), &PauseRequest { id: "c".into(), ..Default::default() }).await.unwrap();
    // What is frozen can be killed all the same.
    lab.kill("c", "", 9).await.unwrap();
    assert_eq!(lab.wait("c", "").await, 137);
    lab.delete("c", "").await.unwrap();
    assert_eq!(lab.leftovers("c"), nothing());
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_updated_and_statistics_tell_them() {
    let lab = Lab::new(SHIM).await;
    let _init = lab.up("c", &Plan::shell("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; exec sleep 1000")).await;
    let resources = json!({"memory": {"limit": 67_108_864}, "cpu": {"shares": 512, "quota": 50_000, "period": 100_000},
        "pids": {"limit": 77}});
    let update = UpdateTaskRequest {
        id: "c".into(),
        resources: MessageField::some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
            value: resources.to_string().into_bytes(),
            ..Any::default()
        }),
        ..Default::default()
    };
    lab.tasks.update(deadline(), &update).await.unwrap();
    let answer = lab.tasks.stats(deadline(), &StatsRequest { id: "c".into(), ..Default::default() }).await.unwrap();
    let any = answer.stats.unwrap();
    if any.type_url == "io.containerd.cgroups.v1.Metrics" {
        let metrics = Metrics::parse_from_bytes(&any.value).unwrap();
        assert!(metrics.cpu.usage.total > 0);
        assert!(metrics.memory.usage.usage > 0);
        assert_eq!(metrics.memory.usage.limit, 67_108_864);
        assert_eq!((metrics.pids.current, metrics.pids.limit), (1, 77));
    } else {
        let metrics = containerd_shim_protos::cgroups_v2::metrics::Metrics::parse_from_bytes(&any.value).unwrap();
        assert!(metrics.cpu.usage_usec > 0);
        assert!(metrics.memory.usage > 0);
        assert_eq!(metrics.memory.usage_limit, 67_108_864);
        assert_eq!(metrics.pids.limit, 77);
    }
    let pids = lab.tasks.pids(deadline(), &PidsRequest { id: "c".into(), ..Default::default() }).await.unwrap();
    assert_eq!(pids.processes.iter().map(|p| p.pid).collect::<Vec<_>>(), [lab.pid("c").await]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_for_lack_of_memory_is_told() {
    let lab = Lab::new(SHIM).await;
    let mut plan = Plan::shell("echo up; dd if=/dev/zero of=/dev/null bs=200M count=1");
    plan.change = |spec| spec["linux"]["resources"]["memory"] = json!({"limit": 33_554_432});
    let streams = lab.up("c", &plan).await;
    let event: containerd_shim_protos::events::task::TaskOOM = lab.event("/tasks/oom").await;
    assert_eq!(event.container_id, "c");
    assert_ne!(lab.wait("c", "").await, 0);
    drop(streams);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_leaves_nothing_of_daemons_either() {
    let lab = Lab::new(SHIM).await;
    let _init = lab.up("c", &Plan::shell(SLEEPER)).await;
    // Orphans inside go to the container's init, the exec itself to the shim.
    for index in 0..5 {
        let (status, _) =
            lab.exec("c", &format!("e{index}"), &Plan::shell("(sleep 1000 >/dev/null 2>&1 &) ; (sleep 0.01 &)")).await;
        assert_eq!(status, 0);
    }
    lab.down("c").await;
    assert_eq!(lab.leftovers("c"), nothing());
    assert_eq!(lab.shim_children(), nothing());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_cannot_be_made_leaves_no_zombies() {
    let lab = Lab::new(SHIM).await;
    let mut plan = Plan::shell("true");
    plan.change = |spec| {
        let mount = json!({"destination": "/mnt", "type": "nosuchfs", "source": "none", "options": ["nosuid"]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    };
    for id in ["a", "b", "c"] {
        let (_streams, created) = lab.create(id, &plan).await;
        let error = created.unwrap_err().to_string();
        // It is libcontainer that fails, when its processes are there already.
        assert!(error.contains("cannot create the container") && error.contains("nosuchfs"), "{error}");
        // The helper may outlive its answer by a moment; the shim then inherits what libcontainer has not waited for.
        until("the children to be reaped", || lab.shim_children().is_empty()).await;
        assert_eq!(lab.leftovers(id), nothing());
    }
    assert_eq!(lab.run("next", &Plan::shell("exit 7")).await, (7, String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn output_held_open_by_a_child_does_not_hold_the_delete() {
    let lab = Lab::new(SHIM).await;
    let _init = lab.up("c", &Plan::shell(SLEEPER)).await;
    let streams = lab.add_exec("c", "e", &Plan::shell("echo said; sleep 1000 &")).await.unwrap();
    lab.start("c", "e").await.unwrap();
    assert_eq!(lab.wait("c", "e").await, 0);
    let deleted = tokio::time::timeout(Duration::from_mins(1), lab.delete("c", "e")).await;
    deleted.expect("it waits for the child").unwrap();
    assert_eq!(streams.finish(), "said\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_delete_action_clears_up_after_a_killed_shim() {
    let lab = Lab::new(SHIM).await;
    let _init = lab.up("c", &Plan::shell("(sleep 1000 &); exec sleep 1000")).await;
    assert!(!lab.leftovers("c").is_empty());
    let shim = rustix::process::Pid::from_raw(lab.shim_pid).unwrap();
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
    lab.delete_action("c");
    until("nothing to be left", || lab.leftovers("c").is_empty()).await;
    // containerd may run it again.
    lab.delete_action("c");
}

/// containerd runs it after the Shutdown of every container, and the shim goes on serving the others of the pod.
#[tokio::test(flavor = "multi_thread")]
async fn the_delete_action_of_one_container_leaves_the_others_alone() {
    let lab = Lab::new(SHIM).await;
    let _other = lab.up("b", &Plan::shell(SLEEPER)).await;
    let (pid, groups) = (lab.pid("b").await, lab.groups("b"));
    assert!(!groups.is_empty());
    // One that still runs is killed and removed by the action itself.
    for (id, ended) in [("ended", true), ("running", false)] {
        let _streams = lab.up(id, &Plan::shell(SLEEPER)).await;
        assert_eq!(lab.groups(id).len(), groups.len());
        if ended {
            lab.down(id).await;
            let shutdown = ShutdownRequest { id: id.into(), ..Default::default() };
            lab.tasks.shutdown(deadline(), &shutdown).await.unwrap();
        }
        lab.delete_action(id);
        lab.delete_action(id);
        assert!(lab.groups(id).is_empty() && !lab.state_dir(id).exists(), "{:?}", lab.leftovers(id));
        if !ended {
            assert_eq!(lab.wait(id, "").await, 137);
            lab.delete(id, "").await.unwrap();
        }
        assert_eq!((lab.state("b", "").await, lab.pid("b").await), (Status::RUNNING, pid));
        let (status, output) = lab.exec("b", id, &Plan::shell("echo works")).await;
        assert_eq!((status, output.as_str()), (0, "works\n"));
        assert_eq!(lab.groups("b"), groups);
        assert!(lab.state_dir("b").exists());
    }
}

/// The kubelet makes them, in the v2 hierarchy of a hybrid host too, and removes them when the pod is gone.
#[tokio::test(flavor = "multi_thread")]
async fn the_control_groups_of_the_pod_outlive_its_containers() {
    let lab = Lab::new(SHIM).await;
    let _first = lab.up("a", &Plan::shell(SLEEPER)).await;
    let _second = lab.up("b", &Plan::shell(SLEEPER)).await;
    let parents: Vec<_> = lab.groups("a").iter().map(|group| group.parent().unwrap().to_owned()).collect();
    assert!(!parents.is_empty());
    lab.down("a").await;
    lab.delete_action("a");
    // This one runs: it is the action that removes the last groups below the pod's.
    lab.delete_action("b");
    lab.down("b").await;
    for id in ["a", "b"] {
        assert_eq!(lab.leftovers(id), nothing());
    }
    assert_eq!(lab.pod_groups(), parents);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_without_a_user_namespace_is_refused() {
    let lab = Lab::new(SHIM).await;
    let cases: [fn(&mut serde_json::Value); 3] = [
        |spec| spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != "user"),
        |spec| {
            for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
                if namespace["type"] == "user" {
                    namespace["path"] = json!(format!("/proc/{}/ns/user", std::process::id()));
                }
            }
        },
        |spec| {
            for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
                namespace.as_object_mut().unwrap().remove("path");
            }
        },
    ];
    for (index, change) in cases.into_iter().enumerate() {
        let id = format!("c{index}");
        let plan = Plan { change, ..Plan::shell("true") };
        let (_streams, created) = lab.create(&id, &plan).await;
        let error = created.unwrap_err().to_string();
        assert!(error.contains("set hostUsers: false in the pod spec"), "{error}");
        assert_eq!(lab.leftovers(&id), nothing());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_do_not_exist_fail_to_start() {
    let lab = Lab::new(SHIM).await;
    let (_streams, created) = lab.create("c", &Plan::new(&["/no/such"])).await;
    created.unwrap();
    let error = lab.start("c", "").await.unwrap_err().to_string();
    assert!(error.contains("no such file"), "{error}");
    assert_ne!(lab.wait("c", "").await, 0);
    lab.delete("c", "").await.unwrap();
    assert_eq!(lab.leftovers("c"), nothing());

    let _init = lab.up("d", &Plan::shell(SLEEPER)).await;
    for (index, (args, reason)) in [
        (&["no-such"][..], "not found in $PATH"),
        (&["/no/such"], "no such file"),
        (&["/etc/passwd"], "ermission denied"),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("e{index}");
        let _streams = lab.add_exec("d", &id, &Plan::new(args)).await.unwrap();
        let error = lab.start("d", &id).await.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        lab.delete("d", &id).await.unwrap();
    }
    assert_eq!(lab.topics().iter().filter(|topic| *topic == "exec-started").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_execs_at_once_all_end() {
    let lab = Lab::new(SHIM).await;
    let _init = lab.up("c", &Plan::shell(SLEEPER)).await;
    let begin = Instant::now();
    let execs = (0..40u32).map(|index| {
        let lab = &lab;
        async move {
            let plan = Plan::shell(&format!("echo {index}; exit {index}"));
            assert_eq!(lab.exec("c", &format!("e{index}"), &plan).await, (index, format!("{index}\n")));
        }
    });
    futures::future::join_all(execs).await;
    println!("40 execs in {:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_of_init_is_told_after_those_of_its_execs() {
    let lab = Lab::new(SHIM).await;
    let _init = lab.up("c", &Plan::shell(SLEEPER)).await;
    let mut streams = Vec::new();
    for index in 0..5 {
        let id = format!("e{index}");
        streams.push(lab.add_exec("c", &id, &Plan::new(&["/bin/sleep", "1000"])).await.unwrap());
        lab.start("c", &id).await.unwrap();
    }
    lab.kill("c", "", 9).await.unwrap();
    lab.wait("c", "").await;
    until("all exits", || lab.topics().iter().filter(|t| *t == "exit").count() == 6).await;
    let exits: Vec<TaskExit> = lab
        .events
        .lock()
        .unwrap()
        .iter()
        .filter(|(topic, _)| topic == "/tasks/exit")
        .map(|(_, any)| TaskExit::parse_from_bytes(&any.value).unwrap())
        .collect();
    assert_eq!(exits.last().unwrap().id, "c");
    assert!(exits[..5].iter().all(|exit| exit.exit_status == 137));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_wait_for_a_containerd_that_is_away() {
    let mut lab = Lab::new(SHIM).await;
    let (_, _) = lab.run("first", &Plan::shell("true")).await;
    until("the first events", || lab.topics().len() == 4).await;
    lab.stop_events().await;
    lab.run("second", &Plan::shell("exit 5")).await;
    lab.start_events().await;
    until("the kept events", || lab.topics().len() == 8).await;
    assert_eq!(lab.topics()[4..], ["create", "start", "exit", "delete"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_profile_of_the_spec_is_enforced_in_init_and_exec() {
    let lab = Lab::new(SHIM).await;
    let mut plan = Plan::shell("grep Seccomp: /proc/self/status; mkdir /d; echo $?; exec sleep 1000");
    plan.change = |spec| {
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]});
    };
    let init = lab.up("c", &plan).await;
    init.wait_for("Seccomp:\t2\n1\n").await;
    let (_, output) =
        lab.exec("c", "e", &Plan::shell("grep -E '^(Seccomp|CapEff):' /proc/self/status; mkdir /d 2>&1")).await;
    assert!(output.contains("Seccomp:\t2") && output.contains("ermission denied"), "{output}");
    // 14 capabilities as in the spec, not all.
    assert!(output.contains("CapEff:\t00000000a80425fb"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_can_be_killed_for_lack_of_memory_like_init() {
    let lab = Lab::new(SHIM).await;
    let _init = lab.up("c", &Plan::shell(SLEEPER)).await;
    let (_, score) = lab.exec("c", "e", &Plan::shell("cat /proc/self/oom_score_adj")).await;
    assert_eq!(score, "1000\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn control_groups_cannot_be_written() {
    let lab = Lab::new(SHIM).await;
    // Mounts that are not read-only; whether there is a group at all; directories in which making one is not refused;
    // mount points.
    let script = "grep ' /sys/fs/cgroup' /proc/self/mountinfo | grep -vE ' ro[, ]' | wc -l; \
                  [ -e \"$(find /sys/fs/cgroup -name cgroup.procs | head -1)\" ] && echo seen; \
                  for dir in /sys/fs/cgroup /sys/fs/cgroup/*; do \
                    [ ! -d $dir ] || mkdir $dir/x 2>&1 | grep -qE 'Read-only|denied' || echo $dir; \
                  done | wc -l; \
                  grep ' /sys/fs/cgroup' /proc/self/mountinfo | cut -d' ' -f5";
    let (_, output) = lab.run("c", &Plan::shell(script)).await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.get(..3), Some(&["0", "seen", "0"][..]), "{output}");
    let mut points = lines[3..].to_vec();
    points.sort_unstable();
    assert!(points.contains(&"/sys/fs/cgroup"), "{output}");
    // libcontainer's own mounts of v1 hierarchies come up twice.
    assert!(points.windows(2).all(|pair| pair[0] != pair[1]), "{output}");
}

/// An image may hold any symlink. Nothing outside of the container's root may change, whatever comes of the container.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_images_reach_nothing_outside() {
    use std::os::unix::fs::symlink;
    let lab = Lab::new(SHIM).await;
    let canary = tempfile::tempdir_in("/var/tmp").unwrap();
    let outside = canary.path().to_str().unwrap().to_owned();
    let volume = lab.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    for (index, name) in ["dev", "proc", "sys", "etc", "tmp"].into_iter().enumerate() {
        for target in [outside.clone(), format!("/../../../../../../..{outside}"), "/proc/1/root/var/tmp".into()] {
            let root = lab.dir.path().join(format!("hostile-{index}-{}", target.len()));
            support::rootfs::busybox(&root);
            std::fs::remove_dir_all(root.join(name)).unwrap();
            symlink(&target, root.join(name)).unwrap();
            let id = format!("c{index}-{}", target.len());
            let mut plan = Plan::shell("touch /etc/x /tmp/x; sleep 0.1");
            plan.rootfs = Some(root);
            let mut spec = lab.spec(&id, &plan);
            spec["mounts"].as_array_mut().unwrap().push(json!({"destination": "/etc/deep/mount", "type": "bind",
                "source": volume, "options": ["rbind", "rw"]}));
            spec["mounts"].as_array_mut().unwrap().push(json!({"destination": "/tmp/file", "type": "bind",
                "source": "/bin/busybox", "options": ["rbind", "ro"]}));
            let (_streams, created) = lab.create_from(&id, &plan, &spec).await;
            if created.is_ok() {
                lab.start(&id, "").await.ok();
                lab.wait(&id, "").await;
                lab.delete(&id, "").await.unwrap();
            }
            assert_eq!(std::fs::read_dir(canary.path()).unwrap().count(), 0, "/{name} -> {target}");
            assert_eq!(lab.leftovers(&id), nothing());
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("vivarium-stage") && !mounts.contains(&outside), "a mount is visible on the node");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_shutdown_ends_the_shim() {
    let lab = Lab::new(SHIM).await;
    let _init = lab.up("c", &Plan::shell(SLEEPER)).await;
    let shutdown = ShutdownRequest { id: "c".into(), ..Default::default() };
    lab.tasks.shutdown(deadline(), &shutdown).await.unwrap();
    assert_eq!(lab.state("c", "").await, Status::RUNNING);
    lab.down("c").await;
    lab.tasks.shutdown(deadline(), &shutdown).await.ok();
    let proc = format!("/proc/{}", lab.shim_pid);
    until("the shim to end", || !std::path::Path::new(&proc).exists()).await;
    // Events go through a queue: the answer to a call may be there before them.
    until("the four events", || lab.topics().len() >= 4).await;
    assert_eq!(lab.topics(), ["create", "start", "exit", "delete"]);
}

#[test]
fn features_are_told() {
    let output = std::process::Command::new(SHIM).arg("-info").stdin(std::process::Stdio::null()).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    let info = containerd_shim_protos::types::introspection::RuntimeInfo::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!(info.name, "io.containerd.vivarium.v1");
}
