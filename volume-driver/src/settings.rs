//! What the program is told on its command line, and the places that follow from it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vivarium_api::names;

/// Node side of Vivarium: CSI driver, template cache and volumes of one node.
#[derive(Debug, Parser)]
#[command(name = "vivarium-node", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves the node: pool, CSI, templates, guests. Runs until it is told to stop; what ends by itself is started again.
    Serve(Box<ServeArgs>),
    /// What `serve` starts.
    #[command(hide = true)]
    Drive(Box<ServeArgs>),
    /// Installs the runtime shim on the node and makes it known to containerd.
    InstallRuntime(RuntimeArgs),
    /// Takes back what `install-runtime` did.
    UninstallRuntime(RuntimeArgs),
}

/// Arguments of `serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Name of the node that this runs on.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Namespace that Vivarium is installed in; the node's Lease lies there.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// The kubelet's directory on the node, mounted at the same path.
    #[arg(long, env = "VIVARIUM_KUBELET_DIR", default_value = "/var/lib/kubelet")]
    pub kubelet_dir: PathBuf,
    /// Socket of the CSI services [default: plugins/csi.vivarium.dev/csi.sock in the kubelet's directory].
    #[arg(long, env = "VIVARIUM_CSI_ENDPOINT")]
    pub endpoint: Option<PathBuf>,
    /// State that stays on the node: the pool lies in it.
    #[arg(long, env = "VIVARIUM_STATE_DIR", default_value = names::STATE_DIR)]
    pub state_dir: PathBuf,
    /// State that dies with the boot: session, stage records, guest reports.
    #[arg(long, env = "VIVARIUM_RUN_DIR", default_value = names::RUN_DIR)]
    pub run_dir: PathBuf,
    /// Size of the pool's file (it is sparse, it takes room as it fills); it can be raised later. Not used with a device.
    #[arg(long, env = "VIVARIUM_POOL_SIZE", default_value = "20Gi", value_parser = parse_size)]
    pub pool_size: u64,
    /// Block device for the pool instead of a file. It is formatted if it is empty, and refused if it holds anything but btrfs.
    #[arg(long, env = "VIVARIUM_POOL_DEVICE")]
    pub pool_device: Option<PathBuf>,
    /// How long this node may act after one of its witnesses has heard from it, in seconds: the same as the operator has.
    #[arg(long, env = "VIVARIUM_LEASE_SECONDS", default_value_t = 4)]
    pub lease_seconds: u64,
    /// For how many seconds the pool's disk may not answer before the node stops saying that it lives, so that its
    /// environments are started elsewhere; 0: for ever.
    #[arg(long, env = "VIVARIUM_POOL_PATIENCE", default_value_t = 10)]
    pub pool_patience: u64,
    /// Registry (`HOST:PORT`) that is spoken to without TLS; may be given several times.
    #[arg(long = "plain-http-registry", env = "VIVARIUM_PLAIN_HTTP_REGISTRIES", value_delimiter = ',')]
    pub plain_http_registries: Vec<String>,
    /// Largest template layer, unpacked.
    #[arg(long, env = "VIVARIUM_MAX_LAYER_SIZE", default_value = "32Gi", value_parser = parse_size)]
    pub max_layer_size: u64,
    /// Most files, directories and other entries that a template layer may hold.
    #[arg(long, env = "VIVARIUM_MAX_LAYER_ENTRIES", default_value_t = 1_000_000)]
    pub max_layer_entries: u64,
    /// For how many hours every state of a volume with a journal can be restored.
    #[arg(long, env = "VIVARIUM_RETENTION_HOURS", default_value_t = 168)]
    pub retention_hours: u64,
    /// Seconds between two trials whether a volume can be restored.
    #[arg(long, env = "VIVARIUM_PROVE_EVERY_SECONDS", default_value_t = 86_400)]
    pub prove_every_seconds: u64,
    /// Address of the HTTP server for probes: `/healthz` is 200 as long as the node can serve volumes.
    #[arg(long, env = "VIVARIUM_HEALTH_ADDRESS", default_value = "0.0.0.0:9809")]
    pub health_address: std::net::SocketAddr,
    /// Where the runtime is installed, to take it back when the chart is uninstalled.
    #[command(flatten)]
    pub runtime: RuntimeArgs,
}

impl ServeArgs {
    /// From one trial whether a volume can be restored to the next.
    #[must_use]
    pub fn prove_every(&self) -> Duration {
        Duration::from_secs(self.prove_every_seconds)
    }

    /// Socket of the CSI services.
    #[must_use]
    pub fn csi_socket(&self) -> PathBuf {
        self.endpoint
            .clone()
            .unwrap_or_else(|| self.kubelet_dir.join("plugins").join(names::CSI_DRIVER).join("csi.sock"))
    }

    /// Socket through which the kubelet finds the driver.
    ///
    /// The kubelet's gRPC client sends the percent-encoded path as the request's `:authority`, and a host with a percent
    /// sign is none (RFC 3986, section 3.2): the HTTP/2 server here would end each of its requests with
    /// `PROTOCOL_ERROR`. That client leaves `@` as it is, which turns all before it into user information, where percent
    /// signs are allowed.
    #[must_use]
    pub fn registration_socket(&self) -> PathBuf {
        self.kubelet_dir.join("plugins_registry").join(format!("{}@registration.sock", names::CSI_DRIVER))
    }
}

/// Where containerd keeps its things, by distribution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ContainerdLayout {
    /// containerd as a service of the system.
    #[default]
    Plain,
    /// The containerd inside k3s.
    K3s,
    /// The containerd inside RKE2.
    Rke2,
}

impl ContainerdLayout {
    /// Directory of drop-in files that the main configuration imports.
    #[must_use]
    pub fn conf_dir(self) -> &'static Path {
        Path::new(match self {
            Self::Plain => "/etc/containerd/conf.d",
            Self::K3s => "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d",
            Self::Rke2 => "/var/lib/rancher/rke2/agent/etc/containerd/config-v3.toml.d",
        })
    }

    /// Socket that containerd answers on.
    #[must_use]
    pub fn socket(self) -> &'static Path {
        Path::new(match self {
            Self::Plain => "/run/containerd/containerd.sock",
            Self::K3s | Self::Rke2 => "/run/k3s/containerd/containerd.sock",
        })
    }
}

/// Arguments of `install-runtime` and `uninstall-runtime`.
#[derive(Clone, Debug, Args)]
pub struct RuntimeArgs {
    /// Distribution that containerd comes with.
    #[arg(long, env = "VIVARIUM_CONTAINERD_LAYOUT", value_enum, default_value_t)]
    pub containerd_layout: ContainerdLayout,
    /// containerd's directory of drop-in files, instead of the distribution's.
    #[arg(long, env = "VIVARIUM_CONTAINERD_CONF_DIR")]
    pub containerd_conf_dir: Option<PathBuf>,
    /// containerd's socket, instead of the distribution's.
    #[arg(long, env = "VIVARIUM_CONTAINERD_SOCKET")]
    pub containerd_socket: Option<PathBuf>,
    /// Directory of the node that the shim is put into, mounted at the same path.
    #[arg(long, env = "VIVARIUM_HOST_BIN_DIR", default_value = "/opt/vivarium/bin")]
    pub host_bin_dir: PathBuf,
    /// The shim in this image.
    #[arg(long, env = "VIVARIUM_SHIM_SOURCE", default_value = "/usr/local/bin/containerd-shim-vivarium-v1")]
    pub shim_source: PathBuf,
}

impl RuntimeArgs {
    /// Directory of drop-in files.
    #[must_use]
    pub fn conf_dir(&self) -> &Path {
        self.containerd_conf_dir.as_deref().unwrap_or_else(|| self.containerd_layout.conf_dir())
    }

    /// containerd's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.containerd_socket.as_deref().unwrap_or_else(|| self.containerd_layout.socket())
    }
}

/// A size as people write it: bytes, or a number with `Ki`, `Mi`, `Gi`, `Ti`, `k`, `M`, `G`, `T`. Also what Kubernetes
/// writes for a quantity of bytes, fractions and exponents included; rounded up to whole bytes.
///
/// # Errors
/// A sentence that says what a size looks like.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bad =
        || format!("'{text}' is not a size: write a number of bytes, or a number with Ki, Mi, Gi, Ti, k, M, G or T");
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: f64 = match unit {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "Ki" => f64::from(1 << 10),
        "Mi" => f64::from(1 << 20),
        "Gi" => f64::from(1 << 30),
        "Ti" => f64::from(1 << 30) * 1024.0,
        "Pi" => f64::from(1 << 30) * 1_048_576.0,
        exponent => {
            let power = exponent.strip_prefix(['e', 'E']).and_then(|e| e.parse::<i32>().ok()).ok_or_else(bad)?;
            10f64.powi(power)
        }
    };
    // Whole numbers are counted as such: a double holds only 53 bits.
    if let Ok(whole) = number.parse::<u64>()
        && factor >= 1.0
    {
        return whole.checked_mul(factor as u64).filter(|n| i64::try_from(*n).is_ok()).ok_or_else(bad);
    }
    let value = number.parse::<f64>().map_err(|_| bad())? * factor;
    if value.is_finite() && (0.0..9e18).contains(&value) { Ok(value.ceil() as u64) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_kubernetes_writes_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("16Mi", 16 << 20),
            ("1.5Gi", 3 << 29),
            ("10G", 10_000_000_000),
            ("1k", 1000),
            ("1500m", 2),
            ("1e3", 1000),
            ("2Ti", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_by_name() {
        for text in ["", "Gi", "10GB", "ten", "-1", "1e", "99999Pi", "1.2.3Gi"] {
            let error = parse_size(text).unwrap_err();
            assert!(error.contains(&format!("'{text}'")), "{error}");
        }
    }

    #[test]
    fn the_path_of_the_registration_socket_is_an_authority_once_encoded() {
        let cli = Cli::parse_from(["vivarium-node", "serve", "--node-name", "n1", "--namespace", "v"]);
        let Command::Serve(args) = cli.command else { panic!("serve was asked for") };
        let encoded = args.registration_socket().to_string_lossy().replace('/', "%2F");
        assert!(encoded.parse::<tonic::codegen::http::uri::Authority>().is_ok(), "{encoded}");
        assert!(
            encoded.replace('@', "-").parse::<tonic::codegen::http::uri::Authority>().is_err(),
            "the `@` is needed"
        );
    }

    #[test]
    fn sockets_lie_where_the_kubelet_looks() {
        let cli = Cli::parse_from(["vivarium-node", "serve", "--node-name", "n1", "--namespace", "v"]);
        let Command::Serve(args) = cli.command else { panic!("serve was asked for") };
        assert_eq!(args.csi_socket(), Path::new("/var/lib/kubelet/plugins/csi.vivarium.dev/csi.sock"));
        assert_eq!(
            args.registration_socket(),
            Path::new("/var/lib/kubelet/plugins_registry/csi.vivarium.dev@registration.sock")
        );
    }
}
