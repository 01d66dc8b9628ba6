//! Progress on standard error.

use std::io::IsTerminal as _;

/// What was told last; the same is told once.
pub(crate) struct Shown {
    last: String,
    on_terminal: bool,
}

impl Shown {
    /// Nothing was told yet.
    pub(crate) fn new() -> Self {
        Self {
            last: String::new(),
            on_terminal: std::io::stderr().is_terminal(),
        }
    }

    /// Tells `text`, in place of what was told before where that is one line on a terminal.
    pub(crate) fn tell(&mut self, text: &str) {
        if self.last == text {
            return;
        }
        // What was told before is written over where that is one line.
        if self.on_terminal && !self.last.is_empty() && !self.last.contains('\n') {
            eprint!("\x1b[1A\x1b[2K");
        }
        eprintln!("{text}");
        text.clone_into(&mut self.last);
    }
}
