//! Saying what goes on, so that nobody stares at a silent terminal for minutes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Between two signs of life of a long step.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// How much of the end of a log is looked at for its last lines.
const TAIL_BYTES: u64 = 16 * 1024;

/// Does one step of a longer job: says its title first, a sign of life every ten seconds (with the
/// last line of `log`, when there is one), and how long it took.
///
/// # Errors
/// Those of `work`.
pub(crate) fn step<T>(
    title: &str,
    log: Option<&Path>,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    eprintln!("==> {title}");
    let started = Instant::now();
    let (finished, wait) = mpsc::sync_channel::<()>(1);
    let result = thread::scope(|scope| {
        scope.spawn(move || {
            while wait.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                let line = log.and_then(|log| tail(log, 1).pop()).unwrap_or_default();
                eprintln!(
                    "    {:.0} s  {}",
                    started.elapsed().as_secs_f64(),
                    line.trim()
                );
            }
        });
        let result = work();
        drop(finished);
        result
    });
    let verdict = if result.is_ok() { "done" } else { "FAILED" };
    eprintln!(
        "    {verdict} after {:.1} s",
        started.elapsed().as_secs_f64()
    );
    result
}

/// The last lines of a file that are not empty, at most `count`, oldest first; none when it cannot
/// be read.
pub(crate) fn tail(path: &Path, count: usize) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(count)..]
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_takes_the_last_lines_with_content() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a\nb\n\nc\n\n").unwrap();
        assert_eq!(tail(file.path(), 2), ["b", "c"]);
        assert_eq!(tail(file.path(), 9), ["a", "b", "c"]);
        assert!(tail(Path::new("/nonexistent"), 2).is_empty());
    }

    #[test]
    fn a_step_gives_what_its_work_gives() {
        assert_eq!(step("count", None, || Ok(3)).unwrap(), 3);
        assert!(step("fail", None, || -> Result<()> { anyhow::bail!("no") }).is_err());
    }
}
