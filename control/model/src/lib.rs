//! The words of a swarm: identifiers, what people ask for (specs), what the swarm keeps (objects),
//! how a task lives (states), and which of it is valid.
//!
//! Invariants:
//! * A *spec* is what a person asked for and is never rewritten by the swarm; what the swarm decides
//!   (addresses, ports, states) stands beside it in the *object*.
//! * Managers write desired state, agents report observed state; no field has two writers.
//!
//! Deliberately absent: clocks, randomness of its own, IO, wire formats (`swarm-api` converts).

mod certificate;
mod cluster;
mod constraint;
mod id;
mod network;
mod object;
mod port;
mod secret;
mod spec;
mod task;
mod time;
mod token;
mod unlock_key;
mod validate;
mod validate_network;
mod validate_node;

pub use certificate::{
    CERTIFICATE_BACKDATE, MAX_CERTIFICATE_EXPIRY, MIN_CERTIFICATE_EXPIRY, Renewal, Validity,
};
pub use cluster::{InvalidCluster, validate_cluster};
pub use constraint::{Constraint, ConstraintError, NodeView, Operator};
pub use id::{
    ClusterId, ID_LEN, InvalidId, NetworkId, NodeId, ServiceId, SessionId, TaskId, random_base36,
};
pub use network::{
    Attachment, EndpointMode, Network, NetworkAttachmentSpec, NetworkCursor, NetworkSpec, Vip, Vni,
};
pub use object::{
    Availability, Cluster, Endpoint, ManagerLock, ManagerStatus, Meta, Node, NodeDescription,
    NodeProblem, NodeState, NodeStatus, Platform, Role, RootRotation, Service, Task,
};
pub use port::{
    InvalidPort, MAX_AFFINITY, MAX_PORT_LIST_LEN, PortConfig, Protocol, PublishMode, RoutingPolicy,
    Scheduler,
};
pub use secret::Secret;
pub use spec::{
    ClusterSpec, ContainerSpec, EndpointSpec, ExternalCa, NodeSpec, Placement, Resources,
    RestartCondition, RestartPolicy, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig, UpdateOrder,
};
pub use task::{DesiredState, TaskState, TaskStatus};
pub use time::Timestamp;
pub use token::{InvalidToken, JOIN_SECRET_LEN, JoinToken};
pub use unlock_key::{InvalidUnlockKey, UNLOCK_KEY_BYTES, UnlockKey};
pub use validate::{InvalidSpec, MAX_NAME_LEN, MAX_REPLICAS, validate_service};
pub use validate_network::{InvalidNetwork, RESERVED_NETWORK_NAMES, validate_network};
pub use validate_node::{InvalidNode, validate_node};
