//! What becomes of the settings of the whole swarm. Pure.

use swarm_model::{Cluster, ClusterSpec, Timestamp, validate_cluster};

use super::refusal::Refusal;
use crate::store::State;

/// The swarm with the settings `spec`, which were made from `version`; none when they are what it
/// has.
pub(super) fn update(
    state: &State,
    version: u64,
    spec: ClusterSpec,
    now: Timestamp,
) -> Result<Option<Cluster>, Refusal> {
    let cluster = state.cluster().ok_or(Refusal::NotReady)?;
    if cluster.meta.version != version {
        return Err(Refusal::OutOfSequence("swarm"));
    }
    validate_cluster(&spec)?;
    if cluster.spec == spec {
        return Ok(None);
    }
    let mut cluster = Cluster::clone(cluster);
    cluster.spec = spec;
    cluster.meta.updated_at = now;
    Ok(Some(cluster))
}
