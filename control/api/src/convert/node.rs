//! Nodes.

use swarm_model::{
    ManagerStatus, Node, NodeDescription, NodeProblem, NodeSpec, NodeStatus, Platform, Timestamp,
};

use super::ConvertError;
use super::enumeration::read;
use super::field::{
    each, epoch_ms, id, labels_to_wire, optional_id, optional_ip, optional_ipv4, optional_text,
    or_default, parsed,
};
use super::network::SUBNET;
use crate::v1;

impl TryFrom<v1::Node> for Node {
    type Error = ConvertError;

    fn try_from(message: v1::Node) -> Result<Self, ConvertError> {
        let v1::Node {
            id: node_id,
            meta,
            spec,
            role,
            description,
            status,
            manager,
            ingress_address,
        } = message;
        Ok(Self {
            id: id("node.id", node_id)?,
            meta: or_default(meta)?,
            spec: or_default(spec)?,
            role: read::<v1::Role, _>("node.role", role)?,
            description: or_default(description)?,
            status: or_default(status)?,
            manager: manager.map(ManagerStatus::try_from).transpose()?,
            ingress_address: optional_ipv4("node.ingress_address", &ingress_address)?,
        })
    }
}

impl From<&Node> for v1::Node {
    fn from(node: &Node) -> Self {
        let Node {
            id,
            meta,
            spec,
            role,
            description,
            status,
            manager,
            ingress_address,
        } = node;
        Self {
            id: id.to_string(),
            meta: Some(meta.into()),
            spec: Some(spec.into()),
            role: v1::Role::from(role).into(),
            description: Some(description.into()),
            status: Some(status.into()),
            manager: manager.as_ref().map(v1::ManagerStatus::from),
            ingress_address: optional_text(*ingress_address),
        }
    }
}

impl TryFrom<v1::NodeSpec> for NodeSpec {
    type Error = ConvertError;

    fn try_from(message: v1::NodeSpec) -> Result<Self, ConvertError> {
        let v1::NodeSpec {
            labels,
            availability,
        } = message;
        Ok(Self {
            labels: labels.into_iter().collect(),
            availability: read::<v1::Availability, _>("node.spec.availability", availability)?,
        })
    }
}

impl From<&NodeSpec> for v1::NodeSpec {
    fn from(spec: &NodeSpec) -> Self {
        let NodeSpec {
            labels,
            availability,
        } = spec;
        Self {
            labels: labels_to_wire(labels),
            availability: v1::Availability::from(availability).into(),
        }
    }
}

impl TryFrom<v1::NodeDescription> for NodeDescription {
    type Error = ConvertError;

    fn try_from(message: v1::NodeDescription) -> Result<Self, ConvertError> {
        let v1::NodeDescription {
            hostname,
            os,
            architecture,
            nano_cpus,
            memory_bytes,
            agent_version,
            engine_labels,
            data_path_address,
            host_networks,
        } = message;
        Ok(Self {
            hostname,
            platform: Platform { os, architecture },
            nano_cpus,
            memory_bytes,
            agent_version,
            engine_labels: engine_labels.into_iter().collect(),
            data_path_address: optional_ip(
                "node.description.data_path_address",
                &data_path_address,
            )?,
            host_networks: host_networks
                .iter()
                .map(|text| parsed("node.description.host_networks", SUBNET, text))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl From<&NodeDescription> for v1::NodeDescription {
    fn from(description: &NodeDescription) -> Self {
        let NodeDescription {
            hostname,
            platform: Platform { os, architecture },
            nano_cpus,
            memory_bytes,
            agent_version,
            engine_labels,
            data_path_address,
            host_networks,
        } = description;
        Self {
            hostname: hostname.clone(),
            os: os.clone(),
            architecture: architecture.clone(),
            nano_cpus: *nano_cpus,
            memory_bytes: *memory_bytes,
            agent_version: agent_version.clone(),
            engine_labels: labels_to_wire(engine_labels),
            data_path_address: optional_text(*data_path_address),
            host_networks: host_networks.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<v1::NodeProblem> for NodeProblem {
    type Error = ConvertError;

    fn try_from(message: v1::NodeProblem) -> Result<Self, ConvertError> {
        let v1::NodeProblem { service_id, text } = message;
        Ok(Self {
            service: optional_id("node.status.problem.service_id", service_id)?,
            text,
        })
    }
}

impl From<&NodeProblem> for v1::NodeProblem {
    fn from(problem: &NodeProblem) -> Self {
        let NodeProblem { service, text } = problem;
        Self {
            service_id: optional_text(service.as_ref()),
            text: text.clone(),
        }
    }
}

impl TryFrom<v1::NodeStatus> for NodeStatus {
    type Error = ConvertError;

    fn try_from(message: v1::NodeStatus) -> Result<Self, ConvertError> {
        let v1::NodeStatus {
            state,
            since_ms,
            message,
            address,
            problems,
            certificate_issuer,
        } = message;
        Ok(Self {
            state: read::<v1::NodeState, _>("node.status.state", state)?,
            since: Timestamp(since_ms),
            message,
            address: optional_ip("node.status.address", &address)?,
            problems: each(problems)?,
            certificate_issuer,
        })
    }
}

impl From<&NodeStatus> for v1::NodeStatus {
    fn from(status: &NodeStatus) -> Self {
        let NodeStatus {
            state,
            since,
            message,
            address,
            problems,
            certificate_issuer,
        } = status;
        Self {
            state: v1::NodeState::from(state).into(),
            since_ms: epoch_ms(*since),
            message: message.clone(),
            address: optional_text(*address),
            problems: problems.iter().map(v1::NodeProblem::from).collect(),
            certificate_issuer: certificate_issuer.clone(),
        }
    }
}

impl TryFrom<v1::ManagerStatus> for ManagerStatus {
    type Error = ConvertError;

    fn try_from(message: v1::ManagerStatus) -> Result<Self, ConvertError> {
        let v1::ManagerStatus {
            raft_id,
            address,
            leader,
            certificate_issuer,
        } = message;
        Ok(Self {
            raft_id,
            address: parsed("node.manager.address", "an IP address and port", &address)?,
            leader,
            certificate_issuer,
        })
    }
}

impl From<&ManagerStatus> for v1::ManagerStatus {
    fn from(status: &ManagerStatus) -> Self {
        let ManagerStatus {
            raft_id,
            address,
            leader,
            certificate_issuer,
        } = status;
        Self {
            raft_id: *raft_id,
            address: address.to_string(),
            leader: *leader,
            certificate_issuer: certificate_issuer.clone(),
        }
    }
}
