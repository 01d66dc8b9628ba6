//! Networks and ports.

use swarm_model::{Endpoint, EndpointSpec, Network, PortConfig, Vni};

use super::ConvertError;
use super::enumeration::read;
use super::field::{each, id, or_default, parsed, port};
use crate::v1;

impl TryFrom<v1::Network> for Network {
    type Error = ConvertError;

    fn try_from(message: v1::Network) -> Result<Self, ConvertError> {
        let v1::Network {
            id: network_id,
            meta,
            name,
            ingress,
            subnet,
            vni: wire_vni,
        } = message;
        Ok(Self {
            id: id("network.id", network_id)?,
            meta: or_default(meta)?,
            name,
            ingress,
            subnet: parsed("network.subnet", "an IPv4 network in CIDR form", &subnet)?,
            vni: vni(wire_vni)?,
        })
    }
}

/// 0 is what a message without a VNI holds, and is given to no network.
fn vni(value: u32) -> Result<Vni, ConvertError> {
    if (1..=Vni::LAST.0).contains(&value) {
        Ok(Vni(value))
    } else {
        Err(ConvertError::Range {
            field: "network.vni",
            value: value.into(),
            min: 1,
            max: Vni::LAST.0.into(),
        })
    }
}

impl From<&Network> for v1::Network {
    fn from(network: &Network) -> Self {
        let Network {
            id,
            meta,
            name,
            ingress,
            subnet,
            vni: Vni(vni),
        } = network;
        Self {
            id: id.to_string(),
            meta: Some(meta.into()),
            name: name.clone(),
            ingress: *ingress,
            subnet: subnet.to_string(),
            vni: *vni,
        }
    }
}

impl TryFrom<v1::PortConfig> for PortConfig {
    type Error = ConvertError;

    fn try_from(message: v1::PortConfig) -> Result<Self, ConvertError> {
        let v1::PortConfig {
            protocol,
            target,
            published,
        } = message;
        Ok(Self {
            protocol: read::<v1::Protocol, _>("port.protocol", protocol)?,
            target: port("port.target", target)?,
            published: port("port.published", published)?,
        })
    }
}

impl From<&PortConfig> for v1::PortConfig {
    fn from(config: &PortConfig) -> Self {
        let PortConfig {
            protocol,
            target,
            published,
        } = *config;
        Self {
            protocol: v1::Protocol::from(protocol).into(),
            target: target.into(),
            published: published.into(),
        }
    }
}

impl TryFrom<v1::EndpointSpec> for EndpointSpec {
    type Error = ConvertError;

    fn try_from(message: v1::EndpointSpec) -> Result<Self, ConvertError> {
        let v1::EndpointSpec { ports } = message;
        Ok(Self {
            ports: each(ports)?,
        })
    }
}

impl From<&EndpointSpec> for v1::EndpointSpec {
    fn from(spec: &EndpointSpec) -> Self {
        let EndpointSpec { ports } = spec;
        Self {
            ports: ports.iter().map(v1::PortConfig::from).collect(),
        }
    }
}

impl TryFrom<v1::Endpoint> for Endpoint {
    type Error = ConvertError;

    fn try_from(message: v1::Endpoint) -> Result<Self, ConvertError> {
        let v1::Endpoint {
            index,
            ports,
            error,
        } = message;
        Ok(Self {
            index,
            ports: each(ports)?,
            error,
        })
    }
}

impl From<&Endpoint> for v1::Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        let Endpoint {
            index,
            ports,
            error,
        } = endpoint;
        Self {
            index: *index,
            ports: ports.iter().map(v1::PortConfig::from).collect(),
            error: error.clone(),
        }
    }
}
