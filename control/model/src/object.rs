//! What the swarm keeps.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{
    Attachment, ClusterId, ClusterSpec, DesiredState, NetworkCursor, NodeId, NodeSpec, PortConfig,
    Secret, ServiceId, ServiceSpec, TaskId, TaskSpec, TaskStatus, Timestamp, UnlockKey, Vip,
};

/// What every object carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Raft index of the last change; an update must name the version it was made from.
    pub version: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// The swarm itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Its id.
    pub id: ClusterId,
    /// Version and times.
    pub meta: Meta,
    /// Settings.
    pub spec: ClusterSpec,
    /// The root certificate, PEM.
    pub root_ca_pem: String,
    /// The root's private key, PEM (PKCS#8). Only ever in the Raft log and managers' memory.
    pub root_key_pem: Secret,
    /// Secret part of the worker join token: 25 base-36 characters.
    pub worker_secret: Secret,
    /// Secret part of the manager join token.
    pub manager_secret: Secret,
    /// What networks were given last; the next one gets what follows.
    pub networks_made: NetworkCursor,
    /// How often one manager has gone on alone after the quorum was lost. Managers of an earlier epoch
    /// count no more.
    pub epoch: u64,
    /// What managers' keys are sealed with where they are kept.
    pub lock: ManagerLock,
    /// The change of the root that is under way; none mostly.
    pub rotation: Option<RootRotation>,
}

/// A change of the root. Until its end the root before is what a chain of certificates can be traced
/// back to; from its beginning on certificates are signed with the new key.
#[derive(Clone, PartialEq, Eq)]
pub struct RootRotation {
    /// The new root certificate, PEM.
    pub root_ca_pem: String,
    /// Its private key, PEM (PKCS#8).
    pub root_key_pem: Secret,
    /// Name and key of the new root in a certificate that the root before has signed, PEM: who trusts
    /// that one alone verifies new certificates by it.
    pub cross_signed_pem: String,
    /// Secret part of the worker join token from the end of the change on.
    pub worker_secret: Secret,
    /// Secret part of the manager join token from the end of the change on.
    pub manager_secret: Secret,
    /// Key identifiers of new roots, hexadecimal, in whose place this one came while nodes were on their
    /// way to them. They cannot come again before the end: what was heard of a node may be from then.
    pub given_up: Vec<String>,
}

impl std::fmt::Debug for RootRotation {
    /// Leaves the secrets out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootRotation").finish_non_exhaustive()
    }
}

/// What managers' keys are sealed with where they are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManagerLock {
    /// Counts the changes of the key, so that a manager that learns of them again, after a restart, does
    /// not go back.
    pub version: u64,
    /// None where they are kept in the clear.
    pub key: Option<UnlockKey>,
}

impl std::fmt::Debug for Cluster {
    /// Leaves the secrets out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("id", &self.id)
            .field("meta", &self.meta)
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

/// A host in the swarm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its id, the CN of its certificate.
    pub id: NodeId,
    /// Version and times.
    pub meta: Meta,
    /// What people want of it.
    pub spec: NodeSpec,
    /// Its role, the OU of its certificate.
    pub role: Role,
    /// What it says of itself.
    pub description: NodeDescription,
    /// Whether it is heard.
    pub status: NodeStatus,
    /// What it is as a manager; none for a worker.
    pub manager: Option<ManagerStatus>,
    /// Its address on the ingress network, once allocated.
    pub ingress_address: Option<Ipv4Addr>,
}

/// What a node is trusted with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs tasks.
    #[default]
    Worker,
    /// Runs tasks and the control plane.
    Manager,
}

impl Role {
    /// The name, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        }
    }

    /// The OU of its certificates, as swarmkit writes it.
    pub fn organizational_unit(self) -> &'static str {
        match self {
            Self::Worker => "swarm-worker",
            Self::Manager => "swarm-manager",
        }
    }

    /// The role that an OU names.
    pub fn from_organizational_unit(unit: &str) -> Option<Self> {
        [Self::Worker, Self::Manager]
            .into_iter()
            .find(|role| role.organizational_unit() == unit)
    }
}

/// Whether tasks may run on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// Yes.
    #[default]
    Active,
    /// No new ones.
    Pause,
    /// None; those it has move away.
    Drain,
}

impl Availability {
    /// The name, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Pause => "pause",
            Self::Drain => "drain",
        }
    }
}

/// What a node says of itself; trusted for nothing but placement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDescription {
    /// Host name.
    pub hostname: String,
    /// What its containers run on.
    pub platform: Platform,
    /// CPU it has, in billionths of a core.
    pub nano_cpus: u64,
    /// Memory it has, in bytes.
    pub memory_bytes: u64,
    /// Version of its agent.
    pub agent_version: String,
    /// Labels from its own configuration (`engine.labels.*`).
    pub engine_labels: BTreeMap<String, String>,
    /// The address that VXLAN packets to it are sent to.
    pub data_path_address: Option<IpAddr>,
    /// The IPv4 networks that its interfaces are on, as far as the swarm does not make them.
    pub host_networks: Vec<Ipv4Net>,
}

/// An operating system and an architecture, in Docker's words (`linux`, `x86_64`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system.
    pub os: String,
    /// Architecture.
    pub architecture: String,
}

/// Whether a node is heard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The state.
    pub state: NodeState,
    /// When it was entered.
    pub since: Timestamp,
    /// Why, in a few words; empty while all is well.
    pub message: String,
    /// Where its session came from.
    pub address: Option<IpAddr>,
    /// What is wrong there, in its agent's words.
    pub problems: Vec<NodeProblem>,
    /// Key identifier of the root that has signed its agent's certificate, in hexadecimal digits, as
    /// that certificate says it (RFC 5280, 4.2.1.1); empty until the agent has said it.
    pub certificate_issuer: String,
}

/// Something that is wrong on a node, and that its agent cannot put right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeProblem {
    /// The service that it is about; none where it is about every published port.
    pub service: Option<ServiceId>,
    /// What, with the remedy.
    pub text: String,
}

/// Whether a node is heard.
///
/// | from | to | when |
/// |---|---|---|
/// | any | ready | a session is opened, or a heartbeat is heard |
/// | ready | suspect | silent for `suspect_after` |
/// | ready, suspect, unknown | down | silent for `down_after` |
/// | any | unknown | a manager became leader and has not heard the node yet |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// This leader has not heard it yet; its tasks stay.
    #[default]
    Unknown,
    /// Heard.
    Ready,
    /// Silent for a moment: no new tasks, no new connections.
    Suspect,
    /// Silent for long: its tasks are replaced.
    Down,
}

impl NodeState {
    /// The name, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Ready => "ready",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

/// A node as a manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerStatus {
    /// Its member number in Raft; never used again for another.
    pub raft_id: u64,
    /// Where others reach it.
    pub address: SocketAddr,
    /// Whether it leads.
    pub leader: bool,
    /// Like the agent's, of the certificate that the manager shows; empty until it has said it.
    pub certificate_issuer: String,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its id.
    pub id: ServiceId,
    /// Version and times.
    pub meta: Meta,
    /// What is asked for.
    pub spec: ServiceSpec,
    /// What was asked for before the last update.
    pub previous_spec: Option<Box<ServiceSpec>>,
    /// Counts changes of `spec.task`; a task of another template version is out of date.
    pub template_version: u64,
    /// What the swarm allocated.
    pub endpoint: Endpoint,
    /// Set by `service rm`: the tasks are drained and removed, then the service.
    pub pending_delete: bool,
}

impl Service {
    /// Whether clients outside reach it: it has published ports.
    pub fn is_published(&self) -> bool {
        !self.endpoint.ports.is_empty()
    }
}

/// What the swarm allocated for a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Small number unique among live services, from 1: the key of its counters in the kernel.
    pub index: u32,
    /// Published ports, each with its number chosen; empty until allocated.
    pub ports: Vec<PortConfig>,
    /// Its virtual address on each of its networks; none in the mode `dnsrr`.
    pub vips: Vec<Vip>,
    /// What keeps the allocator from finishing, in words that name the remedy; empty when nothing.
    pub error: String,
}

/// One attempt at running one slot of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Version and times.
    pub meta: Meta,
    /// Its service.
    pub service_id: ServiceId,
    /// The service's name, kept for lists after the service is gone.
    pub service_name: String,
    /// Its slot, from 1.
    pub slot: u64,
    /// Its node, once chosen.
    pub node_id: Option<NodeId>,
    /// What it runs; a copy, since the service's may change.
    pub spec: TaskSpec,
    /// Version of the template it was made from.
    pub template_version: u64,
    /// What is wanted of it; written by managers.
    pub desired_state: DesiredState,
    /// When `desired_state` was last changed.
    pub desired_since: Timestamp,
    /// Not to be started before this: the restart delay.
    pub not_before: Timestamp,
    /// What is observed of it; written by its node's agent.
    pub status: TaskStatus,
    /// Its address on the ingress network, once allocated.
    pub ingress_address: Option<Ipv4Addr>,
    /// Its places on networks of users, once allocated; in the order of its spec's networks.
    pub attachments: Vec<Attachment>,
}

impl Task {
    /// `service.slot`, as lists show it.
    pub fn name(&self) -> String {
        format!("{}.{}", self.service_name, self.slot)
    }
}
