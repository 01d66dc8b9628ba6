//! A host with a manager on it.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::process::{Child, Command};

/// Ticks a second in `/proc/<pid>/stat`: `USER_HZ`, 100 on every Linux that this is built for.
const TICKS_PER_S: f64 = 100.0;

/// Time that a manager gets to end by itself.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// A manager's process. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Host {
    /// Its node's id.
    pub(crate) node_id: String,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    directory: PathBuf,
    child: Child,
}

/// Where a manager keeps its certificate before it is one.
pub(crate) fn certificate_path(directory: &Path) -> PathBuf {
    directory.join("state/tls/manager.pem")
}

impl Host {
    /// Starts a manager that keeps its files in `directory`; `more` are further arguments.
    pub(crate) fn start(directory: &Path, node_id: &str, more: &[&str]) -> Result<Self> {
        fs::create_dir_all(directory)?;
        // Free a moment ago; whoever takes it meanwhile makes the start fail, with words.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let text = address.to_string();
        let log = fs::File::create(directory.join("log"))?;
        let child = Command::new(std::env::current_exe()?)
            .arg(crate::MANAGER_COMMAND)
            .arg("--state-dir")
            .arg(directory.join("state"))
            .arg("--socket")
            .arg(directory.join("control.sock"))
            .args(["--listen-address", &text, "--advertise-address", &text])
            .args(["--node-id", node_id])
            .args(more)
            .env("SWARM_LOG", "warn")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start a manager")?;
        Ok(Self {
            node_id: node_id.to_owned(),
            address,
            directory: directory.to_owned(),
            child,
        })
    }

    /// Its local socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    /// What it has logged: warnings and worse.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Why it has ended; none while it runs.
    pub(crate) fn has_ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(format!("a manager ended ({status}): {}", self.log()))
    }

    /// What the kernel says of it.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let pid = self.child.id().context("the manager has ended")?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        Usage::parse(&stat, &status).context("cannot read what /proc says of a manager")
    }

    /// Ends it as a crash would.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("cannot kill a manager")
    }

    /// Ends it in order.
    pub(crate) async fn end(mut self) {
        drop(self.child.stdin.take());
        if tokio::time::timeout(END_DEADLINE, self.child.wait())
            .await
            .is_err()
        {
            self.child.kill().await.ok();
        }
    }
}

/// What a process has used and holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Usage {
    /// Processor time, user and system.
    pub(crate) cpu_s: f64,
    /// Memory, resident.
    pub(crate) memory_bytes: f64,
}

impl Usage {
    /// From `/proc/<pid>/stat`, fields 14 and 15, and `/proc/<pid>/status` (proc(5)).
    fn parse(stat: &str, status: &str) -> Option<Self> {
        let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
        let mut ticks = || fields.next()?.parse::<f64>().ok();
        let cpu_s = (ticks()? + ticks()?) / TICKS_PER_S;
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kibibytes: f64 = resident.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(Self {
            cpu_s,
            memory_bytes: kibibytes * 1024.0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_behind_an_odd_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4 1 2 3 4 150 50 7 8 20 0 1 0 4242 99 1";
        let status = "Name:\ta\nVmRSS:\t    2048 kB\n";
        let usage = Usage::parse(stat, status).unwrap();
        assert_eq!(usage.cpu_s, 2.0);
        assert_eq!(usage.memory_bytes, 2.0 * 1024.0 * 1024.0);
        assert_eq!(Usage::parse("7 (a", status), None);
    }
}
