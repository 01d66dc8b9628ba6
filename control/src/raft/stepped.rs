//! A member whose clock, medium and messages are its caller's: what `simulation` runs on.

use std::sync::Arc;

use prost::bytes::Bytes;
use raft::eraftpb::{self, Message, MessageType};
use redb::StorageBackend;
use tokio::sync::oneshot;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::core::first_snapshot;
use super::error::{NodeError, StartError};
use super::log::Log;
use super::member::{Encoded, Member};
use super::record::{MembersRecord, SnapshotRecord};
use crate::store::{
    Change, MemberChange, Proposal, ProposeError, ReadError, Replica, State, encode_batch,
    encode_snapshot,
};

/// The outcome of a proposal, once there is one.
pub(crate) type Outcome = oneshot::Receiver<Result<(), ProposeError>>;

/// The outcome of a read, once there is one.
pub(crate) type Reading = oneshot::Receiver<Result<(), ReadError>>;

/// A message from one member of Raft to another.
#[derive(Clone, Debug)]
pub struct Envelope(Message);

impl Envelope {
    /// Raft id of the sender.
    #[must_use]
    pub fn from(&self) -> u64 {
        self.0.from
    }

    /// Raft id of the receiver.
    #[must_use]
    pub fn to(&self) -> u64 {
        self.0.to
    }

    /// Whether it brings a whole state. Its sender sends nothing more until it is told what became of
    /// it ([`Manager::snapshot_sent`]).
    ///
    /// [`Manager::snapshot_sent`]: crate::simulation::Manager::snapshot_sent
    #[must_use]
    pub fn is_snapshot(&self) -> bool {
        self.0.has_snapshot()
    }

    /// What tells this message from others, for traces: kind, term, index, commit index, entries.
    #[must_use]
    pub fn summary(&self) -> (&'static str, u64, u64, u64, usize) {
        let kind = match self.0.msg_type {
            MessageType::MsgAppend => "append",
            MessageType::MsgAppendResponse => "append response",
            MessageType::MsgHeartbeat => "heartbeat",
            MessageType::MsgHeartbeatResponse => "heartbeat response",
            MessageType::MsgSnapshot => "snapshot",
            MessageType::MsgRequestVote => "vote",
            MessageType::MsgRequestVoteResponse => "vote response",
            MessageType::MsgRequestPreVote => "pre-vote",
            MessageType::MsgRequestPreVoteResponse => "pre-vote response",
            MessageType::MsgTransferLeader => "transfer",
            MessageType::MsgTimeoutNow => "timeout now",
            _ => "other",
        };
        let it = &self.0;
        (kind, it.term, it.index, it.commit, it.entries.len())
    }
}

/// One committed entry, as far as members must agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its place in the log.
    pub index: u64,
    /// The term it was proposed in.
    pub term: u64,
    /// A digest of what it holds.
    pub digest: u64,
}

/// A member, without a thread.
pub(crate) struct Stepped {
    member: Member,
    replica: Arc<Replica>,
    turn: Arc<Mutex<()>>,
}

/// Makes the log of `raft_id` on an empty medium: its members are `voters`, its state is `initial`.
pub(crate) fn format(
    medium: impl StorageBackend,
    raft_id: u64,
    voters: &[u64],
    initial: Vec<Change>,
) -> Result<(), StartError> {
    let mut metadata = first_snapshot(raft_id);
    let members = eraftpb::ConfState {
        voters: voters.to_vec(),
        ..eraftpb::ConfState::default()
    };
    metadata.set_conf_state(members);
    let refused = |cause: ProposeError| StartError::Initial(cause.into());
    let (_bytes, changes) = encode_batch(&initial).map_err(refused)?;
    let mut state = State::default();
    state.apply(metadata.index, changes);
    let snapshot = SnapshotRecord {
        index: metadata.index,
        term: metadata.term,
        members: Some(MembersRecord::from(metadata.get_conf_state())),
        state: encode_snapshot(&state).into(),
    };
    Ok(Log::with_backend(medium)?.bootstrap(raft_id, &snapshot)?)
}

/// Makes the log of `raft_id`, a member that joins, on an empty medium.
pub(crate) fn join(medium: impl StorageBackend, raft_id: u64) -> Result<(), StartError> {
    Ok(Log::with_backend(medium)?.join(raft_id)?)
}

impl Stepped {
    /// The member whose log is on `medium`. Draws its election timeouts from `seed`.
    pub(crate) fn open(
        medium: impl StorageBackend,
        seed: u64,
        snapshot_interval: u64,
    ) -> Result<Self, StartError> {
        let log = Log::with_backend(medium)?;
        let recovered = log.recover()?;
        let replica = Arc::new(Replica::default());
        let mut member = Member::new(log, recovered, Arc::clone(&replica), snapshot_interval)?;
        member.core_mut().seed_elections(seed);
        Ok(Self {
            member,
            replica,
            turn: Arc::default(),
        })
    }

    /// The state as this member has it.
    pub(crate) fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Lets one tick of time pass.
    pub(crate) fn tick(&mut self) {
        self.member.tick();
    }

    /// Takes a message from another member.
    pub(crate) fn receive(&mut self, envelope: Envelope) {
        self.member.receive(envelope.0);
    }

    /// Takes note that a message to `raft_id` was not delivered.
    pub(crate) fn unreachable(&mut self, raft_id: u64) {
        self.member.unreachable(raft_id);
    }

    /// Takes note of what became of the snapshot that was sent to `raft_id`.
    pub(crate) fn snapshot_sent(&mut self, raft_id: u64, arrived: bool) {
        self.member.snapshot_sent(raft_id, arrived);
    }

    /// Lets another member lead, if this one does.
    pub(crate) fn hand_over(&mut self) {
        self.member.hand_over();
    }

    /// The turn to update; none while an update is on its way.
    pub(crate) fn turn(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.turn).try_lock_owned().ok()
    }

    /// Proposes `changes`, and with them a change of members, made up in `term`.
    pub(crate) fn propose(
        &mut self,
        changes: Vec<Change>,
        member: Option<MemberChange>,
        term: u64,
        turn: OwnedMutexGuard<()>,
    ) -> Outcome {
        let (done, outcome) = oneshot::channel();
        let proposal = Proposal {
            changes,
            member,
            term,
            done,
            turn,
        };
        if let Some(encoded) = Encoded::of(proposal) {
            self.member.propose(encoded);
        }
        outcome
    }

    /// Begins a read that is to see everything acknowledged until now.
    pub(crate) fn read_index(&mut self) -> Reading {
        let (done, outcome) = oneshot::channel();
        self.member.read_index(done);
        outcome
    }

    /// Does everything that Raft wants done; gives what is to be sent.
    pub(crate) fn run(&mut self) -> Result<Vec<Envelope>, NodeError> {
        let messages = self.member.run()?;
        Ok(messages.into_iter().map(Envelope).collect())
    }

    /// The committed entries after `index` that this member has applied and still holds.
    pub(crate) fn applied_after(&mut self, index: u64) -> Vec<Committed> {
        let core = self.member.core_mut();
        let upto = core.applied_position().index;
        let entries = core.cache().range(index, upto);
        let committed = entries.map(|entry| Committed {
            index: entry.index,
            term: entry.term,
            digest: digest(&entry.data) ^ digest(&entry.context).rotate_left(1),
        });
        committed.collect()
    }

    /// The term, and whether this member was elected in it.
    pub(crate) fn elected(&mut self) -> (u64, bool) {
        let core = self.member.core_mut();
        (core.term(), core.is_leader())
    }
}

/// FNV-1a, 64 bits.
fn digest(bytes: &Bytes) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
