//! The store as the rest of a manager holds it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

#[cfg(test)]
use super::encode_batch;
use super::{Change, CodecError, History, State};

/// How long an update may take, waiting for its turn included. Several election timeouts, so that
/// a change of leader is told apart from a stuck disk; shorter than a person's patience.
pub(crate) const UPDATE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a read may wait to be confirmed: beyond the two seconds within which a leader that no
/// majority answers finds out, and ceases to lead.
const READ_DEADLINE: Duration = Duration::from_secs(5);

/// Who leads, as this manager knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leadership {
    /// Whether this manager leads and has applied everything its predecessors committed.
    pub leader: bool,
    /// The Raft term this is about.
    pub term: u64,
    /// Raft id of whoever leads, if known; it is `ManagerStatus::raft_id` of its node.
    pub leader_id: Option<u64>,
}

/// Who takes part in the log, as this manager knows it; by Raft ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Members {
    /// Those whose acknowledgement counts, this manager included where it is one.
    pub(crate) voters: BTreeSet<u64>,
    /// Those that are still catching up.
    pub(crate) learners: BTreeSet<u64>,
    /// Members heard a moment ago, this manager always. Complete where this manager leads, or where
    /// nobody does; a follower hears the leader only.
    pub(crate) reachable: BTreeSet<u64>,
    /// Those of the others that may be reachable all the same: this manager has led for a moment only,
    /// and they have not had the time to answer it. Empty where it does not lead.
    pub(crate) unheard: BTreeSet<u64>,
}

impl Members {
    /// How many of `voters` voters make a majority.
    pub(crate) fn quorum(voters: usize) -> usize {
        voters / 2 + 1
    }

    /// Whether `raft_id` takes part.
    pub(crate) fn contains(&self, raft_id: u64) -> bool {
        self.voters.contains(&raft_id) || self.learners.contains(&raft_id)
    }
}

/// What an update changes about who takes part in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemberChange {
    /// A new member. It votes as soon as it has caught up; until then it can hold nobody up.
    Add(u64),
    /// Takes part no longer.
    Remove(u64),
}

/// Why an update did not happen, or is not known to have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UpdateError<E> {
    /// The caller's own function refused; nothing was proposed.
    #[error(transparent)]
    Refused(E),
    /// Another manager leads, or none; nothing was proposed.
    #[error("this manager does not lead the swarm: ask the leader, or again in a moment")]
    NotLeader {
        /// Raft id of the leader, if known.
        leader: Option<u64>,
    },
    /// The update may or may not happen yet.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The changes are more than one log entry may hold; nothing was proposed.
    #[error("the update takes {size} bytes, more than the {limit} that one may: make it smaller")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The bound in bytes.
        limit: usize,
    },
    /// A value that the log cannot hold; nothing was proposed.
    #[error("the update holds what the log cannot")]
    Invalid(#[source] CodecError),
    /// A change of members that does not fit those there are; nothing was proposed.
    #[error("the managers changed meanwhile: look at them again with `swarmctl node ls`")]
    Members,
}

/// Why an update is not known to have happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unavailable {
    /// It was not done within [`UPDATE_DEADLINE`].
    #[error("the update was not finished in {}s: look at it again in a moment", UPDATE_DEADLINE.as_secs())]
    Timeout,
    /// Leadership was lost before it was committed.
    #[error("the leader changed during the update: look at it again in a moment")]
    LeaderChanged,
    /// Raft takes no more proposals just now.
    #[error("too many updates are under way: try again in a moment")]
    Busy,
    /// This manager is stopping, or its log failed.
    #[error("this manager's log has stopped: see the manager's own log for the cause")]
    Stopped,
}

/// Why a read is not known to see everything that was acknowledged before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadError {
    /// Another manager leads, or none.
    #[error("this manager does not lead the swarm any more: ask again in a moment")]
    NotLeader,
    /// No majority of the managers answered within [`READ_DEADLINE`].
    #[error(
        "too few managers have confirmed within {}s that this one still leads: ask again in a moment, or \
         without --consistent", READ_DEADLINE.as_secs()
    )]
    Timeout,
    /// Too many reads wait.
    #[error("too many consistent reads are under way: try again in a moment")]
    Busy,
    /// This manager is stopping, or its log failed.
    #[error("this manager's log has stopped: see the manager's own log for the cause")]
    Stopped,
}

/// Why a backend did not apply a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProposeError {
    NotLeader { leader: Option<u64> },
    Unavailable(Unavailable),
    TooLarge { size: usize, limit: usize },
    Invalid(CodecError),
    Members,
}

impl<E> From<ProposeError> for UpdateError<E> {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NotLeader { leader } => Self::NotLeader { leader },
            ProposeError::Unavailable(cause) => Self::Unavailable(cause),
            ProposeError::TooLarge { size, limit } => Self::TooLarge { size, limit },
            ProposeError::Invalid(cause) => Self::Invalid(cause),
            ProposeError::Members => Self::Members,
        }
    }
}

/// One update on its way.
#[derive(Debug)]
pub(crate) struct Proposal {
    /// What to change.
    pub(crate) changes: Vec<Change>,
    /// Who takes part from then on, where that changes with it.
    pub(crate) member: Option<MemberChange>,
    /// The term in which the changes were made up; they mean nothing in another.
    pub(crate) term: u64,
    /// Where the outcome goes; who waits there may have left.
    pub(crate) done: oneshot::Sender<Result<(), ProposeError>>,
    /// The turn to update. Held until the outcome is known, not until the caller stops waiting:
    /// the next update must not read a state that this one is still about to change.
    pub(crate) turn: OwnedMutexGuard<()>,
}

impl Proposal {
    /// Tells the caller how it went and lets the next update begin.
    pub(crate) fn finish(self, outcome: Result<(), ProposeError>) {
        // The turn ends first, so that a caller who is told can begin the next one.
        drop(self.turn);
        // Nobody listens when the caller gave up; the outcome stands all the same.
        let _ = self.done.send(outcome);
    }
}

/// What carries proposals out.
pub(crate) trait Backend: Send + Sync {
    /// Takes a proposal, finishing it at once or later. Never blocks.
    fn propose(&self, proposal: Proposal);

    /// Tells `done` as soon as the state holds everything that was acknowledged until now. Never
    /// blocks. Where there is no other manager it always does.
    fn read_index(&self, done: oneshot::Sender<Result<(), ReadError>>) {
        let _ = done.send(Ok(()));
    }

    /// Asks for another manager to lead in place of this one. Nothing happens where there is none.
    fn hand_over(&self) {}
}

/// The state as this manager has it, shared between who applies and who reads.
#[derive(Debug, Default)]
pub(crate) struct Replica {
    state: RwLock<State>,
    /// Taken after the state, never before.
    history: RwLock<History>,
    applied: watch::Sender<u64>,
    leadership: watch::Sender<Leadership>,
    members: watch::Sender<Members>,
}

impl Replica {
    pub(crate) fn read<R>(&self, f: impl FnOnce(&State) -> R) -> R {
        // A panic while applying ends the process; readers on their way out may still look.
        f(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes changes, which are `bytes` in the log, and tells who watches.
    pub(crate) fn apply(&self, index: u64, changes: Vec<Change>, bytes: usize) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let events = state.apply(index, changes);
        self.history_mut().add(index, events, bytes);
        drop(state);
        self.applied.send_replace(index);
    }

    /// Replaces the whole state, as a snapshot does.
    pub(crate) fn install(&self, state: State) {
        let index = state.index();
        let mut current = self.state.write().unwrap_or_else(PoisonError::into_inner);
        *current = state;
        *self.history_mut() = History::starting_at(index);
        drop(current);
        self.applied.send_replace(index);
    }

    fn history_mut(&self) -> RwLockWriteGuard<'_, History> {
        self.history.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells who watches, if it is news.
    pub(crate) fn set_leadership(&self, leadership: Leadership) {
        self.leadership.send_if_modified(|current| {
            let news = *current != leadership;
            *current = leadership;
            news
        });
    }

    pub(crate) fn leadership(&self) -> Leadership {
        *self.leadership.borrow()
    }

    pub(crate) fn members(&self) -> Members {
        self.members.borrow().clone()
    }

    /// Tells who watches, if it is news.
    pub(crate) fn set_members(&self, members: Members) {
        self.members.send_if_modified(|current| {
            let news = *current != members;
            *current = members;
            news
        });
    }
}

/// The store. Cheap to clone; every clone is the same store.
#[derive(Clone)]
pub(crate) struct Store {
    replica: Arc<Replica>,
    backend: Arc<dyn Backend>,
    turn: Arc<Mutex<()>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("applied", &*self.replica.applied.borrow())
            .field("leadership", &self.replica.leadership())
            .finish_non_exhaustive()
    }
}

impl Store {
    pub(crate) fn new(replica: Arc<Replica>, backend: Arc<dyn Backend>) -> Self {
        Self {
            replica,
            backend,
            turn: Arc::default(),
        }
    }

    /// A store without a log: it applies at once and always leads. For tests and simulation; what
    /// Raft would refuse, and round, it refuses and rounds as well.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        let replica = Arc::new(Replica::default());
        replica.set_leadership(Leadership {
            leader: true,
            term: 1,
            leader_id: Some(1),
        });
        let memory = Memory(Arc::clone(&replica));
        Self::new(replica, Arc::new(memory))
    }

    /// What `f` makes of the newest applied state. `f` runs under a lock that applying waits for:
    /// it is quick and takes copies of what it needs.
    pub(crate) fn read<R>(&self, f: impl FnOnce(&State) -> R) -> R {
        self.replica.read(f)
    }

    /// Returns once what [`Store::read`] sees holds everything that was acknowledged before the call, by
    /// whichever manager: what is read then is linearisable. Only the leader can.
    ///
    /// # Errors
    /// When this manager is not known to lead still.
    pub(crate) async fn read_index(&self) -> Result<(), ReadError> {
        let (done, outcome) = oneshot::channel();
        self.backend.read_index(done);
        match timeout(READ_DEADLINE, outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_dropped)) => Err(ReadError::Stopped),
            Err(_elapsed) => Err(ReadError::Timeout),
        }
    }

    /// Makes the changes that `f` wants, given the newest state, all together or not at all;
    /// returns once they are applied here. Without changes nothing is proposed.
    ///
    /// Only the leader can; updates run one at a time, so nothing changes between what `f` read
    /// and its changes. A caller may stop waiting at any time; the update then happens or not.
    ///
    /// # Errors
    /// [`UpdateError::Refused`] is `f`'s own; the others say whether anything was proposed.
    pub(crate) async fn update<R, E>(
        &self,
        f: impl FnOnce(&State) -> Result<(Vec<Change>, R), E>,
    ) -> Result<R, UpdateError<E>> {
        self.submit(|state| f(state).map(|(changes, value)| (changes, None, value)))
            .await
    }

    /// As [`Store::update`], and changes who takes part in the log in the same moment: every manager
    /// sees both or neither.
    ///
    /// # Errors
    /// As [`Store::update`]; [`Unavailable::Busy`] also while another such change is on its way.
    pub(crate) async fn reconfigure<R, E>(
        &self,
        f: impl FnOnce(&State) -> Result<(Vec<Change>, Option<MemberChange>, R), E>,
    ) -> Result<R, UpdateError<E>> {
        self.submit(f).await
    }

    async fn submit<R, E>(
        &self,
        f: impl FnOnce(&State) -> Result<(Vec<Change>, Option<MemberChange>, R), E>,
    ) -> Result<R, UpdateError<E>> {
        let deadline = Instant::now() + UPDATE_DEADLINE;
        let turn = timeout_at(deadline, Arc::clone(&self.turn).lock_owned())
            .await
            .map_err(|_| Unavailable::Timeout)?;
        // Before the state is read: what an older term's leader read may be stale.
        let leadership = self.replica.leadership();
        if !leadership.leader {
            let leader = leadership.leader_id;
            return Err(UpdateError::NotLeader { leader });
        }
        let (changes, member, value) = self.read(f).map_err(UpdateError::Refused)?;
        if changes.is_empty() && member.is_none() {
            return Ok(value);
        }
        let (done, outcome) = oneshot::channel();
        self.backend.propose(Proposal {
            changes,
            member,
            term: leadership.term,
            done,
            turn,
        });
        match timeout_at(deadline, outcome).await {
            Ok(Ok(outcome)) => outcome.map(|()| value).map_err(UpdateError::from),
            Ok(Err(_dropped)) => Err(Unavailable::Stopped.into()),
            Err(_elapsed) => Err(Unavailable::Timeout.into()),
        }
    }

    /// What `f` makes of the newest changes. `f` runs under a lock that applying waits for: it is quick.
    pub(crate) fn read_history<R>(&self, f: impl FnOnce(&History) -> R) -> R {
        let history = self.replica.history.read();
        f(&history.unwrap_or_else(PoisonError::into_inner))
    }

    /// The applied index, changing after each apply.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.replica.applied.subscribe()
    }

    /// Who leads, changing when that does.
    pub(crate) fn leadership(&self) -> watch::Receiver<Leadership> {
        self.replica.leadership.subscribe()
    }

    /// Who takes part in the log and who of them is heard, changing when that does.
    pub(crate) fn members(&self) -> watch::Receiver<Members> {
        self.replica.members.subscribe()
    }

    /// Asks for another manager to lead in place of this one; see [`Store::leadership`] for what
    /// becomes of it. Nothing happens where there is none that could.
    pub(crate) fn hand_over(&self) {
        self.backend.hand_over();
    }
}

/// The backend of [`Store::in_memory`].
#[cfg(test)]
struct Memory(Arc<Replica>);

#[cfg(test)]
impl Backend for Memory {
    fn propose(&self, mut proposal: Proposal) {
        let changes = std::mem::take(&mut proposal.changes);
        proposal.finish(encode_batch(&changes).map(|(bytes, changes)| {
            let index = self.0.read(State::index) + 1;
            self.0.apply(index, changes, bytes.len());
        }));
    }
}
