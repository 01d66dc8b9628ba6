//! Waiting for a condition, the only way a lab test may pass time.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Between two tries; short against anything the swarm promises in seconds.
const INTERVAL: Duration = Duration::from_millis(50);

/// Tries `attempt` until it succeeds, and returns what it gave.
///
/// # Errors
/// When `deadline` has passed: the message says what was awaited and for how long, the cause is
/// that of the last attempt. The last attempt starts after the deadline, so that a slow one does
/// not fail a condition that came true in time.
pub fn wait_until<T>(
    deadline: Duration,
    what: &str,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        let is_last = started.elapsed() >= deadline;
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if is_last => {
                return Err(error).with_context(|| {
                    format!(
                        "waited {:.1} s for: {what}",
                        started.elapsed().as_secs_f64()
                    )
                });
            }
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_what_the_first_success_gave() {
        let mut left = 3;
        let value = wait_until(Duration::from_secs(10), "countdown", || {
            left -= 1;
            anyhow::ensure!(left == 0, "{left} left");
            Ok("done")
        });
        assert_eq!(value.unwrap(), "done");
    }

    #[test]
    fn names_the_condition_and_the_last_reason() {
        let never = || -> Result<()> { anyhow::bail!("port closed") };
        let error = wait_until(Duration::ZERO, "an answer", never).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("an answer") && text.contains("port closed"),
            "{text}"
        );
    }
}
