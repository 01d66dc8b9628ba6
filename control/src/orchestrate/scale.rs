//! Which slots a service keeps.

use std::collections::{BTreeMap, BTreeSet};

use swarm_model::{NodeId, Task};

use super::slot::Slot;

/// The slots to keep or to fill, out of `slots` and the numbers from 1, so that `replicas` are
/// taken.
///
/// Too few: slots whose task is being replaced come first, then the lowest free numbers. Too many:
/// slots without a running task go first, then those whose task leaves its node anyway (`leaves`),
/// then those on the nodes with the most, then the highest numbers (swarmkit `replicated/slot.go`).
pub(super) fn choose(
    slots: &BTreeMap<u64, Slot<'_>>,
    replicas: u64,
    leaves: impl Fn(&Task) -> bool,
) -> BTreeSet<u64> {
    let replicas = usize::try_from(replicas).unwrap_or(usize::MAX);
    let mut kept: BTreeSet<u64> = taken(slots).collect();
    if kept.len() > replicas {
        return survivors(slots, replicas, leaves);
    }
    let vacant = slots.iter().filter(|(_, slot)| !slot.is_taken());
    kept.extend(
        vacant
            .map(|(number, _)| *number)
            .take(replicas - kept.len()),
    );
    let missing = replicas - kept.len();
    let free: Vec<u64> = (1..)
        .filter(|number| !kept.contains(number))
        .take(missing)
        .collect();
    kept.extend(free);
    kept
}

fn taken<'a>(slots: &'a BTreeMap<u64, Slot<'_>>) -> impl Iterator<Item = u64> + use<'a> {
    slots
        .iter()
        .filter(|(_, slot)| slot.is_taken())
        .map(|(number, _)| *number)
}

fn survivors(
    slots: &BTreeMap<u64, Slot<'_>>,
    replicas: usize,
    leaves: impl Fn(&Task) -> bool,
) -> BTreeSet<u64> {
    let mut on_node = BTreeMap::<&NodeId, usize>::new();
    // Slots that do not run rank behind all others, before them those that leave; the nth on its
    // node ranks n.
    let mut ranked: Vec<(usize, u64)> = taken(slots)
        .map(|number| {
            let running = slots[&number].running();
            if running.is_some_and(|task| leaves(task)) {
                return (usize::MAX - 1, number);
            }
            let node = running.and_then(|task| task.node_id.as_ref());
            let rank = node.map_or(usize::MAX, |node| {
                let count = on_node.entry(node).or_default();
                *count += 1;
                *count
            });
            (rank, number)
        })
        .collect();
    ranked.sort_unstable();
    ranked.truncate(replicas);
    ranked.into_iter().map(|(_, number)| number).collect()
}
