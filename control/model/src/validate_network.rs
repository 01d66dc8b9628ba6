//! Which networks can be made (swarmkit `manager/controlapi/network.go`).

use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::validate::{MAX_LIST_LEN, MAX_TEXT_LEN, validate_name};
use crate::{InvalidSpec, Network, NetworkSpec};

/// Names that Docker gives to networks of every node, and the swarm's own.
pub const RESERVED_NETWORK_NAMES: [&str; 5] = ["ingress", "host", "bridge", "none", "default"];

/// Prefix lengths of IPv4 subnets: from as much as the whole of 10.0.0.0 to what a VIP, a gateway
/// and a few tasks need.
const SUBNET_LEN_MIN: u8 = 8;
const SUBNET_LEN_MAX: u8 = 29;

/// Smallest packet that every IPv4 host takes (RFC 791), and every IPv6 link carries (RFC 8200).
const MTU_MIN: u16 = 576;
const MTU_MIN_IPV6: u16 = 1280;

/// What is wrong with a network's spec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNetwork {
    /// A name that is no DNS label, or labels that are too large.
    #[error(transparent)]
    Spec(#[from] InvalidSpec),
    /// A name that means something else.
    #[error("the network name {0} is reserved: choose another")]
    Reserved(String),
    /// The swarm makes that one.
    #[error("the ingress network is made by the swarm itself: leave out --ingress")]
    Ingress,
    /// A subnet with bits set behind its prefix.
    #[error("subnet {subnet} is not the beginning of a network: write {network}")]
    HostBits {
        /// As it was written.
        subnet: String,
        /// As it was probably meant.
        network: String,
    },
    /// Too large or too small.
    #[error("subnet {0} has a prefix length outside /{SUBNET_LEN_MIN} to /{SUBNET_LEN_MAX}")]
    SubnetSize(Ipv4Net),
    /// Addresses that hosts treat specially.
    #[error(
        "subnet {0} cannot be routed to tasks: choose one from 10.0.0.0/8, 172.16.0.0/12, \
         192.168.0.0/16 or fd00::/8"
    )]
    SubnetRange(String),
    /// Something within a subnet, but no subnet.
    #[error("{0} lies within a subnet: give the subnet as well, with --subnet")]
    NoSubnet(&'static str),
    /// A gateway elsewhere.
    #[error("gateway {gateway} is no host address of subnet {subnet}")]
    Gateway {
        /// The gateway.
        gateway: Ipv4Addr,
        /// The subnet.
        subnet: Ipv4Net,
    },
    /// A range elsewhere.
    #[error("address range {ip_range} does not lie within subnet {subnet}")]
    IpRange {
        /// The range.
        ip_range: Ipv4Net,
        /// The subnet.
        subnet: Ipv4Net,
    },
    /// No room for the IPv4 address.
    #[error(
        "IPv6 subnet {0} is too small: its last 32 bits are the IPv4 address, so give a /{max} or \
         larger", max = Network::PREFIX6_LEN_MAX
    )]
    Subnet6Size(Ipv6Net),
    /// An IPv6 subnet, but no IPv6.
    #[error("IPv6 subnet {0} needs IPv6: give --ipv6 as well")]
    Subnet6WithoutIpv6(Ipv6Net),
    /// Packets that are too small.
    #[error("an MTU of {mtu} is too small: {min} is the least")]
    Mtu {
        /// What was asked for.
        mtu: u16,
        /// The least, with the IP versions of the network.
        min: u16,
    },
}

/// Whether a network can be made of `spec` as it stands. Whether its addresses are free is another
/// question.
pub fn validate_network(spec: &NetworkSpec) -> Result<(), InvalidNetwork> {
    let NetworkSpec {
        name,
        labels,
        subnet,
        gateway,
        ip_range,
        subnet6,
        ipv6,
        internal: _,
        attachable: _,
        mtu,
        ingress,
    } = spec;
    validate_name(name)?;
    if RESERVED_NETWORK_NAMES.contains(&name.to_ascii_lowercase().as_str()) {
        return Err(InvalidNetwork::Reserved(name.clone()));
    }
    if *ingress {
        return Err(InvalidNetwork::Ingress);
    }
    if labels.len() > MAX_LIST_LEN
        || labels
            .iter()
            .any(|(key, value)| key.len() + value.len() > MAX_TEXT_LEN)
    {
        let what = "the set of labels, or a label,";
        let limit = MAX_LIST_LEN;
        return Err(InvalidSpec::TooLarge { what, limit }.into());
    }
    validate_subnet(*subnet, *gateway, *ip_range)?;
    if let Some(subnet6) = subnet6 {
        validate_subnet6(*subnet6, *ipv6)?;
    }
    let min = if *ipv6 { MTU_MIN_IPV6 } else { MTU_MIN };
    match *mtu {
        Some(mtu) if mtu < min => Err(InvalidNetwork::Mtu { mtu, min }),
        _ => Ok(()),
    }
}

fn validate_subnet(
    subnet: Option<Ipv4Net>,
    gateway: Option<Ipv4Addr>,
    ip_range: Option<Ipv4Net>,
) -> Result<(), InvalidNetwork> {
    let Some(subnet) = subnet else {
        return match (gateway, ip_range) {
            (Some(_), _) => Err(InvalidNetwork::NoSubnet("a gateway")),
            (_, Some(_)) => Err(InvalidNetwork::NoSubnet("an address range")),
            (None, None) => Ok(()),
        };
    };
    for net in [Some(subnet), ip_range].into_iter().flatten() {
        if net.trunc() != net {
            return Err(InvalidNetwork::HostBits {
                subnet: net.to_string(),
                network: net.trunc().to_string(),
            });
        }
    }
    if !(SUBNET_LEN_MIN..=SUBNET_LEN_MAX).contains(&subnet.prefix_len()) {
        return Err(InvalidNetwork::SubnetSize(subnet));
    }
    let network = subnet.network();
    let special = network.octets()[0] == 0
        || network.is_loopback()
        || network.is_link_local()
        || network.octets()[0] >= 224
        || subnet.contains(&Ipv4Addr::new(169, 254, 0, 0));
    if special {
        return Err(InvalidNetwork::SubnetRange(subnet.to_string()));
    }
    if let Some(gateway) = gateway
        && (!subnet.contains(&gateway) || gateway == network || gateway == subnet.broadcast())
    {
        return Err(InvalidNetwork::Gateway { gateway, subnet });
    }
    match ip_range {
        Some(ip_range) if !subnet.contains(&ip_range) => {
            Err(InvalidNetwork::IpRange { ip_range, subnet })
        }
        _ => Ok(()),
    }
}

fn validate_subnet6(subnet: Ipv6Net, ipv6: bool) -> Result<(), InvalidNetwork> {
    if !ipv6 {
        return Err(InvalidNetwork::Subnet6WithoutIpv6(subnet));
    }
    if subnet.trunc() != subnet {
        return Err(InvalidNetwork::HostBits {
            subnet: subnet.to_string(),
            network: subnet.trunc().to_string(),
        });
    }
    if subnet.prefix_len() > Network::PREFIX6_LEN_MAX {
        return Err(InvalidNetwork::Subnet6Size(subnet));
    }
    // Global and unique local addresses; not ::/3 with loopback and mapped ones, not fe80::/10,
    // not ff00::/8.
    let usable = ["2000::/3", "fc00::/7"]
        .iter()
        .filter_map(|text| text.parse::<Ipv6Net>().ok())
        .any(|usable| usable.contains(&subnet));
    if usable {
        Ok(())
    } else {
        Err(InvalidNetwork::SubnetRange(subnet.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str) -> NetworkSpec {
        NetworkSpec {
            name: name.to_owned(),
            ..NetworkSpec::default()
        }
    }

    #[test]
    fn reserved_names_are_refused() {
        assert_eq!(validate_network(&spec("front")), Ok(()));
        for name in ["ingress", "host", "Bridge", "none"] {
            let refused = validate_network(&spec(name));
            assert_eq!(refused, Err(InvalidNetwork::Reserved(name.to_owned())));
        }
        assert!(validate_network(&spec("a b")).is_err());
        let ingress = NetworkSpec {
            ingress: true,
            ..spec("mine")
        };
        assert_eq!(validate_network(&ingress), Err(InvalidNetwork::Ingress));
    }

    /// Subnet, gateway and address range, and a word of the refusal; none where there is none.
    #[test]
    fn subnets_make_sense() {
        for (subnet, gateway, ip_range, refusal) in [
            ("10.1.0.0/16", "", "", None),
            ("10.1.0.0/16", "10.1.0.254", "10.1.7.0/24", None),
            ("10.1.0.0/29", "10.1.0.6", "", None),
            ("10.1.0.1/16", "", "", Some("write 10.1.0.0/16")),
            ("10.1.0.0/16", "", "10.1.7.9/24", Some("write 10.1.7.0/24")),
            ("10.1.0.0/30", "", "", Some("prefix length")),
            ("8.0.0.0/7", "", "", Some("prefix length")),
            ("127.0.0.0/16", "", "", Some("cannot be routed")),
            ("169.254.0.0/16", "", "", Some("cannot be routed")),
            ("169.0.0.0/8", "", "", Some("cannot be routed")),
            ("224.1.0.0/16", "", "", Some("cannot be routed")),
            ("0.0.0.0/8", "", "", Some("cannot be routed")),
            ("10.1.0.0/16", "10.2.0.1", "", Some("gateway 10.2.0.1")),
            ("10.1.0.0/16", "10.1.0.0", "", Some("gateway 10.1.0.0")),
            ("10.1.0.0/16", "10.1.255.255", "", Some("gateway")),
            ("10.1.0.0/16", "", "10.0.0.0/8", Some("does not lie within")),
            ("", "10.1.0.1", "", Some("a gateway lies within")),
            ("", "", "10.1.0.0/24", Some("an address range lies within")),
        ] {
            let spec = NetworkSpec {
                subnet: subnet.parse().ok(),
                gateway: gateway.parse().ok(),
                ip_range: ip_range.parse().ok(),
                ..spec("front")
            };
            let told = validate_network(&spec).err().map(|error| error.to_string());
            match (refusal, &told) {
                (None, None) => {}
                (Some(word), Some(told)) if told.contains(word) => {}
                _ => panic!("{subnet} {gateway} {ip_range}: {told:?}"),
            }
        }
    }

    #[test]
    fn ipv6_leaves_room_for_the_ipv4_address() {
        for (subnet6, ipv6, mtu, refusal) in [
            ("fd00:1::/64", true, Some(1280), None),
            ("2001:db8::/96", true, None, None),
            ("fd00:1::/97", true, None, Some("too small")),
            ("fd00:1::1/64", true, None, Some("write fd00:1::/64")),
            ("fd00:1::/64", false, None, Some("--ipv6")),
            ("fe80::/64", true, None, Some("cannot be routed")),
            ("ff05::/64", true, None, Some("cannot be routed")),
            ("::/0", true, None, Some("cannot be routed")),
            ("", true, Some(1279), Some("1280 is the least")),
            ("", false, Some(576), None),
            ("", false, Some(575), Some("576 is the least")),
        ] {
            let spec = NetworkSpec {
                subnet6: subnet6.parse().ok(),
                ipv6,
                mtu,
                ..spec("front")
            };
            let told = validate_network(&spec).err().map(|error| error.to_string());
            match (refusal, &told) {
                (None, None) => {}
                (Some(word), Some(told)) if told.contains(word) => {}
                _ => panic!("{subnet6} {mtu:?}: {told:?}"),
            }
        }
    }
}
