//! The change of a swarm's root. Pure, but for the new root's being signed by the one before; where an
//! external authority has that one's key, it has signed already. Either key may be outside of the swarm, not
//! both: it could not even ask for the signature.
//!
//! | state | trusted | certificates are signed by | and shown with | left when |
//! |---|---|---|---|---|
//! | at rest: root R | R | R | R | a new root N is wanted: to R → N |
//! | R → N | R, N | N | N signed by R; R | every node has a certificate of N: to rest at N, with new join tokens |
//! | | | | | another root M is wanted: to R → M |
//!
//! The state is in the store, with what each node has said of its certificate, so that any manager that
//! comes to lead goes on with it. While R is being changed every node trusts R, and every chain leads to
//! R, whatever the order in which nodes get to know; at rest at N every node has a chain of N, and has
//! trusted N since it got it. Join tokens name R until the end: a new node trusts R then, or nobody.
//!
//! Deliberately absent: going back to R. A rotation that is stuck names the nodes it waits for; these come
//! back, or are removed.

use std::sync::Arc;

use rand::Rng;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use swarm_model::{
    Cluster, ExternalCa, JOIN_SECRET_LEN, Node, NodeState, RootRotation, Timestamp, random_base36,
};

use super::given::GIVEN_UP_MAX;
use super::issue::cross_sign;
use super::subject::{key_id, parse};
use super::{RootCa, RootRefused, external};
use crate::orchestrate::Batch;
use crate::store::State;

/// The root that new certificates are signed with, PEM.
pub(crate) fn target(cluster: &Cluster) -> &str {
    match &cluster.rotation {
        None => &cluster.root_ca_pem,
        Some(rotation) => &rotation.root_ca_pem,
    }
}

/// Every root that is trusted, PEM.
pub(crate) fn trusted_roots(cluster: &Cluster) -> String {
    let mut roots = cluster.root_ca_pem.clone();
    if let Some(rotation) = &cluster.rotation {
        roots.push_str(&rotation.root_ca_pem);
    }
    roots
}

/// What follows a new certificate in its chain, PEM; the root that all trust comes last.
pub(crate) fn chain_tail(cluster: &Cluster) -> String {
    let mut tail = String::new();
    if let Some(rotation) = &cluster.rotation {
        tail.push_str(&rotation.cross_signed_pem);
    }
    tail.push_str(&cluster.root_ca_pem);
    tail
}

/// What new certificates say of their issuer: its key identifier, hexadecimal. Empty where the root has
/// none that could be read: then nodes are asked for nothing.
pub(crate) fn issuer(cluster: &Cluster) -> String {
    let der = CertificateDer::from_pem_slice(target(cluster).as_bytes());
    let id = der.ok().and_then(|der| key_id(&der).ok());
    id.unwrap_or_default()
}

/// What the root is to become.
pub(crate) struct NewRoot {
    /// The root.
    pub(crate) root: RootCa,
    /// Who signs with it outside of the swarm.
    pub(crate) external_cas: Vec<ExternalCa>,
    /// Its name and key, signed by the external authority of the root of now, PEM; absent where the swarm
    /// has that one's key.
    pub(crate) cross_signed_pem: Option<String>,
}

impl From<RootCa> for NewRoot {
    fn from(root: RootCa) -> Self {
        Self {
            root,
            external_cas: Vec::new(),
            cross_signed_pem: None,
        }
    }
}

/// Whether the root of now has to be asked for outside of the swarm to sign `root`.
pub(crate) fn is_signed_outside(cluster: &Cluster, root: &RootCa) -> Result<bool, RootRefused> {
    match (cluster.root_key_pem.is_empty(), root.key_pem.is_empty()) {
        (true, true) => Err(RootRefused::ExternalToExternal),
        (is_outside, _) => Ok(is_outside),
    }
}

/// The swarm as it is once its root is to become `new`: from rest, or in place of another new root.
/// `rng` draws the join tokens of afterwards, and a serial number.
pub(crate) fn begin(
    cluster: &Cluster,
    new: impl Into<NewRoot>,
    now: Timestamp,
    rng: &mut impl Rng,
) -> Result<Cluster, RootRefused> {
    let NewRoot {
        root,
        external_cas,
        cross_signed_pem,
    } = new.into();
    let der = CertificateDer::from_pem_slice(root.certificate_pem.as_bytes());
    let der = der.map_err(RootRefused::Pem)?;
    let certificate = parse(&der)?;
    let of_now = CertificateDer::from_pem_slice(cluster.root_ca_pem.as_bytes());
    let of_now = of_now.map_err(RootRefused::Pem)?;
    let has_its_key = certificate.public_key() == parse(&of_now)?.public_key();
    // Whether a node has a certificate of the target is told by the identifier alone.
    let id = key_id(&der)?;
    if has_its_key || id == key_id(&of_now)? {
        return Err(RootRefused::SameKey);
    }
    let mut given_up = Vec::new();
    if let Some(before) = &cluster.rotation {
        given_up.clone_from(&before.given_up);
        let id_before = issuer(cluster);
        if before.root_ca_pem != root.certificate_pem {
            if id == id_before {
                return Err(RootRefused::SameKey);
            }
            given_up.push(id_before);
        }
    }
    if given_up.contains(&id) {
        return Err(RootRefused::GivenUp);
    }
    if given_up.len() > GIVEN_UP_MAX {
        return Err(RootRefused::Restless);
    }
    let external_cas = external::named(
        external_cas,
        &root.certificate_pem,
        &[&root.certificate_pem],
    )?;
    if root.key_pem.is_empty() && external_cas.is_empty() {
        return Err(RootRefused::Half);
    }
    let cross_signed_pem = match cross_signed_pem {
        Some(pem) => pem,
        None => cross_sign(cluster, &certificate, now, rng)?,
    };
    let mut secret = || random_base36(rng, JOIN_SECRET_LEN).into();
    let mut next = cluster.clone();
    next.meta.updated_at = now;
    // Another new root would be signed by the root of now as well.
    next.spec.external_cas = external::of_root(cluster, &cluster.root_ca_pem);
    next.spec.external_cas.extend(external_cas);
    next.rotation = Some(RootRotation {
        root_ca_pem: root.certificate_pem,
        root_key_pem: root.key_pem,
        cross_signed_pem,
        worker_secret: secret(),
        manager_secret: secret(),
        given_up,
    });
    Ok(next)
}

/// The swarm at rest, its root changed.
fn finish(cluster: &Cluster, rotation: &RootRotation) -> Cluster {
    let mut next = cluster.clone();
    let RootRotation {
        root_ca_pem,
        root_key_pem,
        cross_signed_pem: _,
        worker_secret,
        manager_secret,
        given_up: _,
    } = rotation.clone();
    next.root_ca_pem = root_ca_pem;
    next.root_key_pem = root_key_pem;
    next.worker_secret = worker_secret;
    next.manager_secret = manager_secret;
    next.rotation = None;
    next.spec.external_cas = external::of_root(&next, &next.root_ca_pem);
    next
}

/// What a node has yet to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// It is down, and may have both or none.
    Down,
    /// It has not been heard by this leader, or not for a moment.
    Silent,
    /// Its agent has not said which certificate it has.
    Unknown,
    /// Its agent's certificate.
    Agent,
    /// Its manager's certificate.
    Manager,
}

/// The nodes without a certificate of the root that is to be, by id, and what each lacks; nobody at rest.
pub(crate) fn missing(state: &State) -> Vec<(Arc<Node>, Lack)> {
    let Some(cluster) = state.cluster().filter(|it| it.rotation.is_some()) else {
        return Vec::new();
    };
    let issuer = issuer(cluster);
    let nodes = state.nodes();
    nodes
        .filter_map(|node| Some((Arc::clone(node), lack(node, &issuer)?)))
        .collect()
}

fn lack(node: &Node, issuer: &str) -> Option<Lack> {
    let agent_has = node.status.certificate_issuer == issuer;
    let manager = node.manager.as_ref();
    let manager_has = manager.is_none_or(|it| it.certificate_issuer == issuer);
    if agent_has && manager_has {
        return None;
    }
    Some(match node.status.state {
        NodeState::Down => Lack::Down,
        NodeState::Unknown | NodeState::Suspect => Lack::Silent,
        NodeState::Ready if agent_has => Lack::Manager,
        NodeState::Ready if node.status.certificate_issuer.is_empty() => Lack::Unknown,
        NodeState::Ready => Lack::Agent,
    })
}

/// Ends a rotation that nobody is missing from.
pub(crate) fn pass(state: &State, batch: &mut Batch) {
    let Some(cluster) = state.cluster() else {
        return;
    };
    if let Some(rotation) = &cluster.rotation
        && missing(state).is_empty()
    {
        batch.put_cluster(finish(cluster, rotation));
    }
}

#[cfg(test)]
#[path = "rotation/tests.rs"]
mod tests;
