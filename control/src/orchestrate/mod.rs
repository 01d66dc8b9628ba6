//! Turns services into tasks, and tasks that should not be into tasks that are not.
//!
//! [`pass`] compares every service with its tasks, slot by slot: it fills slots, empties them, puts
//! new tasks where old ones ended, and rolls out a changed template. [`reap::pass`] forgets what is
//! over. Both are pure and level-triggered: what to do follows from the store alone, so that a new
//! leader goes on where the last one stopped.
//!
//! Invariants:
//! * A slot has at most one task that is wanted and has not ended; two while a start-first update,
//!   or the drain of a node, waits for the new one to run.
//! * A running task with an address is never told to stop while it still gets new connections: it
//!   drains first, until every node has acknowledged it or [`retire::DRAIN_DEADLINE`] is over.
//! * A rolling update never takes a slot while as many as its parallelism are not running the new
//!   template yet; so an update that fails stops by itself and the rest goes on serving.
//! * A running task leaves a node that is being drained only after another one of its slot runs
//!   elsewhere, as many at a time as the service's update takes. Where there is no place, it stays.
//! * `desired_state` above `running` means that the swarm stopped or replaced the task. A task that
//!   ended by itself and is not restarted keeps `running`, and its slot.
//!
//! Deliberately absent: nodes for tasks (`schedule`), addresses and ports (`allocate`).

mod batch;
pub(crate) mod reap;
mod restart;
mod retire;
mod scale;
#[cfg(test)]
pub(crate) mod scenario;
mod service;
mod slot;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use swarm_model::{Task, TaskId};

use crate::store::State;

pub(crate) use batch::Batch;
pub(crate) use slot::is_lost;

use retire::{Goal, advance};

/// Brings every service's tasks one step nearer to what is asked for.
///
/// `drained` are the draining tasks that no node sends new connections to any more, as the
/// dispatcher knows from acknowledgements.
pub(crate) fn pass(
    state: &State,
    drained: &BTreeSet<TaskId>,
    batch: &mut Batch,
    rng: &mut impl rand::Rng,
) {
    for service in state.services() {
        if batch.is_full() {
            return;
        }
        if service.pending_delete {
            remove_service(state, service, drained, batch);
        } else {
            service::Reconcile::new(state, service, drained).run(batch, rng);
        }
    }
    for task in state.tasks() {
        if state.service(&task.service_id).is_none() {
            advance_into(state, task, Goal::Remove, drained, batch);
        }
    }
}

fn remove_service(
    state: &State,
    service: &swarm_model::Service,
    drained: &BTreeSet<TaskId>,
    batch: &mut Batch,
) {
    let mut tasks = state.tasks_of_service(&service.id).peekable();
    if tasks.peek().is_none() {
        batch.remove_service(service.id.clone());
        return;
    }
    for task in tasks {
        advance_into(state, task, Goal::Remove, drained, batch);
    }
}

fn advance_into(
    state: &State,
    task: &Task,
    goal: Goal,
    drained: &BTreeSet<TaskId>,
    batch: &mut Batch,
) {
    if batch.is_full() {
        return;
    }
    if let Some(next) = advance(state, task, goal, drained, batch) {
        batch.put_task(next);
    }
}
