//! What people ask for.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Availability, EndpointMode, NetworkAttachmentSpec, NetworkId, PortConfig};

/// A service, as a person asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Unique in the swarm; a DNS label.
    pub name: String,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// How many tasks, and where.
    pub mode: ServiceMode,
    /// What each task is.
    pub task: TaskSpec,
    /// How the service is reached.
    pub endpoint: EndpointSpec,
    /// How a changed task template is rolled out.
    pub update: UpdateConfig,
}

/// How many tasks a service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceMode {
    /// A number of tasks, each in a numbered slot from 1.
    Replicated {
        /// How many.
        replicas: u64,
    },
}

impl ServiceMode {
    /// How many tasks are wanted.
    pub fn replicas(self) -> u64 {
        match self {
            Self::Replicated { replicas } => replicas,
        }
    }
}

impl Default for ServiceMode {
    fn default() -> Self {
        Self::Replicated { replicas: 1 }
    }
}

/// What a task is; a change of it replaces the service's tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// What runs.
    pub container: ContainerSpec,
    /// What it needs.
    pub resources: Resources,
    /// What happens when it ends.
    pub restart: RestartPolicy,
    /// Where it may run.
    pub placement: Placement,
    /// The networks of users that it is attached to.
    pub networks: Vec<NetworkAttachmentSpec>,
    /// Raised to replace every task although nothing else changed.
    pub force_update: u64,
}

impl TaskSpec {
    /// The networks of users that it is attached to, in order. A target that is no id, which the
    /// swarm keeps none of, is left out.
    pub fn network_ids(&self) -> impl Iterator<Item = NetworkId> + '_ {
        let networks = self.networks.iter();
        networks.filter_map(|network| network.target.parse().ok())
    }
}

/// A container, as Docker's `service create` describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Image reference in Docker's short or long form.
    pub image: String,
    /// Replaces the image's entry point where not empty.
    pub command: Vec<String>,
    /// Replaces the image's command where not empty.
    pub args: Vec<String>,
    /// `NAME=value` pairs added to the image's.
    pub env: Vec<String>,
    /// Labels of the container.
    pub labels: BTreeMap<String, String>,
    /// Host name inside; the short task id when empty.
    pub hostname: String,
    /// Working directory inside; the image's when empty.
    pub dir: String,
    /// `user[:group]` inside; the image's when empty.
    pub user: String,
    /// How long a container has between SIGTERM and SIGKILL; 10 s by default, as Docker's.
    pub stop_grace_period: Option<Duration>,
}

impl ContainerSpec {
    /// Docker's default grace period.
    pub const DEFAULT_STOP_GRACE_PERIOD: Duration = Duration::from_secs(10);
}

/// Limits and reservations of one task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Most CPU, in billionths of a core; 0 is no limit.
    pub limit_nano_cpus: u64,
    /// Most memory in bytes; 0 is no limit.
    pub limit_memory_bytes: u64,
    /// CPU the scheduler sets aside, in billionths of a core.
    pub reserve_nano_cpus: u64,
    /// Memory the scheduler sets aside, in bytes.
    pub reserve_memory_bytes: u64,
}

/// When a task that ended is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// Which ends are followed by a restart.
    pub condition: RestartCondition,
    /// How long to wait first.
    pub delay: Duration,
    /// Most restarts of a slot within `window`; 0 is no limit.
    pub max_attempts: u64,
    /// The time over which attempts are counted; zero is for ever.
    pub window: Duration,
}

impl Default for RestartPolicy {
    /// Docker's: any end, 5 s delay, no limit.
    fn default() -> Self {
        Self {
            condition: RestartCondition::Any,
            delay: Duration::from_secs(5),
            max_attempts: 0,
            window: Duration::ZERO,
        }
    }
}

/// Which ends of a task are followed by a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartCondition {
    /// None.
    None,
    /// Ends with an error.
    OnFailure,
    /// Every end.
    #[default]
    Any,
}

/// Where tasks may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Constraints in swarm's language (`node.role==worker`); all must hold.
    pub constraints: Vec<String>,
}

/// How a service is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    /// Published ports.
    pub ports: Vec<PortConfig>,
    /// What the service's name stands for on its networks.
    pub mode: EndpointMode,
}

/// How a changed task template is rolled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateConfig {
    /// Slots replaced at a time; 0 is all at once.
    pub parallelism: u64,
    /// Wait between two batches.
    pub delay: Duration,
    /// Whether the new task starts before the old one stops.
    pub order: UpdateOrder,
}

impl Default for UpdateConfig {
    /// Docker's: one at a time, no delay, stop first.
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: Duration::ZERO,
            order: UpdateOrder::StopFirst,
        }
    }
}

/// Which of the two tasks of a slot goes first in an update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOrder {
    /// The old task is drained and stopped, then the new one starts.
    #[default]
    StopFirst,
    /// The new task runs, then the old one is drained and stopped.
    StartFirst,
}

/// A node, as a person wants it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Labels that managers give it (`node.labels.*`).
    pub labels: BTreeMap<String, String>,
    /// Whether tasks may run on it.
    pub availability: Availability,
}

/// An authority outside of the swarm that signs nodes' certificates in its stead, by CFSSL's protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalCa {
    /// Where requests are sent: `https://HOST[:PORT]/PATH`.
    pub url: String,
    /// The root certificate whose key it signs with, PEM.
    pub root_ca_pem: String,
}

/// Settings of the whole swarm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// Ended tasks kept per slot.
    pub task_history_limit: u64,
    /// How often an agent must be heard.
    pub heartbeat_period: Duration,
    /// Silence after which a node's endpoints leave balancing.
    pub suspect_after: Duration,
    /// Silence after which a node's tasks are replaced.
    pub down_after: Duration,
    /// Life of a node's certificate.
    pub certificate_expiry: Duration,
    /// Whether a manager that is restarted waits for the unlock key.
    pub autolock: bool,
    /// Who signs certificates in place of the swarm's managers, in the order in which they are asked.
    pub external_cas: Vec<ExternalCa>,
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            task_history_limit: 5,
            heartbeat_period: Duration::from_millis(500),
            // Three heartbeats. Requests to a dead host are to fail for 2 s at most: half a second
            // is left for saying so to every node and changing its tables.
            suspect_after: Duration::from_millis(1500),
            down_after: Duration::from_secs(10),
            certificate_expiry: Duration::from_secs(90 * 24 * 3600),
            autolock: false,
            external_cas: Vec::new(),
        }
    }
}
