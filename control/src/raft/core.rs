//! A pure driver over raft-rs: time, proposals and messages in; what to write, send and apply out.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType, ConfState, Entry, HardState, Message};
use raft::eraftpb::{Snapshot, SnapshotMetadata};
use raft::{ProgressState, RawNode, Ready, SnapshotStatus, StateRole};
use rand::RngExt as _;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng as _;

use super::cache::Cache;
use super::record::{MemberAction, MemberChangeRecord, PositionRecord, SnapshotRecord};
use super::slog_drain;

/// Ticks of silence after which a follower asks for votes, at least; raft-rs draws up to twice as
/// many.
const ELECTION_TICKS: usize = 10;
/// Ticks between two heartbeats of a leader.
const HEARTBEAT_TICKS: usize = 1;
/// Ticks without a message after which a member counts as unreachable: several heartbeats of a
/// leader, and, while nobody leads, the longest time between two requests for votes and their answers.
const REACHABLE_TICKS: u64 = 40;
/// Entries that a learner may lack when it is given its vote. It has them within a round trip.
const CAUGHT_UP_ENTRIES: u64 = 64;
/// Most bytes of entries in one message to a follower, the first entry aside.
const MAX_MESSAGE_BYTES: u64 = 1024 * 1024;
/// Most messages on their way to one follower.
const MAX_IN_FLIGHT_MESSAGES: usize = 64;
/// Most bytes of entries that wait to be committed; proposals beyond are refused.
const MAX_UNCOMMITTED_BYTES: u64 = 16 * 1024 * 1024;
/// Most bytes of entries that are handed out to be applied at once.
const MAX_COMMITTED_BYTES: u64 = 16 * 1024 * 1024;

/// Raft, as one member sees it.
pub(super) struct Core {
    raw: RawNode<Cache>,
    applied: PositionRecord,
    /// Ticks so far.
    ticks: u64,
    /// The tick at which a member was last heard.
    heard: BTreeMap<u64, u64>,
    /// The tick at which this member began to lead, while it does.
    elected: Option<u64>,
    patience: Option<Patience>,
}

/// Election timeouts from a seed, in place of raft-rs's own, which no seed repeats.
struct Patience {
    rng: ChaCha12Rng,
    /// The timeout in force, in ticks.
    ticks: usize,
}

/// What one step of Raft writes, all of it or nothing.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Write {
    pub(super) hard_state: HardState,
    /// Replaces all entries, when there is one.
    pub(super) snapshot: Option<Snapshot>,
    /// Replace those from the index of the first on.
    pub(super) entries: Vec<Entry>,
}

/// What becomes true once a step is written.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Replaces the state; comes before the entries.
    pub(super) snapshot: Option<Snapshot>,
    /// To be applied, in order.
    pub(super) committed: Vec<Entry>,
    /// To be sent to other members.
    pub(super) messages: Vec<Message>,
    /// Reads, by their numbers, that are good from an index on.
    pub(super) reads: Vec<(u64, u64)>,
}

/// A step that Raft wants done. Dropping it without [`Step::persisted`] means that the write
/// failed: the core cannot go on.
pub(super) struct Step<'a> {
    core: &'a mut Core,
    ready: Ready,
    /// What must be on disk before the step counts; none when the disk has it all.
    pub(super) write: Option<Write>,
    /// To be sent at once, without waiting for the disk.
    pub(super) messages: Vec<Message>,
}

/// Why a proposal was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Another member leads, or none.
    NotLeader,
    /// Too much is on its way, another change of members is, or leadership is being handed over.
    Busy,
    /// The change of members does not fit those there are.
    Members,
}

impl Core {
    /// The member `raft_id`, whose state stands at the snapshot of `cache`.
    pub(super) fn new(raft_id: u64, cache: Cache) -> raft::Result<Self> {
        let snapshot = cache.snapshot_metadata();
        let applied = PositionRecord {
            index: snapshot.index,
            term: snapshot.term,
        };
        let config = raft::Config {
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied: applied.index,
            max_size_per_msg: MAX_MESSAGE_BYTES,
            max_inflight_msgs: MAX_IN_FLIGHT_MESSAGES,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: MAX_UNCOMMITTED_BYTES,
            max_committed_size_per_ready: MAX_COMMITTED_BYTES,
            ..raft::Config::new(raft_id)
        };
        let raw = RawNode::new(&config, cache, &slog_drain::logger())?;
        Ok(Self {
            raw,
            applied,
            ticks: 0,
            heard: BTreeMap::new(),
            elected: None,
            patience: None,
        })
    }

    /// Draws election timeouts from `seed` from now on, so that what happens can be repeated.
    pub(super) fn seed_elections(&mut self, seed: u64) {
        self.patience = Some(Patience {
            rng: ChaCha12Rng::seed_from_u64(seed),
            ticks: ELECTION_TICKS,
        });
        self.be_patient();
    }

    /// Puts the seeded timeout in place of the one that raft-rs may just have drawn. It draws one
    /// whenever it begins to wait anew.
    fn be_patient(&mut self) {
        let Some(patience) = &mut self.patience else {
            return;
        };
        let raft = &mut self.raw.raft;
        if raft.election_elapsed == 0 {
            patience.ticks = patience
                .rng
                .random_range(ELECTION_TICKS..2 * ELECTION_TICKS);
        }
        raft.set_randomized_election_timeout(patience.ticks);
    }

    /// Lets one tick of time pass.
    pub(super) fn tick(&mut self) {
        self.ticks += 1;
        self.raw.tick();
        self.give_vote();
        self.step_aside();
        self.note_election();
        self.be_patient();
    }

    /// Asks for votes now instead of after an election timeout.
    pub(super) fn campaign(&mut self) -> raft::Result<()> {
        let asked = self.raw.campaign();
        self.note_election();
        self.be_patient();
        asked
    }

    /// Takes a message from another member.
    ///
    /// # Errors
    /// When raft-rs has no use for it; nothing has changed then.
    pub(super) fn receive(&mut self, message: Message) -> raft::Result<()> {
        let from = message.from;
        if self.raw.raft.prs().get(from).is_some() {
            self.heard.insert(from, self.ticks);
        }
        let taken = self.raw.step(message);
        self.note_election();
        self.be_patient();
        taken
    }

    /// Takes note of when this member began to lead, or that it leads no more.
    fn note_election(&mut self) {
        let began = self.elected.unwrap_or(self.ticks);
        self.elected = self.is_leader().then_some(began);
    }

    /// Takes note that a message to `raft_id` could not be delivered.
    pub(super) fn unreachable(&mut self, raft_id: u64) {
        self.raw.report_unreachable(raft_id);
    }

    /// Takes note of what became of the snapshot that was sent to `raft_id`. Until this is called
    /// nothing more is sent to it.
    pub(super) fn snapshot_sent(&mut self, raft_id: u64, arrived: bool) {
        let status = if arrived {
            SnapshotStatus::Finish
        } else {
            SnapshotStatus::Failure
        };
        self.raw.report_snapshot(raft_id, status);
    }

    /// Lets the member lead that has most of the log, of those that are heard. It has happened when
    /// this one no longer leads; after an election timeout it has failed.
    pub(super) fn hand_over(&mut self) {
        let reachable = self.reachable();
        let members = self.members();
        let progress = self.raw.raft.prs();
        let next = (members.voters.into_iter())
            .filter(|id| *id != self.raw.raft.id && reachable.contains(id))
            .max_by_key(|id| progress.get(*id).map(|it| it.matched));
        if let Some(next) = next
            && self.is_leader()
        {
            self.raw.transfer_leader(next);
        }
    }

    /// Puts `data` at the end of the log, if this member leads; gives its index.
    pub(super) fn propose(&mut self, data: Vec<u8>) -> Result<u64, Refused> {
        if !self.is_leader() {
            // raft-rs would forward it, and nobody would learn what became of it.
            return Err(Refused::NotLeader);
        }
        let taken = self.raw.propose(Vec::new(), data);
        taken.map_err(|_dropped| Refused::Busy)?;
        Ok(self.raw.raft.raft_log.last_index())
    }

    /// Asks the other members whether this one still leads, for the read `number`, which no other one of
    /// this run may have. It is told with an [`Outcome`]; not at all when this member ceases to lead.
    pub(super) fn read_index(&mut self, number: u64) -> Result<(), Refused> {
        // Before its first own entry is committed, a leader may not know all that was.
        if !self.is_caught_up_leader() {
            return Err(Refused::NotLeader);
        }
        self.raw.read_index(number.to_be_bytes().to_vec());
        Ok(())
    }

    /// Puts a change of members at the end of the log, if this member leads; `batch` is applied in
    /// the same moment. Gives the index of both.
    pub(super) fn propose_member(
        &mut self,
        action: MemberAction,
        raft_id: u64,
        batch: Vec<u8>,
    ) -> Result<u64, Refused> {
        if !self.is_leader() {
            return Err(Refused::NotLeader);
        }
        // raft-rs would make an empty entry of a second change, and nobody would hear of it.
        if self.raw.raft.has_pending_conf() || self.raw.raft.lead_transferee.is_some() {
            return Err(Refused::Busy);
        }
        let members = self.members();
        let voter = members.voters.contains(&raft_id);
        let learner = members.learners.contains(&raft_id);
        let fits = match action {
            MemberAction::AddLearner => !voter && !learner && raft_id != raft::INVALID_ID,
            MemberAction::MakeVoter => learner,
            MemberAction::Remove => learner || (voter && members.voters.len() > 1),
        };
        if !fits {
            return Err(Refused::Members);
        }
        let record = MemberChangeRecord {
            action: action as i32,
            raft_id,
            batch: batch.into(),
        };
        let change = conf_change(action, raft_id);
        let taken = (self.raw).propose_conf_change(record.encode_to_vec(), change);
        taken.map_err(|_dropped| Refused::Busy)?;
        Ok(self.raw.raft.raft_log.last_index())
    }

    /// Carries out a change of members that is committed. To be called before [`Core::applied`].
    pub(super) fn apply_member(&mut self, action: MemberAction, raft_id: u64) -> raft::Result<()> {
        self.raw.apply_conf_change(&conf_change(action, raft_id))?;
        if action == MemberAction::Remove {
            self.heard.remove(&raft_id);
        }
        Ok(())
    }

    /// A leader that was removed lets another member lead: raft-rs lets it go on, and refuses whatever it
    /// proposes. It does so after the others were told of the removal, which only a leader tells.
    fn step_aside(&mut self) {
        let raft = &self.raw.raft;
        if raft.prs().get(raft.id).is_none() && raft.lead_transferee.is_none() {
            self.hand_over();
        }
    }

    /// Lets a learner vote that has caught up.
    fn give_vote(&mut self) {
        if !self.is_caught_up_leader() {
            return;
        }
        let raft = &self.raw.raft;
        let last = raft.raft_log.last_index();
        let ready = self.members().learners.into_iter().find(|id| {
            raft.prs().get(*id).is_some_and(|it| {
                // What it has acknowledged it has, however raft-rs sends it the rest.
                it.recent_active
                    && it.state != ProgressState::Snapshot
                    && it.matched > 0
                    && it.matched + CAUGHT_UP_ENTRIES >= last
            })
        });
        if let Some(raft_id) = ready {
            // When it is refused, another tick comes.
            let _ = self.propose_member(MemberAction::MakeVoter, raft_id, Vec::new());
        }
    }

    /// The next step, until there is none.
    pub(super) fn step(&mut self) -> Option<Step<'_>> {
        if !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        let write = ready.must_sync().then(|| Write {
            // Also where Raft reports no change: the commit index moves without one.
            hard_state: self.raw.raft.hard_state(),
            snapshot: (!ready.snapshot().is_empty()).then(|| ready.snapshot().clone()),
            entries: ready.take_entries(),
        });
        let messages = ready.take_messages();
        Some(Step {
            core: self,
            ready,
            write,
            messages,
        })
    }

    /// Takes note that the state now stands at `position`.
    pub(super) fn applied(&mut self, position: PositionRecord) {
        self.applied = position;
        self.raw.advance_apply_to(position.index);
    }

    /// Takes note that a snapshot of the state was written, and entries up to `compacted` removed.
    pub(super) fn compact(&mut self, snapshot: &SnapshotRecord, compacted: PositionRecord) {
        self.raw.mut_store().compact(snapshot, compacted);
    }

    /// Where the state stands.
    pub(super) fn applied_position(&self) -> PositionRecord {
        self.applied
    }

    /// The log as it stands.
    pub(super) fn cache(&self) -> &Cache {
        self.raw.store()
    }

    /// Who takes part now.
    pub(super) fn members(&self) -> ConfState {
        self.raw.raft.prs().conf().to_conf_state()
    }

    /// The members heard a moment ago, and this one.
    pub(super) fn reachable(&self) -> BTreeSet<u64> {
        let members = self.members();
        let recent = |id: &u64| {
            *id == self.raw.raft.id
                || (self.heard.get(id)).is_some_and(|at| self.ticks - at <= REACHABLE_TICKS)
        };
        let ids = members.voters.into_iter().chain(members.learners);
        ids.filter(recent).collect()
    }

    /// The members that a leader has not heard, but may yet: it was elected a moment ago, before which
    /// they had no reason to talk to it. None of anybody else.
    pub(super) fn unheard(&self) -> BTreeSet<u64> {
        let is_new = |at| self.ticks - at <= REACHABLE_TICKS;
        if !self.elected.is_some_and(is_new) {
            return BTreeSet::new();
        }
        let reachable = self.reachable();
        let members = self.members();
        let ids = members.voters.into_iter().chain(members.learners);
        ids.filter(|id| !reachable.contains(id)).collect()
    }

    /// Whether this member alone votes.
    pub(super) fn is_alone(&self) -> bool {
        self.members().voters == [self.raw.raft.id] && self.members().voters_outgoing.is_empty()
    }

    pub(super) fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Whether this member leads and its state holds all that was committed before.
    pub(super) fn is_caught_up_leader(&self) -> bool {
        // A leader's first own entry is committed only with all before it.
        self.is_leader() && self.applied.term == self.term()
    }

    pub(super) fn term(&self) -> u64 {
        self.raw.raft.term
    }

    /// The leader, if known.
    pub(super) fn leader_id(&self) -> Option<u64> {
        Some(self.raw.raft.leader_id).filter(|id| *id != raft::INVALID_ID)
    }
}

/// The number that was given to [`Core::read_index`].
fn read_number(context: &[u8]) -> Option<u64> {
    context.try_into().ok().map(u64::from_be_bytes)
}

/// A change of members in raft-rs's words.
fn conf_change(action: MemberAction, raft_id: u64) -> ConfChange {
    ConfChange {
        change_type: match action {
            MemberAction::AddLearner => ConfChangeType::AddLearnerNode,
            MemberAction::MakeVoter => ConfChangeType::AddNode,
            MemberAction::Remove => ConfChangeType::RemoveNode,
        },
        node_id: raft_id,
        ..ConfChange::default()
    }
}

impl Step<'_> {
    /// Goes on after [`Step::write`] is on disk.
    pub(super) fn persisted(self) -> Outcome {
        let Self {
            core: Core { raw, .. },
            mut ready,
            write,
            messages: _,
        } = self;
        let mut outcome = Outcome::default();
        let cache = raw.mut_store();
        if let Some(write) = write {
            if let Some(snapshot) = write.snapshot {
                cache.install(snapshot.get_metadata().clone());
                outcome.snapshot = Some(snapshot);
            }
            cache.append(write.entries);
            cache.set_hard_state(write.hard_state);
        } else if let Some(hard_state) = ready.hs() {
            cache.set_hard_state(hard_state.clone());
        }
        outcome.messages = ready.take_persisted_messages();
        let reads = ready.take_read_states().into_iter();
        outcome.reads = reads
            .filter_map(|read| Some((read_number(&read.request_ctx)?, read.index)))
            .collect();
        outcome.committed = ready.take_committed_entries();
        let mut light = raw.advance_append(ready);
        if let Some(commit) = light.commit_index() {
            raw.mut_store().set_commit(commit);
        }
        outcome.messages.extend(light.take_messages());
        outcome.committed.extend(light.take_committed_entries());
        outcome
    }
}

/// The metadata of the snapshot that a new log of one member starts from. It stands at index 1, so
/// that a member that joins later starts from a snapshot too, which tells it who takes part.
pub(super) fn first_snapshot(raft_id: u64) -> SnapshotMetadata {
    let members = ConfState {
        voters: vec![raft_id],
        ..ConfState::default()
    };
    let mut metadata = SnapshotMetadata {
        index: 1,
        term: 1,
        ..SnapshotMetadata::default()
    };
    metadata.set_conf_state(members);
    metadata
}
