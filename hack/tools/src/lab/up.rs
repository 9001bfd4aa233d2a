//! `lab up`: from whatever is there to a healthy lab. A lab whose control plane runs is completed (nodes that are off are
//! switched on, cables put back); anything else that is left of one is cleaned up and made anew.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    ceph, cgroup, checks, control_plane, down,
    error::{Error, io, refused},
    forward, images, network,
    node::{self, Node},
    pki,
    process::Record,
    state::{self, Cluster, Layout, StoreKind},
    status, wait,
};
use crate::{
    build::{self, Programs},
    cache,
    progress::Progress,
};

const READY: Duration = Duration::from_secs(120);

/// Brings a lab of `size` nodes with that store up, or as it is, or of 3 nodes with Ceph where that can be.
pub fn up(layout: &Layout, size: Option<u8>, store: Option<StoreKind>) -> Result<(), Error> {
    let begun = Instant::now();
    checks::machine(layout)?;
    build::ensure_packages()?;
    let programs = build::ensure_programs()?;
    let images = images::ensure(&programs)?;
    let cache = cache::root();
    let _lock = cache::lock("lab").map_err(io("lock", cache.display()))?;
    if let Some(cluster) = running(layout)? {
        return complete(layout, &cluster, size, store);
    }
    let kind = store.unwrap_or_else(default_store);
    // Only for a lab that will have it: its packages are those of one release of Debian.
    let ceph = if kind == StoreKind::Ceph { Some(ceph::ensure_programs()?) } else { None };
    let built = begun.elapsed();
    let begun = Instant::now();
    clean(layout)?;
    let cluster = Cluster::new(size.unwrap_or(3), kind);
    make(layout, &cluster, &programs, &images, ceph.as_deref())?;
    println!(
        "the lab is up: {} nodes Ready after {:.1} s (and {:.1} s for programs and images)\n  \
         export KUBECONFIG={}\n  export PATH={}:$PATH\n  hack/lab status",
        cluster.size(),
        begun.elapsed().as_secs_f32(),
        built.as_secs_f32(),
        layout.kubeconfig().display(),
        layout.programs().display()
    );
    Ok(())
}

fn default_store() -> StoreKind {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if ceph::fits(&release) {
        return StoreKind::Ceph;
    }
    println!(
        "This machine is not Debian {}, whose packages of Ceph the lab takes: journals are kept in a directory of each \
         node instead. Environments run and keep everything; none can go to another node.",
        ceph::RELEASE
    );
    StoreKind::Local
}

/// The lab, if its control plane runs as a whole.
fn running(layout: &Layout) -> Result<Option<Cluster>, Error> {
    let Some(cluster) = layout.cluster()? else { return Ok(None) };
    Ok(control_plane::is_running(layout, &cluster)?.then_some(cluster))
}

fn complete(layout: &Layout, cluster: &Cluster, size: Option<u8>, store: Option<StoreKind>) -> Result<(), Error> {
    if store.is_some_and(|store| store != cluster.store()) {
        return Err(refused("a lab with another store is up; `hack/lab down` first"));
    }
    if let Some(size) = size.filter(|size| *size != cluster.size()) {
        return Err(refused(format!(
            "a lab of {} nodes is up and {size} were asked for; `hack/lab down` first",
            cluster.size()
        )));
    }
    for node in cluster.nodes() {
        if node.running(layout)?.is_none() {
            println!("node {node} is off; switching it on");
            node::power_on(layout, cluster, node)?;
        } else {
            if !node::is_connected(node) {
                println!("node {node} is cut off; putting its cable back");
            }
            node::heal(layout, node)?;
        }
    }
    route_services(layout, cluster)?;
    wait_for_nodes(layout, cluster)?;
    println!("the lab is up and healthy: {} nodes Ready", cluster.size());
    Ok(())
}

/// Takes away what a crash left. A lab of another directory is not touched.
fn clean(layout: &Layout) -> Result<(), Error> {
    if layout.cluster()?.is_some() {
        println!("cleaning up what is left of an earlier lab");
        return down::take_down(layout);
    }
    for namespace in network::present() {
        let processes = network::processes(&namespace);
        if !processes.is_empty() {
            return Err(refused(format!(
                "network namespace {namespace} is in use by {}, which does not belong to {}: another lab is up \
                 (set VIVARIUM_LAB to its directory and run `hack/lab down`)",
                processes.join(", "),
                layout.root().display()
            )));
        }
        network::remove(&namespace)?;
    }
    cgroup::remove_all()?;
    let is_empty = fs::read_dir(layout.root()).map_or(true, |mut entries| entries.next().is_none());
    if is_empty {
        return Ok(());
    }
    Err(refused(format!(
        "{} is not empty and no lab's: set VIVARIUM_LAB to another directory",
        layout.root().display()
    )))
}

fn make(
    layout: &Layout,
    cluster: &Cluster,
    programs: &Programs,
    images: &[PathBuf],
    ceph: Option<&Path>,
) -> Result<(), Error> {
    let nodes: Vec<Node> = cluster.nodes().collect();
    let mut progress = Progress::new(if ceph.is_some() { 7 } else { 5 });
    {
        let _step = progress.step("certificates, networks and cgroups");
        forward::check()?;
        let marker = serde_json::to_vec(cluster).unwrap_or_default();
        state::write(&layout.marker(), marker)?;
        for folder in [layout.programs(), layout.records(), layout.logs()] {
            state::create(&folder)?;
        }
        for (name, path) in programs.iter() {
            let link = layout.program(name);
            symlink(path, &link).map_err(io("link", link.display()))?;
        }
        pki::create(layout, cluster.nodes())?;
        network::create()?;
    }
    if let Some(programs) = ceph {
        let _step = progress.step("object store on disk");
        ceph::make(layout, cluster, programs)?;
    }
    {
        let _step = progress.step("control plane and nodes");
        control_plane::start(layout)?;
        for node in &nodes {
            node::power_on(layout, cluster, *node)?;
        }
        route_services(layout, cluster)?;
        if ceph.is_some() {
            ceph::start_gateway(layout)?;
        }
        control_plane::finish(layout)?;
    }
    {
        let _step = progress.step("images");
        node::load_images(layout, &nodes, images)?;
    }
    {
        let _step = progress.step(format!("waiting for {} Ready nodes", nodes.len()));
        wait_for_nodes(layout, cluster)?;
    }
    if ceph.is_some() {
        let _step = progress.step("object store");
        ceph::finish(layout)?;
    }
    let _step = progress.step("cluster DNS");
    control_plane::kubectl_with(layout, &["apply", "-f", "-"], include_str!("coredns.yaml"))?;
    let rollout = ["rollout", "status", "deployment/coredns", "--namespace=kube-system", "--timeout=90s"];
    control_plane::kubectl(layout, &rollout).map(drop)
}

/// Service addresses go through the first node that is on and connected.
pub fn route_services(layout: &Layout, cluster: &Cluster) -> Result<(), Error> {
    for node in cluster.nodes() {
        if node.running(layout)?.is_some() && node::is_connected(node) {
            return network::route_services(node);
        }
    }
    Ok(())
}

fn wait_for_nodes(layout: &Layout, cluster: &Cluster) -> Result<(), Error> {
    let what = format!("{} Ready nodes", cluster.size());
    let hint = format!("see {} and `hack/lab status`", layout.logs().display());
    wait::until(READY, Duration::from_millis(300), &what, &hint, || {
        for node in cluster.nodes() {
            if !Record::load(layout, &node.init())?.is_some_and(|record| record.is_alive()) {
                return Err(refused(format!("node {node} ended; see {}", layout.log(&node.name()).display())));
            }
        }
        let ready = status::readiness(layout).unwrap_or_default();
        Ok(cluster.nodes().all(|node| ready.get(&node.name()).is_some_and(|ready| ready == "True")).then_some(()))
    })
}
