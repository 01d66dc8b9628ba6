//! What happened, in order, and its digest: two runs of one seed have the same.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};

/// Lines that are kept to be shown when something is wrong.
const KEPT_LINES: usize = 60;

/// A trace.
#[derive(Debug)]
pub(crate) struct Trace {
    digest: u64,
    count: u64,
    line: String,
    last: VecDeque<String>,
    is_shown: bool,
}

impl Trace {
    /// An empty one; each line is printed when it `is_shown`.
    pub(crate) fn new(is_shown: bool) -> Self {
        Self {
            digest: 0xcbf2_9ce4_8422_2325,
            count: 0,
            line: String::new(),
            last: VecDeque::with_capacity(KEPT_LINES),
            is_shown,
        }
    }

    /// Writes down that `what` happened at `now` (microseconds).
    pub(crate) fn note(&mut self, now: u64, what: fmt::Arguments<'_>) {
        self.line.clear();
        // Writing to a string does not fail.
        let _ = write!(
            self.line,
            "{:>5}.{:06} {what}",
            now / 1_000_000,
            now % 1_000_000
        );
        for byte in self.line.as_bytes() {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.count += 1;
        if self.is_shown {
            println!("{}", self.line);
        }
        // The oldest line's memory is the newest's.
        let mut line = match self.last.len() {
            KEPT_LINES => self.last.pop_front().unwrap_or_default(),
            _ => String::new(),
        };
        line.clone_from(&self.line);
        self.last.push_back(line);
    }

    /// The digest of everything so far (FNV-1a).
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    /// How much happened.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The last lines.
    pub(crate) fn into_last(self) -> Vec<String> {
        self.last.into()
    }
}
