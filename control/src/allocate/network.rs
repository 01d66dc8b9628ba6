//! New networks: their subnets and VXLAN ids.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use rand::RngExt as _;
use swarm_model::{Cluster, Meta, Network, NetworkId, NetworkSpec, Node, Timestamp, Vni};

use crate::store::State;

/// What subnets are chosen from, and how large each is (Docker's default pool).
const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8);
const CHOSEN_LEN: u8 = 24;

/// How far around a node's address no subnet is chosen while there are others, beside the networks
/// that nodes say they are on: the hosts' own network is often that large, and what else is there
/// would be out of reach of tasks.
const SPARED_LEN: u8 = 16;

/// Why there can be no such network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoNetwork {
    /// Two networks with the same addresses cannot be told apart.
    #[error(
        "subnet {subnet} overlaps {other} of network {name}: choose another with --subnet, or \
         leave --subnet out and the swarm chooses one"
    )]
    Overlap {
        /// What was asked for.
        subnet: String,
        /// What it overlaps.
        other: String,
        /// Whose that is.
        name: String,
    },
    /// Tasks could not reach that node.
    #[error(
        "subnet {subnet} contains {address}, the address of node {node}: choose another with \
         --subnet, or leave --subnet out and the swarm chooses one"
    )]
    Underlay {
        /// What was asked for.
        subnet: String,
        /// The address in it.
        address: IpAddr,
        /// Whose that is.
        node: String,
    },
    /// The pool is used up.
    #[error(
        "every subnet of {POOL} is in use: name one from elsewhere with --subnet, or remove \
         networks that nobody uses with `swarmctl network prune`"
    )]
    NoSubnet,
    /// The VXLAN ids are used up.
    #[error("every VXLAN id is in use: remove networks with `swarmctl network prune`")]
    NoVni,
}

/// The network of `spec`, which is valid, and `cluster` after it was made. Nothing that is in use
/// is given, and what was freed as late as possible.
pub(crate) fn make(
    state: &State,
    cluster: &Cluster,
    spec: NetworkSpec,
    now: Timestamp,
    rng: &mut impl rand::Rng,
) -> Result<(Network, Cluster), NoNetwork> {
    let mut cluster = cluster.clone();
    cluster.meta.updated_at = now;
    let subnet = match spec.subnet {
        Some(subnet) => {
            check(state, subnet)?;
            subnet
        }
        None => {
            let chosen = choose(state, cluster.networks_made.subnet).ok_or(NoNetwork::NoSubnet)?;
            cluster.networks_made.subnet = Some(chosen);
            chosen
        }
    };
    let subnet6 = match spec.subnet6 {
        Some(subnet) => {
            check6(state, subnet)?;
            Some(subnet)
        }
        None => spec.ipv6.then(|| unique_local(rng)),
    };
    let vni = next_vni(state, cluster.networks_made.vni).ok_or(NoNetwork::NoVni)?;
    cluster.networks_made.vni = Some(vni);
    let network = Network {
        id: NetworkId::random(rng),
        meta: Meta {
            version: 0,
            created_at: now,
            updated_at: now,
        },
        gateway: spec.gateway.unwrap_or_else(|| first_host(subnet)),
        spec,
        subnet,
        subnet6,
        vni,
        error: String::new(),
    };
    Ok((network, cluster))
}

/// A unique local IPv6 prefix of 64 bits (RFC 4193): `fd`, then 56 random bits where the RFC has a
/// global id of 40 and a subnet id of 16.
pub(super) fn unique_local(rng: &mut impl rand::Rng) -> Ipv6Net {
    let random = u128::from(rng.random::<u64>() >> 8);
    let prefix = 0xfd << 120 | random << 64;
    Ipv6Net::new_assert(Ipv6Addr::from(prefix), 64)
}

fn first_host(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()) + 1)
}

fn overlap<N: ToString>(subnet: N, other: N, network: &Network) -> NoNetwork {
    NoNetwork::Overlap {
        subnet: subnet.to_string(),
        other: other.to_string(),
        name: network.spec.name.clone(),
    }
}

fn check(state: &State, subnet: Ipv4Net) -> Result<(), NoNetwork> {
    let overlaps =
        |other: &Ipv4Net| other.contains(&subnet.network()) || subnet.contains(&other.network());
    for network in state.networks() {
        if overlaps(&network.subnet) {
            return Err(overlap(subnet, network.subnet, network));
        }
    }
    for node in state.nodes() {
        let mut addresses = underlay(node);
        let inside = |address: &IpAddr| matches!(address, IpAddr::V4(v4) if subnet.contains(v4));
        if let Some(address) = addresses.find(inside) {
            return Err(within(subnet.to_string(), address, node));
        }
    }
    Ok(())
}

fn check6(state: &State, subnet: Ipv6Net) -> Result<(), NoNetwork> {
    let overlaps =
        |other: &Ipv6Net| other.contains(&subnet.network()) || subnet.contains(&other.network());
    for network in state.networks() {
        if let Some(other) = network.subnet6.filter(|other| overlaps(other)) {
            return Err(overlap(subnet, other, network));
        }
    }
    for node in state.nodes() {
        let mut addresses = underlay(node);
        let inside = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if subnet.contains(v6));
        if let Some(address) = addresses.find(inside) {
            return Err(within(subnet.to_string(), address, node));
        }
    }
    Ok(())
}

fn within(subnet: String, address: IpAddr, node: &Node) -> NoNetwork {
    let name = &node.description.hostname;
    NoNetwork::Underlay {
        subnet,
        address,
        node: if name.is_empty() {
            node.id.to_string()
        } else {
            name.clone()
        },
    }
}

/// The addresses of `node` that the swarm knows, outside of its networks.
fn underlay(node: &Node) -> impl Iterator<Item = IpAddr> {
    let manager = node.manager.as_ref().map(|manager| manager.address.ip());
    [
        node.description.data_path_address,
        node.status.address,
        manager,
    ]
    .into_iter()
    .flatten()
    .filter(|address| !address.is_loopback() && !address.is_unspecified())
}

/// A free piece of the pool after `last`, spared ones last.
fn choose(state: &State, last: Option<Ipv4Net>) -> Option<Ipv4Net> {
    let taken = merged(state.networks().map(|network| network.subnet));
    let nodes = || {
        let addresses = state.nodes().flat_map(|node| underlay(node));
        addresses.filter_map(|address| match address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        })
    };
    let around = |len| nodes().map(move |address| Ipv4Net::new_assert(address, len).trunc());
    let on = state
        .nodes()
        .flat_map(|node| &node.description.host_networks);
    let spared = merged(around(SPARED_LEN).chain(on.copied()));
    let inside = merged(around(CHOSEN_LEN));
    next_piece(last, &[&taken, &spared]).or_else(|| next_piece(last, &[&taken, &inside]))
}

/// First and last address of networks, in order, without overlaps.
fn merged(networks: impl Iterator<Item = Ipv4Net>) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = networks
        .map(|net| (u32::from(net.network()), u32::from(net.broadcast())))
        .collect();
    ranges.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= *end => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// The first piece of the pool behind `after`, and from its beginning on again, that overlaps
/// nothing of `taken`.
fn next_piece(after: Option<Ipv4Net>, taken: &[&[(u32, u32)]]) -> Option<Ipv4Net> {
    const SIZE: u32 = 1 << (32 - CHOSEN_LEN);
    let (start, end) = (u32::from(POOL.network()), u32::from(POOL.broadcast()));
    // The end of what overlaps the piece at `piece`, if anything does.
    let blocked = |piece: u32| {
        let overlapping = taken.iter().filter_map(|ranges| {
            let at = ranges.partition_point(|(_, last)| *last < piece);
            let (first, last) = ranges.get(at)?;
            (*first <= piece + (SIZE - 1)).then_some(*last)
        });
        overlapping.max()
    };
    let search = |from: u32, to: u32| {
        let mut piece = from;
        while piece < to {
            match blocked(piece) {
                None => return Some(piece),
                // Behind what overlaps: at the beginning of the next piece.
                Some(last) => piece = (last | (SIZE - 1)).checked_add(1)?,
            }
        }
        None
    };
    let next = after
        .filter(|after| POOL.contains(after))
        .map_or(start, |after| u32::from(after.broadcast()) + 1);
    let found = search(next, end).or_else(|| search(start, next))?;
    Some(Ipv4Net::new_assert(found.into(), CHOSEN_LEN))
}

/// The first free VXLAN id behind `last`, and from the first for users on again.
fn next_vni(state: &State, last: Option<Vni>) -> Option<Vni> {
    const FIRST: u32 = Vni::FIRST.0 + 1;
    let used: BTreeSet<u32> = state.networks().map(|network| network.vni.0).collect();
    let next = last.map_or(FIRST, |Vni(last)| last.saturating_add(1).max(FIRST));
    let mut ids = (next..=Vni::LAST.0).chain(FIRST..next.min(Vni::LAST.0));
    ids.find(|id| !used.contains(id)).map(Vni)
}
