//! The records of the log file, and what raft-rs makes of them.
//!
//! Read back by later versions: fields are added, never changed. Each record is sealed
//! (`sealer`), which also shows damage: redb checks its pages only after an unclean end.

use prost::Message;
use prost::bytes::Bytes;
use raft::eraftpb;

/// Which member of Raft the log belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct IdentityRecord {
    #[prost(uint64, tag = "1")]
    pub(super) raft_id: u64,
}

/// What Raft must not forget.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct HardStateRecord {
    #[prost(uint64, tag = "1")]
    pub(super) term: u64,
    #[prost(uint64, tag = "2")]
    pub(super) vote: u64,
    #[prost(uint64, tag = "3")]
    pub(super) commit: u64,
}

/// A place in the log.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct PositionRecord {
    #[prost(uint64, tag = "1")]
    pub(super) index: u64,
    #[prost(uint64, tag = "2")]
    pub(super) term: u64,
}

/// One entry; its index is its key.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct EntryRecord {
    #[prost(uint64, tag = "1")]
    pub(super) term: u64,
    /// 0 normal, 1 and 2 raft-rs's two kinds of membership change.
    #[prost(int32, tag = "2")]
    pub(super) kind: i32,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) data: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) context: Bytes,
}

/// Who takes part.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct MembersRecord {
    #[prost(uint64, repeated, tag = "1")]
    pub(super) voters: Vec<u64>,
    #[prost(uint64, repeated, tag = "2")]
    pub(super) learners: Vec<u64>,
    #[prost(uint64, repeated, tag = "3")]
    pub(super) voters_outgoing: Vec<u64>,
    #[prost(uint64, repeated, tag = "4")]
    pub(super) learners_next: Vec<u64>,
    #[prost(bool, tag = "5")]
    pub(super) auto_leave: bool,
}

/// The state at one place in the log, and who took part then.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct SnapshotRecord {
    #[prost(uint64, tag = "1")]
    pub(super) index: u64,
    #[prost(uint64, tag = "2")]
    pub(super) term: u64,
    #[prost(message, optional, tag = "3")]
    pub(super) members: Option<MembersRecord>,
    /// `swarm.v1.StoreSnapshot`.
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) state: Bytes,
}

/// What an entry that changes the members means. It travels as the entry's context: raft-rs's own form
/// of it, in the entry's data, is only ever read by raft-rs on the leader that made it.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct MemberChangeRecord {
    /// See [`MemberAction`].
    #[prost(int32, tag = "1")]
    pub(super) action: i32,
    #[prost(uint64, tag = "2")]
    pub(super) raft_id: u64,
    /// `swarm.v1.ChangeBatch`, applied in the same moment; empty where nothing is.
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) batch: Bytes,
}

/// What becomes of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemberAction {
    /// It gets the log, and has no vote.
    AddLearner = 1,
    /// The learner votes.
    MakeVoter = 2,
    /// It takes part no longer.
    Remove = 3,
}

impl MemberChangeRecord {
    pub(super) fn action(&self) -> Result<MemberAction, RecordError> {
        use MemberAction::{AddLearner, MakeVoter, Remove};
        [AddLearner, MakeVoter, Remove]
            .into_iter()
            .find(|action| *action as i32 == self.action)
            .ok_or(RecordError::Action(self.action))
    }
}

/// A record that cannot be what was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("a record does not match its checksum")]
    Checksum,
    #[error("a record is damaged, or sealed with another key")]
    Sealed,
    #[error("cannot decode a record")]
    Decode(#[source] prost::DecodeError),
    #[error("a log entry is of kind {0}, which this version does not know")]
    Kind(i32),
    #[error("a change of managers is of kind {0}, which this version does not know")]
    Action(i32),
}

/// The record that `bytes` under `key` hold, as the first version wrote it: in the clear, with a
/// checksum before it.
pub(super) fn read_clear<R: Message + Default>(key: &[u8], bytes: &[u8]) -> Result<R, RecordError> {
    let (sum, body) = bytes.split_first_chunk().ok_or(RecordError::Checksum)?;
    if u64::from_le_bytes(*sum) != checksum(key, body) {
        return Err(RecordError::Checksum);
    }
    R::decode(body).map_err(RecordError::Decode)
}

/// FNV-1a, 64 bits. Sees every single damaged byte, and a record under another's key.
fn checksum(key: &[u8], body: &[u8]) -> u64 {
    key.iter()
        .chain(body)
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

impl From<&eraftpb::HardState> for HardStateRecord {
    fn from(state: &eraftpb::HardState) -> Self {
        Self {
            term: state.term,
            vote: state.vote,
            commit: state.commit,
        }
    }
}

impl From<HardStateRecord> for eraftpb::HardState {
    fn from(record: HardStateRecord) -> Self {
        let HardStateRecord { term, vote, commit } = record;
        Self {
            term,
            vote,
            commit,
            ..Self::default()
        }
    }
}

impl From<&eraftpb::Entry> for EntryRecord {
    fn from(entry: &eraftpb::Entry) -> Self {
        use eraftpb::EntryType::{EntryConfChange, EntryConfChangeV2, EntryNormal};
        Self {
            term: entry.term,
            kind: match entry.entry_type {
                EntryNormal => 0,
                EntryConfChange => 1,
                EntryConfChangeV2 => 2,
            },
            data: entry.data.clone(),
            context: entry.context.clone(),
        }
    }
}

impl EntryRecord {
    /// The entry at `index`.
    pub(super) fn at(self, index: u64) -> Result<eraftpb::Entry, RecordError> {
        use eraftpb::EntryType::{EntryConfChange, EntryConfChangeV2, EntryNormal};
        let Self {
            term,
            kind,
            data,
            context,
        } = self;
        Ok(eraftpb::Entry {
            entry_type: match kind {
                0 => EntryNormal,
                1 => EntryConfChange,
                2 => EntryConfChangeV2,
                other => return Err(RecordError::Kind(other)),
            },
            term,
            index,
            data,
            context,
            ..eraftpb::Entry::default()
        })
    }
}

impl From<&eraftpb::ConfState> for MembersRecord {
    fn from(state: &eraftpb::ConfState) -> Self {
        Self {
            voters: state.voters.clone(),
            learners: state.learners.clone(),
            voters_outgoing: state.voters_outgoing.clone(),
            learners_next: state.learners_next.clone(),
            auto_leave: state.auto_leave,
        }
    }
}

impl From<MembersRecord> for eraftpb::ConfState {
    fn from(record: MembersRecord) -> Self {
        let MembersRecord {
            voters,
            learners,
            voters_outgoing,
            learners_next,
            auto_leave,
        } = record;
        Self {
            voters,
            learners,
            voters_outgoing,
            learners_next,
            auto_leave,
            ..Self::default()
        }
    }
}

impl From<&eraftpb::Snapshot> for SnapshotRecord {
    fn from(snapshot: &eraftpb::Snapshot) -> Self {
        let metadata = snapshot.get_metadata();
        Self {
            index: metadata.index,
            term: metadata.term,
            members: Some(metadata.get_conf_state().into()),
            state: snapshot.data.clone(),
        }
    }
}

impl SnapshotRecord {
    /// What raft-rs knows of a snapshot: everything but the state.
    pub(super) fn metadata(&self) -> eraftpb::SnapshotMetadata {
        let mut metadata = eraftpb::SnapshotMetadata {
            index: self.index,
            term: self.term,
            ..eraftpb::SnapshotMetadata::default()
        };
        metadata.set_conf_state(self.members.clone().unwrap_or_default().into());
        metadata
    }

    pub(super) fn position(&self) -> PositionRecord {
        PositionRecord {
            index: self.index,
            term: self.term,
        }
    }
}

/// The bytes that the first version kept for `record` under `key`.
#[cfg(test)]
pub(super) fn write_clear(key: &[u8], record: &impl Message) -> Vec<u8> {
    let body = record.encode_to_vec();
    let mut bytes = checksum(key, &body).to_le_bytes().to_vec();
    bytes.extend(body);
    bytes
}
