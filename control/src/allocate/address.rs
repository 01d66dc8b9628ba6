//! Addresses of one subnet, given serially.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use swarm_model::{Task, TaskState};

use crate::store::State;

/// The addresses of a subnet, and which are owned.
#[derive(Debug)]
pub(super) struct Addresses {
    subnet: Ipv4Net,
    first: u32,
    last: u32,
    cursor: u32,
    used: BTreeSet<u32>,
}

impl Addresses {
    /// The addresses of `subnet`, those owned in `state` taken. Network and broadcast address are
    /// never given, nor the first host address, which swarm keeps for a gateway. Goes on after
    /// `cursor`, or after the address given last as far as the store tells.
    pub(super) fn of(state: &State, subnet: Ipv4Net, cursor: Option<Ipv4Addr>) -> Self {
        let cursor = cursor.or_else(|| last_given(state));
        let nodes = state.nodes().filter_map(|node| node.ingress_address);
        let tasks = state
            .tasks()
            .filter(|task| owns_address(task))
            .filter_map(|task| task.ingress_address);
        let first = u32::from(subnet.network()) + 2;
        let last = u32::from(subnet.broadcast()) - 1;
        Self {
            subnet,
            first,
            last,
            cursor: cursor.map_or(first - 1, u32::from),
            used: nodes
                .chain(tasks)
                .map(u32::from)
                .filter(|address| (first..=last).contains(address))
                .collect(),
        }
    }

    /// The next free address, now owned; none when all are.
    pub(super) fn next(&mut self) -> Option<Ipv4Addr> {
        let size = (self.last - self.first + 1) as usize;
        if self.used.len() >= size {
            return None;
        }
        loop {
            self.cursor = if (self.first..self.last).contains(&self.cursor) {
                self.cursor + 1
            } else {
                self.first
            };
            if self.used.insert(self.cursor) {
                return Some(Ipv4Addr::from(self.cursor));
            }
        }
    }

    /// Where to go on.
    pub(super) fn cursor(&self) -> Option<Ipv4Addr> {
        Some(Ipv4Addr::from(self.cursor))
    }

    /// What to tell whom nothing is left for.
    pub(super) fn exhausted(&self) -> String {
        format!(
            "all {} addresses of the ingress network {} are in use: scale services that publish \
             ports down, or remove some",
            self.used.len(),
            self.subnet
        )
    }
}

/// Whether the task's address is not to be given to another. A task on a lost node may still run
/// there, so it keeps its address until it is forgotten.
fn owns_address(task: &Task) -> bool {
    !task.status.state.is_terminal() || task.status.state == TaskState::Orphaned
}

/// The address that was given last, as far as the store tells: that of the newest object.
fn last_given(state: &State) -> Option<Ipv4Addr> {
    let nodes = state
        .nodes()
        .filter_map(|node| Some((node.meta.created_at, node.ingress_address?)));
    let tasks = state
        .tasks()
        .filter_map(|task| Some((task.meta.created_at, task.ingress_address?)));
    nodes.chain(tasks).max().map(|(_, address)| address)
}
