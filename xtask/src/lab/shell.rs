//! Commands in the lab for the person at the terminal.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use signal_hook::consts::SIGWINCH;
use signal_hook::iterator::Signals;
use swarm_lab::client::{Sender, Session};
use swarm_lab::wire::{Frame, TerminalSize};

use super::{ExecOptions, Lab};
use crate::interrupt::{self, Verdict};

/// When the terminal does not say.
const DEFAULT_SIZE: TerminalSize = TerminalSize {
    rows: 24,
    columns: 80,
};

type SharedSender = Arc<Mutex<Sender>>;

impl Lab {
    /// Runs a command with our own input and outputs; signals go to it. A second Ctrl-C ends us
    /// whatever the command does.
    ///
    /// # Errors
    /// When the lab refuses it or goes away.
    pub(super) fn attached(&self, host: Option<&str>, argv: &[&str]) -> Result<i32> {
        let request = self.request(host, argv, &ExecOptions::default());
        let session = Session::start(&self.state.endpoint, request)?;
        let sender = shared(&session)?;
        carry_input(Arc::clone(&sender));
        let mut count = 0;
        let _on_signal = interrupt::on_signal(move |signal| {
            count += 1;
            send(&sender, &Frame::Signal(signal));
            if count > 1 {
                Verdict::End
            } else {
                Verdict::Handled
            }
        });
        session.follow(write_out)
    }

    /// Opens a shell on a host, on this terminal.
    ///
    /// # Errors
    /// When there is no terminal, or the lab goes away.
    pub(super) fn shell(&self, host: Option<&str>) -> Result<i32> {
        ensure!(
            io::stdin().is_terminal(),
            "a shell needs a terminal: use `cargo xtask lab exec`"
        );
        let name = host.unwrap_or("lab");
        let options = ExecOptions {
            env: vec![
                (
                    "TERM".into(),
                    std::env::var("TERM").unwrap_or_else(|_| "xterm".into()),
                ),
                ("PS1".into(), format!("[{name}] \\w # ")),
            ],
            ..ExecOptions::default()
        };
        let mut request = self.request(host, &["bash", "--norc", "--noprofile", "-i"], &options);
        request.terminal = Some(terminal_size());
        let session = Session::start(&self.state.endpoint, request)?;
        let sender = shared(&session)?;
        let raw = RawTerminal::enter()?;
        carry_input(Arc::clone(&sender));
        carry_size(sender)?;
        let code = session.follow(write_out);
        drop(raw);
        code
    }
}

fn shared(session: &Session) -> Result<SharedSender> {
    Ok(Arc::new(Mutex::new(session.sender()?)))
}

fn send(sender: &SharedSender, frame: &Frame) -> bool {
    sender
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(frame)
        .is_ok()
}

/// Carries our standard input to the command, until either is at its end.
fn carry_input(sender: SharedSender) {
    thread::spawn(move || {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(length @ 1..) = io::stdin().read(&mut buffer) {
            if !send(&sender, &Frame::Stdin(buffer[..length].to_vec())) {
                return;
            }
        }
        send(&sender, &Frame::StdinEnd);
    });
}

/// Tells the lab whenever our terminal has another size.
fn carry_size(sender: SharedSender) -> Result<()> {
    let mut signals = Signals::new([SIGWINCH]).context("cannot take signals")?;
    thread::spawn(move || {
        for _ in signals.forever() {
            if !send(&sender, &Frame::Resize(terminal_size())) {
                return;
            }
        }
    });
    Ok(())
}

fn write_out(is_error: bool, bytes: &[u8]) {
    // When nobody reads our output any more there is nobody to tell either.
    if is_error {
        io::stderr().write_all(bytes).ok();
    } else {
        let mut stdout = io::stdout();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).ok();
    }
}

/// The size of our terminal, asked of stty(1), which needs no unsafe call.
fn terminal_size() -> TerminalSize {
    let output = std::process::Command::new("stty")
        .arg("size")
        .stdin(std::process::Stdio::inherit())
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.ok()
        .and_then(|text| parse_size(&text))
        .unwrap_or(DEFAULT_SIZE)
}

fn parse_size(text: &str) -> Option<TerminalSize> {
    let (rows, columns) = text.trim().split_once(' ')?;
    let size = TerminalSize {
        rows: rows.parse().ok()?,
        columns: columns.parse().ok()?,
    };
    (size.rows > 0 && size.columns > 0).then_some(size)
}

/// Our terminal without line editing, echo and signals, until dropped.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> Result<Self> {
        let before = tcgetattr(io::stdin().as_fd()).context("cannot read the terminal's mode")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &raw)
            .context("cannot set the terminal's mode")?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &self.before).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_rows_then_columns() {
        assert_eq!(
            parse_size("50 132\n"),
            Some(TerminalSize {
                rows: 50,
                columns: 132
            })
        );
        assert_eq!(parse_size("0 0\n"), None);
        assert_eq!(parse_size(""), None);
    }
}
