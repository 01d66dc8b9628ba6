//! Networks and endpoints.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use swarm_model::{
    Attachment, Endpoint, EndpointSpec, Network, NetworkAttachmentSpec, NetworkSpec, Vip, Vni,
};

use super::ConvertError;
use super::enumeration::read;
use super::field::{
    each, id, labels_to_wire, optional_ipv4, optional_parsed, optional_text, or_default, parsed,
};
use crate::v1;

pub(super) const SUBNET: &str = "an IPv4 network in CIDR form";
const SUBNET6: &str = "an IPv6 network in CIDR form";

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
            spec,
            gateway,
            subnet6,
            error,
        } = message;
        let subnet: Ipv4Net = parsed("network.subnet", SUBNET, &subnet)?;
        let spec = match spec {
            Some(spec) => spec.try_into()?,
            // Kept by the first version, which knew the ingress network only.
            None => NetworkSpec {
                name,
                ingress,
                ..NetworkSpec::default()
            },
        };
        let gateway = optional_ipv4("network.gateway", &gateway)?;
        Ok(Self {
            id: id("network.id", network_id)?,
            meta: or_default(meta)?,
            spec,
            subnet,
            gateway: gateway.unwrap_or_else(|| first(subnet)),
            subnet6: optional_parsed("network.subnet6", SUBNET6, &subnet6)?,
            vni: vni("network.vni", wire_vni)?,
            error,
        })
    }
}

/// The first address of `subnet` after its own.
fn first(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()).saturating_add(1))
}

/// 0 is what a message without a VNI holds, and is given to no network.
pub(super) fn vni(field: &'static str, value: u32) -> Result<Vni, ConvertError> {
    if (1..=Vni::LAST.0).contains(&value) {
        Ok(Vni(value))
    } else {
        Err(ConvertError::Range {
            field,
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
            spec,
            subnet,
            gateway,
            subnet6,
            vni: Vni(vni),
            error,
        } = network;
        Self {
            id: id.to_string(),
            meta: Some(meta.into()),
            name: String::new(),
            ingress: false,
            subnet: subnet.to_string(),
            vni: *vni,
            spec: Some(spec.into()),
            gateway: gateway.to_string(),
            subnet6: optional_text(*subnet6),
            error: error.clone(),
        }
    }
}

impl TryFrom<v1::NetworkSpec> for NetworkSpec {
    type Error = ConvertError;

    fn try_from(message: v1::NetworkSpec) -> Result<Self, ConvertError> {
        let v1::NetworkSpec {
            name,
            labels,
            subnet,
            gateway,
            ip_range,
            subnet6,
            ipv6,
            internal,
            attachable,
            mtu,
            ingress,
        } = message;
        let mtu = mtu.map(|mtu| {
            u16::try_from(mtu).map_err(|_| ConvertError::Range {
                field: "network.spec.mtu",
                value: mtu.into(),
                min: 0,
                max: u16::MAX.into(),
            })
        });
        Ok(Self {
            name,
            labels: labels.into_iter().collect(),
            subnet: optional_parsed("network.spec.subnet", SUBNET, &subnet)?,
            gateway: optional_ipv4("network.spec.gateway", &gateway)?,
            ip_range: optional_parsed("network.spec.ip_range", SUBNET, &ip_range)?,
            subnet6: optional_parsed("network.spec.subnet6", SUBNET6, &subnet6)?,
            ipv6,
            internal,
            attachable,
            mtu: mtu.transpose()?,
            ingress,
        })
    }
}

impl From<&NetworkSpec> for v1::NetworkSpec {
    fn from(spec: &NetworkSpec) -> Self {
        let NetworkSpec {
            name,
            labels,
            subnet,
            gateway,
            ip_range,
            subnet6,
            ipv6,
            internal,
            attachable,
            mtu,
            ingress,
        } = spec;
        Self {
            name: name.clone(),
            labels: labels_to_wire(labels),
            subnet: optional_text(*subnet),
            gateway: optional_text(*gateway),
            ip_range: optional_text(*ip_range),
            subnet6: optional_text(*subnet6),
            ipv6: *ipv6,
            internal: *internal,
            attachable: *attachable,
            mtu: mtu.map(u32::from),
            ingress: *ingress,
        }
    }
}

impl TryFrom<v1::NetworkAttachmentSpec> for NetworkAttachmentSpec {
    type Error = ConvertError;

    fn try_from(message: v1::NetworkAttachmentSpec) -> Result<Self, ConvertError> {
        let v1::NetworkAttachmentSpec { target, aliases } = message;
        Ok(Self { target, aliases })
    }
}

impl From<&NetworkAttachmentSpec> for v1::NetworkAttachmentSpec {
    fn from(spec: &NetworkAttachmentSpec) -> Self {
        let NetworkAttachmentSpec { target, aliases } = spec;
        Self {
            target: target.clone(),
            aliases: aliases.clone(),
        }
    }
}

impl TryFrom<v1::Attachment> for Attachment {
    type Error = ConvertError;

    fn try_from(message: v1::Attachment) -> Result<Self, ConvertError> {
        let v1::Attachment {
            network_id,
            address,
            aliases,
        } = message;
        Ok(Self {
            network: id("task.attachment.network_id", network_id)?,
            address: parsed("task.attachment.address", "an IPv4 address", &address)?,
            aliases,
        })
    }
}

impl From<&Attachment> for v1::Attachment {
    fn from(attachment: &Attachment) -> Self {
        let Attachment {
            network,
            address,
            aliases,
        } = attachment;
        Self {
            network_id: network.to_string(),
            address: address.to_string(),
            aliases: aliases.clone(),
        }
    }
}

impl TryFrom<v1::Vip> for Vip {
    type Error = ConvertError;

    fn try_from(message: v1::Vip) -> Result<Self, ConvertError> {
        let v1::Vip {
            network_id,
            address,
        } = message;
        Ok(Self {
            network: id("endpoint.vip.network_id", network_id)?,
            address: parsed("endpoint.vip.address", "an IPv4 address", &address)?,
        })
    }
}

impl From<&Vip> for v1::Vip {
    fn from(vip: &Vip) -> Self {
        let Vip { network, address } = vip;
        Self {
            network_id: network.to_string(),
            address: address.to_string(),
        }
    }
}

impl TryFrom<v1::EndpointSpec> for EndpointSpec {
    type Error = ConvertError;

    fn try_from(message: v1::EndpointSpec) -> Result<Self, ConvertError> {
        let v1::EndpointSpec { ports, mode } = message;
        Ok(Self {
            ports: each(ports)?,
            mode: read::<v1::EndpointMode, _>("endpoint.mode", mode)?,
        })
    }
}

impl From<&EndpointSpec> for v1::EndpointSpec {
    fn from(spec: &EndpointSpec) -> Self {
        let EndpointSpec { ports, mode } = spec;
        Self {
            ports: ports.iter().map(v1::PortConfig::from).collect(),
            mode: v1::EndpointMode::from(mode).into(),
        }
    }
}

impl TryFrom<v1::Endpoint> for Endpoint {
    type Error = ConvertError;

    fn try_from(message: v1::Endpoint) -> Result<Self, ConvertError> {
        let v1::Endpoint {
            index,
            ports,
            vips,
            error,
        } = message;
        Ok(Self {
            index,
            ports: each(ports)?,
            vips: each(vips)?,
            error,
        })
    }
}

impl From<&Endpoint> for v1::Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        let Endpoint {
            index,
            ports,
            vips,
            error,
        } = endpoint;
        Self {
            index: *index,
            ports: ports.iter().map(v1::PortConfig::from).collect(),
            vips: vips.iter().map(v1::Vip::from).collect(),
            error: error.clone(),
        }
    }
}
