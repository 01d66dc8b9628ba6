//! How many hosts may ask to join. Pure: a token bucket.

use swarm_model::Timestamp;

/// Requests that may come at once: a rack of hosts started together.
const BURST: u64 = 100;

/// Time after which one more may come. Bounds what wrong tokens cost in signatures and log lines.
const INTERVAL_MS: u64 = 100;

/// A full bucket is `BURST` tokens; it refills with time.
#[derive(Debug)]
pub(super) struct JoinRate {
    tokens: u64,
    refilled_at: Timestamp,
}

impl Default for JoinRate {
    fn default() -> Self {
        Self {
            tokens: BURST,
            refilled_at: Timestamp(0),
        }
    }
}

impl JoinRate {
    /// Whether one more request may be handled at `now`.
    pub(super) fn take(&mut self, now: Timestamp) -> bool {
        if now < self.refilled_at {
            // The clock was set back; count from here.
            self.refilled_at = now;
        }
        let due = (now.0 - self.refilled_at.0) / INTERVAL_MS;
        self.tokens = self.tokens.saturating_add(due).min(BURST);
        self.refilled_at.0 += due * INTERVAL_MS;
        let free = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_an_interval() {
        let mut rate = JoinRate::default();
        let start = Timestamp(1_000_000);
        let taken = (0..2 * BURST).filter(|_| rate.take(start)).count() as u64;
        assert_eq!(taken, BURST);
        assert!(!rate.take(Timestamp(start.0 + INTERVAL_MS - 1)));
        assert!(rate.take(Timestamp(start.0 + INTERVAL_MS)));
        assert!(!rate.take(Timestamp(start.0 + INTERVAL_MS)));
        // A clock that is set back neither panics nor opens the gate.
        assert!(!rate.take(Timestamp(0)));
        assert!(rate.take(Timestamp(INTERVAL_MS)));
    }
}
