//! One member that goes on without the others, which are lost.
//!
//! The state it goes on with is everything in its log: also what it does not know to be committed, since
//! a majority may have acknowledged it. The log starts again from that state, for a member that has a
//! number of its own, so that nothing which the others still say to the old one is taken.

use prost::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType};

use super::error::{AloneError, NodeError};
use super::log::{Log, Recovered};
use super::record::{
    MemberChangeRecord, MembersRecord, PositionRecord, RecordError, SnapshotRecord,
};
use crate::store::{Change, State, decode_batch, decode_snapshot, encode_batch, encode_snapshot};

/// Makes `raft_id` the only member of `log`. `decide` gives what else changes, from the state that the
/// log holds and the number that the member had. On disk all at once, when this returns.
pub(super) fn go_on_alone<E>(
    log: &Log,
    raft_id: u64,
    decide: impl FnOnce(&State, u64) -> Result<Vec<Change>, E>,
) -> Result<(), AloneError<E>> {
    let recovered = log.recover()?;
    let (mut state, last) = everything(&recovered)?;
    let changes = decide(&state, recovered.raft_id).map_err(AloneError::Refused)?;
    // Through bytes, as every other change: what cannot be read back must not get in. One by one, since
    // together they may be more than a proposal can be.
    let index = last.index + 1;
    for change in changes {
        let (_bytes, changes) = encode_batch(&[change]).map_err(AloneError::Change)?;
        state.apply(index, changes);
    }
    let members = ConfState {
        voters: vec![raft_id],
        ..ConfState::default()
    };
    let snapshot = SnapshotRecord {
        index,
        // Later than any that this member knows of.
        term: recovered.hard_state.term.max(last.term) + 1,
        members: Some(MembersRecord::from(&members)),
        state: encode_snapshot(&state).into(),
    };
    Ok(log.restart(raft_id, &snapshot)?)
}

/// The state with everything in it that the log holds, and the place of the last of it.
fn everything(recovered: &Recovered) -> Result<(State, PositionRecord), NodeError> {
    let snapshot = &recovered.snapshot;
    let index = snapshot.index;
    let mut state = decode_snapshot(index, &snapshot.state)
        .map_err(|source| NodeError::Snapshot { index, source })?;
    let mut last = snapshot.position();
    for entry in recovered.entries.iter().filter(|it| it.index > index) {
        state.apply(entry.index, changes(entry)?);
        last = PositionRecord {
            index: entry.index,
            term: entry.term,
        };
    }
    Ok((state, last))
}

fn changes(entry: &Entry) -> Result<Vec<Change>, NodeError> {
    let index = entry.index;
    let batch = if entry.entry_type == EntryType::EntryNormal {
        entry.data.clone()
    } else {
        let record = MemberChangeRecord::decode(&*entry.context).map_err(|source| {
            let source = RecordError::Decode(source);
            NodeError::MemberChange { index, source }
        })?;
        record.batch
    };
    decode_batch(&batch).map_err(|source| NodeError::Entry { index, source })
}
