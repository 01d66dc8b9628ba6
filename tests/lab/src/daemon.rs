//! Long-running processes of the lab: started detached, found again by name.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{LOG_DIR, RUN_DIR, wait_until};

/// One long-running process, known by its name; it may or may not be running.
#[derive(Debug, Clone)]
pub struct Daemon {
    name: String,
}

impl Daemon {
    /// The daemon of that name; its log is `<LOG_DIR>/<name>.log`.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Its log file.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        PathBuf::from(format!("{LOG_DIR}/{}.log", self.name))
    }

    fn pid_file(&self) -> PathBuf {
        PathBuf::from(format!("{RUN_DIR}/{}.pid", self.name))
    }

    /// Starts it in a process group of its own, output appended to its log, unless it runs.
    ///
    /// # Errors
    /// When the program cannot be started or a file cannot be written.
    pub fn start(&self, command: &mut Command) -> Result<()> {
        if self.pid().is_some() {
            return Ok(());
        }
        fs::create_dir_all(LOG_DIR)?;
        fs::create_dir_all(RUN_DIR)?;
        let log = open_log(&self.log())?;
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))?;
        fs::write(self.pid_file(), child.id().to_string())?;
        Ok(())
    }

    /// Process id, if it is running.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        let pid = fs::read_to_string(self.pid_file()).ok()?.parse().ok()?;
        is_running(pid).then(|| Pid::from_raw(pid))
    }

    /// Sends a signal to it.
    ///
    /// # Errors
    /// When it is not running.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pid) = self.pid() else {
            bail!("{} is not running", self.name)
        };
        kill(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Sends the signal and waits for the end; fine when it does not run.
    ///
    /// # Errors
    /// When it is still there after `deadline`.
    pub fn end(&self, signal: Signal, deadline: Duration) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        kill(pid, signal).ok();
        wait_until(deadline, &format!("end of {}", self.name), || {
            ensure!(!is_running(pid.as_raw()), "process {pid} is still there");
            Ok(())
        })
    }

    /// Waits for `attempt` to succeed, but no longer than the daemon lives.
    ///
    /// # Errors
    /// When the deadline passes or the daemon ends: the message names the log and has its end.
    pub fn wait_ready(
        &self,
        deadline: Duration,
        mut attempt: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let what = format!("{} (log: {})", self.name, self.log().display());
        let is_ready = wait_until(deadline, &what, || match attempt() {
            Err(error) if self.pid().is_some() => Err(error),
            other => Ok(other),
        });
        is_ready
            .and_then(|result| result.with_context(|| format!("{} ended early", self.name)))
            .with_context(|| format!("end of {}:\n{}", self.log().display(), self.log_end()))
    }

    fn log_end(&self) -> String {
        const LINES: usize = 15;
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

fn open_log(path: &std::path::Path) -> Result<File> {
    let log = OpenOptions::new().create(true).append(true).open(path);
    log.with_context(|| format!("cannot write {}", path.display()))
}

/// Whether the process exists and is more than an entry waiting to be reaped.
fn is_running(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !matches!(process_state(&stat), None | Some('Z' | 'X')))
}

/// The state letter of a `/proc/<pid>/stat` line; the name before it may contain anything.
fn process_state(stat: &str) -> Option<char> {
    stat.rsplit_once(") ")?.1.chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_found_behind_an_odd_name() {
        assert_eq!(process_state("7 (a) Z (b) S 1 7 7"), Some('S'));
        assert_eq!(process_state("7 (sh) Z 1 7 7"), Some('Z'));
        assert_eq!(process_state(""), None);
    }

    #[test]
    fn this_process_runs_and_an_impossible_one_does_not() {
        assert!(is_running(std::process::id().cast_signed()));
        assert!(!is_running(i32::MAX));
    }
}
