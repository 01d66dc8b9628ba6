//! What is in the store of a new swarm: the swarm itself and its first manager. Pure, given a root.

use std::net::{IpAddr, SocketAddr};

use rand::Rng;
use swarm_model::{
    Cluster, ClusterId, ClusterSpec, JOIN_SECRET_LEN, ManagerLock, ManagerStatus, Meta, Node,
    NodeDescription, NodeId, NodeSpec, NodeState, NodeStatus, Role, Timestamp, UnlockKey,
    random_base36,
};

use crate::ca::RootCa;
use crate::store::Change;

/// The first manager's number in Raft.
pub(crate) const FIRST_RAFT_ID: u64 = 1;

/// The first manager.
#[derive(Clone, Debug)]
pub(crate) struct Founder {
    /// Its id, which its agent chose.
    pub(crate) node_id: NodeId,
    /// Where others reach it.
    pub(crate) address: SocketAddr,
    /// Where VXLAN packets to it go.
    pub(crate) data_path_address: IpAddr,
}

/// The first contents of the store of a new swarm with the settings `spec`; its id and secrets are drawn from `rng`.
pub(crate) fn new_swarm(
    founder: Founder,
    spec: ClusterSpec,
    root: RootCa,
    now: Timestamp,
    rng: &mut impl Rng,
) -> Vec<Change> {
    let meta = Meta {
        version: 0,
        created_at: now,
        updated_at: now,
    };
    let lock = ManagerLock {
        version: 1,
        key: spec.autolock.then(|| UnlockKey::random(rng)),
    };
    let cluster = Cluster {
        id: ClusterId::random(rng),
        meta,
        spec,
        root_ca_pem: root.certificate_pem,
        root_key_pem: root.key_pem,
        worker_secret: random_base36(rng, JOIN_SECRET_LEN).into(),
        manager_secret: random_base36(rng, JOIN_SECRET_LEN).into(),
        networks_made: swarm_model::NetworkCursor::default(),
        epoch: 0,
        lock,
        rotation: None,
    };
    let node = Node {
        id: founder.node_id,
        meta,
        spec: NodeSpec::default(),
        role: Role::Manager,
        description: NodeDescription {
            data_path_address: Some(founder.data_path_address),
            ..NodeDescription::default()
        },
        status: NodeStatus {
            state: NodeState::Unknown,
            since: now,
            message: String::new(),
            address: Some(founder.address.ip()),
            problems: Vec::new(),
            certificate_issuer: String::new(),
        },
        manager: Some(ManagerStatus {
            raft_id: FIRST_RAFT_ID,
            address: founder.address,
            leader: true,
            certificate_issuer: String::new(),
        }),
        ingress_address: None,
    };
    vec![cluster.into(), node.into()]
}
