//! Addresses of networks, given serially.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use swarm_model::{Network, NetworkId, Task, TaskState, Timestamp};

use crate::store::State;

/// Per network, where serial allocation goes on: the address given last.
pub(super) type Cursors = BTreeMap<NetworkId, Ipv4Addr>;

/// The addresses of every network. What is owned is only gathered once something is asked for: most
/// passes give nothing.
#[derive(Debug)]
pub(super) struct Pools<'a> {
    state: &'a State,
    cursors: Cursors,
    gathered: Option<BTreeMap<NetworkId, Addresses>>,
    exhausted: BTreeSet<NetworkId>,
}

impl<'a> Pools<'a> {
    /// The pools of the networks in `state`. Each goes on after its cursor, or after the address
    /// given last as far as the store tells.
    pub(super) fn new(state: &'a State, cursors: Cursors) -> Self {
        Self {
            state,
            cursors,
            gathered: None,
            exhausted: BTreeSet::new(),
        }
    }

    /// Whether `network` has a free address. Notes it as exhausted when it has none; a network that
    /// does not exist has none.
    pub(super) fn has_free(&mut self, network: &NetworkId) -> bool {
        let pool = self.gathered().get(network);
        let free = pool.is_some_and(Addresses::has_free);
        if !free {
            self.exhausted.insert(network.clone());
        }
        free
    }

    /// The next free address of `network`, now owned; none when [`Self::has_free`] says so.
    pub(super) fn next(&mut self, network: &NetworkId) -> Option<Ipv4Addr> {
        if !self.has_free(network) {
            return None;
        }
        self.gathered().get_mut(network)?.next()
    }

    /// Whether something was asked of `network` that it did not have.
    pub(super) fn is_exhausted(&self, network: &NetworkId) -> bool {
        self.exhausted.contains(network)
    }

    /// Where the next pass goes on.
    pub(super) fn into_cursors(self) -> Cursors {
        match self.gathered {
            None => self.cursors,
            Some(pools) => pools
                .into_iter()
                .map(|(network, pool)| (network, Ipv4Addr::from(pool.cursor)))
                .collect(),
        }
    }

    fn gathered(&mut self) -> &mut BTreeMap<NetworkId, Addresses> {
        let (state, cursors) = (self.state, &self.cursors);
        self.gathered.get_or_insert_with(|| gather(state, cursors))
    }
}

/// Every network's addresses, those that are owned in `state` taken.
fn gather(state: &State, cursors: &Cursors) -> BTreeMap<NetworkId, Addresses> {
    let mut pools: BTreeMap<_, _> = state
        .networks()
        .map(|network| (network.id.clone(), Addresses::of(network)))
        .collect();
    let mut seen = |network: &NetworkId, owned, at, address| {
        if let Some(pool) = pools.get_mut(network) {
            pool.note(owned, at, address);
        }
    };
    if let Some(ingress) = state.ingress_network() {
        for node in state.nodes() {
            if let Some(address) = node.ingress_address {
                seen(&ingress.id, true, node.meta.created_at, address);
            }
        }
        for task in state.tasks() {
            if let Some(address) = task.ingress_address {
                seen(&ingress.id, owns(task), task.meta.created_at, address);
            }
        }
    }
    for task in state.tasks() {
        for attachment in &task.attachments {
            let at = task.meta.created_at;
            seen(&attachment.network, owns(task), at, attachment.address);
        }
    }
    for service in state.services() {
        for vip in &service.endpoint.vips {
            seen(&vip.network, true, service.meta.created_at, vip.address);
        }
    }
    for (network, pool) in &mut pools {
        pool.start_after(cursors.get(network).copied());
    }
    pools
}

/// The addresses of one network, and which are owned.
#[derive(Debug)]
struct Addresses {
    first: u32,
    last: u32,
    /// The gateway's, which is never given.
    gateway: u32,
    cursor: u32,
    used: BTreeSet<u32>,
    /// The address of the newest object that has or had one.
    newest: Option<(Timestamp, Ipv4Addr)>,
}

impl Addresses {
    /// Network and broadcast address are never given, nor the gateway's.
    fn of(network: &Network) -> Self {
        let (first, last) = bounds(network);
        Self {
            first,
            last,
            gateway: u32::from(network.gateway),
            cursor: 0,
            used: BTreeSet::new(),
            newest: None,
        }
    }

    fn is_given(&self, address: u32) -> bool {
        (self.first..=self.last).contains(&address) && address != self.gateway
    }

    fn note(&mut self, owned: bool, at: Timestamp, address: Ipv4Addr) {
        self.newest = self.newest.max(Some((at, address)));
        let address = u32::from(address);
        if owned && self.is_given(address) {
            self.used.insert(address);
        }
    }

    fn start_after(&mut self, cursor: Option<Ipv4Addr>) {
        let last = cursor.or(self.newest.map(|(_, address)| address));
        // Just before the first, unless something was given already.
        self.cursor = last.map_or(self.first.saturating_sub(1), u32::from);
    }

    fn has_free(&self) -> bool {
        self.used.len() < capacity(self.first, self.last, self.gateway)
    }

    /// The next free address, now owned; none when all are.
    fn next(&mut self) -> Option<Ipv4Addr> {
        if !self.has_free() {
            return None;
        }
        loop {
            self.cursor = if (self.first..self.last).contains(&self.cursor) {
                self.cursor + 1
            } else {
                self.first
            };
            if self.is_given(self.cursor) && self.used.insert(self.cursor) {
                return Some(Ipv4Addr::from(self.cursor));
            }
        }
    }
}

/// The first and last address of `network` that a task or VIP can have; the first is the larger
/// where there is none.
fn bounds(network: &Network) -> (u32, u32) {
    let range = network.spec.ip_range.unwrap_or(network.subnet);
    let hosts = (
        u32::from(network.subnet.network()) + 1,
        u32::from(network.subnet.broadcast()) - 1,
    );
    (
        u32::from(range.network()).max(hosts.0),
        u32::from(range.broadcast()).min(hosts.1),
    )
}

fn capacity(first: u32, last: u32, gateway: u32) -> usize {
    let all = (u64::from(last) + 1).saturating_sub(first.into());
    let gateway = (first..=last).contains(&gateway);
    // At most 2^24: no subnet is larger than a /8.
    usize::try_from(all.saturating_sub(gateway.into())).unwrap_or(usize::MAX)
}

/// What to tell whom `network` has nothing left for.
pub(super) fn exhausted(network: &Network) -> String {
    let (first, last) = bounds(network);
    let count = capacity(first, last, network.gateway.into());
    let subnet = network.spec.ip_range.unwrap_or(network.subnet);
    if network.spec.ingress {
        format!(
            "all {count} addresses of the ingress network {subnet} are in use: scale services that \
             publish ports down, or remove some"
        )
    } else {
        let name = &network.spec.name;
        format!(
            "all {count} addresses of network {name} ({subnet}) are in use: scale services on it \
             down, or make a larger network with `swarmctl network create --subnet` and move \
             services there"
        )
    }
}

/// Whether the task's addresses are not to be given to another. A task on a lost node may still run
/// there, so it keeps its addresses until it is forgotten.
fn owns(task: &Task) -> bool {
    !task.status.state.is_terminal() || task.status.state == TaskState::Orphaned
}
