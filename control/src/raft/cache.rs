//! The log in memory, as raft-rs reads it.

use std::collections::VecDeque;

use raft::eraftpb::{Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::record::{PositionRecord, SnapshotRecord};

/// Entries kept before a snapshot, for managers that are a little behind: sending them is cheaper
/// than a snapshot (swarmkit's `LogEntriesForSlowFollowers`).
const MARGIN_ENTRIES: usize = 500;
/// Most bytes of entries kept before a snapshot; beyond it a snapshot is the cheaper way.
const MARGIN_BYTES: usize = 16 * 1024 * 1024;

/// Everything of the log but the state in its snapshot. Follows the disk: what is put here has been
/// written there.
#[derive(Debug)]
pub(super) struct Cache {
    hard_state: HardState,
    snapshot: SnapshotMetadata,
    /// The place just before the first entry.
    compacted: PositionRecord,
    entries: VecDeque<Entry>,
    /// Bytes of data in the entries after the snapshot.
    bytes_since_snapshot: usize,
}

impl Cache {
    /// The cache of a log; `entries` follow on `compacted` without a gap.
    pub(super) fn new(
        hard_state: HardState,
        snapshot: SnapshotMetadata,
        compacted: PositionRecord,
        entries: Vec<Entry>,
    ) -> Self {
        let since = |entry: &&Entry| entry.index > snapshot.index;
        Self {
            bytes_since_snapshot: entries.iter().filter(since).map(size).sum(),
            hard_state,
            snapshot,
            compacted,
            entries: entries.into(),
        }
    }

    /// The newest hard state.
    pub(super) fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    /// What the newest snapshot is of.
    pub(super) fn snapshot_metadata(&self) -> &SnapshotMetadata {
        &self.snapshot
    }

    /// Bytes that a snapshot taken now would make superfluous.
    pub(super) fn bytes_since_snapshot(&self) -> usize {
        self.bytes_since_snapshot
    }

    /// The entries after `after`, up to `upto`, as far as they are still here.
    pub(super) fn range(&self, after: u64, upto: u64) -> impl Iterator<Item = &Entry> {
        let from = self.position(after.saturating_sub(self.compacted.index));
        let to = self.position(upto.saturating_sub(self.compacted.index));
        self.entries.range(from..to.max(from))
    }

    pub(super) fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    pub(super) fn set_commit(&mut self, commit: u64) {
        self.hard_state.commit = commit;
    }

    /// Replaces the entries from the first of `entries` on.
    pub(super) fn append(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first() else {
            return;
        };
        let keep = first.index.saturating_sub(self.compacted.index + 1);
        let replaced = self.position(keep)..;
        let replaced_bytes: usize = self.entries.drain(replaced).map(|entry| size(&entry)).sum();
        self.bytes_since_snapshot = self.bytes_since_snapshot.saturating_sub(replaced_bytes);
        self.bytes_since_snapshot += entries.iter().map(size).sum::<usize>();
        self.entries.extend(entries);
    }

    /// Replaces everything by a snapshot from the leader.
    pub(super) fn install(&mut self, snapshot: SnapshotMetadata) {
        self.compacted = PositionRecord {
            index: snapshot.index,
            term: snapshot.term,
        };
        self.snapshot = snapshot;
        self.entries.clear();
        self.bytes_since_snapshot = 0;
    }

    /// The last place before `index` that need not be kept once a snapshot is taken at `index`.
    pub(super) fn compaction_point(&self, index: u64) -> PositionRecord {
        let upto = self.position(index.saturating_sub(self.compacted.index));
        let mut bytes = 0;
        let dropped = self
            .entries
            .range(..upto)
            .rev()
            .enumerate()
            .find(|(kept, entry)| {
                bytes += size(entry);
                *kept >= MARGIN_ENTRIES || bytes > MARGIN_BYTES
            });
        dropped.map_or(self.compacted, |(_, entry)| PositionRecord {
            index: entry.index,
            term: entry.term,
        })
    }

    /// Takes note of a snapshot of the own state, and forgets the entries up to `compacted`.
    pub(super) fn compact(&mut self, snapshot: &SnapshotRecord, compacted: PositionRecord) {
        let drop = self.position(compacted.index.saturating_sub(self.compacted.index));
        self.entries.drain(..drop);
        self.compacted = compacted;
        self.snapshot = snapshot.metadata();
        let since = |entry: &&Entry| entry.index > snapshot.index;
        self.bytes_since_snapshot = self.entries.iter().filter(since).map(size).sum();
    }

    /// `count` entries from the front as a position in the queue, never past its end.
    fn position(&self, count: u64) -> usize {
        usize::try_from(count).map_or(self.entries.len(), |count| count.min(self.entries.len()))
    }

    fn last(&self) -> u64 {
        self.entries
            .back()
            .map_or(self.compacted.index, |entry| entry.index)
    }
}

/// Whether `raft_id` was a member when the snapshot was taken.
pub(super) fn takes_part(snapshot: &SnapshotMetadata, raft_id: u64) -> bool {
    let members = snapshot.get_conf_state();
    members.voters.contains(&raft_id) || members.learners.contains(&raft_id)
}

fn size(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len()
}

impl Storage for Cache {
    fn initial_state(&self) -> raft::Result<RaftState> {
        // The members are those of the snapshot: later changes are entries, applied again.
        let members = self.snapshot.get_conf_state().clone();
        Ok(RaftState::new(self.hard_state.clone(), members))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.compacted.index {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let from = self.position(low - self.compacted.index - 1);
        let to = self.position(high - self.compacted.index - 1);
        let mut entries: Vec<Entry> = self.entries.range(from..to).cloned().collect();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.compacted.index {
            return Ok(self.compacted.term);
        }
        if index == self.snapshot.index {
            return Ok(self.snapshot.term);
        }
        let Some(offset) = index.checked_sub(self.compacted.index + 1) else {
            return Err(StorageError::Compacted.into());
        };
        let entry = usize::try_from(offset)
            .ok()
            .and_then(|at| self.entries.get(at));
        entry
            .map(|entry| entry.term)
            .ok_or_else(|| StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.compacted.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Without the state: whoever sends it takes that from the log.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        // A member ignores a snapshot in which it does not take part; a newer one is on its way.
        if request_index > self.snapshot.index || !takes_part(&self.snapshot, to) {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(self.snapshot.clone());
        Ok(snapshot)
    }
}
