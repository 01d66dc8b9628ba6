//! The manager process of this host: `swarm-control`, a child without privileges.
//!
//! It lives while this side of its standard input is open: when the agent dies, it ends by itself
//! and the next agent starts it again.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::unistd::{Gid, Uid, User};
use swarm_model::NodeId;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::identity::{Credentials, Membership};

/// The program's name, beside this program.
const PROGRAM: &str = "swarm-control";

/// How long it has to end once asked to; then it is killed. The log is safe either way.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause before it is started again: doubles from the first to the second.
const RESTART_INTERVAL_MIN: Duration = Duration::from_millis(200);
const RESTART_INTERVAL_MAX: Duration = Duration::from_secs(10);

/// Lines of its output kept for the message when it fails.
const LINES_KEPT: usize = 5;

/// Why it does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error(
        "user {0} does not exist: make it with `useradd --system {0}`, or name another with --control-user"
    )]
    NoUser(String),
    #[error("cannot look up user {name}")]
    User {
        name: String,
        #[source]
        source: nix::Error,
    },
    #[error("cannot prepare {} for swarm-control", .path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot start {}: is swarm-control installed beside swarm-agent?", .program.display())]
    Spawn {
        program: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("swarm-control ended: {0}")]
    Ended(String),
}

/// How to start it.
#[derive(Clone, Debug)]
pub(super) struct ControlProcess {
    program: PathBuf,
    user: Uid,
    group: Gid,
    state_dir: PathBuf,
    socket: PathBuf,
    listen: SocketAddr,
    advertise: SocketAddr,
    /// Whose managers it is one of; none of a new swarm.
    member: Option<Member>,
}

/// A manager of a swarm that has others, or that had.
#[derive(Clone, Debug)]
struct Member {
    node_id: NodeId,
    /// Another manager, which it asks to be taken up when it has no log; none where none is known.
    remote: Option<String>,
}

/// What a new swarm is started with.
#[derive(Clone, Debug)]
pub(super) struct Bootstrap {
    pub(super) node_id: NodeId,
    pub(super) data_path_address: IpAddr,
    /// Life of nodes' certificates; the default where not given.
    pub(super) certificate_expiry: Option<Duration>,
    /// Whether managers wait for the unlock key when they are restarted.
    pub(super) autolock: bool,
}

/// How a process begins.
#[derive(Clone, Debug)]
pub(super) enum Beginning {
    /// With the state that it has, or with the managers that it is told of.
    Usual,
    /// With a new swarm.
    Bootstrap(Bootstrap),
    /// With the state that it has, as the only manager.
    ForceNewCluster,
}

/// A started process and what it last said.
pub(super) struct Running {
    child: Child,
    /// Held open for as long as it is to live; `Child` itself would close it when it is waited for.
    lifeline: Option<ChildStdin>,
    lines: Arc<Mutex<VecDeque<String>>>,
}

impl ControlProcess {
    /// As `config` says, listening on `listen`, dialled at `advertise`.
    pub(super) fn new(
        config: &Config,
        listen: SocketAddr,
        advertise: SocketAddr,
    ) -> Result<Self, ControlError> {
        let user = unprivileged_user(config.control_user.as_deref())?;
        let program = match &config.control_binary {
            Some(path) => path.clone(),
            None => std::env::current_exe()
                .map(|path| path.with_file_name(PROGRAM))
                .unwrap_or_else(|_| PathBuf::from(PROGRAM)),
        };
        Ok(Self {
            program,
            user: user.uid,
            group: user.gid,
            state_dir: config.control_state_dir(),
            socket: config.control_socket(),
            listen,
            advertise,
            member: None,
        })
    }

    /// As the manager on the node that `membership` is of.
    pub(super) fn member(mut self, membership: &Membership) -> Self {
        let own = self.advertise.to_string();
        let mut others = membership
            .managers
            .iter()
            .filter(|address| **address != own);
        self.member = Some(Member {
            node_id: membership.node_id.clone(),
            remote: others.next().cloned(),
        });
        self
    }

    /// Leaves it the certificate that it shows other managers until it can make its own. One that it
    /// has is left alone.
    pub(super) fn give_certificate(&self, credentials: &Credentials) -> Result<(), ControlError> {
        self.own_directory(&self.state_dir, 0o700)?;
        let dir = self.state_dir.join("tls");
        self.own_directory(&dir, 0o700)?;
        let path = dir.join("manager.pem");
        let error = |source| ControlError::Directory {
            path: path.clone(),
            source,
        };
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(error)?;
        file.write_all(credentials.to_pem().as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(error)?;
        if Uid::effective().is_root() {
            nix::unistd::chown(&path, Some(self.user), Some(self.group))
                .map_err(|errno| error(errno.into()))?;
        }
        Ok(())
    }

    /// Starts it once.
    pub(super) fn spawn(&self, beginning: &Beginning) -> Result<Running, ControlError> {
        self.own_directory(&self.state_dir, 0o700)?;
        if let Some(dir) = self.socket.parent() {
            self.own_directory(dir, 0o755)?;
        }
        let mut command = Command::new(&self.program);
        command
            .arg("run")
            .arg("--state-dir")
            .arg(&self.state_dir)
            .arg("--socket")
            .arg(&self.socket)
            .arg("--listen-address")
            .arg(self.listen.to_string())
            .arg("--advertise-address")
            .arg(self.advertise.to_string());
        if let Some(Member { node_id, remote }) = &self.member {
            command.arg("--node-id").arg(node_id.as_str());
            if let (Some(remote), Beginning::Usual) = (remote, beginning) {
                command.arg("--join").arg(remote);
            }
        }
        match beginning {
            Beginning::Usual => {}
            Beginning::Bootstrap(bootstrap) => {
                command
                    .arg("--bootstrap")
                    .arg("--node-id")
                    .arg(bootstrap.node_id.as_str())
                    .arg("--data-path-address")
                    .arg(bootstrap.data_path_address.to_string());
                if let Some(expiry) = bootstrap.certificate_expiry {
                    command
                        .arg("--certificate-expiry-ms")
                        .arg(expiry.as_millis().to_string());
                }
                if bootstrap.autolock {
                    command.arg("--autolock");
                }
            }
            Beginning::ForceNewCluster => {
                command.arg("--force-new-cluster");
            }
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .current_dir("/")
            .kill_on_drop(true);
        if Uid::effective().is_root() {
            // With a user set, the standard library drops the supplementary groups as well.
            command.uid(self.user.as_raw()).gid(self.group.as_raw());
        }
        let mut child = command.spawn().map_err(|source| ControlError::Spawn {
            program: self.program.clone(),
            source,
        })?;
        let lines = Arc::new(Mutex::new(VecDeque::with_capacity(LINES_KEPT)));
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(forward_lines(BufReader::new(stderr), lines.clone()));
        }
        let lifeline = child.stdin.take();
        Ok(Running {
            child,
            lifeline,
            lines,
        })
    }

    fn own_directory(&self, path: &Path, mode: u32) -> Result<(), ControlError> {
        let error = |source| ControlError::Directory {
            path: path.to_owned(),
            source,
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .map_err(error)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(error)?;
        if Uid::effective().is_root() {
            nix::unistd::chown(path, Some(self.user), Some(self.group))
                .map_err(|errno| error(errno.into()))?;
        }
        Ok(())
    }

    /// Keeps `running` up until `stop`, then ends it. `failure` has why it ended last, until the next one
    /// has lived for long enough.
    pub(super) async fn supervise(
        self,
        mut running: Running,
        stop: CancellationToken,
        failure: watch::Sender<Option<String>>,
    ) {
        let mut pause = RESTART_INTERVAL_MIN;
        loop {
            let end = tokio::select! {
                () = stop.cancelled() => return running.stop().await,
                end = running.ended() => Some(end),
                () = tokio::time::sleep(RESTART_INTERVAL_MAX) => None,
            };
            let end = match end {
                Some(end) => end,
                None => {
                    failure.send_replace(None);
                    pause = RESTART_INTERVAL_MIN;
                    tokio::select! {
                        () = stop.cancelled() => return running.stop().await,
                        end = running.ended() => end,
                    }
                }
            };
            tracing::error!(error = %end, "swarm-control ended; starting it again");
            failure.send_replace(Some(end.to_string()));
            running = loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(RESTART_INTERVAL_MAX);
                match self.spawn(&Beginning::Usual) {
                    Ok(running) => break running,
                    Err(error) => {
                        tracing::error!(%error, "cannot start swarm-control");
                        failure.send_replace(Some(crate::error_text(&error)));
                    }
                }
            };
        }
    }
}

impl Running {
    /// Waits until it has ended, and says how.
    pub(super) async fn ended(&mut self) -> ControlError {
        let status = self.child.wait().await;
        ControlError::Ended(self.words(status.ok()))
    }

    fn words(&self, status: Option<ExitStatus>) -> String {
        let lines = self
            .lines
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match (lines.back(), status) {
            (Some(line), _) => line.clone(),
            (None, Some(status)) => status.to_string(),
            (None, None) => "its state cannot be read".to_owned(),
        }
    }

    /// Asks it to end, and makes it.
    pub(super) async fn stop(mut self) {
        drop(self.lifeline.take());
        if tokio::time::timeout(STOP_TIMEOUT, self.child.wait())
            .await
            .is_err()
        {
            tracing::warn!("swarm-control does not end; killing it");
            let _ = self.child.kill().await;
        }
    }
}

async fn forward_lines(
    mut reader: BufReader<tokio::process::ChildStderr>,
    lines: Arc<Mutex<VecDeque<String>>>,
) {
    let mut line = String::new();
    while let Ok(read) = reader.read_line(&mut line).await {
        if read == 0 {
            return;
        }
        let text = line.trim_end().to_owned();
        // Its lines carry their own time and level.
        eprintln!("control: {text}");
        let mut kept = lines
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if kept.len() == LINES_KEPT {
            kept.pop_front();
        }
        if !text.is_empty() {
            kept.push_back(text);
        }
        line.clear();
    }
}

/// The user it runs as: the one named, else `swarm`, else `nobody`.
fn unprivileged_user(named: Option<&str>) -> Result<User, ControlError> {
    let find = |name: &str| {
        User::from_name(name).map_err(|source| ControlError::User {
            name: name.to_owned(),
            source,
        })
    };
    if let Some(name) = named {
        return find(name)?.ok_or_else(|| ControlError::NoUser(name.to_owned()));
    }
    for name in ["swarm", "nobody"] {
        if let Some(user) = find(name)? {
            return Ok(user);
        }
    }
    Err(ControlError::NoUser("swarm".to_owned()))
}
