//! Core, log and state together: one member of Raft, without a clock.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message as _;
use prost::bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, Message};

use super::cache::{Cache, takes_part};
use super::core::{Core, Refused, Write, first_snapshot};
use super::error::{NodeError, StartError};
use super::log::{Log, Recovered};
use super::reads::{Reader, Reads};
use super::record::{
    MemberAction, MemberChangeRecord, MembersRecord, PositionRecord, RecordError, SnapshotRecord,
};
use crate::store::{
    Change, Leadership, MemberChange, Members, Proposal, ProposeError, ReadError, Replica, State,
    Unavailable, decode_batch, decode_snapshot, encode_batch, encode_snapshot,
};

/// Entries after which a snapshot is taken (swarmkit's `SnapshotInterval`).
pub(super) const SNAPSHOT_INTERVAL: u64 = 10_000;
/// Bytes of entries after which a snapshot is taken; bounds the log in memory and the replay.
const SNAPSHOT_BYTES: usize = 64 * 1024 * 1024;

/// A proposal in the form that goes into the log.
#[derive(Debug)]
pub(super) struct Encoded {
    bytes: Vec<u8>,
    /// Its changes are those that `bytes` say.
    proposal: Proposal,
}

impl Encoded {
    /// Encodes `proposal`; finishes it with the reason when the log cannot hold it.
    pub(super) fn of(mut proposal: Proposal) -> Option<Self> {
        match encode_batch(&proposal.changes) {
            Ok((bytes, changes)) => {
                proposal.changes = changes;
                Some(Self { bytes, proposal })
            }
            Err(refused) => {
                proposal.finish(Err(refused));
                None
            }
        }
    }

    /// Finishes it without its having entered the log.
    pub(super) fn refuse(self, cause: ProposeError) {
        self.proposal.finish(Err(cause));
    }
}

/// One member: its log on disk, Raft, and the state that comes of it.
pub(super) struct Member {
    core: Core,
    log: Log,
    replica: Arc<Replica>,
    /// Own proposals on their way, by their index in the log. At most as many as there are turns to
    /// update: one a store.
    pending: HashMap<u64, Proposal>,
    /// The term in which they were proposed. Only one entry of a term is ever at an index.
    pending_term: u64,
    reads: Reads,
    snapshot_interval: u64,
}

/// Starts a new log in `log` with `initial` as its first state, all at once.
pub(super) fn bootstrap(log: &Log, raft_id: u64, initial: Vec<Change>) -> Result<(), StartError> {
    let refused = |cause: ProposeError| StartError::Initial(cause.into());
    // Through bytes, as every other change: what cannot be read back must not get in.
    let (_bytes, changes) = encode_batch(&initial).map_err(refused)?;
    let metadata = first_snapshot(raft_id);
    let mut state = State::default();
    state.apply(metadata.index, changes);
    let snapshot = SnapshotRecord {
        index: metadata.index,
        term: metadata.term,
        members: Some(MembersRecord::from(metadata.get_conf_state())),
        state: encode_snapshot(&state).into(),
    };
    Ok(log.bootstrap(raft_id, &snapshot)?)
}

impl Member {
    /// The member that `recovered`, read from `log`, describes. Its state stands at the snapshot;
    /// [`Member::run`] brings it on.
    pub(super) fn new(
        log: Log,
        recovered: Recovered,
        replica: Arc<Replica>,
        snapshot_interval: u64,
    ) -> Result<Self, NodeError> {
        let Recovered {
            raft_id,
            hard_state,
            snapshot,
            compacted,
            entries,
        } = recovered;
        let cache = Cache::new(hard_state, snapshot.metadata(), compacted, entries);
        install(&replica, &snapshot)?;
        Ok(Self {
            core: Core::new(raft_id, cache)?,
            log,
            replica,
            pending: HashMap::new(),
            pending_term: 0,
            reads: Reads::default(),
            snapshot_interval,
        })
    }

    /// Raft itself, to look at and to seed.
    pub(super) fn core_mut(&mut self) -> &mut Core {
        &mut self.core
    }

    /// Whether no other member votes.
    pub(super) fn is_alone(&self) -> bool {
        self.core.is_alone()
    }

    /// Lets one tick of time pass.
    pub(super) fn tick(&mut self) {
        self.core.tick();
    }

    /// Asks for votes now.
    pub(super) fn campaign(&mut self) -> Result<(), NodeError> {
        Ok(self.core.campaign()?)
    }

    /// Takes a message from another member, a snapshot with its state.
    pub(super) fn receive(&mut self, message: Message) {
        let (from, kind) = (message.from, message.msg_type);
        if let Err(error) = self.core.receive(message) {
            // One that came too late, or from a member that is none any more.
            tracing::debug!(from, ?kind, %error, "a message of no use");
        }
    }

    /// Takes note that a message to `raft_id` could not be delivered.
    pub(super) fn unreachable(&mut self, raft_id: u64) {
        self.core.unreachable(raft_id);
    }

    /// Takes note of what became of the snapshot that was sent to `raft_id`.
    pub(super) fn snapshot_sent(&mut self, raft_id: u64, arrived: bool) {
        self.core.snapshot_sent(raft_id, arrived);
    }

    /// Lets another member lead, if this one does.
    pub(super) fn hand_over(&mut self) {
        self.core.hand_over();
    }

    /// Puts a proposal into the log, or finishes it with the reason why not.
    pub(super) fn propose(&mut self, encoded: Encoded) {
        let Encoded { bytes, proposal } = encoded;
        let outcome = if proposal.term != self.core.term() {
            Err(Refused::NotLeader)
        } else {
            match proposal.member {
                None => self.core.propose(bytes),
                Some(MemberChange::Add(raft_id)) => {
                    let action = MemberAction::AddLearner;
                    self.core.propose_member(action, raft_id, bytes)
                }
                Some(MemberChange::Remove(raft_id)) => {
                    let action = MemberAction::Remove;
                    self.core.propose_member(action, raft_id, bytes)
                }
            }
        };
        match outcome {
            Ok(index) => {
                self.pending_term = proposal.term;
                self.pending.insert(index, proposal);
            }
            Err(Refused::Busy) => {
                proposal.finish(Err(ProposeError::Unavailable(Unavailable::Busy)));
            }
            Err(Refused::NotLeader) => {
                let leader = self.core.leader_id();
                proposal.finish(Err(ProposeError::NotLeader { leader }));
            }
            Err(Refused::Members) => proposal.finish(Err(ProposeError::Members)),
        }
    }

    /// Tells `reader` as soon as the state holds everything that was acknowledged until now, by any
    /// member, or why it is not known to.
    pub(super) fn read_index(&mut self, reader: Reader) {
        if !self.reads.have_room() {
            let _ = reader.send(Err(ReadError::Busy));
            return;
        }
        let number = self.reads.number();
        match self.core.read_index(number) {
            Ok(()) => self.reads.wait(number, self.core.term(), reader),
            Err(_refused) => {
                let _ = reader.send(Err(ReadError::NotLeader));
            }
        }
    }

    /// Does everything that Raft wants done: writes, applies, takes snapshots, tells who watches.
    /// Returns what is to be sent to other members.
    ///
    /// After an error the member is of no more use.
    pub(super) fn run(&mut self) -> Result<Vec<Message>, NodeError> {
        let mut outbox = Vec::new();
        while let Some(mut step) = self.core.step() {
            outbox.append(&mut step.messages);
            if let Some(write) = &step.write {
                self.log.write(write)?;
            }
            let outcome = step.persisted();
            outbox.extend(outcome.messages);
            if let Some(snapshot) = outcome.snapshot {
                let snapshot = SnapshotRecord::from(&snapshot);
                install(&self.replica, &snapshot)?;
                self.core.applied(snapshot.position());
            }
            for entry in outcome.committed {
                self.apply(entry)?;
            }
            for (number, index) in outcome.reads {
                self.reads.confirm(number, index);
            }
            self.publish();
        }
        self.attach_states(&mut outbox)?;
        self.take_snapshot_if_due()?;
        self.replica.set_members(self.members());
        Ok(outbox)
    }

    /// Puts the states into the snapshots that are to be sent.
    fn attach_states(&self, outbox: &mut [Message]) -> Result<(), NodeError> {
        for message in outbox.iter_mut().filter(|it| it.has_snapshot()) {
            let snapshot = self.log.snapshot()?;
            let outgoing = message.mut_snapshot();
            // They were made from the cache, which is what the log holds.
            *outgoing.mut_metadata() = snapshot.metadata();
            outgoing.data = snapshot.state;
        }
        Ok(())
    }

    fn members(&self) -> Members {
        let members = self.core.members();
        Members {
            voters: members.voters.into_iter().collect(),
            learners: members.learners.into_iter().collect(),
            reachable: self.core.reachable(),
            unheard: self.core.unheard(),
        }
    }

    /// Writes what is only known, so that the next start finds the state where this one left it.
    pub(super) fn close(self) -> Result<(), NodeError> {
        let hard_state = self.core.cache().hard_state().clone();
        Ok(self.log.write(&Write {
            hard_state,
            ..Write::default()
        })?)
    }

    fn apply(&mut self, entry: Entry) -> Result<(), NodeError> {
        let index = entry.index;
        let batch = if entry.entry_type == EntryType::EntryNormal {
            entry.data
        } else {
            self.apply_member(index, &entry.context)?
        };
        let mut own = if entry.term == self.pending_term {
            self.pending.remove(&index)
        } else {
            None
        };
        let changes = match &mut own {
            // Read from the same bytes, before they were proposed.
            Some(proposal) => std::mem::take(&mut proposal.changes),
            // A new leader's first entry is empty, and so is one that gives a member its vote.
            None => decode_batch(&batch).map_err(|source| NodeError::Entry { index, source })?,
        };
        self.replica.apply(index, changes, batch.len());
        self.core.applied(PositionRecord {
            index,
            term: entry.term,
        });
        if let Some(proposal) = own {
            proposal.finish(Ok(()));
        }
        Ok(())
    }

    /// Carries a change of members out; gives the batch that belongs to it.
    fn apply_member(&mut self, index: u64, context: &[u8]) -> Result<Bytes, NodeError> {
        let unreadable = |source| NodeError::MemberChange { index, source };
        let record = MemberChangeRecord::decode(context)
            .map_err(|source| unreadable(RecordError::Decode(source)))?;
        let action = record.action().map_err(unreadable)?;
        self.core.apply_member(action, record.raft_id)?;
        // That it is committed is otherwise written with the next entry only. Who is told that a
        // member left may take it away for good; this one must not come back needing its vote.
        let hard_state = self.core.cache().hard_state().clone();
        self.log.write(&Write {
            hard_state,
            ..Write::default()
        })?;
        tracing::info!(raft_id = record.raft_id, ?action, "the managers changed");
        Ok(record.batch)
    }

    fn publish(&mut self) {
        let (is_leader, term) = (self.core.is_leader(), self.core.term());
        self.reads.follow(is_leader, term);
        self.reads.release(self.core.applied_position().index);
        self.replica.set_leadership(Leadership {
            leader: self.core.is_caught_up_leader(),
            term,
            leader_id: self.core.leader_id(),
        });
        if !is_leader || term != self.pending_term {
            // Whether they are committed is now another leader's business.
            for (_index, proposal) in self.pending.drain() {
                proposal.finish(Err(ProposeError::Unavailable(Unavailable::LeaderChanged)));
            }
        }
    }

    /// Whether there is a member that the newest snapshot does not know, and that would refuse it.
    fn is_snapshot_wanted(&self) -> bool {
        let members = self.core.members();
        let snapshot = self.core.cache().snapshot_metadata();
        let mut ids = members.voters.iter().chain(&members.learners);
        self.core.is_leader() && ids.any(|id| !takes_part(snapshot, *id))
    }

    fn take_snapshot_if_due(&mut self) -> Result<(), NodeError> {
        let cache = self.core.cache();
        let applied = self.core.applied_position();
        let entries = applied.index - cache.snapshot_metadata().index;
        let due = entries >= self.snapshot_interval
            || cache.bytes_since_snapshot() >= SNAPSHOT_BYTES
            || self.is_snapshot_wanted();
        if entries == 0 || !due {
            return Ok(());
        }
        let snapshot = SnapshotRecord {
            index: applied.index,
            term: applied.term,
            members: Some(MembersRecord::from(&self.core.members())),
            state: Bytes::from(self.replica.read(encode_snapshot)),
        };
        let compacted = cache.compaction_point(applied.index);
        self.log.compact(cache.hard_state(), &snapshot, compacted)?;
        self.core.compact(&snapshot, compacted);
        tracing::debug!(
            index = snapshot.index,
            bytes = snapshot.state.len(),
            "took a snapshot"
        );
        Ok(())
    }
}

/// Makes the state that of a snapshot.
fn install(replica: &Replica, snapshot: &SnapshotRecord) -> Result<(), NodeError> {
    let index = snapshot.index;
    let state = decode_snapshot(index, &snapshot.state)
        .map_err(|source| NodeError::Snapshot { index, source })?;
    replica.install(state);
    Ok(())
}
