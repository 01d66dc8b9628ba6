//! How often something that costs may be asked for. Pure: a token bucket.

use swarm_model::Timestamp;

/// Starts full; refills with time.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    burst: u64,
    interval_ms: u64,
    tokens: u64,
    refilled_at: Timestamp,
}

impl TokenBucket {
    /// `burst` requests may come at once, and one more after every `interval_ms`, not zero.
    pub(crate) fn new(burst: u64, interval_ms: u64) -> Self {
        Self {
            burst,
            interval_ms,
            tokens: burst,
            refilled_at: Timestamp(0),
        }
    }

    /// Whether one more request may be handled at `now`.
    pub(crate) fn take(&mut self, now: Timestamp) -> bool {
        if now < self.refilled_at {
            // The clock was set back; count from here.
            self.refilled_at = now;
        }
        let due = (now.0 - self.refilled_at.0) / self.interval_ms;
        self.tokens = self.tokens.saturating_add(due).min(self.burst);
        self.refilled_at.0 += due * self.interval_ms;
        let free = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: u64 = 100;
    const INTERVAL_MS: u64 = 100;

    #[test]
    fn a_burst_then_one_an_interval() {
        let mut rate = TokenBucket::new(BURST, INTERVAL_MS);
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
