//! Networks: what people ask for, what the swarm keeps, who is attached where.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{Meta, NetworkId};

/// A network, as a person asks for it. Never changed after it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Unique in the swarm.
    pub name: String,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Its IPv4 addresses; none leaves the choice to the swarm.
    pub subnet: Option<Ipv4Net>,
    /// The gateway's address, within the subnet; none is the first.
    pub gateway: Option<Ipv4Addr>,
    /// The part of the subnet that tasks and VIPs get addresses from; none is all of it.
    pub ip_range: Option<Ipv4Net>,
    /// Its IPv6 prefix, of a length of at most [`Network::PREFIX6_LEN_MAX`].
    pub subnet6: Option<Ipv6Net>,
    /// Whether it has IPv6; without a `subnet6` the swarm draws a unique local prefix.
    pub ipv6: bool,
    /// Whether it gives its tasks no way out of the swarm.
    pub internal: bool,
    /// Whether containers that are no tasks may join it.
    pub attachable: bool,
    /// Largest packet of a task, in bytes; none derives it from the underlay.
    pub mtu: Option<u16>,
    /// Whether it is the one that carries published ports.
    pub ingress: bool,
}

/// A network of the swarm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its id.
    pub id: NetworkId,
    /// Version and times.
    pub meta: Meta,
    /// What was asked for.
    pub spec: NetworkSpec,
    /// Its IPv4 addresses.
    pub subnet: Ipv4Net,
    /// The address that every node answers as the gateway. Unused on the ingress network: its
    /// gateways are the nodes' ingress addresses.
    pub gateway: Ipv4Addr,
    /// Its IPv6 prefix, of a length of at most [`Self::PREFIX6_LEN_MAX`]; none without IPv6.
    pub subnet6: Option<Ipv6Net>,
    /// Its VXLAN id.
    pub vni: Vni,
    /// What keeps the allocator from giving addresses of it, in words that name the remedy; empty
    /// when nothing.
    pub error: String,
}

impl Network {
    /// Longest IPv6 prefix: the low 32 bits are the IPv4 address.
    pub const PREFIX6_LEN_MAX: u8 = 96;

    /// The IPv6 address that belongs to `address`: IPv6 addresses are never allocated. Holds for
    /// tasks, VIPs, gateways and nodes alike. None without IPv6, or when the prefix leaves no room.
    pub fn address6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let subnet = self
            .subnet6
            .filter(|subnet| subnet.prefix_len() <= Self::PREFIX6_LEN_MAX)?;
        let prefix = u128::from(subnet.network());
        Some(Ipv6Addr::from(prefix | u128::from(u32::from(address))))
    }
}

/// Where the serial allocation of networks goes on, so that what was freed comes round again as
/// late as possible: caches and stale forwarding entries may still name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkCursor {
    /// The VXLAN id given last to a network of a user.
    pub vni: Option<Vni>,
    /// The subnet chosen last from the pool.
    pub subnet: Option<Ipv4Net>,
}

/// A VXLAN network identifier: 24 bits (RFC 7348).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Vni(pub u32);

impl Vni {
    /// The first that the allocator gives (swarmkit's, since 17.12): the ingress network's.
    pub const FIRST: Self = Self(4096);
    /// The largest there is.
    pub const LAST: Self = Self((1 << 24) - 1);
}

/// A network that a service's tasks are attached to, as a person asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachmentSpec {
    /// Name or id of the network; always the id in what the swarm keeps.
    pub target: String,
    /// Further names of the service on that network.
    pub aliases: Vec<String>,
}

/// A task's place on a network of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Which network.
    pub network: NetworkId,
    /// The task's address there.
    pub address: Ipv4Addr,
    /// Further names of the task's service there.
    pub aliases: Vec<String>,
}

/// What a service's name stands for on its networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointMode {
    /// One virtual address a network, balanced over the tasks.
    #[default]
    Vip,
    /// The addresses of the tasks.
    Dnsrr,
}

impl EndpointMode {
    /// The name, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vip => "vip",
            Self::Dnsrr => "dnsrr",
        }
    }
}

/// A service's virtual address on one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vip {
    /// Which network.
    pub network: NetworkId,
    /// The address.
    pub address: Ipv4Addr,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(subnet6: Option<&str>) -> Network {
        Network {
            id: NetworkId::random(&mut rand::rng()),
            meta: Meta::default(),
            spec: NetworkSpec::default(),
            subnet: "10.0.1.0/24".parse().unwrap(),
            gateway: Ipv4Addr::new(10, 0, 1, 1),
            subnet6: subnet6.map(|text| text.parse().unwrap()),
            vni: Vni::FIRST,
            error: String::new(),
        }
    }

    #[test]
    fn ipv6_addresses_follow_from_ipv4_ones() {
        let address = Ipv4Addr::new(10, 0, 1, 7);
        for (subnet6, expected) in [
            (None, None),
            (Some("fd00:1:2:3::/64"), Some("fd00:1:2:3::a00:107")),
            (Some("fd00:1:2:3::5/64"), Some("fd00:1:2:3::a00:107")),
            (Some("fd00:1:2:3:4:5::/96"), Some("fd00:1:2:3:4:5:a00:107")),
            (Some("fd00::/97"), None),
        ] {
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(network(subnet6).address6(address), expected, "{subnet6:?}");
        }
    }
}
