//! Which published ports are to answer on this node. Pure.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use swarm_ipvs::ServiceKey;
use swarm_model::Protocol;

use super::desired::{Desired, address6};
use super::model::{Balanced, Published};
use super::wanted::Wanted;

/// A published TCP port at one address of this node, by the index of its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    /// The service's index on this node.
    pub(crate) service: u32,
    /// The node's address and the port.
    pub(crate) at: SocketAddr,
}

/// What the networks should give an answer at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answering {
    /// Every port that has a task taking connections, at one address of each IP version, with a
    /// number that changes when those tasks do.
    pub(crate) entries: Arc<BTreeMap<Entry, u64>>,
    /// This node's addresses on the ingress network, at most one of each IP version.
    pub(crate) own: Vec<IpAddr>,
    /// Grows whenever something was put right that should have been so already.
    pub(crate) repairs: u64,
}

/// The entries of `wanted`.
pub(super) fn entries(wanted: &Wanted) -> BTreeMap<Entry, u64> {
    let published = wanted
        .mesh
        .as_ref()
        .and_then(|mesh| mesh.published.as_ref());
    let (Some(published), Some(table)) = (published, &wanted.ipvs) else {
        return BTreeMap::new();
    };
    // At one address of each version: the tables of the others are made in the same way.
    let mut first: BTreeMap<(u32, u16, bool), (IpAddr, u64)> = BTreeMap::new();
    for (key, balanced) in table {
        let ServiceKey::Address {
            protocol: swarm_ipvs::Protocol::TCP,
            address,
            port,
        } = *key
        else {
            continue;
        };
        let protocol = Protocol::Tcp;
        let at = Published {
            address,
            port,
            protocol,
        };
        let (Some(published), Some(tasks)) = (published.get(&at), tasks(balanced)) else {
            continue;
        };
        let place = first.entry((published.service, port, address.is_ipv6()));
        let place = place.or_insert((address, tasks));
        *place = (*place).min((address, tasks));
    }
    let entries = first.into_iter();
    entries
        .map(|((service, port, _), (address, tasks))| {
            let at = SocketAddr::new(address, port);
            (Entry { service, at }, tasks)
        })
        .collect()
}

/// A number for the tasks that take connections; nothing when none does.
fn tasks(balanced: &Balanced) -> Option<u64> {
    let mut ready = balanced.destinations.iter();
    let mut hasher = DefaultHasher::new();
    let mut any = false;
    for (task, _) in ready.by_ref().filter(|(_, config)| config.weight > 0) {
        (task.address, task.port).hash(&mut hasher);
        any = true;
    }
    any.then(|| hasher.finish())
}

/// This node's addresses on the ingress network.
pub(super) fn own_addresses(desired: &Desired) -> Vec<IpAddr> {
    let own = desired.local.ingress;
    let twin = desired
        .network
        .subnet6
        .and_then(|subnet| address6(subnet, own));
    [Some(own), twin].into_iter().flatten().collect()
}
