//! The networks that this host is on, so that the swarm chooses no subnet that hides them from
//! tasks.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;

/// Most networks told of: more are a router's, and a manager keeps them for every node.
const MAX_NETWORKS: usize = 64;

/// Names of the interfaces that the swarm itself makes begin so.
const OWN_PREFIX: &str = "sw-";

/// The IPv4 networks of the interfaces that are up, in order; without loopback, link-local ones and
/// single addresses. None when they cannot be listed: a subnet that overlaps is a nuisance, and no
/// reason to stay out of the swarm.
pub(super) fn host_networks() -> Vec<Ipv4Net> {
    let entries = match getifaddrs() {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(%error, "cannot list the networks of this host");
            return Vec::new();
        }
    };
    let networks: BTreeSet<_> = entries
        .filter(|entry| !entry.interface_name.starts_with(OWN_PREFIX))
        .filter_map(|entry| of_interface(&entry))
        .collect();
    networks.into_iter().take(MAX_NETWORKS).collect()
}

fn of_interface(entry: &InterfaceAddress) -> Option<Ipv4Net> {
    let up = entry.flags.contains(InterfaceFlags::IFF_UP);
    if !up || entry.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
        return None;
    }
    let address = entry.address.as_ref()?.as_sockaddr_in()?.ip();
    let mask = entry.netmask.as_ref()?.as_sockaddr_in()?.ip();
    network(address, mask)
}

fn network(address: Ipv4Addr, mask: Ipv4Addr) -> Option<Ipv4Net> {
    let network = Ipv4Net::with_netmask(address, mask).ok()?.trunc();
    let known = (1..32).contains(&network.prefix_len());
    (known && !address.is_link_local()).then_some(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_those_of_interfaces() {
        for (address, mask, expected) in [
            ("10.0.3.7", "255.255.0.0", Some("10.0.0.0/16")),
            ("192.168.1.9", "255.255.255.128", Some("192.168.1.0/25")),
            ("192.0.2.1", "255.255.255.255", None),
            ("192.0.2.1", "0.0.0.0", None),
            ("192.0.2.1", "255.0.255.0", None),
            ("169.254.0.5", "255.255.0.0", None),
        ] {
            let found = network(address.parse().unwrap(), mask.parse().unwrap());
            let found = found.map(|network| network.to_string());
            assert_eq!(found.as_deref(), expected, "{address} {mask}");
        }
    }

    #[test]
    fn loopback_is_not_told_of() {
        let loopback = Ipv4Addr::LOCALHOST;
        assert!(
            !host_networks()
                .iter()
                .any(|network| network.contains(&loopback))
        );
    }
}
