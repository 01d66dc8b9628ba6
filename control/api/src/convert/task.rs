//! Tasks and what they run.

use std::time::Duration;

use swarm_model::{
    ContainerSpec, Placement, Resources, RestartPolicy, Task, TaskSpec, TaskStatus, Timestamp,
};

use super::ConvertError;
use super::enumeration::read;
use super::field::{
    each, epoch_ms, id, labels_to_wire, milliseconds, optional_id, optional_ipv4, optional_text,
    or_default,
};
use crate::v1;

impl TryFrom<v1::Task> for Task {
    type Error = ConvertError;

    fn try_from(message: v1::Task) -> Result<Self, ConvertError> {
        let v1::Task {
            id: task_id,
            meta,
            service_id,
            service_name,
            slot,
            node_id,
            spec,
            template_version,
            desired_state,
            desired_since_ms,
            not_before_ms,
            status,
            ingress_address,
            attachments,
        } = message;
        Ok(Self {
            id: id("task.id", task_id)?,
            meta: or_default(meta)?,
            service_id: id("task.service_id", service_id)?,
            service_name,
            slot,
            node_id: optional_id("task.node_id", node_id)?,
            spec: or_default(spec)?,
            template_version,
            desired_state: read::<v1::DesiredState, _>("task.desired_state", desired_state)?,
            desired_since: Timestamp(desired_since_ms),
            not_before: Timestamp(not_before_ms),
            status: or_default(status)?,
            ingress_address: optional_ipv4("task.ingress_address", &ingress_address)?,
            attachments: each(attachments)?,
        })
    }
}

impl From<&Task> for v1::Task {
    fn from(task: &Task) -> Self {
        let Task {
            id,
            meta,
            service_id,
            service_name,
            slot,
            node_id,
            spec,
            template_version,
            desired_state,
            desired_since,
            not_before,
            status,
            ingress_address,
            attachments,
        } = task;
        Self {
            id: id.to_string(),
            meta: Some(meta.into()),
            service_id: service_id.to_string(),
            service_name: service_name.clone(),
            slot: *slot,
            node_id: optional_text(node_id.as_ref()),
            spec: Some(spec.into()),
            template_version: *template_version,
            desired_state: v1::DesiredState::from(desired_state).into(),
            desired_since_ms: epoch_ms(*desired_since),
            not_before_ms: epoch_ms(*not_before),
            status: Some(status.into()),
            ingress_address: optional_text(*ingress_address),
            attachments: attachments.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::TaskStatus> for TaskStatus {
    type Error = ConvertError;

    fn try_from(message: v1::TaskStatus) -> Result<Self, ConvertError> {
        let v1::TaskStatus {
            state,
            since_ms,
            message,
            error,
            exit_code,
        } = message;
        Ok(Self {
            state: read::<v1::TaskState, _>("task.status.state", state)?,
            since: Timestamp(since_ms),
            message,
            error,
            exit_code,
        })
    }
}

impl From<&TaskStatus> for v1::TaskStatus {
    fn from(status: &TaskStatus) -> Self {
        let TaskStatus {
            state,
            since,
            message,
            error,
            exit_code,
        } = status;
        Self {
            state: v1::TaskState::from(state).into(),
            since_ms: epoch_ms(*since),
            message: message.clone(),
            error: error.clone(),
            exit_code: *exit_code,
        }
    }
}

impl TryFrom<v1::TaskSpec> for TaskSpec {
    type Error = ConvertError;

    fn try_from(message: v1::TaskSpec) -> Result<Self, ConvertError> {
        let v1::TaskSpec {
            container,
            resources,
            restart,
            placement,
            networks,
            force_update,
        } = message;
        Ok(Self {
            container: or_default(container)?,
            resources: or_default(resources)?,
            restart: or_default(restart)?,
            placement: or_default(placement)?,
            networks: each(networks)?,
            force_update,
        })
    }
}

impl From<&TaskSpec> for v1::TaskSpec {
    fn from(spec: &TaskSpec) -> Self {
        let TaskSpec {
            container,
            resources,
            restart,
            placement,
            networks,
            force_update,
        } = spec;
        Self {
            container: Some(container.into()),
            resources: Some(resources.into()),
            restart: Some(restart.into()),
            placement: Some(placement.into()),
            networks: networks.iter().map(Into::into).collect(),
            force_update: *force_update,
        }
    }
}

impl TryFrom<v1::ContainerSpec> for ContainerSpec {
    type Error = ConvertError;

    fn try_from(message: v1::ContainerSpec) -> Result<Self, ConvertError> {
        let v1::ContainerSpec {
            image,
            command,
            args,
            env,
            labels,
            hostname,
            dir,
            user,
            stop_grace_period_ms,
        } = message;
        Ok(Self {
            image,
            command,
            args,
            env,
            labels: labels.into_iter().collect(),
            hostname,
            dir,
            user,
            stop_grace_period: stop_grace_period_ms.map(Duration::from_millis),
        })
    }
}

impl From<&ContainerSpec> for v1::ContainerSpec {
    fn from(spec: &ContainerSpec) -> Self {
        let ContainerSpec {
            image,
            command,
            args,
            env,
            labels,
            hostname,
            dir,
            user,
            stop_grace_period,
        } = spec;
        Self {
            image: image.clone(),
            command: command.clone(),
            args: args.clone(),
            env: env.clone(),
            labels: labels_to_wire(labels),
            hostname: hostname.clone(),
            dir: dir.clone(),
            user: user.clone(),
            stop_grace_period_ms: stop_grace_period.map(milliseconds),
        }
    }
}

impl TryFrom<v1::Resources> for Resources {
    type Error = ConvertError;

    fn try_from(message: v1::Resources) -> Result<Self, ConvertError> {
        let v1::Resources {
            limit_nano_cpus,
            limit_memory_bytes,
            reserve_nano_cpus,
            reserve_memory_bytes,
        } = message;
        Ok(Self {
            limit_nano_cpus,
            limit_memory_bytes,
            reserve_nano_cpus,
            reserve_memory_bytes,
        })
    }
}

impl From<&Resources> for v1::Resources {
    fn from(resources: &Resources) -> Self {
        let Resources {
            limit_nano_cpus,
            limit_memory_bytes,
            reserve_nano_cpus,
            reserve_memory_bytes,
        } = *resources;
        Self {
            limit_nano_cpus,
            limit_memory_bytes,
            reserve_nano_cpus,
            reserve_memory_bytes,
        }
    }
}

impl TryFrom<v1::RestartPolicy> for RestartPolicy {
    type Error = ConvertError;

    fn try_from(message: v1::RestartPolicy) -> Result<Self, ConvertError> {
        let v1::RestartPolicy {
            condition,
            delay_ms,
            max_attempts,
            window_ms,
        } = message;
        Ok(Self {
            condition: read::<v1::RestartCondition, _>("task.spec.restart.condition", condition)?,
            delay: Duration::from_millis(delay_ms),
            max_attempts,
            window: Duration::from_millis(window_ms),
        })
    }
}

impl From<&RestartPolicy> for v1::RestartPolicy {
    fn from(policy: &RestartPolicy) -> Self {
        let RestartPolicy {
            condition,
            delay,
            max_attempts,
            window,
        } = *policy;
        Self {
            condition: v1::RestartCondition::from(condition).into(),
            delay_ms: milliseconds(delay),
            max_attempts,
            window_ms: milliseconds(window),
        }
    }
}

impl TryFrom<v1::Placement> for Placement {
    type Error = ConvertError;

    fn try_from(message: v1::Placement) -> Result<Self, ConvertError> {
        let v1::Placement { constraints } = message;
        Ok(Self { constraints })
    }
}

impl From<&Placement> for v1::Placement {
    fn from(placement: &Placement) -> Self {
        let Placement { constraints } = placement;
        Self {
            constraints: constraints.clone(),
        }
    }
}
