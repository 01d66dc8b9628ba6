//! Which settings of a whole swarm are valid.

use std::time::Duration;

use crate::{ClusterSpec, MAX_CERTIFICATE_EXPIRY, MIN_CERTIFICATE_EXPIRY};

/// Most ended tasks kept per slot: each is an object in every manager's memory.
const MAX_TASK_HISTORY: u64 = 100;

/// What is wrong with a swarm's settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCluster {
    /// Certificates that end too soon or too late.
    #[error(
        "certificates can be given a life from {} minutes to {} days, not {:?}",
        MIN_CERTIFICATE_EXPIRY.as_secs() / 60, MAX_CERTIFICATE_EXPIRY.as_secs() / 86_400, .0
    )]
    CertificateExpiry(Duration),
    /// Too many ended tasks to keep.
    #[error("{0} ended tasks are more than the {MAX_TASK_HISTORY} that can be kept of a slot")]
    TaskHistory(u64),
}

/// Whether `spec` can be a swarm's.
pub fn validate_cluster(spec: &ClusterSpec) -> Result<(), InvalidCluster> {
    if !(MIN_CERTIFICATE_EXPIRY..=MAX_CERTIFICATE_EXPIRY).contains(&spec.certificate_expiry) {
        return Err(InvalidCluster::CertificateExpiry(spec.certificate_expiry));
    }
    if spec.task_history_limit > MAX_TASK_HISTORY {
        return Err(InvalidCluster::TaskHistory(spec.task_history_limit));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_live_from_thirty_minutes_to_ten_years() {
        let spec = |certificate_expiry| ClusterSpec {
            certificate_expiry,
            ..ClusterSpec::default()
        };
        let (minute, day) = (Duration::from_secs(60), Duration::from_secs(86_400));
        assert_eq!(validate_cluster(&ClusterSpec::default()), Ok(()));
        for good in [30 * minute, 60 * minute, 90 * day, 3650 * day] {
            assert_eq!(validate_cluster(&spec(good)), Ok(()), "{good:?}");
        }
        for bad in [
            Duration::ZERO,
            30 * minute - Duration::from_millis(1),
            3651 * day,
        ] {
            let error = InvalidCluster::CertificateExpiry(bad);
            assert_eq!(validate_cluster(&spec(bad)), Err(error), "{bad:?}");
        }
        let error = validate_cluster(&spec(minute)).map_err(|error| error.to_string());
        let text = "certificates can be given a life from 30 minutes to 3650 days, not 60s";
        assert_eq!(error, Err(text.to_owned()));
    }

    #[test]
    fn the_history_of_a_slot_is_bounded() {
        let spec = |task_history_limit| ClusterSpec {
            task_history_limit,
            ..ClusterSpec::default()
        };
        assert_eq!(validate_cluster(&spec(0)), Ok(()));
        assert_eq!(validate_cluster(&spec(100)), Ok(()));
        assert_eq!(
            validate_cluster(&spec(101)),
            Err(InvalidCluster::TaskHistory(101))
        );
    }
}
