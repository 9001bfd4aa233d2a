//! The lab's object store: Ceph from Debian packages, its daemons real and its data replicated over the nodes. The
//! monitor and the gateway (S3) are the control plane's; each node runs an OSD in its own namespaces with its data on
//! the node's disk, so a power cut takes it along. One lost node of three stops nothing; with one or two nodes there is
//! less to lose.
//!
//! Nothing is authenticated inside, nothing is encrypted: it is a laboratory without a way out.

use std::{
    net::{SocketAddr, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use super::{
    error::{Error, io},
    network,
    node::Node,
    process::{self, Record},
    state::{self, Cluster, Layout},
    wait,
};
use crate::{build, command};

/// Processes of the control plane.
pub const PROCESSES: &[&str] = &["ceph-mon", "ceph-gateway"];
const MON_PORT: u16 = 6789;
/// Where the gateway listens at the control plane's address.
pub const GATEWAY_PORT: u16 = 7480;
/// What Vivarium is told.
const BUCKET: &str = "vivarium";
const USER: &str = "vivarium";
const ACCESS: &str = "laboratory";
const SECRET: &str = "no-secret-in-a-laboratory";
const FSID: &str = "6c616220-6f66-4976-8172-697669756d21";
/// SHA-256 of nothing, which S3 wants to see in the request that makes a bucket.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const LATE: Duration = Duration::from_secs(120);

/// The daemons, the command line with its Python, and every library that a minimal Debian lacks.
const PACKAGES: &[&str] = &[
    "ceph-base",
    "ceph-common",
    "ceph-mon",
    "ceph-osd",
    "libaio1",
    "libboost-context1.74.0",
    "libboost-filesystem1.74.0",
    "libboost-iostreams1.74.0",
    "libboost-program-options1.74.0",
    "libboost-thread1.74.0",
    "libbrotli1",
    "libcephfs2",
    "libcurl3-gnutls",
    "libdaxctl1",
    "libexpat1",
    "libfmt9",
    "libfuse2",
    "libgoogle-perftools4",
    "libgssapi-krb5-2",
    "libibverbs1",
    "libicu72",
    "libk5crypto3",
    "libkeyutils1",
    "libkmod2",
    "libkrb5-3",
    "libkrb5support0",
    "libldap-2.5-0",
    "libleveldb1d",
    "liblua5.3-0",
    "libndctl6",
    "libnghttp2-14",
    "libnl-3-200",
    "libnl-route-3-200",
    "liboath0",
    "libpmem1",
    "libpsl5",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "librabbitmq4",
    "librados2",
    "libradosstriper1",
    "librbd1",
    "librdmacm1",
    "librgw2",
    "librtmp1",
    "libsasl2-2",
    "libsnappy1v5",
    "libssh2-1",
    "libssl3",
    "libtcmalloc-minimal4",
    "libunwind8",
    "python3-ceph-argparse",
    "python3-ceph-common",
    "python3-prettytable",
    "python3-rados",
    "python3-wcwidth",
    "python3.11-minimal",
    "radosgw",
];

/// Release whose packages these are.
pub const RELEASE: &str = "bookworm";

/// Whether they run on a machine with this `/etc/os-release` (os-release(5)).
pub fn fits(os_release: &str) -> bool {
    os_release
        .lines()
        .any(|line| line.strip_prefix("VERSION_CODENAME=").is_some_and(|it| it.trim_matches('"') == RELEASE))
}

/// Fetches the programs into the cache.
pub fn ensure_programs() -> Result<PathBuf, Error> {
    Ok(build::unpacked("ceph", PACKAGES)?)
}

/// What is needed to use the store.
pub fn access() -> serde_json::Value {
    serde_json::json!({ "endpoint": endpoint(), "bucket": BUCKET, "accessKey": ACCESS, "secretKey": SECRET })
}

fn endpoint() -> String {
    format!("http://{}:{GATEWAY_PORT}", network::ADDRESS)
}

fn folder(layout: &Layout) -> PathBuf {
    layout.root().join("ceph")
}

fn configuration_file(layout: &Layout) -> PathBuf {
    folder(layout).join("ceph.conf")
}

/// Whether this lab has one.
pub fn is_here(layout: &Layout) -> bool {
    configuration_file(layout).exists()
}

fn osd_id(node: Node) -> u8 {
    node.number() - 1
}

fn osd_uuid(node: Node) -> String {
    format!("{}{:02x}", &FSID[..FSID.len() - 2], node.number())
}

fn osd_data(layout: &Layout, node: Node) -> PathBuf {
    layout.node(node).join("ceph-osd")
}

/// How many copies there are, and how many must be there for a write.
fn copies(nodes: u8) -> (u8, u8) {
    match nodes {
        0 | 1 => (1, 1),
        2 => (2, 1),
        _ => (3, 2),
    }
}

fn configuration(layout: &Layout, nodes: u8) -> String {
    let folder = folder(layout);
    let (folder, logs) = (folder.display(), layout.logs());
    let (size, min_size) = copies(nodes);
    let reporters = nodes.saturating_sub(1).clamp(1, 2);
    // The monitor's map is a file, and an OSD asks for nothing at its start: one that asks before it knows the cluster's
    // id is refused, and ends. The monitor proposes at once instead of once a second. A dead OSD is noticed after the
    // grace, the others say so once a second instead of once in five, and two fifths of the grace instead of four pass again
    // until what it held can be written: no node that dies with an OSD is fenced before. There is no manager, and that is no
    // complaint.
    format!(
        "[global]
fsid = {FSID}
monmap = {folder}/monmap
mon_host = {address}:{MON_PORT}
ms_bind_msgr2 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
auth_allow_insecure_global_id_reclaim = false
osd_pool_default_size = {size}
osd_pool_default_min_size = {min_size}
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
osd_crush_chooseleaf_type = 0
osd_crush_update_on_start = false
osd_class_update_on_start = false
mon_mgr_mkfs_grace = 2592000
mon_data_avail_warn = 2
mon_data_avail_crit = 1
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
mon_osd_down_out_interval = 3600
mon_osd_min_down_reporters = {reporters}
mon_osd_reporter_subtree_level = osd
mon_osd_adjust_heartbeat_grace = false
osd_heartbeat_interval = 1
osd_heartbeat_grace = 2
osd_pool_default_read_lease_ratio = 0.4
osd_mon_report_interval = 1
osd_objectstore = bluestore
bluestore_block_size = 21474836480
bluestore_block_db_create = false
osd_memory_target = 939524096
osd_class_load_list = *
plugin_dir = {folder}/root/usr/lib/x86_64-linux-gnu/ceph
erasure_code_dir = {folder}/root/usr/lib/x86_64-linux-gnu/ceph/erasure-code
osd_class_dir = {folder}/root/usr/lib/x86_64-linux-gnu/rados-classes
mon_data = {folder}/mon
rgw_data = {folder}/gateway
keyring = {folder}/keyring
run_dir = {folder}
admin_socket = {folder}/$name.asok
log_file = {logs}/ceph-$name.log
debug_mon = 0
debug_paxos = 0
debug_osd = 0
debug_bluestore = 0
debug_rocksdb = 0
debug_rgw = 0
rgw_enable_usage_log = false
rgw_thread_pool_size = 64
",
        address = network::ADDRESS,
        logs = logs.display(),
    )
}

/// Words that start a program of the packages.
fn words(layout: &Layout, program: &str, arguments: &[&str]) -> Vec<String> {
    let root = folder(layout).join("root/usr");
    let lib = root.join("lib/x86_64-linux-gnu");
    let old = folder(layout).join("root/lib/x86_64-linux-gnu");
    let mut words = vec![
        "env".to_owned(),
        format!("LD_LIBRARY_PATH={0}:{0}/ceph:{1}", lib.display(), old.display()),
        format!("CEPH_CONF={}", configuration_file(layout).display()),
        // What tells the lives of a daemon apart is by default its pid, which is the same after each start of a node: the
        // monitor would take one that starts within the grace for the former, and then for dead.
        "CEPH_USE_RANDOM_NONCE=1".to_owned(),
    ];
    if program == "ceph" {
        words.push(format!("PYTHONPATH={}", root.join("lib/python3/dist-packages").display()));
        words.push(root.join("bin/python3.11").display().to_string());
    }
    words.push(root.join("bin").join(program).display().to_string());
    words.extend(arguments.iter().map(ToString::to_string));
    words
}

/// The same, in the control plane's network.
fn inside(layout: &Layout, program: &str, arguments: &[&str]) -> Vec<String> {
    network::enter(network::CONTROL_PLANE).into_iter().chain(words(layout, program, arguments)).collect()
}

fn call(layout: &Layout, program: &str, arguments: &[&str], input: &str) -> Result<String, Error> {
    let words = inside(layout, program, arguments);
    let mut call = Command::new("timeout");
    Ok(command::run_with_input(call.arg("60").args(words), input)?)
}

/// Makes the cluster on disk, starts the monitor and tells it of the OSDs. Before the nodes, which start them.
pub fn make(layout: &Layout, cluster: &Cluster, programs: &Path) -> Result<(), Error> {
    let folder = folder(layout);
    for part in ["mon", "gateway"] {
        state::create(&folder.join(part))?;
    }
    let link = folder.join("root");
    symlink(programs, &link).map_err(io("link", link.display()))?;
    state::write(&configuration_file(layout), configuration(layout, cluster.size()))?;
    let map = folder.join("monmap").display().to_string();
    let monitor = format!("[v1:{}:{MON_PORT}]", network::ADDRESS);
    call(layout, "monmaptool", &["--create", "--clobber", "--addv", "a", &monitor, "--fsid", FSID, &map], "")?;
    call(layout, "ceph-mon", &["--mkfs", "-i", "a", "--monmap", &map], "")?;
    process::start(layout, "ceph-mon", &inside(layout, "ceph-mon", &["-i", "a", "-f"]))?;
    thread::scope(|scope| {
        let disks: Vec<_> = cluster.nodes().map(|node| scope.spawn(move || format_disk(layout, node))).collect();
        let told = call(layout, "ceph", &[], &introduction(cluster)).map(drop);
        disks
            .into_iter()
            .try_for_each(|disk| disk.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .and(told)
    })?;
    process::expect_alive(layout, "ceph-mon")
}

/// What the monitor is told of the OSDs; one process for all of it, because each start of the command line takes its time.
fn introduction(cluster: &Cluster) -> String {
    let made = cluster.nodes().map(|node| format!("osd new {} {}\n", osd_uuid(node), osd_id(node)));
    let placed =
        cluster.nodes().map(|node| format!("osd crush add osd.{} 1.0 root=default host={node}\n", osd_id(node)));
    made.chain(placed).collect()
}

fn format_disk(layout: &Layout, node: Node) -> Result<(), Error> {
    let data = osd_data(layout, node);
    state::create(&data)?;
    let (id, data) = (osd_id(node).to_string(), data.display().to_string());
    call(layout, "ceph-osd", &["-i", &id, "--mkfs", "--osd-data", &data, "--osd-uuid", &osd_uuid(node)], "").map(drop)
}

/// The program and arguments of a node's OSD, for the node to start.
pub fn osd(layout: &Layout, node: Node) -> Vec<String> {
    let (id, data, address) = (osd_id(node).to_string(), osd_data(layout, node).display().to_string(), node.address());
    words(
        layout,
        "ceph-osd",
        &["-i", &id, "-f", "--osd-data", &data, "--public-addr", &address, "--cluster-addr", &address],
    )
}

/// Starts the gateway. It waits by itself until enough OSDs are there.
pub fn start_gateway(layout: &Layout) -> Result<(), Error> {
    let frontend = format!("--rgw_frontends=beast endpoint={}:{GATEWAY_PORT} tcp_nodelay=1", network::ADDRESS);
    let name = ["-f", "-n", "client.rgw.a", &frontend];
    process::start(layout, "ceph-gateway", &inside(layout, "radosgw", &name)).map(drop)
}

/// Waits for the gateway, and makes the user and the bucket.
pub fn finish(layout: &Layout) -> Result<(), Error> {
    let hint = format!("see {}", layout.log("ceph-client.rgw.a").display());
    let address = SocketAddr::from((network::ADDRESS, GATEWAY_PORT));
    wait::until(LATE, Duration::from_millis(100), "an answer of the object store", &hint, || {
        for name in PROCESSES {
            process::expect_alive(layout, name)?;
        }
        let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok();
        Ok(network::inside(network::CONTROL_PLANE, connect)?.then_some(()))
    })?;
    let user =
        ["user", "create", "--uid", USER, "--display-name", USER, "--access-key", ACCESS, "--secret-key", SECRET];
    call(layout, "radosgw-admin", &user, "")?;
    let mut put = Command::new("nsenter");
    put.arg(&network::enter(network::CONTROL_PLANE)[1]).args(["curl", "--silent", "--show-error", "--fail"]);
    put.args(["--max-time", "60", "--noproxy", "*", "--aws-sigv4", "aws:amz:us-east-1:s3"]);
    put.args(["--user", &format!("{ACCESS}:{SECRET}"), "--header", &format!("x-amz-content-sha256: {EMPTY}")]);
    put.args(["--request", "PUT", &format!("{}/{BUCKET}", endpoint())]);
    Ok(command::run(&mut put).map(drop)?)
}

/// One line on how it is, and whether that is well.
pub fn status(layout: &Layout) -> (bool, String) {
    if Record::load_alive(layout, "ceph-mon").ok().flatten().is_none() {
        return (false, "the monitor does not run".to_owned());
    }
    match call(layout, "ceph", &["--connect-timeout", "5"], "health\nosd stat\n") {
        Ok(said) => {
            let line: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            (said.contains("HEALTH_OK"), line.join("; "))
        }
        Err(error) => (false, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lost_node_of_three_stops_no_write() {
        for nodes in 2..10 {
            let (size, min_size) = copies(nodes);
            assert!(size > min_size && size <= nodes, "{nodes}");
        }
        assert_eq!(copies(1), (1, 1));
    }

    #[test]
    fn packages_fit_their_release_alone() {
        assert!(fits("ID=debian\nVERSION_CODENAME=bookworm\n"));
        assert!(fits("VERSION_CODENAME=\"bookworm\"\n"));
        assert!(!fits("VERSION_CODENAME=trixie\n"));
        assert!(!fits("ID=bookworm\n"));
    }

    #[test]
    fn each_node_has_an_osd_of_its_own() {
        let text = introduction(&Cluster::new(2, state::StoreKind::Ceph));
        assert_eq!(
            text,
            "osd new 6c616220-6f66-4976-8172-697669756d01 0\nosd new 6c616220-6f66-4976-8172-697669756d02 1\n\
             osd crush add osd.0 1.0 root=default host=n1\nosd crush add osd.1 1.0 root=default host=n2\n"
        );
        let words = osd(&Layout::at(Path::new("/lab")), Node::new(2)).join(" ");
        assert!(words.contains("CEPH_USE_RANDOM_NONCE=1"), "{words}");
        assert!(words.contains("-i 1 -f --osd-data /lab/nodes/n2/ceph-osd --public-addr 10.250.0.12"), "{words}");
    }
}
