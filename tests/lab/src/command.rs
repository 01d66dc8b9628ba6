//! Running one command to its end, with a deadline.

use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long a command may run when nobody says otherwise; emulation makes everything ten times
/// slower.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);

/// How long to wait for the rest of the output after the end of a command; a daemon it left behind
/// may hold the pipe.
const DRAIN_DEADLINE: Duration = Duration::from_secs(1);

/// Output kept of one command; more is read and dropped, so that a runaway cannot eat the machine.
const MAX_OUTPUT_BYTES: usize = 64 * 1024 * 1024;

/// Between two looks at whether a command has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// What a command left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; 128 + signal number when a signal ended it.
    pub code: i32,
    /// Standard output, bytes that are not UTF-8 replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
}

impl Output {
    /// The standard output of a command that succeeded.
    ///
    /// # Errors
    /// When it did not: the message carries command, code and both outputs.
    pub fn success(self) -> Result<String> {
        ensure!(
            self.code == 0,
            "`{}` ended with code {}\n{}{}",
            self.command,
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }

    /// The standard error of a command that was expected to fail.
    ///
    /// # Errors
    /// When it succeeded.
    pub fn failure(self) -> Result<String> {
        ensure!(
            self.code != 0,
            "`{}` succeeded but should not\n{}",
            self.command,
            self.stdout
        );
        Ok(self.stderr)
    }
}

/// Exit code in the shell's way: 128 + signal number for a command that a signal ended.
#[must_use]
pub fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Runs the command to its end, with its output captured.
///
/// # Errors When it cannot be started, or is still running after `deadline` (its process group is
/// killed then). A non-zero exit code is not an error: see [`Output::success`].
pub fn run(command: &mut Command, stdin: &[u8], deadline: Duration) -> Result<Output> {
    let text = describe(command);
    let mut child = command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{text}`"))?;
    if let Some(mut pipe) = child.stdin.take() {
        let bytes = stdin.to_vec();
        // A command that does not read its input closes the pipe: not a fault of the run.
        thread::spawn(move || pipe.write_all(&bytes).ok());
    }
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait(&mut child, deadline);
    if status.is_none() {
        killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).ok();
        child.wait().ok();
    }
    let output = Output {
        command: text,
        code: status.map_or(-1, exit_code),
        stdout: drain(&stdout),
        stderr: drain(&stderr),
    };
    if status.is_none() {
        bail!(
            "`{}` still ran after {} s\n{}{}",
            output.command,
            deadline.as_secs(),
            output.stdout,
            output.stderr
        );
    }
    Ok(output)
}

/// Runs a program with arguments, with the default deadline, and wants it to succeed.
///
/// # Errors
/// When it cannot be started, does not end in time, or ends with another code than 0.
pub fn must(program: &str, arguments: &[&str]) -> Result<String> {
    run(Command::new(program).args(arguments), b"", DEFAULT_DEADLINE)?.success()
}

fn wait(child: &mut Child, deadline: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if started.elapsed() > deadline {
            return None;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Output on its way in.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    end: mpsc::Receiver<()>,
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> Collected {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let (done, end) = mpsc::sync_channel(1);
    let kept = Arc::clone(&bytes);
    thread::spawn(move || {
        let Some(mut pipe) = pipe else { return };
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            let room = MAX_OUTPUT_BYTES.saturating_sub(kept.len());
            kept.extend_from_slice(&buffer[..length.min(room)]);
        }
        done.send(()).ok();
    });
    Collected { bytes, end }
}

fn drain(collected: &Collected) -> String {
    collected.end.recv_timeout(DRAIN_DEADLINE).ok();
    let bytes = collected
        .bytes
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_outputs_and_the_code_come_back() {
        let mut command = Command::new("sh");
        command.args(["-c", "cat; echo bad >&2; exit 3"]);
        let output = run(&mut command, b"good", DEFAULT_DEADLINE).unwrap();
        assert_eq!((output.code, output.stdout.as_str()), (3, "good"));
        assert_eq!(output.stderr, "bad\n");
        assert!(output.success().unwrap_err().to_string().contains("code 3"));
    }

    #[test]
    fn a_command_past_its_deadline_is_killed_and_named() {
        let mut command = Command::new("sleep");
        let error = run(command.arg("60"), b"", Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("sleep 60"), "{error}");
    }

    #[test]
    fn much_output_is_read_while_the_command_runs() {
        let mut command = Command::new("head");
        command.args(["-c", "10000000", "/dev/zero"]);
        let output = run(&mut command, b"", DEFAULT_DEADLINE).unwrap();
        assert_eq!(output.stdout.len(), 10_000_000);
    }
}
