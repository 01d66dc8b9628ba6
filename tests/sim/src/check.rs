//! What must hold at every step.

use std::collections::{BTreeMap, BTreeSet};

use swarm_control::simulation::{Committed, Manager, View};
use swarm_model::Task;

/// A violated promise, in words.
pub(crate) type Violation = String;

/// States are compared whole at every index that this divides, and whenever a manager was started:
/// often enough, and not the most of the work.
const COMPARED_EVERY: u64 = 64;

/// What is known of the whole swarm's history, put together from what managers showed.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// What was committed, by index.
    committed: BTreeMap<u64, Committed>,
    /// Who was elected, by term.
    elected: BTreeMap<u64, usize>,
    /// Digests of states, by index.
    digests: BTreeMap<u64, u64>,
    /// The newest state that any manager had.
    newest: View,
}

impl History {
    /// The newest state that any manager had.
    pub(crate) fn newest(&self) -> &View {
        &self.newest
    }

    /// How many managers were elected.
    pub(crate) fn elections(&self) -> usize {
        self.elected.len()
    }

    /// Looks at manager number `host` after a step. `compared` is how far its log was compared
    /// already, and `is_fresh` whether it was just started.
    pub(crate) fn observe(
        &mut self,
        host: usize,
        manager: &mut Manager,
        compared: u64,
        is_fresh: bool,
    ) -> Result<u64, Violation> {
        let (term, is_elected) = manager.elected();
        if is_elected {
            let first = *self.elected.entry(term).or_insert(host);
            if first != host {
                return Err(format!("managers {first} and {host} both lead term {term}"));
            }
        }
        let index = manager.index();
        if index == compared && !is_fresh {
            return Ok(index);
        }
        for entry in manager.applied_after(compared) {
            let known = *self.committed.entry(entry.index).or_insert(entry);
            if known != entry {
                return Err(format!(
                    "manager {host} committed {entry:?}, where {known:?} was committed before"
                ));
            }
        }
        if is_fresh || index.is_multiple_of(COMPARED_EVERY) {
            self.compare(host, &manager.view())?;
        }
        if index > self.newest.index() {
            let view = manager.view();
            moves_forward(&self.newest, &view)?;
            nothing_is_given_twice(&view)?;
            self.newest = view;
        }
        Ok(index)
    }

    /// Compares a state with what others had at its index.
    pub(crate) fn compare(&mut self, host: usize, view: &View) -> Result<(), Violation> {
        let digest = view.digest();
        let known_before = self.digests.insert(view.index(), digest);
        if known_before.is_some_and(|known| known != digest) {
            let index = view.index();
            return Err(format!(
                "manager {host} has another state at {index} than was there before"
            ));
        }
        if known_before.is_none() && !view.survives_a_snapshot() {
            return Err(format!(
                "the state at {} is another one once it was a snapshot",
                view.index()
            ));
        }
        Ok(())
    }
}

/// No task goes back, moves, or comes back.
fn moves_forward(old: &View, new: &View) -> Result<(), Violation> {
    for task in new.tasks() {
        if task.meta.version <= old.index() {
            continue;
        }
        let Some(before) = old.task(&task.id) else {
            continue;
        };
        let id = &task.id;
        if task.desired_state < before.desired_state {
            return Err(format!(
                "what is wanted of task {id} went back from {} to {}",
                before.desired_state.as_str(),
                task.desired_state.as_str()
            ));
        }
        let (from, to) = (before.status.state, task.status.state);
        // Not `may_become`: several steps may lie between the two.
        if to < from || (from.is_terminal() && to != from) {
            let (from, to) = (from.as_str(), to.as_str());
            return Err(format!("task {id} went from {from} to {to}"));
        }
        if before.node_id.is_some() && task.node_id != before.node_id {
            return Err(format!("task {id} was moved from one node to another"));
        }
        if before.ingress_address.is_some() && task.ingress_address != before.ingress_address {
            return Err(format!("the address of task {id} was changed"));
        }
    }
    Ok(())
}

/// Whether a task still has what was given to it.
fn holds(task: &Task) -> bool {
    !task.status.state.is_terminal() || task.status.state == swarm_model::TaskState::Orphaned
}

/// No address, port, index or VXLAN id has two owners.
pub(crate) fn nothing_is_given_twice(view: &View) -> Result<(), Violation> {
    let twice = |what: &str, which: &dyn std::fmt::Debug| Err(format!("{what} {which:?} twice"));
    let mut addresses = BTreeSet::new();
    let of_nodes = view.nodes().filter_map(|node| node.ingress_address);
    let of_tasks = view.tasks().filter(|task| holds(task));
    let of_tasks = of_tasks.filter_map(|task| task.ingress_address);
    for address in of_nodes.chain(of_tasks) {
        if !addresses.insert(address) {
            return twice("ingress address", &address);
        }
    }
    let mut on_networks = BTreeSet::new();
    let vips = view.services().flat_map(|service| &service.endpoint.vips);
    let vips = vips.map(|vip| (&vip.network, vip.address));
    let places = view.tasks().filter(|task| holds(task));
    let places = places.flat_map(|task| &task.attachments);
    let places = places.map(|place| (&place.network, place.address));
    for place in vips.chain(places) {
        if !on_networks.insert(place) {
            return twice("address on a network", &place);
        }
    }
    let (mut ports, mut indexes) = (BTreeSet::new(), BTreeSet::new());
    for service in view.services() {
        let index = service.endpoint.index;
        if index != 0 && !indexes.insert(index) {
            return twice("service index", &index);
        }
        for port in &service.endpoint.ports {
            if !ports.insert((port.protocol, port.published)) {
                return twice("published port", port);
            }
        }
    }
    let (mut ids, mut subnets) = (BTreeSet::new(), Vec::new());
    for network in view.networks() {
        if !ids.insert(network.vni) {
            return twice("VXLAN id", &network.vni);
        }
        subnets.push(network.subnet);
    }
    subnets.sort();
    // Sorted by address: one that overlaps another overlaps its neighbour.
    for pair in subnets.windows(2) {
        if pair[0].contains(&pair[1].network()) {
            return twice("subnet", &pair);
        }
    }
    let mut names = BTreeSet::new();
    for service in view.services() {
        if !names.insert(&service.spec.name) {
            return twice("service name", &service.spec.name);
        }
    }
    Ok(())
}
