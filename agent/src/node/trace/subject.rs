//! What a person asks a trace for. Pure.

use std::net::IpAddr;
use std::time::Duration;

use swarm_api::v1;

use super::TraceError;

/// How long a trace lasts when nothing is said, and at most: who forgets it should not pay for it.
pub(super) const DURATION_DEFAULT: Duration = Duration::from_secs(10);
pub(super) const DURATION_MAX: Duration = Duration::from_secs(600);

/// Sampling: one flow in at most this many.
pub(super) const ONE_IN_MAX: u16 = 32_768;

/// Bytes of what is no address that are repeated in the refusal.
const REPEATED_BYTES_MAX: usize = 80;

/// What a trace is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::node) struct Subject {
    /// The published port.
    pub(super) port: u16,
    /// The client, or any.
    pub(super) client: Option<IpAddr>,
    /// For how long.
    pub(super) duration: Duration,
    /// One in this many flows.
    pub(super) one_in: u16,
}

impl Subject {
    /// What a request asks for, or a refusal that names the remedy.
    pub(in crate::node) fn new(asked: &v1::TraceMeshRequest) -> Result<Self, TraceError> {
        let v1::TraceMeshRequest {
            port,
            client,
            duration_ms,
            one_in,
        } = asked;
        let no_port = TraceError::NoPort(*port);
        let port = u16::try_from(*port).map_err(|_| TraceError::NoPort(*port))?;
        if port == 0 {
            return Err(no_port);
        }
        let client = match client.as_str() {
            "" => None,
            text => Some(text.parse::<IpAddr>().map_err(|_| {
                TraceError::NoAddress(text.chars().take(REPEATED_BYTES_MAX).collect())
            })?),
        };
        let duration = match duration_ms {
            0 => DURATION_DEFAULT,
            milliseconds => Duration::from_millis(*milliseconds),
        };
        if duration > DURATION_MAX {
            return Err(TraceError::TooLong);
        }
        let one_in = u16::try_from(*one_in).map_err(|_| TraceError::TooSparse)?;
        if one_in > ONE_IN_MAX {
            return Err(TraceError::TooSparse);
        }
        Ok(Self {
            port,
            client: client.map(|client| client.to_canonical()),
            duration,
            one_in: one_in.max(1),
        })
    }
}
