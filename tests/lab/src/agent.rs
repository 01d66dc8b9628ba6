//! One `swarm-agent` per host: start it, stop it, kill it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::daemon::Daemon;
use crate::services::{CONTAINERD_SOCKET, REGISTRY_HOSTS_DIR};
use crate::topology::Node;

/// Generous for emulation: the agent serves its socket within two seconds.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// How long an agent may take to end after SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// The agent of one host, running or not.
#[derive(Debug, Clone)]
pub struct Agent {
    node: Node,
    daemon: Daemon,
}

impl Agent {
    /// The agent of that host.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        Self {
            node: node.clone(),
            daemon: Daemon::named(format!("{}-agent", node.name)),
        }
    }

    /// Whether the workspace's agent was built and handed to the lab.
    #[must_use]
    pub fn is_built() -> bool {
        Path::new(crate::SHARE_DIR).join("bin/swarm-agent").exists()
    }

    /// Directory of its sockets and namespaces.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        PathBuf::from(format!("/run/swarm/{}", self.node.name))
    }

    /// Directory of its state, and below it that of the control process.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        PathBuf::from(format!("/var/lib/swarm/{}", self.node.name))
    }

    /// Directory of its pinned programs and maps.
    #[must_use]
    pub fn bpffs_dir(&self) -> PathBuf {
        PathBuf::from(format!("/sys/fs/bpf/swarm/{}", self.node.name))
    }

    /// containerd's namespace for its containers.
    #[must_use]
    pub fn containerd_namespace(&self) -> String {
        format!("swarm-{}", self.node.name)
    }

    /// Its log file; the control process writes there, too.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.daemon.log()
    }

    /// Process id, if it is running.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        self.daemon.pid()
    }

    /// Process id of the control process under it, if there is one.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn control_pid(&self) -> Result<Option<Pid>> {
        let Some(agent) = self.pid() else {
            return Ok(None);
        };
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            let is_control = fs::read_to_string(path.join("status")).is_ok_and(|status| {
                status.lines().any(|line| line == "Name:\tswarm-control")
                    && status.lines().any(|line| line == format!("PPid:\t{agent}"))
            });
            let pid = path
                .file_name()
                .and_then(|name| name.to_str()?.parse().ok());
            if let (true, Some(pid)) = (is_control, pid) {
                return Ok(Some(Pid::from_raw(pid)));
            }
        }
        Ok(None)
    }

    /// Starts it, unless it runs, and waits until its socket accepts connections.
    ///
    /// # Errors
    /// When it ends or does not serve in time; the message has the end of its log.
    pub fn start(&self) -> Result<()> {
        for directory in [self.run_dir(), self.state_dir(), self.bpffs_dir()] {
            fs::create_dir_all(&directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        let mut command = self.node.command("swarm-agent");
        command.arg("--state-dir").arg(self.state_dir());
        command.arg("--run-dir").arg(self.run_dir());
        command.arg("--bpffs-dir").arg(self.bpffs_dir());
        command.args(["--containerd-socket", CONTAINERD_SOCKET]);
        command.args(["--containerd-namespace", &self.containerd_namespace()]);
        command.args(["--registry-hosts-dir", REGISTRY_HOSTS_DIR]);
        self.daemon.start(&mut command)?;
        let socket = self.run_dir().join("agent.sock");
        self.daemon.wait_ready(START_DEADLINE, || {
            Ok(UnixStream::connect(&socket).map(drop)?)
        })
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// When it is still there after 20 s.
    pub fn stop(&self) -> Result<()> {
        self.daemon.end(Signal::SIGTERM, STOP_DEADLINE)
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// When it is still there after 20 s.
    pub fn kill(&self) -> Result<()> {
        self.daemon.end(Signal::SIGKILL, STOP_DEADLINE)
    }

    /// Kills the control process under it (SIGKILL); the agent is expected to start another.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_control(&self) -> Result<()> {
        let pid = self.control_pid()?;
        let pid = pid.with_context(|| format!("no control process on {}", self.node.name))?;
        nix::sys::signal::kill(pid, Signal::SIGKILL).context("cannot kill the control process")
    }

    /// Kills it and the control process under it at once (SIGKILL), so that neither does anything in
    /// order any more, and waits until the agent is gone.
    ///
    /// # Errors
    /// When there is no control process, or the agent is still there after 20 s.
    pub fn kill_with_control(&self) -> Result<()> {
        // The agent starts another one only after a pause.
        self.kill_control()?;
        self.kill()
    }

    /// Stops and starts it.
    ///
    /// # Errors
    /// As [`Agent::stop`] and [`Agent::start`].
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.start()
    }

    /// Kills it and removes everything it made: containers, mounts, state. Its host's network
    /// namespace, where the rest is, has to be made anew by the caller.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn erase(&self) -> Result<()> {
        self.kill()?;
        erase_containers(&self.containerd_namespace())?;
        unmount_below(&self.run_dir())?;
        unmount_below(&self.state_dir())?;
        for directory in [self.run_dir(), self.state_dir(), self.bpffs_dir()] {
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    let what = format!("cannot remove {}", directory.display());
                    return Err(error).context(what);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn erase_containers(namespace: &str) -> Result<()> {
    let ctr = |arguments: &[&str]| {
        crate::command::must("ctr", &[&["--namespace", namespace], arguments].concat())
    };
    for task in ctr(&["tasks", "list", "--quiet"])?.lines() {
        ctr(&["tasks", "delete", "--force", task])?;
    }
    for container in ctr(&["containers", "list", "--quiet"])?.lines() {
        ctr(&["containers", "delete", container])?;
    }
    let left = ctr(&["containers", "list", "--quiet"])?;
    ensure!(left.is_empty(), "containers left in {namespace}: {left}");
    Ok(())
}

fn unmount_below(directory: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    // The last mounted first: one may lie on another.
    for line in mounts.lines().rev() {
        let Some(target) = line.split(' ').nth(1).map(Path::new) else {
            continue;
        };
        if target.starts_with(directory) {
            nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH)
                .with_context(|| format!("cannot unmount {}", target.display()))?;
        }
    }
    Ok(())
}
