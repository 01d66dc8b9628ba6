//! `swarmctl swarm unlock`.

use std::io::{self, BufRead, IsTerminal as _, Write as _};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use swarm_api::v1;

use crate::connect::{Sockets, answer, request};

/// Most that is read: far more than a key.
const LINE_BYTES_MAX: u64 = 1024;

/// Unlocks the manager on this host with the key read from standard input.
#[derive(Debug, clap::Args)]
pub(crate) struct Unlock {}

impl Unlock {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        // First, so that nobody types a key for nothing.
        let mut manager = sockets.local_control().await?;
        let unlock_key = ask()?;
        let message = v1::UnlockRequest { unlock_key };
        answer(manager.unlock(request(message)).await)?;
        Ok(())
    }
}

/// The key: from a person, who does not see it, or from what standard input is.
fn ask() -> anyhow::Result<String> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return first_line(stdin.lock());
    }
    print!("Please enter unlock key: ");
    io::stdout().flush()?;
    let unseen = Unseen::new();
    let line = first_line(stdin.lock());
    drop(unseen);
    println!();
    line
}

fn first_line(input: impl BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    input.take(LINE_BYTES_MAX).read_line(&mut line)?;
    let key = line.trim();
    if key.is_empty() {
        anyhow::bail!(
            "no unlock key was given: `swarmctl swarm unlock-key` on a manager that runs prints it"
        );
    }
    Ok(key.to_owned())
}

/// While it lives, what is typed is not shown.
struct Unseen(Option<Termios>);

impl Unseen {
    fn new() -> Self {
        // Where the terminal cannot do it the key is seen; that is no reason to stay locked.
        let Ok(before) = tcgetattr(io::stdin()) else {
            return Self(None);
        };
        let mut now = before.clone();
        now.local_flags.remove(LocalFlags::ECHO);
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &now);
        Self(Some(before))
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_the_first_line() {
        let read = |text: &str| first_line(text.as_bytes()).map_err(|error| error.to_string());
        assert_eq!(read("SWMKEY-1-x\n").unwrap(), "SWMKEY-1-x");
        assert_eq!(read("  SWMKEY-1-x\r\nmore").unwrap(), "SWMKEY-1-x");
        assert!(read("").unwrap_err().starts_with("no unlock key was given"));
        assert!(read("\n").is_err());
        assert_eq!(read(&"x".repeat(5000)).unwrap().len(), 1024);
    }
}
