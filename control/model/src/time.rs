//! Points in time, as the swarm stores them.

use std::time::Duration;

/// Milliseconds since the Unix epoch, by the clock of the node that wrote it.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// How long after `earlier` this is; zero when it is not after.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// This point moved on by `by`.
    pub fn after(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// When `wait`, which began here, is over, asked at `now`: at the latest `wait` from `now`. A beginning
    /// that lies further ahead was written before a clock was set back; waiting for that clock could take
    /// years, so that wait is over now.
    #[must_use]
    pub fn due(self, wait: Duration, now: Self) -> Self {
        if self.since(now) > wait {
            now
        } else {
            self.after(wait)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_makes_no_wait_longer_than_twice() {
        let (hour, wait) = (Duration::from_secs(3600), Duration::from_secs(5));
        let begun = Timestamp(1_000_000_000);
        let over = begun.after(wait);
        assert_eq!(begun.due(wait, begun), over);
        assert_eq!(begun.due(wait, begun.after(hour)), over);
        let back = Timestamp(begun.0 - 3_600_000);
        assert_eq!(begun.due(wait, back), back);
        // Two managers' clocks are never quite the same.
        let behind = Timestamp(begun.0 - 4_000);
        assert_eq!(begun.due(wait, behind), over);
    }
}
