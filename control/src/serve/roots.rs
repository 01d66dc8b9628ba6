//! The change of the swarm's root as a person begins it and follows it. Pure.

use std::time::Duration;

use rand::Rng;
use swarm_api::v1;
use swarm_model::{Cluster, Node, Timestamp, validate_cluster};

use super::lookup::display_name;
use super::refusal::Refusal;
use crate::ca::rotation::{self, Lack, NewRoot};
use crate::store::State;

/// The swarm `before` once its root is to become `root`, and nodes' certificates live for `expiry`, if that
/// is to be another. `rng` draws new join tokens.
pub(super) fn rotate(
    state: &State,
    before: &Cluster,
    root: NewRoot,
    expiry: Option<Duration>,
    now: Timestamp,
    rng: &mut impl Rng,
) -> Result<Cluster, Refusal> {
    let cluster = state.cluster().ok_or(Refusal::NotReady)?;
    if root.cross_signed_pem.is_some() && cluster.root_ca_pem != before.root_ca_pem {
        return Err(Refusal::OutOfSequence("swarm's root"));
    }
    let mut cluster = rotation::begin(cluster, root, now, rng)?;
    if let Some(expiry) = expiry {
        cluster.spec.certificate_expiry = expiry;
    }
    validate_cluster(&cluster.spec)?;
    Ok(cluster)
}

/// How far it is; `problem` is what external authorities said last, where it was no certificate.
pub(super) fn progress(
    state: &State,
    problem: String,
) -> Result<v1::GetRootRotationResponse, Refusal> {
    let cluster = state.cluster().ok_or(Refusal::NotReady)?;
    let missing = rotation::missing(state);
    let missing = missing.iter().map(|(node, lack)| v1::NodeToRotate {
        id: node.id.to_string(),
        name: display_name(node).to_owned(),
        waits_for: waits_for(node, *lack),
    });
    Ok(v1::GetRootRotationResponse {
        root_ca_pem: rotation::target(cluster).to_owned(),
        under_way: cluster.rotation.is_some(),
        nodes: u32::try_from(state.nodes().count()).unwrap_or(u32::MAX),
        missing: missing.collect(),
        problem,
    })
}

/// What is waited for at `node`, with the remedy.
fn waits_for(node: &Node, lack: Lack) -> String {
    let name = display_name(node);
    let demote = match node.manager {
        Some(_) => format!("`swarmctl node demote {name}`, then "),
        None => String::new(),
    };
    match lack {
        Lack::Down => format!(
            "it is down: start it, or remove it with {demote}`swarmctl node rm --force {name}`"
        ),
        Lack::Silent => "it is not heard just now".to_owned(),
        Lack::Unknown => {
            "its agent does not say which certificate it has: upgrade swarm-agent there".to_owned()
        }
        Lack::Agent => "it has yet to get its certificate".to_owned(),
        Lack::Manager => {
            "its manager has yet to take its certificate: if it is locked, `swarmctl swarm \
                          unlock` there"
                .to_owned()
        }
    }
}
