//! What only the leader does: the passes over the store, and the dispatcher.
//!
//! One loop runs rounds of `orchestrate`, `allocate`, `schedule`, `reap` and `rotate`, each round in one update,
//! until none of them wants a change; then it waits for the store to change, for a task to be
//! drained, or for the time that a pass asked for. A new leader begins from the store alone.
//!
//! Deliberately absent: decisions (they are in the passes), elections (`raft`).

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::time::Duration;

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng as _;
use swarm_model::{Node, NodeId, NodeState, TaskId, Timestamp};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::ca::rotation;
use crate::dispatch::Dispatcher;
use crate::orchestrate::{self, Batch};
use crate::store::{Change, Leadership, State, Store, UpdateError};
use crate::{allocate, clock, schedule};

/// Changes that one pass of a round makes at most: what an update may hold, in tasks of usual size; where they
/// are larger it makes fewer. A pass looks at everything however little it changes, so that many small steps to a large
/// service would cost more than the service (swarmkit's transactions have 200).
pub(crate) const CHANGES_MAX: usize = 2000;

/// Rounds until the loop looks up. Work that is left is done after the store's change
/// that the last one made.
const ROUNDS_MAX: usize = 64;

/// How long changes of the store are gathered before the passes run.
const GATHER_DELAY: Duration = Duration::from_millis(5);

/// Time until an update that could not be made is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// Longest wait for a time that a pass asked for: this host's clock may be set meanwhile.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Leads whenever the store says so, until `stop`.
pub(crate) async fn run(
    store: Store,
    dispatcher: Dispatcher,
    self_id: NodeId,
    stop: CancellationToken,
) {
    let mut leadership = store.leadership();
    loop {
        let current = *leadership.borrow_and_update();
        tokio::select! {
            never = keep_leading(&store, &dispatcher, &self_id), if current.leader => match never {},
            () = another(&mut leadership, current) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn keep_leading(store: &Store, dispatcher: &Dispatcher, self_id: &NodeId) -> Infallible {
    loop {
        lead(store, dispatcher, self_id).await;
        // Usually the news of another leader come next, and this is dropped.
        sleep(RETRY_DELAY).await;
    }
}

/// Waits until leadership is not what it was.
async fn another(leadership: &mut watch::Receiver<Leadership>, was: Leadership) {
    let changed = |now: &Leadership| now.leader != was.leader || now.term != was.term;
    if leadership.wait_for(changed).await.is_err() {
        // The store is gone, and nothing will change any more.
        std::future::pending::<()>().await;
    }
}

/// Leads until it is dropped, or until an update finds that another manager does.
async fn lead(store: &Store, dispatcher: &Dispatcher, self_id: &NodeId) {
    tracing::info!("this manager leads the swarm");
    loop {
        let update = store.update(|state| {
            let changes = take_over(state, self_id, clock::now());
            Ok::<_, Infallible>((changes, ()))
        });
        match update.await {
            Ok(()) => break,
            Err(UpdateError::NotLeader { .. }) => return,
            Err(error) => tracing::warn!(%error, "could not take the lead over"),
        }
        sleep(RETRY_DELAY).await;
    }
    tokio::select! {
        () = dispatcher.lead() => {}
        () = plan(store, dispatcher.drained()) => {}
    }
}

/// What a new leader changes first: it has heard no node yet. Nodes that were down stay so; the
/// others have `down_after` to come back.
pub(crate) fn take_over(state: &State, self_id: &NodeId, now: Timestamp) -> Vec<Change> {
    let mut changes = Vec::new();
    for node in state.nodes() {
        let mut next = Node::clone(node);
        if matches!(next.status.state, NodeState::Ready | NodeState::Suspect) {
            next.status.state = NodeState::Unknown;
            next.status.since = now;
            next.status.message = "not heard by the new leader yet".to_owned();
        }
        if let Some(manager) = &mut next.manager {
            manager.leader = node.id == *self_id;
        }
        if next != **node {
            next.meta.updated_at = now;
            changes.push(next.into());
        }
    }
    changes
}

/// The passes, in the order in which a new service needs them.
const PASSES: [Pass; 5] = [
    Pass::Orchestrate,
    Pass::Allocate,
    Pass::Schedule,
    Pass::Reap,
    Pass::Rotate,
];

/// One of the passes.
#[derive(Clone, Copy, Debug)]
enum Pass {
    /// [`orchestrate::pass`]
    Orchestrate,
    /// [`allocate::pass`]
    Allocate,
    /// [`schedule::pass`]
    Schedule,
    /// [`orchestrate::reap::pass`]
    Reap,
    /// [`rotation::pass`]
    Rotate,
}

/// What one round of the passes wants.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// To be made together; one for an object.
    pub(crate) changes: Vec<Change>,
    /// The earliest time that a pass asked for.
    pub(crate) wake_at: Option<Timestamp>,
}

impl Round {
    /// Adds what one pass wants: of an object what is wanted last.
    fn add(&mut self, changes: Vec<Change>) {
        if self.changes.is_empty() {
            self.changes = changes;
            return;
        }
        let places = self.changes.iter().map(Change::key).zip(0..);
        let places: HashMap<_, usize> = places.collect();
        for change in changes {
            match places.get(&change.key()) {
                Some(place) => self.changes[*place] = change,
                None => self.changes.push(change),
            }
        }
    }
}

/// What the passes keep between runs. All of it can be made anew from the store.
#[derive(Debug)]
pub(crate) struct Planner {
    cursor: allocate::Cursor,
    rng: ChaCha12Rng,
}

impl Planner {
    /// A planner that draws ids from `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            cursor: allocate::Cursor::default(),
            rng: ChaCha12Rng::seed_from_u64(seed),
        }
    }

    /// Runs every pass once, each over what those before it make of `state`, so that a new task is
    /// written down once, with its address and its node. `drained` is what the dispatcher knows to be
    /// drained.
    ///
    /// Each pass makes `changes_max` changes at most, or a few more; all of them are wanted together.
    pub(crate) fn round(
        &mut self,
        state: &State,
        drained: &BTreeSet<TaskId>,
        now: Timestamp,
        changes_max: usize,
    ) -> Round {
        let mut round = Round::default();
        // Copied only where there is something to put into it: most rounds find nothing to do.
        let mut changed: Option<State> = None;
        for pass in PASSES {
            let mut batch = Batch::new(now, changes_max);
            let current = changed.as_ref().unwrap_or(state);
            self.run(pass, current, drained, &mut batch);
            let (changes, asked) = batch.into_parts();
            round.wake_at = round.wake_at.into_iter().chain(asked).min();
            if !changes.is_empty() {
                let current = changed.get_or_insert_with(|| state.clone());
                current.apply(state.index() + 1, changes.clone());
                round.add(changes);
            }
        }
        round
    }

    fn run(&mut self, pass: Pass, state: &State, drained: &BTreeSet<TaskId>, batch: &mut Batch) {
        match pass {
            Pass::Orchestrate => orchestrate::pass(state, drained, batch, &mut self.rng),
            Pass::Allocate => allocate::pass(state, &mut self.cursor, batch, &mut self.rng),
            Pass::Schedule => schedule::pass(state, batch),
            Pass::Reap => orchestrate::reap::pass(state, batch),
            Pass::Rotate => rotation::pass(state, batch),
        }
    }
}

/// Runs the passes whenever there may be something to do.
async fn plan(store: &Store, mut drained: watch::Receiver<BTreeSet<TaskId>>) {
    let mut planner = Planner::new(rand::random());
    let mut changed = store.watch();
    loop {
        changed.borrow_and_update();
        let now_drained = drained.borrow_and_update().clone();
        let wait = match settle(store, &mut planner, &now_drained).await {
            Ok(wake_at) => wake_at.map_or(WAIT_MAX, |at| at.since(clock::now()).min(WAIT_MAX)),
            Err(UpdateError::NotLeader { .. }) => return,
            Err(error) => {
                tracing::warn!(%error, "could not carry a plan out");
                RETRY_DELAY
            }
        };
        tokio::select! {
            result = changed.changed() => if result.is_err() { return },
            result = drained.changed() => if result.is_err() { return },
            () = sleep(wait) => {}
        }
        sleep(GATHER_DELAY).await;
    }
}

/// Runs rounds until one wants no change; gives the earliest time a pass asked for.
async fn settle(
    store: &Store,
    planner: &mut Planner,
    drained: &BTreeSet<TaskId>,
) -> Result<Option<Timestamp>, UpdateError<Infallible>> {
    let mut changes_max = CHANGES_MAX;
    for _ in 0..ROUNDS_MAX {
        let update = store.update(|state| {
            let Round { changes, wake_at } =
                planner.round(state, drained, clock::now(), changes_max);
            let is_quiet = changes.is_empty();
            Ok::<_, Infallible>((changes, (is_quiet, wake_at)))
        });
        match update.await {
            Ok((true, wake_at)) => return Ok(wake_at),
            Ok((false, _)) => {}
            // In smaller parts, then, by further rounds.
            Err(UpdateError::TooLarge { .. }) if changes_max > 1 => changes_max /= 2,
            Err(error) => return Err(error),
        }
    }
    Ok(Some(clock::now()))
}
