//! Services.

use std::time::Duration;

use swarm_model::{Service, ServiceMode, ServiceSpec, UpdateConfig};

use super::ConvertError;
use super::enumeration::read;
use super::field::{id, labels_to_wire, milliseconds, or_default};
use crate::v1;
use crate::v1::service_spec::Mode;

impl TryFrom<v1::Service> for Service {
    type Error = ConvertError;

    fn try_from(message: v1::Service) -> Result<Self, ConvertError> {
        let v1::Service {
            id: service_id,
            meta,
            spec,
            previous_spec,
            template_version,
            endpoint,
            pending_delete,
        } = message;
        Ok(Self {
            id: id("service.id", service_id)?,
            meta: or_default(meta)?,
            spec: or_default(spec)?,
            previous_spec: previous_spec
                .map(ServiceSpec::try_from)
                .transpose()?
                .map(Box::new),
            template_version,
            endpoint: or_default(endpoint)?,
            pending_delete,
        })
    }
}

impl From<&Service> for v1::Service {
    fn from(service: &Service) -> Self {
        let Service {
            id,
            meta,
            spec,
            previous_spec,
            template_version,
            endpoint,
            pending_delete,
        } = service;
        Self {
            id: id.to_string(),
            meta: Some(meta.into()),
            spec: Some(spec.into()),
            previous_spec: previous_spec.as_deref().map(v1::ServiceSpec::from),
            template_version: *template_version,
            endpoint: Some(endpoint.into()),
            pending_delete: *pending_delete,
        }
    }
}

impl TryFrom<v1::ServiceSpec> for ServiceSpec {
    type Error = ConvertError;

    fn try_from(message: v1::ServiceSpec) -> Result<Self, ConvertError> {
        let v1::ServiceSpec {
            name,
            labels,
            mode,
            task,
            endpoint,
            update,
        } = message;
        Ok(Self {
            name,
            labels: labels.into_iter().collect(),
            mode: or_default(mode)?,
            task: or_default(task)?,
            endpoint: or_default(endpoint)?,
            update: or_default(update)?,
        })
    }
}

impl From<&ServiceSpec> for v1::ServiceSpec {
    fn from(spec: &ServiceSpec) -> Self {
        let ServiceSpec {
            name,
            labels,
            mode,
            task,
            endpoint,
            update,
        } = spec;
        Self {
            name: name.clone(),
            labels: labels_to_wire(labels),
            mode: Some(mode.into()),
            task: Some(task.into()),
            endpoint: Some(endpoint.into()),
            update: Some(update.into()),
        }
    }
}

impl TryFrom<Mode> for ServiceMode {
    type Error = ConvertError;

    fn try_from(mode: Mode) -> Result<Self, ConvertError> {
        match mode {
            Mode::Replicated(v1::Replicated { replicas }) => Ok(Self::Replicated { replicas }),
        }
    }
}

impl From<&ServiceMode> for Mode {
    fn from(mode: &ServiceMode) -> Self {
        match *mode {
            ServiceMode::Replicated { replicas } => Self::Replicated(v1::Replicated { replicas }),
        }
    }
}

impl TryFrom<v1::UpdateConfig> for UpdateConfig {
    type Error = ConvertError;

    fn try_from(message: v1::UpdateConfig) -> Result<Self, ConvertError> {
        let v1::UpdateConfig {
            parallelism,
            delay_ms,
            order,
        } = message;
        Ok(Self {
            parallelism,
            delay: Duration::from_millis(delay_ms),
            order: read::<v1::UpdateOrder, _>("service.spec.update.order", order)?,
        })
    }
}

impl From<&UpdateConfig> for v1::UpdateConfig {
    fn from(config: &UpdateConfig) -> Self {
        let UpdateConfig {
            parallelism,
            delay,
            order,
        } = *config;
        Self {
            parallelism,
            delay_ms: milliseconds(delay),
            order: v1::UpdateOrder::from(order).into(),
        }
    }
}
