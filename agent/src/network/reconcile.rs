//! When to look and to act: on a new desired state, on a change in the kernel, and every so often.
//!
//! All of it happens on one thread of its own, named `network`: a pass is a few milliseconds of
//! system calls that have no business on a runtime's worker, and nothing else touches the kernel's
//! networks. The thread outlives no [`Reconciler`], and what it made outlives the thread.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rtnetlink::MulticastGroup;
use swarm_model::TaskId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::error_text::error_text;

use super::answering::Answering;
use super::check::Checked;
use super::desired::{Desired, LocalTask};
use super::kernel::{Failure, Kernel, KernelError};
use super::model::Place;
use super::monitor::{Monitor, MonitorError};
use super::names::NETNS_DIR;
use super::pass::{Outcome, Pass};
use super::stats::NodeStats;
use super::wanted::Problem;

/// Between two passes over everything without an event, at least. IPVS and eBPF tell nobody when they
/// change: what an operator breaks there is put right by the next of these.
const INTERVAL: Duration = Duration::from_secs(2);

/// Within this time what is broken is put right, by a pass that begins and ends in it.
const REPAIRED_WITHIN: Duration = Duration::from_secs(5);

/// With thousands of services a pass over everything takes a good part of a second. Then there are
/// that many times its length between two of them, so that at most a tenth of a processor goes into
/// looking, as long as [`REPAIRED_WITHIN`] allows it.
const REST_SHARE: u32 = 9;

/// For how long changes of the desired state, one after the other, may put a pass over everything off.
const MAX_POSTPONED: Duration = Duration::from_secs(5);

/// A pass over everything that was ended for a change of the desired state begins again when for this
/// long there was none, or it was put off for [`MAX_POSTPONED`].
const QUIET: Duration = Duration::from_secs(1);

/// Changes in the kernel come in bursts: this long after the first of them a pass begins.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// The shortest time between two passes because of events, so that a host on which links change all
/// the time spends it on other things. A new desired state does not wait.
const MIN_EVENT_SPACING: Duration = Duration::from_millis(250);

/// How long a caller waits for a pass. One takes milliseconds; tens of thousands of tasks, or a
/// kernel that loads a module, seconds.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// Requests waiting for the thread. Each holds up its caller, so more than the tasks being started
/// at one time are never there.
const MAX_REQUESTS: usize = 256;

/// What changes in the host's namespace concern us.
const HOST_GROUPS: [MulticastGroup; 4] = [
    MulticastGroup::Link,
    MulticastGroup::Tc,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
];

/// In the ingress namespace everything does; nothing there changes unless somebody changes it.
const INGRESS_GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Tc,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
];

/// Where a node keeps its things.
#[derive(Clone, Debug)]
pub(crate) struct NetworkConfig {
    /// Namespaces are mounted in `netns` under this.
    pub(crate) run_dir: PathBuf,
    /// eBPF maps are pinned under this.
    pub(crate) bpffs_dir: PathBuf,
}

/// How far the kernel is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Applied {
    /// The generation that the kernel corresponded to when a pass last found or made it so; nothing
    /// before the first. Failures at a single local task do not count, nor do
    /// [`problems`](Self::problems): no traffic is taken in on account of those.
    pub(crate) generation: Option<u64>,
    /// Parts of the desired state that this host cannot have, with the remedy.
    pub(crate) problems: Vec<Problem>,
    /// What failed in the last pass; it is tried again.
    pub(crate) failures: Vec<Arc<Failure>>,
}

impl Applied {
    /// Problems and failures for a person.
    pub(super) fn texts(&self) -> Vec<String> {
        let problems = self.problems.iter().map(Problem::to_string);
        let failures = self
            .failures
            .iter()
            .map(|failure| error_text(failure.as_ref()));
        problems.chain(failures).collect()
    }
}

/// Why the networks could not be brought to what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// No thread.
    #[error("start the network thread")]
    Start(#[source] io::Error),
    /// The host's namespace cannot be used.
    #[error("open the host's network namespace")]
    Open(#[source] KernelError),
    /// The kernel could not be read.
    #[error(transparent)]
    Observe(Arc<Failure>),
    /// The kernel cannot be listened to.
    #[error("listen for changes of the networks")]
    Monitor(#[from] MonitorError),
    /// Nothing was desired yet, so that there is no network to connect to.
    #[error("connect task {0}: this node is not connected to the ingress network yet")]
    NotConnected(TaskId),
    /// Nothing was desired yet, so that there is nothing to compare with.
    #[error(
        "this node does not know yet what its networks are to be: no manager has told it; see \
         `swarmctl swarm status`"
    )]
    NothingDesired,
    /// A task's namespace could not be made.
    #[error("connect task {task}")]
    Prepare {
        /// The task.
        task: TaskId,
        /// The first of what failed.
        #[source]
        source: Arc<Failure>,
    },
    /// A task's namespace could not be removed.
    #[error("disconnect task {task}")]
    Release {
        /// The task.
        task: TaskId,
        /// The first of what failed.
        #[source]
        source: Arc<Failure>,
    },
    /// Something is left.
    #[error("remove the networks, {failed} steps failed")]
    Teardown {
        /// How many steps.
        failed: usize,
        /// The first of what failed.
        #[source]
        source: Arc<Failure>,
    },
    /// The thread is busy.
    #[error("the network thread did not answer within {} s", REQUEST_DEADLINE.as_secs())]
    Deadline,
    /// The thread has ended.
    #[error("the network thread has stopped")]
    Stopped,
}

/// The passes of the network so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Passes {
    /// Those that looked at everything.
    pub(crate) full: PassCount,
    /// Those that looked at everything but the tables of which the kernel tells every change.
    pub(crate) untold: PassCount,
    /// Those that did what had changed, and looked at nothing.
    pub(crate) increments: PassCount,
}

/// What was counted of passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PassCount {
    /// How many.
    pub(crate) count: u64,
    /// How long they took together, and the last.
    pub(crate) took: Duration,
    /// The last.
    pub(crate) last: Duration,
    /// Netlink messages that changed something.
    pub(crate) messages: u64,
    /// Entries of maps that were written or removed, or gone over when a whole map was written.
    pub(crate) map_entries: u64,
}

impl PassCount {
    pub(super) fn count(&mut self, (messages, entries): (usize, usize), took: Duration) {
        self.count += 1;
        self.took += took;
        self.last = took;
        self.messages += messages as u64;
        self.map_entries += entries as u64;
    }
}

/// When to look at everything again, after a pass that took so long.
fn interval(took: Duration) -> Duration {
    // On a machine on which that is not to be had, no more than half of a processor.
    let longest = REPAIRED_WITHIN.saturating_sub(2 * took).max(took);
    (took * REST_SHARE).max(INTERVAL).min(longest)
}

/// The node's networks. Clones are the same one; the thread ends with the last of them, and leaves
/// everything in place.
#[derive(Clone, Debug)]
pub(crate) struct Reconciler {
    desired: watch::Sender<Option<(Arc<Desired>, u64)>>,
    requests: mpsc::Sender<Request>,
    applied: watch::Receiver<Applied>,
    answering: watch::Receiver<Answering>,
    passes: watch::Receiver<Passes>,
}

#[derive(Debug)]
enum Request {
    Prepare {
        task: TaskId,
        local: LocalTask,
        reply: oneshot::Sender<Result<PathBuf, NetworkError>>,
    },
    Release {
        task: TaskId,
        reply: oneshot::Sender<Result<(), NetworkError>>,
    },
    Teardown {
        reply: oneshot::Sender<Result<(), NetworkError>>,
    },
    Check {
        reply: oneshot::Sender<Result<Checked, NetworkError>>,
    },
    Stats {
        reply: oneshot::Sender<Result<Arc<NodeStats>, NetworkError>>,
    },
}

impl Reconciler {
    /// Starts the thread, and waits the moment that takes. The calling thread's network namespace
    /// is the host's. Nothing is changed before [`apply`](Self::apply) has said what is desired.
    pub(crate) fn start(config: &NetworkConfig) -> Result<Self, NetworkError> {
        let config = config.clone();
        let (desired, desired_changes) = watch::channel(None);
        let (applied_changes, applied) = watch::channel(Applied::default());
        let (answering_changes, answering) = watch::channel(Answering::default());
        let (passes_changes, passes) = watch::channel(Passes::default());
        let (requests, incoming) = mpsc::channel(MAX_REQUESTS);
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let work = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
            {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(Err(NetworkError::Start(error)))),
            };
            runtime.block_on(async {
                let changes = (applied_changes, answering_changes, passes_changes);
                match Shell::new(&config, changes, desired_changes, incoming) {
                    Ok(shell) => {
                        let _ = started.send(Ok(()));
                        shell.run().await;
                    }
                    Err(error) => drop(started.send(Err(error))),
                }
            });
        };
        // A new thread is in the namespace of the one that starts it.
        let thread = thread::Builder::new().name("network".to_owned());
        thread.spawn(work).map_err(NetworkError::Start)?;
        start.recv().map_err(|_| NetworkError::Stopped)??;
        Ok(Self {
            desired,
            requests,
            applied,
            answering,
            passes,
        })
    }

    /// Sets what is desired. [`applied`](Self::applied) tells when it is so; a later call replaces
    /// an earlier one, also one that was never carried out.
    pub(crate) fn apply(&self, desired: Arc<Desired>, generation: u64) {
        self.desired.send_replace(Some((desired, generation)));
    }

    /// How far the kernel is, as it changes.
    pub(crate) fn applied(&self) -> watch::Receiver<Applied> {
        self.applied.clone()
    }

    /// Which published ports are to answer here, as that changes.
    pub(crate) fn answering(&self) -> watch::Receiver<Answering> {
        self.answering.clone()
    }

    /// What was done so far, as it goes on.
    pub(crate) fn passes(&self) -> watch::Receiver<Passes> {
        self.passes.clone()
    }

    /// Makes the namespace of a local task and connects it to the ingress network, and returns
    /// where it is mounted. The task counts as desired from here until it is
    /// [released](Self::release_task), also when the desired state does not list it yet.
    /// Repeatable.
    pub(crate) async fn prepare_task(
        &self,
        task: &TaskId,
        local: LocalTask,
    ) -> Result<PathBuf, NetworkError> {
        self.request(|reply| Request::Prepare {
            task: task.clone(),
            local,
            reply,
        })
        .await
    }

    /// Disconnects a local task and removes its namespace, also while the desired state still lists
    /// it. Its container should have ended. Repeatable.
    pub(crate) async fn release_task(&self, task: &TaskId) -> Result<(), NetworkError> {
        self.request(|reply| Request::Release {
            task: task.clone(),
            reply,
        })
        .await
    }

    /// Removes everything of ours from the kernel, for a node that leaves its swarm. Nothing is
    /// desired afterwards, until [`apply`](Self::apply) is called again.
    pub(crate) async fn teardown(&self) -> Result<(), NetworkError> {
        self.request(|reply| Request::Teardown { reply }).await
    }

    /// Compares the kernel with what is desired, and changes nothing. What a pass would put right
    /// at once differs only for a moment; what keeps differing says why.
    pub(crate) async fn check(&self) -> Result<Checked, NetworkError> {
        self.request(|reply| Request::Check { reply }).await
    }

    /// What the kernel has counted, at most a second ago.
    pub(crate) async fn stats(&self) -> Result<Arc<NodeStats>, NetworkError> {
        self.request(|reply| Request::Stats { reply }).await
    }

    async fn request<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, NetworkError>>) -> Request,
    ) -> Result<T, NetworkError> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            self.requests
                .send(request(reply))
                .await
                .map_err(|_| NetworkError::Stopped)?;
            answer.await.map_err(|_| NetworkError::Stopped)?
        };
        tokio::time::timeout(REQUEST_DEADLINE, exchange)
            .await
            .map_err(|_| NetworkError::Deadline)?
    }
}

/// The thread's loop.
struct Shell {
    pass: Pass,
    host: Monitor,
    ingress: Option<Monitor>,
    desired: watch::Receiver<Option<(Arc<Desired>, u64)>>,
    requests: mpsc::Receiver<Request>,
}

impl Shell {
    fn new(
        config: &NetworkConfig,
        (applied, answering, passes): (
            watch::Sender<Applied>,
            watch::Sender<Answering>,
            watch::Sender<Passes>,
        ),
        desired: watch::Receiver<Option<(Arc<Desired>, u64)>>,
        requests: mpsc::Receiver<Request>,
    ) -> Result<Self, NetworkError> {
        let kernel = Kernel::new(config.run_dir.join(NETNS_DIR), config.bpffs_dir.clone())
            .map_err(NetworkError::Open)?;
        let host = Monitor::open(&kernel.open[&Place::Host].netns, &HOST_GROUPS)?;
        let pass = Pass::new(kernel, applied, answering, passes);
        Ok(Self {
            pass,
            host,
            ingress: None,
            desired,
            requests,
        })
    }

    async fn run(mut self) {
        let mut last_event_pass: Option<Instant> = None;
        let mut due: Option<Instant> = None;
        let mut next = Instant::now();
        let mut postponed: Option<Instant> = None;
        loop {
            let full = tokio::select! {
                // Without a sender left there is nobody to work for.
                changed = self.desired.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if self.news() {
                        due = due.or(Some(Instant::now() + DEBOUNCE));
                    }
                    let desired = self.desired.borrow_and_update().clone();
                    self.pass.desire(desired);
                    let by_increment = self.pass.run_change();
                    if by_increment {
                        // Of what has just been done itself. What others do in these milliseconds
                        // is seen by the next pass.
                        self.news();
                        next = postponed.map_or(next, again);
                    }
                    !by_increment
                }
                request = self.requests.recv() => match request {
                    Some(request) => {
                        self.answer(request);
                        false
                    }
                    None => return,
                },
                in_ingress = event(&mut self.host, self.ingress.as_mut()), if due.is_none() => {
                    if in_ingress {
                        self.pass.tables_may_differ();
                    }
                    let now = Instant::now();
                    let spaced = last_event_pass.map(|last| last + MIN_EVENT_SPACING);
                    due = Some(spaced.map_or(now, |spaced| spaced.max(now)) + DEBOUNCE);
                    false
                }
                () = until(Some(due.map_or(next, |due| due.min(next)))) => {
                    // Of what was told up to now: this pass sees it.
                    self.news();
                    // A new desired state does not wait for the end of a look.
                    let urgent = || {
                        postponed.is_none_or(|since| since.elapsed() < MAX_POSTPONED)
                            && self.desired.has_changed().unwrap_or(false)
                    };
                    let outcome = self.pass.run(&urgent);
                    if outcome == Outcome::Interrupted {
                        let since = postponed.unwrap_or_else(Instant::now);
                        postponed = Some(since);
                        due = None;
                        next = again(since);
                    } else {
                        last_event_pass = due.take().map(|_| Instant::now()).or(last_event_pass);
                    }
                    outcome == Outcome::Done
                }
            };
            if full {
                postponed = None;
                next = Instant::now() + interval(self.pass.last_look());
            }
            self.watch_ingress();
        }
    }

    /// Takes out the notifications there are, and says whether there were any.
    fn news(&mut self) -> bool {
        // A socket that fails is told of where it is waited for.
        let of_host = self.host.drain().unwrap_or(true);
        let ingress = self.ingress.as_mut();
        let of_ingress = ingress.is_none_or(|monitor| monitor.drain().unwrap_or(true));
        if of_ingress {
            self.pass.tables_may_differ();
        }
        of_host || (of_ingress && self.ingress.is_some())
    }

    fn answer(&mut self, request: Request) {
        // A caller that has given up is not told.
        match request {
            Request::Prepare { task, local, reply } => {
                let _ = reply.send(self.pass.prepare(task, local));
            }
            Request::Release { task, reply } => {
                let _ = reply.send(self.pass.release(task));
            }
            Request::Teardown { reply } => {
                let _ = reply.send(self.pass.teardown());
            }
            Request::Check { reply } => {
                let _ = reply.send(self.pass.check());
            }
            Request::Stats { reply } => {
                let _ = reply.send(self.pass.stats());
            }
        }
    }

    /// Listens to the ingress namespace that there is now.
    fn watch_ingress(&mut self) {
        let Some(connection) = self.pass.kernel.open.get(&Place::Ingress) else {
            self.ingress = None;
            return;
        };
        if self
            .ingress
            .as_ref()
            .is_some_and(|monitor| monitor.watches(&connection.netns))
        {
            return;
        }
        self.ingress = Monitor::open(&connection.netns, &INGRESS_GROUPS)
            .inspect_err(|error| {
                tracing::warn!(
                    error = error_text(error),
                    "the ingress network is not listened to"
                );
            })
            .ok();
        self.pass.tables_may_differ();
    }
}

/// When a pass that is put off since then begins again.
fn again(since: Instant) -> Instant {
    (Instant::now() + QUIET).min(since + MAX_POSTPONED)
}

/// Waits for a change in either namespace, and says whether it was in that of the ingress network.
async fn event(host: &mut Monitor, ingress: Option<&mut Monitor>) -> bool {
    let in_ingress = async {
        match ingress {
            Some(monitor) => monitor.changed().await,
            None => std::future::pending().await,
        }
    };
    let (outcome, of_ingress) = tokio::select! {
        outcome = host.changed() => (outcome, false),
        outcome = in_ingress => (outcome, true),
    };
    if let Err(error) = outcome {
        tracing::warn!(
            error = error_text(&error),
            "cannot wait for changes of the networks"
        );
        // The runtime is unwell; the interval goes on.
        std::future::pending::<()>().await;
    }
    of_ingress
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
