//! What the agent is told at its start.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Options of `swarm-agent`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Config {
    /// Where identity, task logs and, on managers, the Raft log are kept.
    #[arg(long, env = "SWARM_STATE_DIR", default_value = "/var/lib/swarm")]
    pub(crate) state_dir: PathBuf,

    /// Where sockets and network namespaces are.
    #[arg(long, env = "SWARM_RUN_DIR", default_value = "/run/swarm")]
    pub(crate) run_dir: PathBuf,

    /// Where eBPF maps are pinned; on a bpf file system.
    #[arg(long, env = "SWARM_BPFFS_DIR", default_value = "/sys/fs/bpf/swarm")]
    pub(crate) bpffs_dir: PathBuf,

    /// containerd's socket.
    #[arg(
        long,
        env = "SWARM_CONTAINERD_SOCKET",
        default_value = "/run/containerd/containerd.sock"
    )]
    pub(crate) containerd_socket: PathBuf,

    /// The containerd namespace that this node's containers and images live in.
    #[arg(long, env = "SWARM_CONTAINERD_NAMESPACE", default_value = "swarm")]
    pub(crate) containerd_namespace: String,

    /// Directory of registry settings (containerd's `hosts.toml` layout).
    #[arg(
        long,
        env = "SWARM_REGISTRY_HOSTS_DIR",
        default_value = "/etc/containerd/certs.d"
    )]
    pub(crate) registry_hosts_dir: PathBuf,

    /// The swarm-control program; the one beside this program when not given.
    #[arg(long, env = "SWARM_CONTROL_BINARY")]
    pub(crate) control_binary: Option<PathBuf>,

    /// The unprivileged user that swarm-control runs as: `swarm` where there is one, else `nobody`.
    #[arg(long, env = "SWARM_CONTROL_USER")]
    pub(crate) control_user: Option<String>,

    /// Name of this node in lists; the host's own name when not given.
    #[arg(long, env = "SWARM_HOSTNAME")]
    pub(crate) hostname: Option<String>,

    /// Where Prometheus finds this node's metrics, as in 127.0.0.1:9323; nothing listens when not
    /// given.
    #[arg(long, env = "SWARM_METRICS_ADDR", value_name = "ADDRESS:PORT")]
    pub(crate) metrics_addr: Option<SocketAddr>,

    /// Labels of this engine, KEY=VALUE, for constraints on `engine.labels.KEY`.
    #[arg(long = "label", value_parser = parse_label)]
    pub(crate) labels: Vec<(String, String)>,
}

impl Config {
    /// The socket that `swarm init`, `join` and `leave` come in by.
    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    /// A directory of swarm-control's own, so that it can make its socket without a right on ours.
    pub(crate) fn control_run_dir(&self) -> PathBuf {
        self.run_dir.join("control")
    }

    /// The manager's local socket.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.control_run_dir().join("control.sock")
    }

    /// Where swarm-control keeps the Raft log.
    pub(crate) fn control_state_dir(&self) -> PathBuf {
        self.state_dir.join("control")
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}
