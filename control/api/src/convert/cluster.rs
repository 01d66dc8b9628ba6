//! The swarm itself, and what every object carries.

use std::time::Duration;

use swarm_model::{
    Cluster, ClusterSpec, ExternalCa, ManagerLock, Meta, NetworkCursor, RootRotation, Timestamp,
    UnlockKey, Vni,
};

use super::ConvertError;
use super::field::{epoch_ms, id, milliseconds, optional_parsed, optional_text, or_default};
use super::network::{SUBNET, vni};
use crate::v1;

impl TryFrom<v1::Meta> for Meta {
    type Error = ConvertError;

    fn try_from(message: v1::Meta) -> Result<Self, ConvertError> {
        let v1::Meta {
            version,
            created_at_ms,
            updated_at_ms,
        } = message;
        Ok(Self {
            version,
            created_at: Timestamp(created_at_ms),
            updated_at: Timestamp(updated_at_ms),
        })
    }
}

impl From<&Meta> for v1::Meta {
    fn from(meta: &Meta) -> Self {
        let Meta {
            version,
            created_at,
            updated_at,
        } = *meta;
        Self {
            version,
            created_at_ms: epoch_ms(created_at),
            updated_at_ms: epoch_ms(updated_at),
        }
    }
}

impl TryFrom<v1::Cluster> for Cluster {
    type Error = ConvertError;

    fn try_from(message: v1::Cluster) -> Result<Self, ConvertError> {
        let v1::Cluster {
            id: cluster_id,
            meta,
            spec,
            root_ca_pem,
            root_key_pem,
            worker_secret,
            manager_secret,
            last_vni,
            last_subnet,
            epoch,
            unlock_key,
            lock_version,
            rotation,
        } = message;
        Ok(Self {
            id: id("cluster.id", cluster_id)?,
            meta: or_default(meta)?,
            spec: or_default(spec)?,
            root_ca_pem,
            root_key_pem: root_key_pem.into(),
            worker_secret: worker_secret.into(),
            manager_secret: manager_secret.into(),
            networks_made: NetworkCursor {
                vni: (last_vni != 0)
                    .then(|| vni("cluster.last_vni", last_vni))
                    .transpose()?,
                subnet: optional_parsed("cluster.last_subnet", SUBNET, &last_subnet)?,
            },
            epoch,
            lock: ManagerLock {
                version: lock_version,
                key: unlock(&unlock_key)?,
            },
            rotation: rotation.map(RootRotation::from),
        })
    }
}

fn unlock(text: &str) -> Result<Option<UnlockKey>, ConvertError> {
    let field = "cluster.unlock_key";
    (!text.is_empty())
        .then(|| text.parse().map_err(|_| ConvertError::Secret { field }))
        .transpose()
}

impl From<&Cluster> for v1::Cluster {
    /// Secrets included: for the log, not for an answer to a user.
    fn from(cluster: &Cluster) -> Self {
        let Cluster {
            id,
            meta,
            spec,
            root_ca_pem,
            root_key_pem,
            worker_secret,
            manager_secret,
            networks_made: NetworkCursor { vni, subnet },
            epoch,
            lock: ManagerLock { version, key },
            rotation,
        } = cluster;
        Self {
            id: id.to_string(),
            meta: Some(meta.into()),
            spec: Some(spec.into()),
            root_ca_pem: root_ca_pem.clone(),
            root_key_pem: String::from(&**root_key_pem),
            worker_secret: String::from(&**worker_secret),
            manager_secret: String::from(&**manager_secret),
            last_vni: vni.map_or(0, |Vni(vni)| vni),
            last_subnet: optional_text(*subnet),
            epoch: *epoch,
            unlock_key: key.as_ref().map(UnlockKey::to_text).unwrap_or_default(),
            lock_version: *version,
            rotation: rotation.as_ref().map(v1::RootRotation::from),
        }
    }
}

impl From<v1::RootRotation> for RootRotation {
    fn from(message: v1::RootRotation) -> Self {
        let v1::RootRotation {
            root_ca_pem,
            root_key_pem,
            cross_signed_pem,
            worker_secret,
            manager_secret,
            given_up,
        } = message;
        Self {
            root_ca_pem,
            root_key_pem: root_key_pem.into(),
            cross_signed_pem,
            worker_secret: worker_secret.into(),
            manager_secret: manager_secret.into(),
            given_up,
        }
    }
}

impl From<&RootRotation> for v1::RootRotation {
    /// Secrets included: for the log, not for an answer to a user.
    fn from(rotation: &RootRotation) -> Self {
        let RootRotation {
            root_ca_pem,
            root_key_pem,
            cross_signed_pem,
            worker_secret,
            manager_secret,
            given_up,
        } = rotation;
        Self {
            root_ca_pem: root_ca_pem.clone(),
            root_key_pem: String::from(&**root_key_pem),
            cross_signed_pem: cross_signed_pem.clone(),
            worker_secret: String::from(&**worker_secret),
            manager_secret: String::from(&**manager_secret),
            given_up: given_up.clone(),
        }
    }
}

impl TryFrom<v1::ClusterSpec> for ClusterSpec {
    type Error = ConvertError;

    fn try_from(message: v1::ClusterSpec) -> Result<Self, ConvertError> {
        let v1::ClusterSpec {
            task_history_limit,
            heartbeat_period_ms,
            suspect_after_ms,
            down_after_ms,
            certificate_expiry_ms,
            autolock,
            external_cas,
        } = message;
        Ok(Self {
            task_history_limit,
            heartbeat_period: Duration::from_millis(heartbeat_period_ms),
            suspect_after: Duration::from_millis(suspect_after_ms),
            down_after: Duration::from_millis(down_after_ms),
            certificate_expiry: Duration::from_millis(certificate_expiry_ms),
            autolock,
            external_cas: external_cas.into_iter().map(ExternalCa::from).collect(),
        })
    }
}

impl From<&ClusterSpec> for v1::ClusterSpec {
    fn from(spec: &ClusterSpec) -> Self {
        let ClusterSpec {
            task_history_limit,
            heartbeat_period,
            suspect_after,
            down_after,
            certificate_expiry,
            autolock,
            external_cas,
        } = spec;
        Self {
            task_history_limit: *task_history_limit,
            heartbeat_period_ms: milliseconds(*heartbeat_period),
            suspect_after_ms: milliseconds(*suspect_after),
            down_after_ms: milliseconds(*down_after),
            certificate_expiry_ms: milliseconds(*certificate_expiry),
            autolock: *autolock,
            external_cas: external_cas.iter().map(v1::ExternalCa::from).collect(),
        }
    }
}

impl From<v1::ExternalCa> for ExternalCa {
    fn from(message: v1::ExternalCa) -> Self {
        let v1::ExternalCa { url, root_ca_pem } = message;
        Self { url, root_ca_pem }
    }
}

impl From<&ExternalCa> for v1::ExternalCa {
    fn from(ca: &ExternalCa) -> Self {
        let ExternalCa { url, root_ca_pem } = ca.clone();
        Self { url, root_ca_pem }
    }
}
