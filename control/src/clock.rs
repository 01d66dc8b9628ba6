//! The one place where this process asks what time it is.

use std::time::{SystemTime, UNIX_EPOCH};

use swarm_model::Timestamp;

/// Now, by this host's clock; the epoch itself for a clock that stands before it.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
