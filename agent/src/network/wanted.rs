//! From what is desired to what the kernel is to hold, given what the host is like.

mod draft;
mod problem;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv6Net};
use swarm_ipvs::Timeouts;

use super::balance::{Balance, NodeAddresses, balance};
use super::desired::{Desired, LocalTask, address6};
use super::isolation::wanted_isolation;
use super::listeners::Listener;
use super::model::{
    Device, Firewall, FirewallState, IpvsTable, Link, LinkKind, Mac, MeshConfig, MeshMaps,
    Namespace, Observed, Place, Published, PublishedAs, SocketPrograms,
};
use super::names::{
    BRIDGE, DEFAULT_MTU, FORWARDING6, FORWARDING6_OF_NEW, HOST_IS_ROUTER, HOST_PREFIX, HOST_VETH,
    IPV6_MIN_MTU, LOOPBACK, TIMEOUTS, VXLAN, VXLAN_OVERHEAD, VXLAN_OVERHEAD6, forwarding_of,
};
use super::sockets::wanted_sockets;

use draft::Draft;
pub(crate) use problem::Problem;

/// The listeners of the host that published ports shadow, one a port.
fn shadowed(
    desired: &Desired,
    published: &BTreeMap<Published, PublishedAs>,
    listeners: &BTreeSet<Listener>,
) -> Vec<Problem> {
    let ports: BTreeSet<_> = listeners
        .iter()
        .map(|listener| (listener.protocol, listener.port))
        .collect();
    let mut problems = BTreeMap::new();
    for (entry, published) in published {
        let port = (entry.protocol, entry.port);
        if !ports.contains(&port) || problems.contains_key(&port) {
            continue;
        }
        let hidden = listeners.iter().find(|listener| {
            (listener.protocol, listener.port) == port && listener.takes(entry.address)
        });
        let mut services = desired.services.iter();
        let owner = services.find(|(_, service)| service.index == published.service);
        if let (Some(listener), Some((service, _))) = (hidden, owner) {
            let problem = Problem::PortShadowed {
                service: service.clone(),
                port: listener.port,
                protocol: listener.protocol,
                address: listener.address,
            };
            problems.insert(port, problem);
        }
    }
    problems.into_values().collect()
}

/// What the kernel is to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Namespaces and what is to be in them. `links` here is for look-ups.
    pub(super) namespaces: BTreeMap<Place, Namespace>,
    /// All links in the order they are made.
    pub(super) links: Vec<(Device, Link)>,
    /// Settings in the order they are made: those of whole namespaces, then those of links.
    pub(super) sysctls: Vec<(Place, String, String)>,
    /// The IPVS table; nothing where the kernel has none.
    pub(super) ipvs: Option<IpvsTable>,
    /// How long it remembers connections; likewise.
    pub(super) ipvs_timeouts: Option<Timeouts>,
    /// The maps; nothing where there are none.
    pub(super) mesh: Option<MeshMaps>,
    /// Our table of the host's nf_tables; nothing where the kernel has none.
    pub(super) firewall: Option<Firewall>,
}

/// The links by which packets come in from outside: up, no loopback, not ours, with an address.
pub(super) fn uplinks(host: &Namespace) -> BTreeSet<String> {
    let up = |name: &String| host.links.get(name).is_some_and(|link| link.up);
    let theirs = |name: &String| name != LOOPBACK && !name.starts_with(HOST_PREFIX);
    let names = host.addresses.iter().map(|(name, _)| name);
    names
        .filter(|name| theirs(name) && up(name))
        .cloned()
        .collect()
}

/// The links of the host that may take what routers advertise.
pub(super) fn advertised_to(host: &Namespace) -> BTreeSet<String> {
    let uplinks = uplinks(host);
    let of_others = |name: &str| name != LOOPBACK && !name.starts_with(HOST_PREFIX);
    let links = host.links.iter().filter(|(name, link)| {
        let hardware = link.kind == LinkKind::Other && link.up && of_others(name);
        hardware || uplinks.contains(*name)
    });
    links.map(|(name, _)| name.clone()).collect()
}

/// What `desired` means on the host that was observed, and what of it cannot be.
pub(super) fn wanted(observed: &Observed, desired: &Desired) -> (Wanted, Vec<Problem>) {
    let host = &observed.namespaces[&Place::Host];
    let uplinks = uplinks(host);
    let on_uplinks = host
        .addresses
        .iter()
        .filter(|(name, _)| uplinks.contains(name));
    let mut by_address = NodeAddresses::new();
    for (link, net) in on_uplinks {
        let links = by_address.entry(net.addr()).or_default();
        links.insert(link.clone());
    }
    let mut problems = Vec::new();

    let underlay_mtu = underlay_mtu(host, desired.local.vtep).unwrap_or_else(|| {
        problems.push(Problem::DataPathNotHere {
            address: desired.local.vtep,
        });
        DEFAULT_MTU
    });
    if let Err(reason) = &observed.ipvs {
        problems.push(Problem::IpvsMissing {
            reason: reason.clone(),
        });
    }
    match &observed.mesh {
        Err(reason) => problems.push(Problem::ProgramsNotLoaded {
            reason: reason.clone(),
        }),
        Ok(maps) => {
            if let SocketPrograms::Impossible(reason) = &maps.socket_programs {
                problems.push(Problem::SocketsNotBalanced {
                    reason: reason.clone(),
                });
            }
        }
    }

    let taken = subnet_taken(host, desired.network.subnet);
    let subnet_is_free = taken.is_none();
    problems.extend(taken);
    let overlay_mtu = underlay_mtu.saturating_sub(match desired.local.vtep {
        IpAddr::V4(_) => VXLAN_OVERHEAD,
        IpAddr::V6(_) => VXLAN_OVERHEAD6,
    });
    let mut subnet6 = desired.network.subnet6.filter(|_| observed.ipv6);
    let narrow = observed.ipv6 && overlay_mtu < IPV6_MIN_MTU;
    if narrow && (subnet6.is_some() || on_ipv6(desired)) {
        problems.push(Problem::TooNarrowForIpv6 { mtu: overlay_mtu });
        subnet6 = None;
    }
    if subnet6.is_none() {
        // No task could answer there.
        by_address.retain(|address, _| address.is_ipv4());
    }
    // Without an address of its own outside, the host could not send in its own name.
    let connected6 = by_address.keys().any(IpAddr::is_ipv6);
    let firewall = match &observed.firewall {
        Ok(state) => {
            let obstacles = state.obstacles.iter().filter(|of| connected6 || !of.ipv6);
            problems.extend(obstacles.cloned().map(Problem::EgressBlocked));
            let outside6 = subnet6.filter(|_| connected6);
            Some(firewall(desired, host, state, &uplinks, outside6))
        }
        Err(reason) => {
            problems.push(Problem::NoFirewall {
                reason: reason.clone(),
            });
            None
        }
    };
    let taken6 = subnet6.and_then(|subnet6| subnet_taken(host, IpNet::V6(subnet6)));
    let subnet6_is_free = taken6.is_none();
    problems.extend(taken6);
    let node_addresses: BTreeSet<IpAddr> = by_address.keys().copied().collect();
    problems.extend(other_data_path_version(desired));

    let mut draft = Draft {
        desired,
        observed,
        underlay_mtu,
        overlay_mtu,
        subnet6,
        subnets6: BTreeMap::new(),
        bridge: BRIDGE.into(),
        wanted: Wanted::default(),
    };
    draft.host(&uplinks);
    if subnet_is_free {
        draft.host_route();
    }
    if connected6 && subnet6_is_free {
        draft.host_route6();
    }
    draft.ingress(&node_addresses);
    for (task, local) in &desired.local_tasks {
        draft.task(task, local);
        for attachment in &local.attachments {
            draft.attachment(task, attachment);
        }
    }
    draft.everybody();
    draft.members();
    draft.settings();
    if let Some(firewall) = &firewall {
        draft.uplinks_forward(&uplinks);
        if firewall.guarded6 {
            draft.forward6(advertised_to(host));
        }
    }

    let mut wanted = draft.wanted;
    wanted.firewall = firewall;
    let Balance {
        table,
        published,
        sources,
    } = balance(desired.services.values(), &by_address, |address| {
        address6(subnet6?, address)
    });
    if observed.ipvs.is_ok() && observed.mesh.is_ok() {
        problems.extend(shadowed(desired, &published, &observed.listeners));
    }
    wanted.ipvs = observed.ipvs.is_ok().then_some(table);
    wanted.ipvs_timeouts = observed.ipvs.is_ok().then_some(TIMEOUTS);
    let sockets = wanted_sockets(desired, &by_address);
    wanted.mesh = observed.mesh.is_ok().then(|| MeshMaps {
        config: Some(MeshConfig {
            host_veth: Some(HOST_VETH.to_owned()),
            uplink: observed.default_uplink.clone(),
            vxlan: Some(VXLAN.to_owned()),
            mac: Mac::of(desired.local.ingress),
            tunnel: match desired.local.vtep.to_canonical() {
                IpAddr::V4(vtep) => Some((vtep, desired.network.vni)),
                IpAddr::V6(_) => None,
            },
        }),
        node_addresses: Some(node_addresses),
        ingress_macs: Some(ingress_macs(desired)),
        // Without a balancer the port had better refuse than swallow.
        published: Some(if observed.ipvs.is_ok() {
            published
        } else {
            BTreeMap::new()
        }),
        sources: Some(sources),
        isolation: Some(wanted_isolation(desired, subnet6)),
        sockets: Some(sockets),
        socket_programs: SocketPrograms::Current,
    });
    (wanted, problems)
}

/// Whether the host routes exactly our subnet elsewhere. A wider route is no hindrance: ours is
/// preferred.
fn subnet_taken(host: &Namespace, subnet: IpNet) -> Option<Problem> {
    let subnet = subnet.trunc();
    let route = host.routes.get(&subnet)?;
    (route.device != HOST_VETH).then(|| Problem::SubnetTaken {
        subnet,
        device: route.device.clone(),
    })
}

/// Who may leave, over IPv6 with addresses of `outside6`, and by which links nobody else comes
/// through: where the host is no router, those that did not forward before, or did so on our account.
fn firewall(
    desired: &Desired,
    host: &Namespace,
    state: &FirewallState,
    uplinks: &BTreeSet<String>,
    outside6: Option<Ipv6Net>,
) -> Firewall {
    let set = |key: &str| {
        host.sysctls
            .get(key)
            .is_some_and(|value| value.as_deref() == Some("1"))
    };
    let router = set(HOST_IS_ROUTER);
    // With the table lost and nobody to remember it, an earlier agent may have let a link forward.
    let ours = |name: &String| match &state.guarded {
        Some(guarded) => guarded.contains(name),
        None => host.links.contains_key(HOST_VETH),
    };
    let forwards = |name: &String| set(&forwarding_of(name)) && !ours(name);
    let local_tasks = desired.local_tasks.values().filter(|task| task.egress);
    let addresses = |task: &LocalTask| {
        let twin = outside6.and_then(|subnet6| address6(subnet6, task.address));
        [Some(task.address), twin].into_iter().flatten()
    };
    Firewall {
        egress: local_tasks.flat_map(addresses).collect(),
        guarded: uplinks
            .iter()
            .filter(|name| !router && !forwards(name))
            .cloned()
            .collect(),
        guarded6: outside6.is_some() && !(set(FORWARDING6) && set(FORWARDING6_OF_NEW)),
    }
}

/// Whether a task here is on a user's network with IPv6.
fn on_ipv6(desired: &Desired) -> bool {
    let tasks = desired.local_tasks.values();
    let mut attachments = tasks.flat_map(|task| &task.attachments);
    attachments.any(|attachment| attachment.overlay.subnet6.is_some())
}

/// MTU of the link that has the data-path address.
fn underlay_mtu(host: &Namespace, vtep: IpAddr) -> Option<u32> {
    let (name, _) = host.addresses.iter().find(|(_, net)| net.addr() == vtep)?;
    host.links.get(name).filter(|link| link.up)?.mtu
}

/// Whether there is a VXLAN tunnel between two addresses.
fn tunnels_to(ours: IpAddr, theirs: IpAddr) -> bool {
    ours.is_ipv4() == theirs.is_ipv4()
}

fn other_data_path_version(desired: &Desired) -> Option<Problem> {
    let ours = desired.local.vtep;
    let others = desired
        .peers
        .iter()
        .filter(|(node, peer)| **node != desired.local.id && !tunnels_to(ours, peer.vtep));
    let (_, first) = others.clone().next()?;
    Some(Problem::OtherDataPathVersion {
        count: others.count(),
        theirs: first.vtep,
        ours,
    })
}

/// Every node that packets may come through, this one too: its own tasks answer to it.
fn ingress_macs(desired: &Desired) -> BTreeMap<Mac, u32> {
    let others = desired.peers.values().map(|peer| peer.ingress);
    others
        .chain([desired.local.ingress])
        .map(|at| (Mac::of(at), node_number(at)))
        .collect()
}

/// A number for a node that is the same on all nodes for as long as the node keeps its address.
fn node_number(ingress: IpAddr) -> u32 {
    let [_, _, octets @ ..] = Mac::of(ingress).0;
    u32::from_be_bytes(octets)
}
