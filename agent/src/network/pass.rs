//! One round: look, plan, act, tell.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_model::TaskId;
use tokio::sync::watch;

use crate::error_text::error_text;

use super::answering::{Answering, entries, own_addresses};
use super::check::{Checked, check};
use super::desired::{Desired, LocalTask};
use super::execute::{execute, writes};
use super::increment::{Increment, Index, plan_increment, slice};
use super::kernel::{Failure, Kernel, KernelError, Scope};
use super::model::{NetworkName, Observed, Place, Tables};
use super::observe::{Interrupt, Look, count, observe, printed};
use super::op::Op;
use super::plan::{Plan, plan, plan_for, teardown};
use super::reconcile::{Applied, NetworkError, Passes};
use super::stats::{NodeStats, node_stats};

/// How long counters are told as they were read, so that who asks all the time reads no more of the
/// kernel than a pass does.
const STATS_LIFETIME: Duration = Duration::from_secs(1);

/// How long tables are not looked at that have not changed: the ingress namespace's neighbours and
/// forwarding entries while the kernel tells of no change in them, the IPVS table while it is printed
/// as it was. It tells of every change; this is for what is not thought of, and for what is not printed.
const TOLD_LIFETIME: Duration = Duration::from_secs(60);

/// What the kernel corresponds to, but for what others have done to it since.
struct Base {
    desired: Desired,
    /// What was seen of it last, without the tables.
    context: Observed,
    /// Of the desired state.
    index: Index,
}

/// What became of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was carried out, with whatever failures.
    Done,
    /// It was ended before anything was done, for something more urgent.
    Interrupted,
}

/// What a pass works on.
pub(super) struct Pass {
    /// The open ends into the kernel.
    pub(super) kernel: Kernel,
    current: Option<(Arc<Desired>, u64)>,
    /// Tasks connected on request, until they are released.
    prepared: BTreeMap<TaskId, LocalTask>,
    /// Tasks released while the desired state lists them.
    released: BTreeSet<TaskId>,
    /// The desired state with both taken into account.
    effective: Option<Desired>,
    /// What increments begin from; nothing after a failure, until a pass that looked had none.
    base: Option<Base>,
    applied: watch::Sender<Applied>,
    /// Which ports are to answer.
    answering: watch::Sender<Answering>,
    /// What was done so far.
    passes: watch::Sender<Passes>,
    /// Whether something else is desired since the last pass that reached it.
    is_new: bool,
    /// When the ingress namespace's neighbours and forwarding entries were last seen to be as they
    /// are desired, if nothing was told of them since.
    tables_seen: Option<Instant>,
    /// When the IPVS table was last seen to be as it is desired, and as what number it was printed.
    ipvs_seen: Option<(Instant, u64)>,
    /// How long the last pass that looked took.
    last_look: Duration,
    /// The counters as they were read last, and when.
    stats: Option<(Instant, Arc<NodeStats>)>,
}

impl Pass {
    /// Nothing desired yet. What becomes of the passes is told by `applied` and `answering`.
    pub(super) fn new(
        kernel: Kernel,
        applied: watch::Sender<Applied>,
        answering: watch::Sender<Answering>,
        passes: watch::Sender<Passes>,
    ) -> Self {
        Self {
            kernel,
            current: None,
            prepared: BTreeMap::new(),
            released: BTreeSet::new(),
            effective: None,
            base: None,
            applied,
            answering,
            passes,
            is_new: true,
            tables_seen: None,
            ipvs_seen: None,
            last_look: Duration::ZERO,
            stats: None,
        }
    }

    /// Takes over a new desired state with its generation.
    pub(super) fn desire(&mut self, desired: Option<(Arc<Desired>, u64)>) {
        self.current = desired;
        if let Some((desired, _)) = &self.current {
            self.released
                .retain(|task| desired.local_tasks.contains_key(task));
        }
        self.update_effective();
    }

    /// Takes what was prepared and released into account.
    fn update_effective(&mut self) {
        self.is_new = true;
        self.effective = self.current.as_ref().map(|(desired, _)| {
            let mut desired = Desired::clone(desired);
            desired
                .local_tasks
                .retain(|task, _| !self.released.contains(task));
            desired.local_tasks.extend(self.prepared.clone());
            desired
        });
    }

    /// Connects a local task; see [`Reconciler::prepare_task`](super::Reconciler::prepare_task).
    pub(super) fn prepare(
        &mut self,
        task: TaskId,
        local: LocalTask,
    ) -> Result<PathBuf, NetworkError> {
        if self.current.is_none() {
            return Err(NetworkError::NotConnected(task));
        }
        self.released.remove(&task);
        let networks = names_of(&local);
        self.prepared.insert(task.clone(), local);
        self.update_effective();
        self.run(&|| false);
        match self.failure_at(&task, &networks) {
            None => Ok(self.kernel.dir.path(&Place::Task(task).to_string())),
            Some(source) => {
                self.prepared.remove(&task);
                self.update_effective();
                Err(NetworkError::Prepare { task, source })
            }
        }
    }

    /// Disconnects a local task; see [`Reconciler::release_task`](super::Reconciler::release_task).
    pub(super) fn release(&mut self, task: TaskId) -> Result<(), NetworkError> {
        self.prepared.remove(&task);
        if let Some((desired, _)) = &self.current
            && desired.local_tasks.contains_key(&task)
        {
            self.released.insert(task.clone());
        }
        self.update_effective();
        self.run(&|| false);
        match self.failure_at(&task, &[]) {
            None => Ok(()),
            Some(source) => Err(NetworkError::Release { task, source }),
        }
    }

    /// What kept a task from being connected or disconnected: a failure of its own, or one that
    /// ended the pass.
    fn failure_at(&self, task: &TaskId, networks: &[NetworkName]) -> Option<Arc<Failure>> {
        let applied = self.applied.borrow();
        applied
            .failures
            .iter()
            .find(|failure| failure.concerns(task, networks))
            .cloned()
    }

    /// Removes everything; see [`Reconciler::teardown`](super::Reconciler::teardown).
    pub(super) fn teardown(&mut self) -> Result<(), NetworkError> {
        self.current = None;
        self.effective = None;
        self.base = None;
        self.tables_seen = None;
        self.ipvs_seen = None;
        self.stats = None;
        self.prepared.clear();
        self.released.clear();
        self.applied.send_replace(Applied::default());
        self.answering.send_replace(Answering::default());
        let (observed, unreadable) =
            observe(&mut self.kernel, Look::AndRepair, Tables::ALL, &|| false)
                .map_err(|source| NetworkError::Observe(Arc::new(Failure::of_pass(source))))?;
        let ops = teardown(&observed);
        let failures = execute(&mut self.kernel, &ops);
        let failed = failures.len() + unreadable.len();
        match failures.into_iter().chain(unreadable).next() {
            None => Ok(()),
            Some(first) => Err(NetworkError::Teardown {
                failed,
                source: Arc::new(first),
            }),
        }
    }

    /// Looks and tells what differs from the plan, and acts not; see
    /// [`Reconciler::check`](super::Reconciler::check).
    pub(super) fn check(&mut self) -> Result<Checked, NetworkError> {
        let Some(desired) = &self.effective else {
            return Err(NetworkError::NothingDesired);
        };
        let (observed, unreadable) = observe(&mut self.kernel, Look::Only, Tables::ALL, &|| false)
            .map_err(|source| NetworkError::Observe(Arc::new(Failure::of_pass(source))))?;
        let Plan { ops, problems } = plan(&observed, desired);
        let mut checked = check(&observed, &ops, &self.applied.borrow().failures);
        let unreadable = unreadable.iter().map(|failure| error_text(failure));
        checked.problems = unreadable
            .chain(problems.iter().map(ToString::to_string))
            .collect();
        Ok(checked)
    }

    /// What the kernel has counted; see [`Reconciler::stats`](super::Reconciler::stats).
    pub(super) fn stats(&mut self) -> Result<Arc<NodeStats>, NetworkError> {
        if let Some((at, stats)) = &self.stats
            && at.elapsed() < STATS_LIFETIME
        {
            return Ok(stats.clone());
        }
        let Some(desired) = &self.effective else {
            return Err(NetworkError::NothingDesired);
        };
        let counted = count(&mut self.kernel).map_err(|source| {
            NetworkError::Observe(Arc::new(Failure {
                action: "read the counters".to_owned(),
                scope: Scope::Pass,
                source,
            }))
        })?;
        let stats = Arc::new(node_stats(desired, &counted));
        self.stats = Some((Instant::now(), stats.clone()));
        Ok(stats)
    }

    /// Something in the ingress namespace has changed, or may have and nobody would have told.
    pub(super) fn tables_may_differ(&mut self) {
        self.tables_seen = None;
    }

    /// How long the last pass that looked took.
    pub(super) fn last_look(&self) -> Duration {
        self.last_look
    }

    /// Brings the kernel to another desired state: by what has changed, where that is enough, else as
    /// [`run`](Self::run) does. Says whether it was enough.
    pub(super) fn run_change(&mut self) -> bool {
        let changed = self.run_increment();
        if !changed {
            self.run(&|| false);
        }
        changed
    }

    /// Nothing of what is desired may be in the kernel when this is false.
    fn run_increment(&mut self) -> bool {
        let (Some(desired), Some((_, generation))) = (&self.effective, &self.current) else {
            return false;
        };
        let Some(base) = &mut self.base else {
            return false;
        };
        let begun = Instant::now();
        let slice = slice(&base.index, &base.desired, desired);
        let increment = slice.and_then(|slice| plan_increment(&base.context, &slice));
        let Some(Increment { ops, answering }) = increment else {
            return false;
        };
        log_ops(&ops);
        let failures = execute(&mut self.kernel, &ops);
        if let Some(failure) = failures.first() {
            // Somebody has been there: everything is looked at, and what fails then is told.
            tracing::info!(
                count = failures.len(),
                first = error_text(failure),
                "looking at all"
            );
            self.base = None;
            return false;
        }
        base.index.follow(&base.desired, desired);
        base.desired = desired.clone();
        self.is_new = false;
        let generation = *generation;
        let [before, after] = answering;
        if before != after {
            self.answering.send_modify(|answering| {
                let entries = Arc::make_mut(&mut answering.entries);
                entries.retain(|entry, _| !before.contains_key(entry));
                entries.extend(after);
            });
        }
        self.applied
            .send_modify(|applied| applied.generation = Some(generation));
        let writes = writes(&ops);
        self.passes
            .send_modify(|passes| passes.increments.count(writes, begun.elapsed()));
        true
    }

    /// Looks, acts, and says how far the kernel is. Looking ends when `interrupt` says so.
    pub(super) fn run(&mut self, interrupt: Interrupt<'_>) -> Outcome {
        let (Some(desired), Some((_, generation))) = (&self.effective, &self.current) else {
            return Outcome::Done;
        };
        let begun = Instant::now();
        let mut written = (0, 0);
        let mut context = None;
        let is_fresh = |at: &Instant| !self.is_new && at.elapsed() < TOLD_LIFETIME;
        let tables_seen = self.tables_seen.take().filter(is_fresh);
        // Before the table is read: what changes then is printed otherwise the next time.
        let now_printed = printed(&mut self.kernel);
        let ipvs_seen = self.ipvs_seen.take();
        let ipvs_seen =
            ipvs_seen.filter(|(at, number)| is_fresh(at) && Some(*number) == now_printed);
        let tables = Tables {
            ingress: tables_seen.is_none(),
            ipvs: ipvs_seen.is_none(),
        };
        let observed = observe(&mut self.kernel, Look::AndRepair, tables, interrupt);
        let (problems, failures) = match observed {
            Ok((observed, mut failures)) => {
                context = Some(observed.context());
                let (Plan { ops, problems }, wanted) = plan_for(observed, desired);
                if tables != Tables::ALL && ops.iter().any(|op| op.place().is_some()) {
                    // With a link its entries are gone.
                    return self.run(interrupt);
                }
                if ops.is_empty() && failures.is_empty() {
                    self.tables_seen = tables_seen.or(Some(begun));
                    let anew = now_printed.map(|number| (begun, number));
                    self.ipvs_seen = ipvs_seen.or(anew);
                }
                log_ops(&ops);
                written = writes(&ops);
                failures.extend(execute(&mut self.kernel, &ops));
                if self.is_new || !ops.is_empty() {
                    let entries = entries(&wanted);
                    let repairs = u64::from(!self.is_new && failures.is_empty());
                    self.answering.send_if_modified(|answering| {
                        let changed = repairs > 0 || *answering.entries != entries;
                        answering.repairs += repairs;
                        if changed {
                            answering.entries = Arc::new(entries);
                            answering.own = own_addresses(desired);
                        }
                        changed
                    });
                }
                (problems, failures)
            }
            Err(KernelError::Interrupted) => {
                self.tables_seen = tables_seen;
                self.ipvs_seen = ipvs_seen;
                return Outcome::Interrupted;
            }
            Err(source) => {
                let problems = self.applied.borrow().problems.clone();
                (problems, vec![Failure::of_pass(source)])
            }
        };
        let context = context.filter(|_| failures.is_empty());
        self.base = context.map(|context| match self.base.take() {
            Some(mut base) => {
                base.index.follow(&base.desired, desired);
                base.desired = desired.clone();
                base.context = context;
                base
            }
            None => Base {
                desired: desired.clone(),
                context,
                index: Index::of(desired),
            },
        });
        let reached = failures
            .iter()
            .all(|failure| matches!(failure.scope, Scope::Task(_)));
        self.is_new &= !reached;
        let before = self.applied.borrow().clone();
        let generation = if reached {
            Some(*generation)
        } else {
            before.generation
        };
        let failures = failures.into_iter().map(Arc::new).collect();
        let now = Applied {
            generation,
            problems,
            failures,
        };
        let (known, texts) = (before.texts(), now.texts());
        for text in texts.iter().filter(|text| !known.contains(text)) {
            tracing::warn!("network: {text}");
        }
        let changed = generation != before.generation || texts != known;
        self.applied.send_if_modified(|applied| {
            *applied = now;
            changed
        });
        let took = begun.elapsed();
        self.last_look = took;
        self.passes.send_modify(|passes| match tables.ingress {
            true => passes.full.count(written, took),
            false => passes.untold.count(written, took),
        });
        Outcome::Done
    }
}

/// The users' networks that a task is on.
fn names_of(task: &LocalTask) -> Vec<NetworkName> {
    let attachments = task.attachments.iter();
    attachments
        .map(|attachment| NetworkName::of(&attachment.network))
        .collect()
}

fn log_ops(ops: &[Op]) {
    if !ops.is_empty() {
        tracing::info!(count = ops.len(), first = %ops[0], "changing the networks");
    }
}
