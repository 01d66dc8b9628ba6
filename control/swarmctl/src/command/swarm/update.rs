//! `swarmctl swarm update`.

use std::time::Duration;

use swarm_api::v1;

use crate::connect::{Sockets, answer, request};
use crate::time::{milliseconds, parse_duration};

/// Changes settings of the swarm.
#[derive(Debug, clap::Args)]
pub(crate) struct Update {
    /// Life of nodes' certificates from their next renewal on, such as 2160h; at least 30m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    cert_expiry: Option<Duration>,
    /// How many ended tasks of a slot are kept
    #[arg(long, value_name = "NUMBER")]
    task_history_limit: Option<u64>,
}

impl Update {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let mut control = sockets.control().await?;
        let cluster = answer(control.get_cluster(request(v1::GetClusterRequest {})).await)?;
        let message = v1::UpdateClusterRequest {
            version: cluster.version,
            spec: Some(self.applied(cluster.spec.unwrap_or_default())),
        };
        answer(control.update_cluster(request(message)).await)?;
        println!("Swarm updated.");
        Ok(())
    }

    /// The settings, with what was asked for changed.
    fn applied(&self, mut spec: v1::ClusterSpec) -> v1::ClusterSpec {
        if let Some(expiry) = self.cert_expiry {
            spec.certificate_expiry_ms = milliseconds(expiry);
        }
        if let Some(limit) = self.task_history_limit {
            spec.task_history_limit = limit;
        }
        spec
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_is_changed() {
        let before = v1::ClusterSpec {
            task_history_limit: 5,
            certificate_expiry_ms: 1,
            heartbeat_period_ms: 2,
            ..v1::ClusterSpec::default()
        };
        let update = |cert_expiry, task_history_limit| Update {
            cert_expiry,
            task_history_limit,
        };
        assert_eq!(update(None, None).applied(before), before);
        let half_an_hour = Some(Duration::from_secs(1800));
        let after = update(half_an_hour, Some(7)).applied(before);
        let expected = v1::ClusterSpec {
            task_history_limit: 7,
            certificate_expiry_ms: 1_800_000,
            ..before
        };
        assert_eq!(after, expected);
    }
}
