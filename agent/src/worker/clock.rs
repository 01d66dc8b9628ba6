//! The time that statuses carry.

use std::time::SystemTime;

use swarm_model::Timestamp;
use tokio::time::Instant;

/// The wall clock as it was at the start of the agent, carried on by the monotonic one: setting the
/// host's clock neither shortens nor prolongs a grace period. Stands still when tokio's does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    started_at: Timestamp,
    started: Instant,
}

impl Clock {
    /// A clock that shows what the host's shows now.
    pub(super) fn start() -> Self {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            started_at: Timestamp::default().after(since),
            started: Instant::now(),
        }
    }

    /// Now.
    pub(super) fn now(self) -> Timestamp {
        self.started_at.after(self.started.elapsed())
    }
}
