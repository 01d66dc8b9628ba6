//! What becomes of the settings and of the lock of the whole swarm. Pure.

use rand::Rng;
use swarm_api::v1;
use swarm_model::{
    Cluster, ClusterSpec, ManagerLock, NodeId, Timestamp, UnlockKey, validate_cluster,
};

use super::refusal::Refusal;
use crate::ca::{external, rotation};
use crate::store::State;

/// What anybody who may ask is told of the swarm, by the manager on `node_id`: no secrets.
pub(super) fn shown(cluster: &Cluster, node_id: &NodeId) -> v1::GetClusterResponse {
    v1::GetClusterResponse {
        id: cluster.id.to_string(),
        spec: Some((&cluster.spec).into()),
        node_id: node_id.to_string(),
        version: cluster.meta.version,
        root_ca_pem: cluster.root_ca_pem.clone(),
    }
}

/// The swarm with the settings `spec`, which were made from `version`; none when they are what it
/// has. `rng` draws the unlock key when autolock is turned on.
pub(super) fn update(
    state: &State,
    version: u64,
    mut spec: ClusterSpec,
    now: Timestamp,
    rng: &mut impl Rng,
) -> Result<Option<Cluster>, Refusal> {
    let cluster = state.cluster().ok_or(Refusal::NotReady)?;
    if cluster.meta.version != version {
        return Err(Refusal::OutOfSequence("swarm"));
    }
    let target = rotation::target(cluster);
    let roots = [target, &cluster.root_ca_pem];
    spec.external_cas = external::named(spec.external_cas, target, &roots)?;
    validate_cluster(&spec)?;
    if cluster.spec == spec {
        return Ok(None);
    }
    let mut cluster = Cluster::clone(cluster);
    if spec.autolock != cluster.lock.key.is_some() {
        let key = spec.autolock.then(|| UnlockKey::random(rng));
        cluster.lock = next_lock(&cluster, key);
    }
    cluster.spec = spec;
    cluster.meta.updated_at = now;
    if !external::is_signed_for(&cluster) {
        return Err(Refusal::LastExternalCa);
    }
    Ok(Some(cluster))
}

/// The swarm with another unlock key, drawn from `rng`.
pub(super) fn rotate_unlock_key(
    state: &State,
    now: Timestamp,
    rng: &mut impl Rng,
) -> Result<Cluster, Refusal> {
    let cluster = state.cluster().ok_or(Refusal::NotReady)?;
    if cluster.lock.key.is_none() {
        return Err(Refusal::NoUnlockKey);
    }
    let mut cluster = Cluster::clone(cluster);
    cluster.lock = next_lock(&cluster, Some(UnlockKey::random(rng)));
    cluster.meta.updated_at = now;
    Ok(cluster)
}

fn next_lock(cluster: &Cluster, key: Option<UnlockKey>) -> ManagerLock {
    ManagerLock {
        version: cluster.lock.version + 1,
        key,
    }
}
