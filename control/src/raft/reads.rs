//! Reads that must see everything that was acknowledged before they began (Raft's read index).
//!
//! | a read | waits for |
//! |---|---|
//! | asked | a majority that, asked after the read began, still takes this member for the leader |
//! | confirmed at an index | the state to come to that index |
//! | done | |
//!
//! A majority that follows this member cannot have acknowledged anything to another leader meanwhile.
//! When this member does not lead any more, or in another term, what waits is refused.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::oneshot;

use crate::store::ReadError;

/// Most reads that wait at a time: beyond, people ask faster than the other managers answer.
const READS_MAX: usize = 1024;

/// Where a read's outcome goes; who waits there may have left.
pub(super) type Reader = oneshot::Sender<Result<(), ReadError>>;

/// The reads of one member that wait.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// The number given last.
    last: u64,
    /// The term in which they were asked for.
    term: u64,
    asked: BTreeMap<u64, Reader>,
    /// In the order of their indexes: what is committed only grows.
    confirmed: VecDeque<(u64, Reader)>,
}

impl Reads {
    /// Whether one more may wait; those whose reader has left are forgotten first.
    pub(super) fn have_room(&mut self) -> bool {
        if self.asked.len() + self.confirmed.len() >= READS_MAX {
            self.asked.retain(|_, reader| !reader.is_closed());
            self.confirmed.retain(|(_, reader)| !reader.is_closed());
        }
        self.asked.len() + self.confirmed.len() < READS_MAX
    }

    /// The number of the next read.
    pub(super) fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Lets `reader` wait for read `number`, asked for in `term`.
    pub(super) fn wait(&mut self, number: u64, term: u64, reader: Reader) {
        self.term = term;
        self.asked.insert(number, reader);
    }

    /// Takes note that read `number` is good from `index` on.
    pub(super) fn confirm(&mut self, number: u64, index: u64) {
        if let Some(reader) = self.asked.remove(&number) {
            self.confirmed.push_back((index, reader));
        }
    }

    /// Tells those that the state at `applied` is new enough for.
    pub(super) fn release(&mut self, applied: u64) {
        while let Some((_, reader)) = self.confirmed.pop_front_if(|(index, _)| *index <= applied) {
            let _ = reader.send(Ok(()));
        }
    }

    /// Refuses what waits, unless this member still leads in the term in which it was asked for.
    pub(super) fn follow(&mut self, is_leader: bool, term: u64) {
        if is_leader && term == self.term {
            return;
        }
        let asked = std::mem::take(&mut self.asked).into_values();
        let confirmed = self.confirmed.drain(..).map(|(_, reader)| reader);
        for reader in asked.chain(confirmed) {
            let _ = reader.send(Err(ReadError::NotLeader));
        }
    }
}
