//! Which services the sockets of this node are balanced to, in the words of the model. Pure.
//!
//! * A task's sockets reach the virtual addresses of its networks, by every port, and the ports
//!   published at this node's addresses.
//! * The host's own sockets reach the ports published at this node's addresses and at 127.0.0.1 and
//!   `::1`. Where a process of the host listens on a loopback address, the program leaves it the
//!   port.
//! * Only tasks that take new connections are behind a service. Without any its sockets are refused.
//!
//! A task without egress reaches no published ports: they are a way to services of other networks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use swarm_ipvs::ServiceKey;
use swarm_model::{NetworkId, Protocol, ServiceId};

use crate::SharedMap;
use crate::ebpf::{
    Protocol as EbpfProtocol, SocketScope, SocketService, SocketTarget, scope, scope_flag,
};

use super::balance::{Balance, NodeAddresses, answering};
use super::desired::{Desired, VirtualService};
use super::model::{Place, Published};
use super::names::LOOPBACK;

/// Where the host finds itself.
const LOOPBACK_ADDRESSES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// All that the socket programs are to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sockets {
    /// What the sockets of a namespace are balanced to.
    pub(super) scopes: BTreeMap<Place, SocketScope>,
    /// Where services are found, and their slots.
    pub(super) services: Arc<BTreeMap<SocketService, SocketTarget>>,
    /// The tasks behind them.
    pub(super) slots: Arc<BTreeMap<u64, BTreeSet<IpAddr>>>,
}

impl Sockets {
    /// These without the services that `kept` lacks; nothing where it lacks none.
    pub(super) fn without_services_missing_in(&self, kept: &Self) -> Option<Self> {
        let keep = |asked: &SocketService| kept.services.contains_key(asked);
        if self.services.keys().all(keep) {
            return None;
        }
        let mut remaining = self.clone();
        Arc::make_mut(&mut remaining.services).retain(|asked, _| keep(asked));
        Some(remaining)
    }
}

/// What `desired` means for sockets on a node with these addresses.
pub(super) fn wanted_sockets(desired: &Desired, addresses: &NodeAddresses) -> Sockets {
    let mut sockets = Sockets::default();
    sockets.published(desired, addresses);
    let host = SocketScope {
        networks: scope::NONE,
        flags: scope_flag::PUBLISHED | scope_flag::LOOPBACK,
    };
    sockets.scopes.insert(Place::Host, host);
    // Tasks on the same networks share a scope.
    let mut scopes = BTreeMap::new();
    for task in desired.local_tasks.keys() {
        let Some(asks) = desired.task_sockets.get(task) else {
            continue;
        };
        let networks = *scopes
            .entry(&asks.networks)
            .or_insert_with(|| sockets.networks(desired, &asks.networks));
        let flags = if asks.published {
            scope_flag::PUBLISHED
        } else {
            0
        };
        let place = Place::Task(task.clone());
        let scope = SocketScope { networks, flags };
        sockets.scopes.insert(place, scope);
    }
    sockets
}

impl Sockets {
    /// Every published port at every address of the node where it is open, and at the loopback
    /// addresses where it is open there too: where it is bound to no address or interface, or to
    /// those. What a port says of tasks (only those of this node, say) holds here as well; its
    /// scheduler and affinity are the packets' alone.
    fn published(&mut self, desired: &Desired, addresses: &NodeAddresses) {
        let mut addresses = addresses.clone();
        for loopback in LOOPBACK_ADDRESSES {
            let links = addresses.entry(loopback).or_default();
            links.insert(LOOPBACK.to_owned());
        }
        // The tasks' IPv4 addresses also for who asks by IPv6: the host has no route to the others.
        for (service, port) in answering(desired.services.values()) {
            let mut balance = Balance::default();
            balance.publish(service, port, &addresses, Some);
            self.published_port(&balance);
        }
    }

    /// One of them.
    fn published_port(&mut self, balance: &Balance) {
        for (entry, published) in &balance.published {
            if published.restricted && !balance.admits(entry) {
                continue;
            }
            let protocol = match entry.protocol {
                Protocol::Tcp => EbpfProtocol::Tcp,
                Protocol::Udp => EbpfProtocol::Udp,
                // IPVS alone.
                Protocol::Sctp => continue,
            };
            let (ready, target) = balance.ready(entry);
            let port = format!("{}/{}", entry.port, entry.protocol.as_str());
            let slot = self.slot("published", &port, entry.address, &ready);
            let asked = SocketService::port(scope::PUBLISHED, entry.address, entry.port, protocol);
            let services = Arc::make_mut(&mut self.services);
            services.insert(asked, SocketTarget::new(slot, target));
        }
    }

    /// The scope of these networks, with their virtual addresses.
    fn networks(&mut self, desired: &Desired, networks: &BTreeSet<NetworkId>) -> u64 {
        if networks.is_empty() {
            return scope::NONE;
        }
        let scope = number(networks.iter().map(NetworkId::as_str));
        for network in networks {
            if let Some(services) = desired.virtual_services.get(network) {
                self.virtual_addresses(scope, network.as_str(), services);
            }
        }
        scope
    }

    /// The virtual addresses of a network, for a scope.
    fn virtual_addresses(
        &mut self,
        scope: u64,
        network: &str,
        services: &SharedMap<ServiceId, VirtualService>,
    ) {
        for (id, service) in services.iter() {
            for &address in &service.addresses {
                let slot = self.slot(network, id.as_str(), address, &service.ready);
                let asked = SocketService::any_port(scope, address);
                let services = Arc::make_mut(&mut self.services);
                services.insert(asked, SocketTarget::new(slot, None));
            }
        }
    }

    /// The slot of a service on a network for who asks at `address`: its tasks' addresses of that
    /// family. IPv6 sockets can talk to IPv4 tasks, so where there is no IPv6 task the IPv4 ones
    /// answer.
    fn slot(
        &mut self,
        network: &str,
        service: &str,
        address: IpAddr,
        ready: &BTreeSet<IpAddr>,
    ) -> u64 {
        let of = |ipv6: bool| {
            ready
                .iter()
                .filter(move |backend| backend.is_ipv6() == ipv6)
        };
        let ipv6 = address.is_ipv6() && of(true).next().is_some();
        let family = if ipv6 { "6" } else { "4" };
        let slot = number([network, service, family].into_iter());
        let backends = || of(ipv6).copied().collect();
        let slots = Arc::make_mut(&mut self.slots);
        slots.entry(slot).or_insert_with(backends);
        slot
    }
}

impl Balance {
    /// Whether who asks at one of the node's own addresses, and so from it, may use a restricted
    /// port.
    fn admits(&self, entry: &Published) -> bool {
        self.sources.iter().any(|source| {
            (source.port, source.protocol) == (entry.port, entry.protocol)
                && source.net.contains(&entry.address)
        })
    }

    /// The tasks that take new connections at a published port, and their port.
    fn ready(&self, entry: &Published) -> (BTreeSet<IpAddr>, Option<u16>) {
        let key = ServiceKey::Address {
            protocol: match entry.protocol {
                Protocol::Tcp => swarm_ipvs::Protocol::TCP,
                Protocol::Udp => swarm_ipvs::Protocol::UDP,
                Protocol::Sctp => swarm_ipvs::Protocol::SCTP,
            },
            address: entry.address,
            port: entry.port,
        };
        let destinations = self.table.get(&key).map(|service| &service.destinations);
        let ready: Vec<_> = destinations
            .into_iter()
            .flatten()
            .filter(|(_, config)| config.weight > 0)
            .map(|(destination, _)| *destination)
            .collect();
        let port = ready.first().map(|destination| destination.port);
        let addresses = ready.iter().map(|destination| destination.address);
        (addresses.collect(), port)
    }
}

/// A number for names that is the same in every agent: of a space so large that no two things of a
/// swarm share one (10^4 of them do with a probability of 10^-11), above those with a meaning of
/// their own.
fn number<'a>(names: impl Iterator<Item = &'a str>) -> u64 {
    let mut hash = Sha256::new();
    for name in names {
        // Ids contain no such byte.
        hash.update(name.as_bytes());
        hash.update([0]);
    }
    let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = hash.finalize().into();
    u64::from_be_bytes([a, b, c, d, e, f, g, h]) | (1 << 63)
}

#[cfg(test)]
mod tests;
