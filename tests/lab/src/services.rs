//! What the hosts share: containerd, and the registry they pull from.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::RUN_DIR;
use crate::command::must;
use crate::daemon::Daemon;
use crate::topology::GATEWAY;

/// containerd's socket, the usual one.
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// Directory that tells containerd's clients how to talk to which registry.
pub const REGISTRY_HOSTS_DIR: &str = "/etc/containerd/certs.d";

/// Where the registry keeps blobs and manifests; in memory.
pub const REGISTRY_DATA_DIR: &str = "/var/lib/docker-registry";

/// Port of the registry on [`GATEWAY`], TLS with [`REGISTRY_CERTIFICATE`].
pub const REGISTRY_PORT: u16 = 5000;

/// Directory of an authority that containerd trusts: `ca.pem` and `ca-key.pem`, made anew at every
/// boot. Tests that bring a registry of their own sign its certificate with it.
pub const AUTHORITY_DIR: &str = "/run/lab/authority";

/// The authority's certificate, which signs itself and is the registry's, too.
pub const REGISTRY_CERTIFICATE: &str = "/run/lab/authority/ca.pem";

const REGISTRY_KEY: &str = "/run/lab/authority/ca-key.pem";

/// Generous for emulation: both are there within two seconds.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// `host:port` of the registry, as image references begin.
#[must_use]
pub fn registry() -> String {
    format!("{GATEWAY}:{REGISTRY_PORT}")
}

/// Starts containerd (one for all hosts, a namespace per host in it) and waits until it answers.
///
/// # Errors
/// When it does not within a minute; the message has the end of its log.
pub fn start_containerd() -> Result<()> {
    make_registry_certificate()?;
    let config = Path::new(RUN_DIR).join("containerd.toml");
    // Kubernetes' interface is of no use here and costs a second at every start.
    fs::write(
        &config,
        "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n",
    )?;
    let daemon = Daemon::named("containerd");
    // containerd 1.7 pulls over TLS only, and trusts only what its process trusts.
    daemon.start(
        Command::new("containerd")
            .arg("--config")
            .arg(&config)
            .env("SSL_CERT_FILE", REGISTRY_CERTIFICATE),
    )?;
    daemon.wait_ready(START_DEADLINE, || {
        Ok(UnixStream::connect(CONTAINERD_SOCKET).map(drop)?)
    })
}

/// Makes the registry's key and certificate, unless they are there.
fn make_registry_certificate() -> Result<()> {
    if Path::new(REGISTRY_CERTIFICATE).exists() {
        return Ok(());
    }
    fs::create_dir_all(AUTHORITY_DIR)?;
    let (subject, name) = (
        format!("/CN={GATEWAY}"),
        format!("subjectAltName=IP:{GATEWAY}"),
    );
    let fixed = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ];
    let mut arguments = fixed.to_vec();
    arguments.extend(["-days", "30", "-subj", &subject, "-addext", &name]);
    arguments.extend(["-keyout", REGISTRY_KEY, "-out", REGISTRY_CERTIFICATE]);
    must("openssl", &arguments).map(drop)
}

/// Starts the registry and waits until it accepts connections.
///
/// # Errors
/// When it does not within a minute; the message has the end of its log.
pub fn start_registry() -> Result<()> {
    let config = Path::new(RUN_DIR).join("registry.yml");
    fs::write(
        &config,
        format!(
            "version: 0.1\n\
             log: {{level: warn}}\n\
             storage: {{filesystem: {{rootdirectory: {REGISTRY_DATA_DIR}}}}}\n\
             http:\n  addr: '{}'\n\
             \x20 tls: {{certificate: {REGISTRY_CERTIFICATE}, key: {REGISTRY_KEY}}}\n",
            registry()
        ),
    )?;
    let daemon = Daemon::named("registry");
    daemon.start(Command::new("docker-registry").arg("serve").arg(&config))?;
    let address = SocketAddr::from((GATEWAY, REGISTRY_PORT));
    daemon.wait_ready(START_DEADLINE, || {
        Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1)).map(drop)?)
    })
}
