//! Drives the real shim as containerd does: its `start` action, its ttrpc socket, a server for its events. A [`Lab`] is
//! one pod's worth: a user namespace with what a pod shares, a shim, a directory. Everything is undone on drop.
#![allow(dead_code, reason = "each test file uses a part of the harness")]
#![allow(missing_docs, reason = "test support")]

pub mod environment;
pub mod rootfs;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CreateTaskRequest, DeleteRequest, Empty, ExecProcessRequest, ForwardRequest, KillRequest, StartRequest,
    StateRequest, Status, WaitRequest,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim_async::{Client, Events, TaskClient, create_events};
use containerd_shim_protos::types::mount::Mount;
use serde_json::{Value, json};
use ttrpc::r#async::TtrpcContext;
use ttrpc::context::Context;

/// First host id of the first lab's range; each lab has its own.
const FIRST_BASE: u32 = 1_000_000_000;
static LABS: AtomicU32 = AtomicU32::new(0);

pub type Log = Arc<Mutex<Vec<(String, Any)>>>;

struct EventLog(Log);

#[async_trait]
impl Events for EventLog {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap_or_default();
        self.0.lock().unwrap().push((envelope.topic, envelope.event.unwrap_or_default()));
        Ok(Empty::new())
    }
}

pub struct Lab {
    pub dir: tempfile::TempDir,
    pub namespace: String,
    pub base: u32,
    pub events: Log,
    pub tasks: TaskClient,
    pub shim_pid: i32,
    pub binary: PathBuf,
    pub shim_id: String,
    holder: Child,
    server: Option<ttrpc::r#async::Server>,
}

pub fn deadline() -> Context {
    ttrpc::context::with_duration(Duration::from_secs(60))
}

pub fn require_root() {
    assert!(rustix::process::geteuid().is_root(), "this test changes namespaces and mounts: run it as root");
}

/// What to run and how; the rest of the spec is as CRI writes it.
#[derive(Clone)]
pub struct Plan {
    pub args: Vec<String>,
    pub terminal: bool,
    pub stdin: Option<Vec<u8>>,
    pub change: fn(&mut Value),
    pub rootfs: Option<PathBuf>,
}

impl Plan {
    pub fn new(args: &[&str]) -> Self {
        Self {
            args: args.iter().map(ToString::to_string).collect(),
            terminal: false,
            stdin: None,
            change: |_| {},
            rootfs: None,
        }
    }

    pub fn shell(script: &str) -> Self {
        Self::new(&["/bin/sh", "-c", script])
    }
}

/// Streams of a process: fifos with a reader and a writer at our end.
pub struct Streams {
    pub stdin: String,
    pub stdout: String,
    output: Arc<Mutex<Vec<u8>>>,
    reader: Option<std::thread::JoinHandle<()>>,
    pub writer: Option<std::thread::JoinHandle<fs::File>>,
}

impl Streams {
    fn new(dir: &Path, name: &str, stdin: Option<Vec<u8>>, keep_stdin: bool) -> Self {
        let fifo = |suffix: &str| {
            let path = dir.join(format!("{name}.{suffix}"));
            rustix::fs::mknodat(
                rustix::fs::CWD,
                &path,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::from_raw_mode(0o600),
                0,
            )
            .unwrap();
            path.to_str().unwrap().to_owned()
        };
        let stdout = fifo("out");
        let output = Arc::new(Mutex::new(Vec::new()));
        let (path, sink) = (stdout.clone(), output.clone());
        // Opened before the shim is told of it, as containerd does: a short-lived process closes its end at once.
        let mut file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(&path)
            .unwrap();
        let reader = std::thread::spawn(move || {
            use rustix::event::{PollFd, PollFlags, poll};
            let mut buffer = [0; 4096];
            loop {
                // Before the first writer there is neither input nor an end.
                poll(&mut [PollFd::new(&file, PollFlags::IN)], None).unwrap();
                match file.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(length) => sink.lock().unwrap().extend(&buffer[..length]),
                    Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
                }
            }
        });
        let mut streams = Self { stdin: String::new(), stdout, output, reader: Some(reader), writer: None };
        if stdin.is_some() || keep_stdin {
            streams.stdin = fifo("in");
            let path = streams.stdin.clone();
            streams.writer = Some(std::thread::spawn(move || {
                let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
                file.write_all(&stdin.unwrap_or_default()).unwrap();
                file
            }));
        }
        streams
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap()).into_owned()
    }

    /// Output once it has ended.
    pub fn finish(mut self) -> String {
        let reader = self.reader.take().unwrap();
        let begin = Instant::now();
        while !reader.is_finished() {
            assert!(begin.elapsed() < Duration::from_secs(20), "the output does not end; so far: {:?}", self.text());
            std::thread::sleep(Duration::from_millis(2));
        }
        self.text()
    }

    pub async fn wait_for(&self, needle: &str) {
        until(&format!("{needle:?} in the output"), || self.text().contains(needle)).await;
    }
}

/// Waits for a condition that has no event.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(30), "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Lab {
    pub async fn new(binary: &str) -> Self {
        require_root();
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let sandbox = &format!("sandbox-{}-{number}", std::process::id());
        let base = FIRST_BASE + (std::process::id() % 10_000) * 131_072 + number * 65_536;
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let namespace = format!("vivarium-test-{}-{number}", std::process::id());
        let holder = hold_namespaces(base);
        let events = Log::default();
        let socket = dir.path().join("events.sock");
        let address = format!("unix://{}", socket.display());
        let mut server = ttrpc::r#async::Server::new()
            .bind(&address)
            .unwrap()
            .register_service(create_events(Arc::new(EventLog(events.clone()))));
        server.start().await.unwrap();
        rootfs::busybox(&dir.path().join("rootfs"));

        let bundle = dir.path().join(sandbox);
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("log"), "").unwrap();
        let output = Command::new(binary)
            .args(["-namespace", &namespace, "-address", &format!("{}/c.sock", dir.path().display())])
            .args(["-publish-binary", "/bin/false", "-debug", "-id", sandbox, "start"])
            .current_dir(&bundle)
            .env("TTRPC_ADDRESS", &socket)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(reply["version"], 3);
        let client = Client::connect(reply["address"].as_str().unwrap()).await.unwrap();
        let shim_pid = peer_pid(reply["address"].as_str().unwrap());
        Self {
            dir,
            namespace,
            base,
            events,
            tasks: TaskClient::new(client),
            shim_pid,
            binary: binary.into(),
            shim_id: sandbox.into(),
            holder,
            server: Some(server),
        }
    }

    /// containerd goes away.
    pub async fn stop_events(&mut self) {
        self.server.take().unwrap().shutdown().await.unwrap();
        fs::remove_file(self.dir.path().join("events.sock")).ok();
    }

    /// containerd comes back.
    pub async fn start_events(&mut self) {
        let address = format!("unix://{}", self.dir.path().join("events.sock").display());
        let mut server = ttrpc::r#async::Server::new()
            .bind(&address)
            .unwrap()
            .register_service(create_events(Arc::new(EventLog(self.events.clone()))));
        server.start().await.unwrap();
        self.server = Some(server);
    }

    pub fn state_dir(&self, id: &str) -> PathBuf {
        Path::new("/run/vivarium/shim").join(&self.namespace).join(id)
    }

    pub fn group_path(&self, id: &str) -> String {
        format!("/{}/{id}", self.namespace)
    }

    /// Control groups of a container that are there, one for each hierarchy.
    pub fn groups(&self, id: &str) -> Vec<PathBuf> {
        existing_groups(&self.group_path(id))
    }

    /// Control groups of the pod that are there: those above the containers' own, which are the kubelet's.
    pub fn pod_groups(&self) -> Vec<PathBuf> {
        existing_groups(&self.namespace)
    }

    /// Children of the shim, whichever of its threads they belong to. Zombies are among them.
    pub fn shim_children(&self) -> Vec<String> {
        let threads = PathBuf::from(format!("/proc/{}/task", self.shim_pid));
        let of_main = threads.join(self.shim_pid.to_string()).join("children");
        assert!(of_main.exists(), "no {}: the shim has ended, or CONFIG_PROC_CHILDREN is off", of_main.display());
        let mut children = Vec::new();
        for thread in fs::read_dir(&threads).unwrap().flatten() {
            // A thread that has ended meanwhile has no children.
            let list = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            children.extend(list.split_whitespace().map(str::to_owned));
        }
        children
    }

    pub fn holder_pid(&self) -> u32 {
        self.holder.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join(&self.shim_id).join("log")).unwrap_or_default()
    }

    /// The spec of a container, as CRI writes it, shortened.
    pub fn spec(&self, id: &str, plan: &Plan) -> Value {
        let ns =
            |kind: &str, name: &str| json!({"type": kind, "path": format!("/proc/{}/ns/{name}", self.holder.id())});
        let map = json!([{"containerID": 0, "hostID": self.base, "size": 65536}]);
        let caps = json!([
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FSETID",
            "CAP_FOWNER",
            "CAP_MKNOD",
            "CAP_NET_RAW",
            "CAP_SETGID",
            "CAP_SETUID",
            "CAP_SETFCAP",
            "CAP_SETPCAP",
            "CAP_NET_BIND_SERVICE",
            "CAP_SYS_CHROOT",
            "CAP_KILL",
            "CAP_AUDIT_WRITE"
        ]);
        let mut spec = json!({
            "ociVersion": "1.2.0",
            "process": {
                "terminal": plan.terminal,
                "user": {"uid": 0, "gid": 0},
                "args": plan.args,
                "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
                "cwd": "/",
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
                "noNewPrivileges": false,
                "oomScoreAdj": 1000
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                    "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                    "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                    "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                    "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                    "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
            ],
            "linux": {
                "cgroupsPath": self.group_path(id),
                "uidMappings": map, "gidMappings": map,
                "namespaces": [{"type": "pid"}, {"type": "mount"}, ns("user", "user"), ns("network", "net"),
                    ns("ipc", "ipc"), ns("uts", "uts")],
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                    "/proc/sched_debug", "/proc/scsi", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
            }
        });
        (plan.change)(&mut spec);
        spec
    }

    /// Create; gives the streams and the answer.
    pub async fn create(&self, id: &str, plan: &Plan) -> (Streams, ttrpc::Result<u32>) {
        let spec = self.spec(id, plan);
        self.create_from(id, plan, &spec).await
    }

    pub async fn create_from(&self, id: &str, plan: &Plan, spec: &Value) -> (Streams, ttrpc::Result<u32>) {
        let bundle = self.dir.path().join(id);
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        let streams = Streams::new(&bundle, "init", plan.stdin.clone(), false);
        let (upper, work) = (bundle.join("upper"), bundle.join("work"));
        for dir in [&upper, &work] {
            fs::create_dir_all(dir).unwrap();
        }
        std::os::unix::fs::chown(&upper, Some(self.base), Some(self.base)).unwrap();
        let lower = plan.rootfs.clone().unwrap_or_else(|| self.dir.path().join("rootfs"));
        let request = CreateTaskRequest {
            id: id.into(),
            bundle: bundle.to_str().unwrap().into(),
            rootfs: vec![Mount {
                type_: "overlay".into(),
                source: "overlay".into(),
                options: vec![
                    format!("uidmap=0:{}:65536", self.base),
                    format!("gidmap=0:{}:65536", self.base),
                    format!("workdir={}", work.display()),
                    format!("upperdir={}", upper.display()),
                    format!("lowerdir={}", lower.display()),
                    "index=off".into(),
                ],
                ..Mount::default()
            }],
            terminal: plan.terminal,
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            ..CreateTaskRequest::default()
        };
        let answer = self.tasks.create(deadline(), &request).await;
        (streams, answer.map(|answer| answer.pid))
    }

    pub async fn start(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = StartRequest { id: id.into(), exec_id: exec.into(), ..StartRequest::default() };
        self.tasks.start(deadline(), &request).await.map(|answer| answer.pid)
    }

    pub async fn wait(&self, id: &str, exec: &str) -> u32 {
        let request = WaitRequest { id: id.into(), exec_id: exec.into(), ..WaitRequest::default() };
        self.tasks.wait(deadline(), &request).await.unwrap().exit_status
    }

    pub async fn kill(&self, id: &str, exec: &str, signal: u32) -> ttrpc::Result<Empty> {
        let request = KillRequest { id: id.into(), exec_id: exec.into(), signal, ..KillRequest::default() };
        self.tasks.kill(deadline(), &request).await
    }

    pub async fn delete(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = DeleteRequest { id: id.into(), exec_id: exec.into(), ..DeleteRequest::default() };
        self.tasks.delete(deadline(), &request).await.map(|answer| answer.exit_status)
    }

    pub async fn state(&self, id: &str, exec: &str) -> Status {
        let request = StateRequest { id: id.into(), exec_id: exec.into(), ..StateRequest::default() };
        self.tasks.state(deadline(), &request).await.unwrap().status.unwrap()
    }

    pub async fn pid(&self, id: &str) -> u32 {
        let request = StateRequest { id: id.into(), ..StateRequest::default() };
        self.tasks.state(deadline(), &request).await.unwrap().pid
    }

    /// Creates and starts.
    pub async fn up(&self, id: &str, plan: &Plan) -> Streams {
        let (streams, created) = self.create(id, plan).await;
        created.unwrap_or_else(|e| panic!("create {id}: {e:?}\n{}", self.log()));
        self.start(id, "").await.unwrap_or_else(|e| panic!("start {id}: {e:?}\n{}", self.log()));
        streams
    }

    /// Runs a container to its end: exit status and output.
    pub async fn run(&self, id: &str, plan: &Plan) -> (u32, String) {
        let streams = self.up(id, plan).await;
        let status = self.wait(id, "").await;
        assert_eq!(self.delete(id, "").await.unwrap(), status);
        (status, streams.finish())
    }

    /// Kills and deletes.
    pub async fn down(&self, id: &str) {
        self.kill(id, "", 9).await.ok();
        self.wait(id, "").await;
        self.delete(id, "").await.unwrap();
    }

    /// Announces an exec.
    pub async fn add_exec(&self, id: &str, exec: &str, plan: &Plan) -> ttrpc::Result<Streams> {
        let mut spec = self.spec(id, plan);
        let streams = Streams::new(&self.dir.path().join(id), &format!("exec-{exec}"), plan.stdin.clone(), false);
        let request = ExecProcessRequest {
            id: id.into(),
            exec_id: exec.into(),
            terminal: plan.terminal,
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            spec: MessageField::some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                value: spec["process"].take().to_string().into_bytes(),
                ..Any::default()
            }),
            ..ExecProcessRequest::default()
        };
        self.tasks.exec(deadline(), &request).await.map(|_| streams)
    }

    /// Runs an exec to its end: exit status and output.
    pub async fn exec(&self, id: &str, exec: &str, plan: &Plan) -> (u32, String) {
        let streams = self.add_exec(id, exec, plan).await.unwrap();
        self.start(id, exec).await.unwrap_or_else(|e| panic!("start exec {exec}: {e:?}\n{}", self.log()));
        let status = self.wait(id, exec).await;
        assert_eq!(self.delete(id, exec).await.unwrap(), status);
        (status, streams.finish())
    }

    pub fn topics(&self) -> Vec<String> {
        self.events.lock().unwrap().iter().map(|(topic, _)| topic.trim_start_matches("/tasks/").to_owned()).collect()
    }

    /// Waits for an event of a topic.
    pub async fn event<M: Message>(&self, topic: &str) -> M {
        let find = || self.events.lock().unwrap().iter().find(|(t, _)| t == topic).map(|(_, any)| any.value.clone());
        until(&format!("event {topic}"), || find().is_some()).await;
        M::parse_from_bytes(&find().unwrap()).unwrap()
    }

    /// The `delete` action, as containerd runs it when the shim is gone.
    pub fn delete_action(&self, id: &str) {
        let bundle = self.dir.path().join(id);
        let output = Command::new(&self.binary)
            .args(["-namespace", &self.namespace, "-address", "/none", "-publish-binary", "/bin/false"])
            .args(["-id", id, "-bundle", bundle.to_str().unwrap(), "delete"])
            .current_dir(&bundle)
            .env("TTRPC_ADDRESS", "/none")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(!output.stdout.is_empty());
    }

    /// What of a container is left: state, control groups, processes in the user namespace.
    pub fn leftovers(&self, id: &str) -> Vec<String> {
        let mut left = Vec::new();
        if self.state_dir(id).exists() {
            left.push(self.state_dir(id).display().to_string());
        }
        left.extend(self.groups(id).iter().map(|group| group.display().to_string()));
        left.extend(self.namespace_processes().into_iter().map(|pid| format!("process {pid}")));
        left
    }

    /// Processes in the lab's user namespace besides the holder.
    pub fn namespace_processes(&self) -> Vec<u32> {
        let Ok(own) = fs::metadata(format!("/proc/{}/ns/user", self.holder.id())) else { return Vec::new() };
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| *pid != self.holder.id())
            .filter(|pid| fs::metadata(format!("/proc/{pid}/ns/user")).is_ok_and(|m| m.ino() == own.ino()))
            .collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for pid in std::iter::once(self.shim_pid as u32).chain(self.namespace_processes()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
        }
        self.holder.kill().ok();
        self.holder.wait().ok();
        let shims = Path::new("/run/vivarium/shim").join(&self.namespace);
        for entry in fs::read_dir(&shims).into_iter().flatten().flatten() {
            // What a failed test has left is undone as containerd would do it.
            let id = entry.file_name().to_str().unwrap().to_owned();
            fs::create_dir_all(self.dir.path().join(&id)).ok();
            self.delete_action(&id);
        }
        fs::remove_dir(&shims).ok();
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            fs::remove_dir(hierarchy.path().join(&self.namespace)).ok();
        }
        drop(self.server.take());
    }
}

/// Directories of a control group that are there, sorted. On a hybrid host each directory of `/sys/fs/cgroup` is a
/// hierarchy, on a unified one that is the only hierarchy itself.
fn existing_groups(path: &str) -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let mut roots: Vec<PathBuf> = fs::read_dir(&root).unwrap().flatten().map(|entry| entry.path()).collect();
    roots.push(root);
    let groups = roots.iter().map(|root| root.join(path.trim_start_matches('/')));
    let mut groups: Vec<PathBuf> = groups.filter(|group| group.exists()).collect();
    groups.sort();
    groups
}

/// A process that holds a user namespace and those namespaces of a pod that belong to it.
fn hold_namespaces(base: u32) -> Child {
    let child = Command::new("unshare")
        .args(["--user", "--net", "--ipc", "--uts", "sleep", "1000"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let own = fs::metadata("/proc/self/ns/user").unwrap().ino();
    let begin = Instant::now();
    let unshared = || {
        fs::metadata(format!("/proc/{}/ns/uts", child.id()))
            .is_ok_and(|m| m.ino() != fs::metadata("/proc/self/ns/uts").unwrap().ino())
            && fs::metadata(format!("/proc/{}/ns/user", child.id())).is_ok_and(|m| m.ino() != own)
    };
    while !unshared() {
        assert!(begin.elapsed() < Duration::from_secs(60), "unshare(1) made no namespaces");
        std::thread::sleep(Duration::from_millis(1));
    }
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{map}", child.id()), format!("0 {base} 65536")).unwrap();
    }
    child
}

fn peer_pid(address: &str) -> i32 {
    let stream = std::os::unix::net::UnixStream::connect(address.trim_start_matches("unix://")).unwrap();
    rustix::net::sockopt::socket_peercred(&stream).unwrap().pid.as_raw_nonzero().get()
}
