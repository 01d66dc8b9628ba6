//! Raft's messages as they travel between managers, and what is believed of them.
//!
//! raft-rs ends the process on a message that contradicts itself, so what could not have been sent by
//! another raft-rs is refused here.

use raft::eraftpb::{self, ConfState, Entry, EntryType, Message, MessageType, SnapshotMetadata};
use swarm_api::v1;

/// Most entries in one message: heartbeats carry none, and a message of a megabyte with more would hold
/// next to nothing in each.
const ENTRIES_MAX: usize = 64 * 1024;

/// Most members that a snapshot may name; a swarm has seven managers at most.
const MEMBERS_MAX: usize = 64;

/// A message that no manager of this version sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("a message between managers is of a kind that this version does not know")]
    Kind,
    #[error("a message between managers contradicts itself: {0}")]
    Contradiction(&'static str),
}

/// The kinds that travel, in both forms.
const KINDS: [(v1::RaftMessageKind, MessageType); 10] = {
    use MessageType as Raft;
    use v1::RaftMessageKind as Wire;
    [
        (Wire::Append, Raft::MsgAppend),
        (Wire::AppendResponse, Raft::MsgAppendResponse),
        (Wire::RequestVote, Raft::MsgRequestVote),
        (Wire::RequestVoteResponse, Raft::MsgRequestVoteResponse),
        (Wire::Snapshot, Raft::MsgSnapshot),
        (Wire::Heartbeat, Raft::MsgHeartbeat),
        (Wire::HeartbeatResponse, Raft::MsgHeartbeatResponse),
        (Wire::TimeoutNow, Raft::MsgTimeoutNow),
        (Wire::RequestPreVote, Raft::MsgRequestPreVote),
        (
            Wire::RequestPreVoteResponse,
            Raft::MsgRequestPreVoteResponse,
        ),
    ]
};

/// `message` as it travels, a snapshot without its state.
pub(super) fn to_wire(message: Message) -> Result<v1::RaftMessage, WireError> {
    let kind = (KINDS.iter())
        .find(|(_, raft)| *raft == message.msg_type)
        .map(|(wire, _)| *wire)
        .ok_or(WireError::Kind)?;
    let snapshot = message.has_snapshot().then(|| {
        let metadata = message.get_snapshot().get_metadata();
        v1::RaftSnapshot {
            index: metadata.index,
            term: metadata.term,
            voters: metadata.get_conf_state().voters.clone(),
            learners: metadata.get_conf_state().learners.clone(),
        }
    });
    Ok(v1::RaftMessage {
        kind: kind.into(),
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.into_iter().map(entry_to_wire).collect(),
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot,
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context.to_vec(),
        priority: message.priority,
    })
}

fn entry_to_wire(entry: Entry) -> v1::RaftEntry {
    let kind = match entry.entry_type {
        EntryType::EntryNormal => v1::RaftEntryKind::Normal,
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
            v1::RaftEntryKind::MemberChange
        }
    };
    v1::RaftEntry {
        kind: kind.into(),
        term: entry.term,
        index: entry.index,
        data: entry.data.to_vec(),
        context: entry.context.to_vec(),
    }
}

/// What travelled as `message`; a snapshot has no state yet.
pub(super) fn from_wire(message: v1::RaftMessage) -> Result<Message, WireError> {
    let kind = message.kind();
    let v1::RaftMessage {
        kind: _,
        to,
        from,
        term,
        log_term,
        index,
        entries,
        commit,
        commit_term,
        snapshot,
        request_snapshot,
        reject,
        reject_hint,
        context,
        priority,
    } = message;
    let msg_type = (KINDS.iter())
        .find(|(wire, _)| *wire == kind)
        .map(|(_, raft)| *raft)
        .ok_or(WireError::Kind)?;
    if term == 0 {
        return Err(WireError::Contradiction("it is of no term"));
    }
    if (msg_type == MessageType::MsgSnapshot) != snapshot.is_some() {
        return Err(WireError::Contradiction("a snapshot is in the wrong place"));
    }
    if msg_type != MessageType::MsgAppend && !entries.is_empty() {
        return Err(WireError::Contradiction("entries are in the wrong place"));
    }
    let mut read = Message {
        msg_type,
        to,
        from,
        term,
        log_term,
        index,
        entries: read_entries(entries, index, log_term, term)?.into(),
        commit,
        commit_term,
        request_snapshot,
        reject,
        reject_hint,
        context: context.into(),
        priority,
        ..Message::default()
    };
    if let Some(snapshot) = snapshot {
        read.mut_snapshot().set_metadata(read_snapshot(snapshot)?);
    }
    Ok(read)
}

/// The entries of a message of `term`, which follow on the one at `index` of term `log_term`.
fn read_entries(
    entries: Vec<v1::RaftEntry>,
    index: u64,
    log_term: u64,
    term: u64,
) -> Result<Vec<Entry>, WireError> {
    if entries.len() > ENTRIES_MAX {
        return Err(WireError::Contradiction("it has too many entries"));
    }
    let (mut last_index, mut last_term) = (index, log_term);
    let mut read = Vec::with_capacity(entries.len());
    for entry in entries {
        if last_index.checked_add(1) != Some(entry.index) {
            return Err(WireError::Contradiction("its entries have a gap"));
        }
        if entry.term < last_term || entry.term > term {
            return Err(WireError::Contradiction(
                "an entry is of an impossible term",
            ));
        }
        (last_index, last_term) = (entry.index, entry.term);
        read.push(Entry {
            entry_type: match v1::RaftEntryKind::try_from(entry.kind) {
                Ok(v1::RaftEntryKind::Normal) => EntryType::EntryNormal,
                Ok(v1::RaftEntryKind::MemberChange) => EntryType::EntryConfChange,
                Err(_) => return Err(WireError::Kind),
            },
            term: entry.term,
            index: entry.index,
            data: entry.data.into(),
            context: entry.context.into(),
            ..Entry::default()
        });
    }
    Ok(read)
}

fn read_snapshot(snapshot: v1::RaftSnapshot) -> Result<SnapshotMetadata, WireError> {
    let v1::RaftSnapshot {
        index,
        term,
        voters,
        learners,
    } = snapshot;
    let mut members: Vec<_> = voters.iter().chain(&learners).collect();
    members.sort_unstable();
    let count = members.len();
    members.dedup();
    if index == 0 || term == 0 {
        return Err(WireError::Contradiction("its snapshot is of nothing"));
    }
    if voters.is_empty() || count > MEMBERS_MAX || members.len() < count || *members[0] == 0 {
        return Err(WireError::Contradiction(
            "its snapshot has impossible members",
        ));
    }
    let mut metadata = eraftpb::SnapshotMetadata {
        index,
        term,
        ..eraftpb::SnapshotMetadata::default()
    };
    metadata.set_conf_state(ConfState {
        voters,
        learners,
        ..ConfState::default()
    });
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn append() -> v1::RaftMessage {
        let entry = |index, term| v1::RaftEntry {
            index,
            term,
            data: vec![1, 2],
            context: vec![3],
            kind: v1::RaftEntryKind::MemberChange.into(),
        };
        v1::RaftMessage {
            kind: v1::RaftMessageKind::Append.into(),
            to: 2,
            from: 1,
            term: 5,
            log_term: 3,
            index: 7,
            entries: vec![entry(8, 3), entry(9, 5)],
            commit: 7,
            commit_term: 3,
            priority: -1,
            context: vec![9],
            ..v1::RaftMessage::default()
        }
    }

    fn snapshot() -> v1::RaftMessage {
        v1::RaftMessage {
            kind: v1::RaftMessageKind::Snapshot.into(),
            to: 2,
            from: 1,
            term: 5,
            snapshot: Some(v1::RaftSnapshot {
                index: 10,
                term: 4,
                voters: vec![1, 3],
                learners: vec![2],
            }),
            ..v1::RaftMessage::default()
        }
    }

    #[test]
    fn a_message_arrives_as_it_was_sent() {
        let response = v1::RaftMessage {
            kind: v1::RaftMessageKind::AppendResponse.into(),
            to: 1,
            from: 2,
            term: 5,
            index: 9,
            reject: true,
            reject_hint: 4,
            request_snapshot: 6,
            ..v1::RaftMessage::default()
        };
        for message in [append(), snapshot(), response] {
            let there = from_wire(message.clone()).unwrap();
            assert_eq!(to_wire(there), Ok(message));
        }
    }

    #[test]
    fn what_only_a_member_says_to_itself_does_not_travel() {
        for msg_type in [
            MessageType::MsgHup,
            MessageType::MsgUnreachable,
            MessageType::MsgPropose,
            MessageType::MsgReadIndex,
        ] {
            let message = Message {
                msg_type,
                ..Message::default()
            };
            assert_eq!(to_wire(message), Err(WireError::Kind));
        }
    }

    #[test]
    fn contradictions_are_refused() {
        type Damage = fn(&mut v1::RaftMessage);
        let cases: [(&str, v1::RaftMessage, Damage); 10] = [
            ("kind", append(), |it| it.kind = 99),
            ("no kind", append(), |it| it.kind = 0),
            ("no term", append(), |it| it.term = 0),
            ("gap", append(), |it| it.entries[1].index = 10),
            ("last index", append(), |it| it.index = u64::MAX),
            ("later term", append(), |it| it.entries[1].term = 6),
            ("earlier term", append(), |it| it.entries[1].term = 2),
            ("entries", snapshot(), |it| it.entries = append().entries),
            ("no snapshot", snapshot(), |it| it.snapshot = None),
            ("twice a member", snapshot(), |it| {
                it.snapshot.as_mut().unwrap().learners = vec![1];
            }),
        ];
        for (what, mut message, damage) in cases {
            damage(&mut message);
            assert!(from_wire(message).is_err(), "{what}");
        }
    }

    proptest! {
        #[test]
        fn bytes_never_panic(bytes: Vec<u8>) {
            if let Ok(message) = v1::RaftMessage::decode(bytes.as_slice()) {
                let _ = from_wire(message);
            }
        }

        #[test]
        fn a_damaged_message_is_refused_or_whole(
            at: prop::sample::Index,
            value: u8,
            of_snapshot: bool,
        ) {
            let mut bytes = if of_snapshot { snapshot() } else { append() }.encode_to_vec();
            let at = at.index(bytes.len());
            bytes[at] = value;
            if let Ok(Ok(message)) = v1::RaftMessage::decode(bytes.as_slice()).map(from_wire) {
                prop_assert!(to_wire(message).is_ok());
            }
        }
    }
}
