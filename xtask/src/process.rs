//! Running other programs: to a log, to a string, or by identity that survives a reused number.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::progress::tail;

/// Lines of a failed command's log that are shown; the rest is in the file.
const SHOWN_LINES: usize = 25;

/// How long a process may take to end after SIGTERM before SIGKILL.
const TERM_DEADLINE: Duration = Duration::from_secs(2);

/// How long the kernel may take to be done with a killed process.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Runs a command with both outputs in a log file.
///
/// # Errors
/// When it cannot be started or fails: the message has the end of the log, and names it.
pub(crate) fn logged(command: &mut Command, log: &Path) -> Result<()> {
    let mut file = create_log(log)?;
    writeln!(file, "$ {}", describe(command))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("cannot run `{}`", describe(command)))?;
    if !status.success() {
        bail!(
            "`{}` failed ({status}); the end of its log {}:\n{}",
            describe(command),
            log.display(),
            tail(log, SHOWN_LINES).join("\n")
        );
    }
    Ok(())
}

/// Runs a command with its output where ours goes.
///
/// # Errors
/// When it cannot be started or fails.
pub(crate) fn shown(command: &mut Command) -> Result<()> {
    let status = command.status();
    let status = status.with_context(|| format!("cannot run `{}`", describe(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", describe(command));
    }
    Ok(())
}

/// The standard output of a command, or `None` when it cannot be run or fails.
pub(crate) fn output_of(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The path of a program on the search path, or in one of the directories that an ordinary user's
/// search path leaves out.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let rest = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
    std::env::split_paths(&path)
        .chain(rest.iter().map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// A new, empty log file.
///
/// # Errors
/// When it cannot be created.
pub(crate) fn create_log(log: &Path) -> Result<File> {
    if let Some(directory) = log.parent() {
        fs::create_dir_all(directory)?;
    }
    File::create(log).with_context(|| format!("cannot write {}", log.display()))
}

/// The command line as a person would type it.
pub(crate) fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A process that may outlive this one: its number and when it started, so that another process
/// that got the number later is never taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pid: i32,
    started_ticks: u64,
}

impl Process {
    /// The process that has this number now.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        Some(Self {
            pid,
            started_ticks: stat(pid)?.1,
        })
    }

    /// Whether it is there and not merely waiting to be reaped.
    pub(crate) fn is_running(&self) -> bool {
        stat(self.pid).is_some_and(|(state, started_ticks)| {
            started_ticks == self.started_ticks && !matches!(state, 'Z' | 'X')
        })
    }

    /// Ends it: SIGTERM, then SIGKILL. Fine when it is gone.
    ///
    /// # Errors
    /// When it is still there after that.
    pub(crate) fn end(&self) -> Result<()> {
        for (signal, deadline) in [
            (Signal::SIGTERM, TERM_DEADLINE),
            (Signal::SIGKILL, KILL_DEADLINE),
        ] {
            if self.is_running() {
                kill(Pid::from_raw(self.pid), signal).ok();
            }
            let started = Instant::now();
            while self.is_running() && started.elapsed() < deadline {
                thread::sleep(Duration::from_millis(10));
            }
        }
        if self.is_running() {
            bail!("process {} does not end", self.pid);
        }
        Ok(())
    }
}

/// State letter and start time of a process.
fn stat(pid: i32) -> Option<(char, u64)> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields 3 and 22 of `/proc/<pid>/stat` (proc_pid_stat(5)); field 2 may contain anything.
fn parse_stat(line: &str) -> Option<(char, u64)> {
    let mut fields = line.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_behind_an_odd_name() {
        let line = "7 (a) b) S 1 7 7 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 4242 99 1";
        assert_eq!(parse_stat(line), Some(('S', 4242)));
        assert_eq!(parse_stat("7 (x"), None);
    }

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number() {
        let own = Process::of(std::process::id()).unwrap();
        assert!(own.is_running());
        assert!(
            !Process {
                started_ticks: own.started_ticks + 1,
                ..own
            }
            .is_running()
        );
    }

    #[test]
    fn end_ends_a_process_that_ignores_a_polite_request() {
        let mut child = Command::new("sh")
            .args(["-c", "trap '' TERM; while :; do sleep 1; done"])
            .spawn()
            .unwrap();
        let process = Process::of(child.id()).unwrap();
        process.end().unwrap();
        assert!(!process.is_running());
        child.wait().unwrap();
    }

    #[test]
    fn a_failed_command_shows_and_names_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("x.log");
        let mut command = Command::new("sh");
        let error = logged(command.args(["-c", "echo the reason; exit 4"]), &log).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("the reason") && text.contains("x.log"),
            "{text}"
        );
    }
}
