//! Ctrl-C, SIGTERM and SIGHUP: undo what is half done, then go; or pass it on.

use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

type Handler = Box<dyn FnMut(i32) -> Verdict + Send>;

static HANDLERS: Mutex<Vec<(u64, Handler)>> = Mutex::new(Vec::new());

/// What a handler says about the signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was taken care of: go on.
    Handled,
    /// Ask the next older handler, and end the process after the last one.
    End,
}

/// Removes its handler when dropped.
#[derive(Debug)]
pub(crate) struct Registration(u64);

/// Starts listening; call once, early.
///
/// # Errors
/// When the signals cannot be taken.
pub(crate) fn listen() -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("cannot take signals")?;
    thread::spawn(move || {
        for signal in signals.forever() {
            let mut handlers = HANDLERS.lock().unwrap_or_else(PoisonError::into_inner);
            let is_handled = handlers
                .iter_mut()
                .rev()
                .any(|(_, handler)| handler(signal) == Verdict::Handled);
            if !is_handled {
                std::process::exit(128 + signal);
            }
        }
    });
    Ok(())
}

/// Runs `handler` on such a signal, until the registration is dropped. The newest goes first.
pub(crate) fn on_signal(handler: impl FnMut(i32) -> Verdict + Send + 'static) -> Registration {
    let mut handlers = HANDLERS.lock().unwrap_or_else(PoisonError::into_inner);
    let id = handlers.last().map_or(0, |(id, _)| id + 1);
    handlers.push((id, Box::new(handler)));
    Registration(id)
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut handlers = HANDLERS.lock().unwrap_or_else(PoisonError::into_inner);
        handlers.retain(|(id, _)| *id != self.0);
    }
}
