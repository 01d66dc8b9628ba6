//! One service against its tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use swarm_model::{
    ContainerSpec, DesiredState, Meta, Service, Task, TaskId, TaskState, TaskStatus, Timestamp,
    UpdateOrder,
};

use super::restart::{Restart, restart};
use super::retire::{Goal, advance};
use super::slot::{Fit, Slot, fit, is_on_drained_node, is_running};
use super::{Batch, scale};
use crate::store::State;

/// How long beyond its grace period a stopping task keeps the next one of its slot waiting
/// (swarmkit `orchestrator/restart`: one minute). An agent that cannot stop a container for that
/// long will hardly ever.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// What a slot of an update or a drain waits for, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Runs the current template, and may stay where it does.
    Done,
    /// On the way to run the current template; another task may serve until then.
    UnderWay { another_serves: bool },
    /// Has a task of another template, running or not.
    Outdated { running: bool },
    /// Has a task of the current template on a node that is being drained, running or not.
    Misplaced { running: bool },
}

/// A pass over one service.
pub(super) struct Reconcile<'a> {
    state: &'a State,
    service: &'a Service,
    drained: &'a BTreeSet<TaskId>,
}

/// What is to be done with one slot: what becomes of each of its tasks, and which comes new.
#[derive(Debug, Default)]
struct Plan<'a> {
    goals: Vec<(&'a Arc<Task>, Goal)>,
    /// Not to be started before this.
    create: Option<Timestamp>,
}

impl<'a> Reconcile<'a> {
    pub(super) fn new(
        state: &'a State,
        service: &'a Service,
        drained: &'a BTreeSet<TaskId>,
    ) -> Self {
        Self {
            state,
            service,
            drained,
        }
    }

    pub(super) fn run(&self, batch: &mut Batch, rng: &mut impl rand::Rng) {
        let slots = Slot::of_service(self.state, self.service);
        let leaves = |task: &Task| is_on_drained_node(self.state, task);
        let kept = scale::choose(&slots, self.service.spec.mode.replicas(), leaves);
        let update = self.slots_to_replace(&slots, &kept, batch);
        let empty = Slot::default();
        for number in kept.iter().copied() {
            if batch.is_full() {
                return;
            }
            let slot = slots.get(&number).unwrap_or(&empty);
            let plan = self.plan(slot, update.contains(&number), batch);
            self.carry_out(number, plan, batch, rng);
        }
        for (number, slot) in &slots {
            if !kept.contains(number) {
                for task in slot.tasks() {
                    super::advance_into(self.state, task, Goal::Remove, self.drained, batch);
                }
            }
        }
        // Tasks that are being removed belong to no slot, but their node may be lost meanwhile.
        for task in self.state.tasks_of_service(&self.service.id) {
            if task.desired_state == DesiredState::Remove {
                super::advance_into(self.state, task, Goal::Remove, self.drained, batch);
            }
        }
    }

    fn carry_out(&self, number: u64, plan: Plan<'_>, batch: &mut Batch, rng: &mut impl rand::Rng) {
        // Together in one batch, whole: a task replaced without its replacement would lose the
        // restart's delay, the other way round would be two tasks in a slot.
        for (task, goal) in plan.goals {
            if let Some(next) = advance(self.state, task, goal, self.drained, batch) {
                batch.put_task(next);
            }
        }
        if let Some(not_before) = plan.create {
            let task = self.new_task(number, not_before, batch.now(), rng);
            batch.put_task(task);
        }
    }

    /// What to do with one slot that is kept.
    fn plan<'t>(&self, slot: &Slot<'t>, update: bool, batch: &mut Batch) -> Plan<'t> {
        let mut plan = Plan::default();
        let keep = slot.going.iter().chain(&slot.over);
        plan.goals.extend(keep.map(|task| (*task, Goal::Keep)));
        let (current, outdated): (Vec<&Arc<Task>>, Vec<&Arc<Task>>) = slot
            .live
            .iter()
            .copied()
            .partition(|task| self.fit(task) == Fit::Current);
        if !slot.is_taken() {
            plan.create = self.vacant(slot, batch);
        } else if let Some(best) = best(&current) {
            // The slot has what it should; the rest goes, but what serves now stays until then.
            let serves = if is_running(best) {
                None
            } else {
                outdated.iter().rev().find(|task| is_running(task))
            };
            for task in &slot.live {
                let stays = task.id == best.id || serves.is_some_and(|old| old.id == task.id);
                let goal = if stays { Goal::Keep } else { Goal::Shutdown };
                plan.goals.push((*task, goal));
            }
            let replaced = slot.fallen.iter().map(|task| (*task, Goal::Shutdown));
            plan.goals.extend(replaced);
        } else if let Some(fallen) = slot.fallen.last() {
            self.fallen(slot, fallen, &outdated, update, batch, &mut plan);
        } else {
            self.outdated(&outdated, update, batch.now(), &mut plan);
        }
        plan
    }

    /// A slot without a wanted task gets one as soon as the last one has ended.
    fn vacant(&self, slot: &Slot<'_>, batch: &mut Batch) -> Option<Timestamp> {
        let deadline = |task: &&Arc<Task>| stop_deadline(task, batch.now());
        let wait_until = slot.going.iter().map(deadline).max();
        match wait_until {
            Some(deadline) if batch.now() < deadline => {
                batch.wake_at(deadline);
                None
            }
            _ => Some(batch.now()),
        }
    }

    /// A slot whose newest task fell, and that has none of the current template.
    fn fallen<'t>(
        &self,
        slot: &Slot<'t>,
        fallen: &'t Arc<Task>,
        outdated: &[&'t Arc<Task>],
        update: bool,
        batch: &mut Batch,
        plan: &mut Plan<'t>,
    ) {
        plan.goals
            .extend(outdated.iter().map(|task| (*task, Goal::Keep)));
        let now = batch.now();
        let follows = match restart(slot, fallen, now) {
            Restart::At(at) => Some(at),
            Restart::Never if update => Some(now),
            Restart::Never => None,
        };
        let last_goal = match follows {
            Some(_) => Goal::Shutdown,
            None => Goal::Keep,
        };
        for task in &slot.fallen {
            let goal = if task.id == fallen.id {
                last_goal
            } else {
                Goal::Shutdown
            };
            plan.goals.push((*task, goal));
        }
        plan.create = follows;
    }

    /// A slot that only has tasks of another template or on drained nodes. To leave a node the new
    /// task always goes first, whatever the order of updates: both are the same, and nobody asked
    /// for less of it.
    fn outdated<'t>(
        &self,
        outdated: &[&'t Arc<Task>],
        update: bool,
        now: Timestamp,
        plan: &mut Plan<'t>,
    ) {
        let best = best(outdated);
        let start_first = best.is_some_and(|task| {
            let order = self.service.spec.update.order;
            let moves = self.fit(task) == Fit::Misplaced;
            is_running(task) && (moves || order == UpdateOrder::StartFirst)
        });
        for task in outdated {
            let is_best = best.is_some_and(|best| best.id == task.id);
            let stays = is_best && (!update || start_first);
            let goal = if stays { Goal::Keep } else { Goal::Shutdown };
            plan.goals.push((*task, goal));
        }
        if update && start_first {
            plan.create = Some(now);
        }
    }

    /// The slots whose tasks the rolling update, or the drain of a node, replaces now.
    ///
    /// A slot that has no task to serve holds up an update, and no drain: what moves serves until
    /// its replacement does.
    fn slots_to_replace(
        &self,
        slots: &BTreeMap<u64, Slot<'_>>,
        kept: &BTreeSet<u64>,
        batch: &mut Batch,
    ) -> BTreeSet<u64> {
        let (mut under_way, mut replaced, mut settling) = (0, 0, 0);
        let (mut outdated, mut misplaced) = (Vec::new(), Vec::new());
        let mut settles_at: Option<Timestamp> = None;
        for number in kept {
            let progress = slots.get(number).map_or(
                Progress::UnderWay {
                    another_serves: false,
                },
                |slot| self.progress(slot),
            );
            let settles = slots
                .get(number)
                .and_then(|slot| self.settles_at(slot, batch.now()));
            match progress {
                Progress::UnderWay { another_serves } => {
                    under_way += 1;
                    replaced += usize::from(another_serves);
                }
                Progress::Done if settles.is_some_and(|at| at > batch.now()) => {
                    settling += 1;
                    settles_at = settles_at.into_iter().chain(settles).min();
                }
                Progress::Done => {}
                // Those that do not run first: nothing is lost with them.
                Progress::Outdated { running } => outdated.push((running, *number)),
                Progress::Misplaced { running } => misplaced.push((running, *number)),
            }
        }
        if outdated.is_empty() && misplaced.is_empty() {
            return BTreeSet::new();
        }
        if let Some(at) = settles_at {
            batch.wake_at(at);
        }
        let parallelism = match self.service.spec.update.parallelism {
            0 => usize::MAX,
            limit => usize::try_from(limit).unwrap_or(usize::MAX),
        };
        let first = |mut waiting: Vec<(bool, u64)>, count: usize| {
            waiting.sort_unstable();
            let first = waiting.into_iter().take(count);
            first.map(|(_, number)| number).collect::<BTreeSet<_>>()
        };
        let mut taken = first(outdated, parallelism.saturating_sub(under_way + settling));
        let room = parallelism.saturating_sub(replaced + settling + taken.len());
        taken.extend(first(misplaced, room));
        taken
    }

    fn progress(&self, slot: &Slot<'_>) -> Progress {
        let fits = |task: &&&Arc<Task>| self.fit(task) == Fit::Current;
        if slot.live.iter().filter(fits).any(|task| is_running(task)) {
            return Progress::Done;
        }
        // Where an ended task ran means nothing any more.
        let current = |task: &&&Arc<Task>| task.template_version == self.service.template_version;
        let done = |task: &&Arc<Task>| {
            task.status.state == TaskState::Complete
                && restart(slot, task, task.status.since) == Restart::Never
        };
        if slot.live.is_empty() && slot.fallen.iter().filter(current).any(done) {
            return Progress::Done;
        }
        let comes = slot.live.iter().any(|task| fits(&task))
            || slot.fallen.iter().any(|task| current(&task));
        if comes || !slot.is_taken() {
            return Progress::UnderWay {
                another_serves: slot.running().is_some(),
            };
        }
        let running = slot.running().is_some();
        match best(&slot.live) {
            Some(task) if slot.fallen.is_empty() && self.fit(task) == Fit::Misplaced => {
                Progress::Misplaced { running }
            }
            _ => Progress::Outdated { running },
        }
    }

    /// When the update's delay is over for a slot that runs the current template.
    fn settles_at(&self, slot: &Slot<'_>, now: Timestamp) -> Option<Timestamp> {
        let delay = self.service.spec.update.delay;
        slot.live
            .iter()
            .filter(|task| self.fit(task) == Fit::Current && is_running(task))
            .map(|task| task.status.since.due(delay, now))
            .max()
    }

    fn fit(&self, task: &Task) -> Fit {
        fit(self.state, self.service, task)
    }

    fn new_task(
        &self,
        slot: u64,
        not_before: Timestamp,
        now: Timestamp,
        rng: &mut impl rand::Rng,
    ) -> Task {
        let delay = not_before.since(now);
        let message = if delay.is_zero() {
            "created".to_owned()
        } else {
            format!("waiting {:.1} s before the restart", delay.as_secs_f64())
        };
        Task {
            id: TaskId::random(rng),
            meta: Meta {
                version: 0,
                created_at: now,
                updated_at: now,
            },
            service_id: self.service.id.clone(),
            service_name: self.service.spec.name.clone(),
            slot,
            node_id: None,
            spec: self.service.spec.task.clone(),
            template_version: self.service.template_version,
            desired_state: DesiredState::Running,
            desired_since: now,
            not_before,
            status: TaskStatus {
                state: TaskState::New,
                since: now,
                message,
                ..TaskStatus::default()
            },
            ingress_address: None,
            attachments: Vec::new(),
        }
    }
}

/// The task of `tasks` to keep: the newest that runs, else the newest.
fn best<'t>(tasks: &[&'t Arc<Task>]) -> Option<&'t Arc<Task>> {
    let running = tasks.iter().rev().find(|task| is_running(task));
    running.or(tasks.last()).copied()
}

fn stop_deadline(task: &Task, now: Timestamp) -> Timestamp {
    let grace = task
        .spec
        .container
        .stop_grace_period
        .unwrap_or(ContainerSpec::DEFAULT_STOP_GRACE_PERIOD);
    let wait = super::retire::DRAIN_DEADLINE + grace + STOP_DEADLINE;
    task.desired_since.due(wait, now)
}
