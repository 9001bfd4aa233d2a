//! The control plane: etcd, API server, controller manager, scheduler, the registry, and the forwarders to
//! and from this machine.
//! No kube-proxy runs beside the API server, hence `--enable-aggregator-routing`.

use std::time::Duration;

use super::{
    ceph, config,
    error::{Error, io},
    network,
    process::{self, Record},
    state::{self, Cluster, Layout, StoreKind},
    wait,
};
use crate::command;

/// Records of the processes, in the order of their start.
const PROCESSES: &[&str] = &["etcd", "apiserver", "registry", "forward", "archive", "controller-manager", "scheduler"];
const READY: Duration = Duration::from_secs(90);

/// Starts what needs nothing else, and the API server.
pub fn start(layout: &Layout) -> Result<(), Error> {
    let registry = layout.root().join("registry.json");
    state::write(&registry, config::registry(layout))?;
    state::create(&layout.root().join("registry"))?;
    inside(layout, "etcd", etcd(layout))?;
    inside(layout, "apiserver", api_server(layout))?;
    let serve =
        vec![layout.program("registry").display().to_string(), "serve".to_owned(), registry.display().to_string()];
    inside(layout, "registry", serve)?;
    let program = std::env::current_exe().map_err(io("find", "this program"))?;
    for name in ["forward", "archive"] {
        process::start(layout, name, &[program.display().to_string(), "lab".to_owned(), name.to_owned()])?;
    }
    Ok(())
}

/// Waits for the API server, then starts what works through it.
pub fn finish(layout: &Layout) -> Result<(), Error> {
    let hint = format!("see {}", layout.log("apiserver").display());
    wait::until(READY, Duration::from_millis(200), "a ready API server", &hint, || {
        for name in ["etcd", "apiserver", "registry", "forward", "archive"] {
            process::expect_alive(layout, name)?;
        }
        Ok(kubectl(layout, &["get", "--raw=/readyz"]).is_ok().then_some(()))
    })?;
    inside(layout, "controller-manager", controller_manager(layout))?;
    inside(layout, "scheduler", scheduler(layout))
}

/// Names of all processes of a lab's control plane.
pub fn processes(cluster: &Cluster) -> impl Iterator<Item = &'static str> {
    let store = if cluster.store() == StoreKind::Ceph { ceph::PROCESSES } else { &[] };
    PROCESSES.iter().chain(store).copied()
}

/// Whether all of it runs.
pub fn is_running(layout: &Layout, cluster: &Cluster) -> Result<bool, Error> {
    for name in processes(cluster) {
        if Record::load_alive(layout, name)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Calls kubectl from this machine, as a user would.
pub fn kubectl(layout: &Layout, arguments: &[&str]) -> Result<String, Error> {
    kubectl_with(layout, arguments, "")
}

/// Like [`kubectl`] with something on its standard input.
pub fn kubectl_with(layout: &Layout, arguments: &[&str], input: &str) -> Result<String, Error> {
    let mut command = command::command(layout.program("kubectl"), arguments);
    // The configuration is the lab's alone, whatever the caller has set.
    command.env("KUBECONFIG", layout.kubeconfig()).env_remove("HTTPS_PROXY").env_remove("https_proxy");
    Ok(command::run_with_input(&mut command, input)?)
}

fn inside(layout: &Layout, name: &str, words: Vec<String>) -> Result<(), Error> {
    let all: Vec<_> = network::enter(network::CONTROL_PLANE).into_iter().chain(words).collect();
    process::start(layout, name, &all).map(drop)
}

/// Program and flags, one flag a line.
fn words(layout: &Layout, program: &str, flags: &str) -> Vec<String> {
    let program = layout.program(program).display().to_string();
    std::iter::once(program).chain(flags.split_whitespace().map(Into::into)).collect()
}

fn etcd(layout: &Layout) -> Vec<String> {
    let data = layout.root().join("etcd");
    words(
        layout,
        "etcd",
        // What is in it goes with the lab: it need not outlive the machine.
        &format!(
            "--name=lab --data-dir={} --unsafe-no-fsync --log-level=warn
            --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379
            --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380
            --initial-cluster=lab=http://127.0.0.1:2380",
            data.display()
        ),
    )
}

fn api_server(layout: &Layout) -> Vec<String> {
    let pki = |file: &str| layout.pki(file).display().to_string();
    words(
        layout,
        "kube-apiserver",
        &format!(
            "--etcd-servers=http://127.0.0.1:2379
            --advertise-address={address} --bind-address=0.0.0.0 --secure-port=6443
            --service-cluster-ip-range={services}
            --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction
            --allow-privileged=true --enable-aggregator-routing=true
            --client-ca-file={ca} --tls-cert-file={certificate} --tls-private-key-file={key}
            --kubelet-certificate-authority={ca}
            --kubelet-client-certificate={kubelet_certificate} --kubelet-client-key={kubelet_key}
            --kubelet-preferred-address-types=InternalIP
            --service-account-issuer=https://kubernetes.default.svc.cluster.local
            --service-account-key-file={accounts_public} --service-account-signing-key-file={accounts}
            --requestheader-client-ca-file={front_ca} --requestheader-allowed-names=front-proxy-client
            --requestheader-extra-headers-prefix=X-Remote-Extra- --requestheader-group-headers=X-Remote-Group
            --requestheader-username-headers=X-Remote-User
            --proxy-client-cert-file={front} --proxy-client-key-file={front_key}",
            address = network::ADDRESS,
            services = network::SERVICES,
            ca = pki("ca.crt"),
            certificate = pki("apiserver.crt"),
            key = pki("apiserver.key"),
            kubelet_certificate = pki("apiserver-kubelet.crt"),
            kubelet_key = pki("apiserver-kubelet.key"),
            accounts = pki("accounts.key"),
            accounts_public = pki("accounts.pub"),
            front_ca = pki("front-proxy-ca.crt"),
            front = pki("front-proxy.crt"),
            front_key = pki("front-proxy.key"),
        ),
    )
}

fn controller_manager(layout: &Layout) -> Vec<String> {
    let pki = |file: &str| layout.pki(file).display().to_string();
    words(
        layout,
        "kube-controller-manager",
        &format!(
            "--kubeconfig={config} --authentication-kubeconfig={config} --authorization-kubeconfig={config}
            --bind-address=127.0.0.1 --leader-elect=false --use-service-account-credentials=true
            --service-account-private-key-file={accounts} --root-ca-file={ca}
            --cluster-signing-cert-file={ca} --cluster-signing-key-file={ca_key}
            --client-ca-file={ca} --requestheader-client-ca-file={front_ca}",
            config = layout.kubeconfig_of("controller-manager").display(),
            accounts = pki("accounts.key"),
            ca = pki("ca.crt"),
            ca_key = pki("ca.key"),
            front_ca = pki("front-proxy-ca.crt"),
        ),
    )
}

fn scheduler(layout: &Layout) -> Vec<String> {
    words(
        layout,
        "kube-scheduler",
        &format!(
            "--kubeconfig={config} --authentication-kubeconfig={config} --authorization-kubeconfig={config}
            --bind-address=127.0.0.1 --leader-elect=false",
            config = layout.kubeconfig_of("scheduler").display(),
        ),
    )
}
