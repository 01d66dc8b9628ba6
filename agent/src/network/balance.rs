//! Published ports: which of them this node answers, at which of its addresses, for whom, and to
//! which tasks it balances them. Pure.
//!
//! | option | what this node does |
//! |---|---|
//! | `mode=host` | answers only while it has a task of the service, and balances to that one |
//! | `ip`, `iface` | answers at those of its addresses; where it has none, not at all |
//! | `policy=local` | balances to its own tasks |
//! | `policy=prefer-local` | balances to its own while one is ready; the connections of others run on |
//! | `sched` | IPVS's scheduler; `sh` and `mh` with fallback, `mh` with the client's port |
//! | `affinity` | IPVS's persistence, by the client's whole address |
//! | `source` | `mesh_uplink` drops the packets of all others |
//!
//! A port to which no task answers has no balancer: it is taken into the ingress namespace all the
//! same, and there nobody listens, so that clients are refused at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use swarm_ipvs::{
    DestinationConfig, DestinationKey, Name, Service as IpvsService, ServiceConfig, ServiceFlags,
    ServiceKey,
};
use swarm_model::{PortConfig, Protocol, PublishMode, RoutingPolicy, Scheduler};

use super::desired::{Backend, BackendState, Service};
use super::model::{Balanced, IpvsTable, Published, PublishedAs, Source};

/// The addresses of this node, each with the links that have it.
pub(super) type NodeAddresses = BTreeMap<IpAddr, BTreeSet<String>>;

/// What the kernel is to hold of published ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Balance {
    /// The balancer's table.
    pub(super) table: IpvsTable,
    /// The ports that are taken off the uplinks.
    pub(super) published: BTreeMap<Published, PublishedAs>,
    /// Who may use those that are restricted.
    pub(super) sources: BTreeSet<Source>,
}

/// What `services` publish on a node with these addresses. Of two services with the same port the
/// first has it. At the node's IPv6 addresses tasks answer with what
/// `task6` makes of theirs; one for which that is nothing does not.
pub(super) fn balance<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    addresses: &NodeAddresses,
    task6: impl Fn(IpAddr) -> Option<IpAddr>,
) -> Balance {
    let mut balance = Balance::default();
    for (service, port) in answering(services) {
        balance.publish(service, port, addresses, &task6);
    }
    balance
}

/// The published ports that this node answers, each with the service that has it.
pub(super) fn answering<'a>(
    services: impl IntoIterator<Item = &'a Service>,
) -> impl Iterator<Item = (&'a Service, &'a PortConfig)> {
    let mut taken = BTreeSet::new();
    let services = services.into_iter();
    let ports = services.flat_map(|service| service.ports.iter().map(move |port| (service, port)));
    ports.filter(move |(service, port)| {
        let answers = port.mode == PublishMode::Ingress
            || service.backends.iter().any(|backend| backend.local);
        answers && taken.insert((port.protocol, port.published))
    })
}

impl Balance {
    /// Adds a port of a service.
    pub(super) fn publish(
        &mut self,
        service: &Service,
        port: &PortConfig,
        addresses: &NodeAddresses,
        task6: impl Fn(IpAddr) -> Option<IpAddr>,
    ) {
        let over_ipv4 = destinations(port, &service.backends);
        let over_ipv6 = over_ipv4.iter().filter_map(|(key, config)| {
            let address = task6(key.address)?;
            Some((DestinationKey { address, ..*key }, *config))
        });
        let over_ipv6: BTreeMap<_, _> = over_ipv6.collect();
        let bound = addresses
            .iter()
            .filter(|(at, links)| binds(port, **at, links));
        for (&address, _) in bound {
            let entry = Published {
                address,
                port: port.published,
                protocol: port.protocol,
            };
            let destinations = match address {
                IpAddr::V4(_) => &over_ipv4,
                IpAddr::V6(_) => &over_ipv6,
            };
            let published = PublishedAs {
                service: service.index,
                restricted: !port.sources.is_empty(),
                answered: !destinations.is_empty(),
            };
            self.published.insert(entry, published);
            if destinations.is_empty() {
                continue;
            }
            let key = ServiceKey::Address {
                protocol: match port.protocol {
                    Protocol::Tcp => swarm_ipvs::Protocol::TCP,
                    Protocol::Udp => swarm_ipvs::Protocol::UDP,
                    Protocol::Sctp => swarm_ipvs::Protocol::SCTP,
                },
                address,
                port: port.published,
            };
            let order = destinations.keys().copied();
            let balanced = Balanced::new(config(key, port), destinations.clone(), order);
            self.table.insert(key, balanced);
        }
        self.sources.extend(port.sources.iter().map(|net| Source {
            port: port.published,
            protocol: port.protocol,
            net: *net,
        }));
    }
}

/// Whether `port` is open at an address that these links have.
fn binds(port: &PortConfig, address: IpAddr, links: &BTreeSet<String>) -> bool {
    let anywhere = port.addresses.is_empty() && port.interfaces.is_empty();
    anywhere
        || port.addresses.iter().any(|net| net.contains(&address))
        || port.interfaces.iter().any(|name| links.contains(name))
}

/// The tasks that the port leads to. Empty when none of them takes connections and none has any.
fn destinations(
    port: &PortConfig,
    backends: &[Backend],
) -> BTreeMap<DestinationKey, DestinationConfig> {
    let only_local = port.mode == PublishMode::Host || port.policy == RoutingPolicy::Local;
    let prefer_local = port.policy == RoutingPolicy::PreferLocal
        && backends
            .iter()
            .any(|backend| backend.local && backend.state == BackendState::Ready);
    let eligible = || {
        backends
            .iter()
            .filter(|backend| backend.local || !only_local)
    };
    if eligible().all(|backend| backend.state == BackendState::Starting) {
        return BTreeMap::new();
    }
    // A UDP flow has no end that could be waited for: without its destination its next packet is
    // balanced anew, while the old task is still there for what it has in hand.
    let flows_move = port.protocol == Protocol::Udp
        && eligible().any(|backend| backend.state == BackendState::Ready);
    eligible()
        .filter(|backend| backend.state != BackendState::Draining || !flows_move)
        // Maglev's table depends on the order in which destinations were added: one that is added
        // while it starts has its place before any connection depends on it.
        .filter(|backend| {
            backend.state != BackendState::Starting || port.scheduler == Scheduler::Mh
        })
        .map(|backend| {
            let key = DestinationKey {
                address: backend.address,
                port: port.target,
            };
            let takes_new =
                backend.state == BackendState::Ready && (backend.local || !prefer_local);
            let config = DestinationConfig {
                // With weight 0 old connections run on.
                weight: u32::from(takes_new),
                ..DestinationConfig::default()
            };
            (key, config)
        })
        .collect()
}

/// How IPVS balances the port.
fn config(key: ServiceKey, port: &PortConfig) -> ServiceConfig {
    let (scheduler, flags) = match port.scheduler {
        Scheduler::Rr => (Name::RR, ServiceFlags::empty()),
        Scheduler::Wrr => (Name::WRR, ServiceFlags::empty()),
        Scheduler::Lc => (Name::LC, ServiceFlags::empty()),
        // `sh-fallback`: else a client whose task is draining would be refused.
        Scheduler::Sh => (Name::SH, ServiceFlags::SCHED_1),
        // `mh-fallback` likewise, and `mh-port`: connections of one client are balanced as well.
        Scheduler::Mh => (Name::MH, ServiceFlags::SCHED_1 | ServiceFlags::SCHED_2),
    };
    let mut config = IpvsService::new(key, scheduler).config;
    config.flags = flags;
    if let Some(affinity) = port.affinity {
        config.flags = config.flags | ServiceFlags::PERSISTENT;
        // Within a week by validation.
        config.timeout_s = u32::try_from(affinity.as_secs()).unwrap_or(u32::MAX).max(1);
    }
    config
}

#[cfg(test)]
mod tests;
