//! What is to be done when services and tasks alone have changed: planned from what changed, without
//! a look at everything else. Pure.
//!
//! A [`Slice`] is what two desired states differ in, cut out of both. The operations between them are
//! those that lead from what the one wants to what the other wants, by the same planner as ever: what
//! the one wants stands for the kernel. So a slice is good only where the kernel corresponds to the
//! first of the two, and where nothing outside it wants the same thing of the kernel as something in
//! it: an address of a task, a published port. Where that is not so, or where anything else has
//! changed, there is none, and everything is looked at.
//!
//! What somebody else has broken meanwhile is not seen here. The passes that look go on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use swarm_model::{NetworkId, Protocol, ServiceId, TaskId};

use crate::SharedMap;

use super::answering::{Entry, entries};
use super::desired::{Desired, Service, Task};
use super::model::{MeshMaps, Observed, Tables};
use super::op::{Changes, Op};
use super::plan::difference;
use super::wanted::{Wanted, wanted};

/// Tasks and services that may have changed at once. With more, such as a manager's first word after
/// it had died, a pass over everything is hardly dearer, and it looks.
const CHANGED_MAX: usize = 512;

/// How many tasks of a desired state have an address, and how many services a published port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    /// Nothing for the ingress network.
    addresses: BTreeMap<Option<NetworkId>, BTreeMap<IpAddr, u32>>,
    ports: BTreeMap<(Protocol, u16), u32>,
}

impl Index {
    /// The index of a desired state.
    pub(super) fn of(desired: &Desired) -> Self {
        let nothing = Desired {
            members: BTreeMap::new(),
            tasks: SharedMap::new(),
            services: SharedMap::new(),
            ..desired.clone()
        };
        let mut index = Self::default();
        index.follow(&nothing, desired);
        index
    }

    /// What it says of `before`, it says of `after` from here on.
    pub(super) fn follow(&mut self, before: &Desired, after: &Desired) {
        let empty = SharedMap::new();
        self.follow_tasks(None, &before.tasks, &after.tasks);
        let networks: BTreeSet<_> = before.members.keys().chain(after.members.keys()).collect();
        for network in networks {
            let before = before.members.get(network).unwrap_or(&empty);
            let after = after.members.get(network).unwrap_or(&empty);
            self.follow_tasks(Some(network), before, after);
        }
        for (_, before, after) in before.services.differences(&after.services) {
            for port in before.into_iter().flat_map(ports) {
                less(&mut self.ports, &port);
            }
            for port in after.into_iter().flat_map(ports) {
                *self.ports.entry(port).or_default() += 1;
            }
        }
    }

    fn follow_tasks(
        &mut self,
        network: Option<&NetworkId>,
        before: &SharedMap<TaskId, Task>,
        after: &SharedMap<TaskId, Task>,
    ) {
        let addresses = self.addresses.entry(network.cloned()).or_default();
        for (_, before, after) in before.differences(after) {
            if let Some(task) = before {
                less(addresses, &task.address);
            }
            if let Some(task) = after {
                *addresses.entry(task.address).or_default() += 1;
            }
        }
        if addresses.is_empty() {
            self.addresses.remove(&network.cloned());
        }
    }

    /// Whether nobody but `touched` has one of their addresses on a network.
    fn have_addresses(
        &self,
        network: Option<&NetworkId>,
        touched: &[Touched<'_, TaskId, Task>],
    ) -> bool {
        let mut own: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for (_, before, after) in touched {
            if let Some(task) = after {
                own.entry(task.address).or_default();
            }
            if let Some(task) = before {
                *own.entry(task.address).or_default() += 1;
            }
        }
        let all = self.addresses.get(&network.cloned());
        let count = |address| all.and_then(|all| all.get(address)).copied();
        own.iter()
            .all(|(address, own)| count(address).unwrap_or_default() == *own)
    }

    /// Whether nobody but `touched` publishes one of their ports.
    fn have_ports(&self, touched: &[Touched<'_, ServiceId, Service>]) -> bool {
        let mut own: BTreeMap<_, u32> = BTreeMap::new();
        for (_, before, after) in touched {
            for port in after.iter().flat_map(|service| ports(service)) {
                own.entry(port).or_default();
            }
            for port in before.iter().flat_map(|service| ports(service)) {
                *own.entry(port).or_default() += 1;
            }
        }
        own.iter()
            .all(|(port, own)| self.ports.get(port).copied().unwrap_or_default() == *own)
    }
}

/// What something was and is.
type Touched<'a, K, V> = (&'a K, Option<&'a V>, Option<&'a V>);

fn ports(service: &Service) -> impl Iterator<Item = (Protocol, u16)> {
    let ports = service.ports.iter();
    ports.map(|port| (port.protocol, port.published))
}

fn less<K: Ord>(counts: &mut BTreeMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// What two desired states differ in, and what it takes to say so: no more.
#[derive(Clone, Debug)]
pub(super) struct Slice {
    before: Desired,
    after: Desired,
}

/// The slice in which `after` differs from `before`, which is what `index` is of. Nothing where they
/// differ in more than services and tasks, in too many of them, or in something that others want too.
pub(super) fn slice(index: &Index, before: &Desired, after: &Desired) -> Option<Slice> {
    let alike = before.local == after.local
        && before.network == after.network
        && before.peers == after.peers
        && before.local_tasks == after.local_tasks
        && before.task_sockets == after.task_sockets
        && before.members.keys().eq(after.members.keys())
        && before
            .virtual_services
            .keys()
            .eq(after.virtual_services.keys());
    if !alike {
        return None;
    }
    let tasks = before.tasks.differences(&after.tasks);
    let services = before.services.differences(&after.services);
    let mut changed = tasks.len() + services.len();
    let mut sound = index.have_addresses(None, &tasks) && index.have_ports(&services);
    let mut named: Vec<_> = tasks.iter().collect();
    let (mut members, mut virtual_services) = (Vec::new(), Vec::new());
    for ((network, before), after) in before.members.iter().zip(after.members.values()) {
        let touched = before.differences(after);
        changed += touched.len();
        sound &= index.have_addresses(Some(network), &touched);
        members.push((network, touched));
    }
    named.extend(members.iter().flat_map(|(_, touched)| touched));
    let pairs = before
        .virtual_services
        .iter()
        .zip(after.virtual_services.values());
    for ((network, before), after) in pairs {
        let touched = before.differences(after);
        changed += touched.len();
        virtual_services.push((network, touched));
    }
    if !sound || changed > CHANGED_MAX {
        return None;
    }
    // Who is on users' networks here matters where something on one of them has changed.
    let on_networks = members.iter().any(|(_, touched)| !touched.is_empty())
        || virtual_services
            .iter()
            .any(|(_, touched)| !touched.is_empty());
    let ids: BTreeSet<_> = named.iter().map(|(task, ..)| *task).collect();
    let local = |task: &TaskId| on_networks || ids.contains(task);
    let tasks_of_named = named
        .iter()
        .flat_map(|(_, before, after)| [*before, *after]);
    let nodes: BTreeSet<_> = tasks_of_named.flatten().map(|task| &task.node).collect();
    let of_both = Desired {
        local: after.local.clone(),
        network: after.network.clone(),
        peers: nodes
            .into_iter()
            .filter_map(|node| Some((node.clone(), after.peers.get(node)?.clone())))
            .collect(),
        members: BTreeMap::new(),
        tasks: SharedMap::new(),
        local_tasks: (after.local_tasks.iter())
            .filter(|(task, _)| local(task))
            .map(|(task, local)| (task.clone(), local.clone()))
            .collect(),
        services: SharedMap::new(),
        task_sockets: (after.task_sockets.iter())
            .filter(|(task, _)| local(task))
            .map(|(task, sockets)| (task.clone(), sockets.clone()))
            .collect(),
        virtual_services: BTreeMap::new(),
    };
    Some(Slice {
        before: Desired {
            tasks: of(&tasks, was),
            services: of(&services, was),
            members: of_all(&members, was),
            virtual_services: of_all(&virtual_services, was),
            ..of_both.clone()
        },
        after: Desired {
            tasks: of(&tasks, is),
            services: of(&services, is),
            members: of_all(&members, is),
            virtual_services: of_all(&virtual_services, is),
            ..of_both
        },
    })
}

fn was<'a, K, V>((_, before, _): &Touched<'a, K, V>) -> Option<&'a V> {
    *before
}

fn is<'a, K, V>((_, _, after): &Touched<'a, K, V>) -> Option<&'a V> {
    *after
}

/// One side of what was touched.
fn of<'a, K: Ord + Clone, V: Clone>(
    touched: &[Touched<'a, K, V>],
    side: impl Fn(&Touched<'a, K, V>) -> Option<&'a V>,
) -> SharedMap<K, V> {
    let entries = touched.iter();
    entries
        .filter_map(|entry| Some((entry.0.clone(), side(entry)?.clone())))
        .collect()
}

/// The same of every network.
fn of_all<'a, K: Ord + Clone, V: Clone>(
    touched: &[(&NetworkId, Vec<Touched<'a, K, V>>)],
    side: impl Fn(&Touched<'a, K, V>) -> Option<&'a V>,
) -> BTreeMap<NetworkId, SharedMap<K, V>> {
    let networks = touched.iter();
    networks
        .map(|(network, touched)| ((*network).clone(), of(touched, &side)))
        .collect()
}

/// What leads from the one side of a slice to the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Increment {
    /// The operations in order.
    pub(super) ops: Vec<Op>,
    /// Published ports of the slice that answered, and those that will.
    pub(super) answering: [BTreeMap<Entry, u64>; 2],
}

/// The increment of a slice. `context` is what was seen of the kernel last; the tables in it are not
/// looked at. Nothing where what follows is more than entries of tables and maps.
pub(super) fn plan_increment(context: &Observed, slice: &Slice) -> Option<Increment> {
    let of = |desired| {
        let (mut wanted, _) = wanted(context, desired);
        // Those of the whole node, and not of a slice.
        wanted.sysctls.clear();
        wanted.firewall = None;
        wanted
    };
    let (was, wanted) = (of(&slice.before), of(&slice.after));
    let answering = [entries(&was), entries(&wanted)];
    let now = as_observed(was);
    let mut maps = now.mesh.clone().unwrap_or_default();
    let ops = difference(now, &wanted).into_iter();
    Some(Increment {
        ops: ops.map(|op| narrow(op, &mut maps)).collect::<Option<_>>()?,
        answering,
    })
}

/// A kernel that holds what is wanted.
fn as_observed(wanted: Wanted) -> Observed {
    let none = String::new;
    Observed {
        namespaces: wanted.namespaces,
        ipvs: wanted.ipvs.ok_or_else(none),
        ipvs_timeouts: wanted.ipvs_timeouts,
        mesh: wanted.mesh.ok_or_else(none),
        default_uplink: None,
        listeners: BTreeSet::new(),
        firewall: Err(none()),
        ipv6: true,
        tables: Tables::ALL,
    }
}

/// An operation that leaves alone what is outside the slice. `maps` are the slice's part of the maps
/// before it, and after.
fn narrow(op: Op, maps: &mut MeshMaps) -> Option<Op> {
    let narrowed = match &op {
        Op::SetPublished(wanted) => {
            Op::ChangePublished(Changes::between(maps.published.as_ref()?, wanted))
        }
        Op::SetSources(wanted) => {
            let all = |sources: &BTreeSet<_>| sources.iter().map(|source| (*source, ())).collect();
            let now = all(maps.sources.as_ref()?);
            Op::ChangeSources(Changes::between(&now, &all(wanted)))
        }
        Op::SetIsolation(wanted) => {
            let now = maps
                .isolation
                .as_ref()
                .filter(|now| now.ports == wanted.ports)?;
            Op::ChangeTargets(Changes::between(&now.targets, &wanted.targets))
        }
        Op::SetSockets(wanted) => {
            let now = maps
                .sockets
                .as_ref()
                .filter(|now| now.scopes == wanted.scopes)?;
            Op::ChangeSockets {
                services: Changes::between(&now.services, &wanted.services),
                slots: Changes::between(&now.slots, &wanted.slots),
            }
        }
        Op::SetNeighbour { .. }
        | Op::DeleteNeighbour { .. }
        | Op::SetTunnel { .. }
        | Op::DeleteTunnel { .. }
        | Op::SetForward { .. }
        | Op::DeleteForward { .. }
        | Op::Ipvs(_) => return Some(op),
        _ => return None,
    };
    maps.apply(&op);
    Some(narrowed)
}
