//! A cluster in memory.

use std::collections::BTreeMap;

use raft::eraftpb::{Message, MessageType};
use rand::RngExt as _;
use rand_chacha::ChaCha12Rng;

use super::super::log::Log;
use super::super::record::{MembersRecord, SnapshotRecord};
use super::*;
use crate::store::encode_snapshot;

/// Members in memory, joined by a network that loses what it is told to.
pub(super) struct Cluster {
    pub(super) members: BTreeMap<u64, Running>,
    /// Raft ids that are cut off.
    pub(super) cut: Vec<u64>,
    /// Kinds of messages that are lost.
    pub(super) lost: Vec<MessageType>,
    /// The share of all others that is lost.
    pub(super) loss: Option<(ChaCha12Rng, f64)>,
}

impl Cluster {
    /// Three voters.
    pub(super) fn new() -> Self {
        let snapshot = SnapshotRecord {
            index: 1,
            term: 1,
            members: Some(MembersRecord {
                voters: vec![1, 2, 3],
                ..MembersRecord::default()
            }),
            state: encode_snapshot(&State::default()).into(),
        };
        let members = (1..=3).map(|raft_id| {
            let disk = Disk::default();
            let log = Log::with_backend(disk.clone()).unwrap();
            log.bootstrap(raft_id, &snapshot).unwrap();
            drop(log);
            (raft_id, Running::open(disk).unwrap())
        });
        Self {
            members: members.collect(),
            cut: Vec::new(),
            lost: Vec::new(),
            loss: None,
        }
    }

    /// One voter, which leads.
    pub(super) fn lone() -> Self {
        let members = BTreeMap::from([(1, Running::lead(bootstrapped(1)).unwrap())]);
        Self {
            members,
            cut: Vec::new(),
            lost: Vec::new(),
            loss: None,
        }
    }

    /// Starts the member `raft_id`, of which nobody knows yet.
    pub(super) fn start(&mut self, raft_id: u64) {
        let disk = Disk::default();
        let log = Log::with_backend(disk.clone()).unwrap();
        log.join(raft_id).unwrap();
        drop(log);
        self.members.insert(raft_id, Running::open(disk).unwrap());
    }

    /// Loses power of the member, and starts it again with what was on disk for certain.
    pub(super) fn restart(&mut self, raft_id: u64) {
        let running = self.members.remove(&raft_id).unwrap();
        let disk = running.disk.after_crash(|| false);
        drop(running);
        self.members.insert(raft_id, Running::open(disk).unwrap());
    }

    fn is_lost(&mut self, message: &Message) -> bool {
        let cut = self.cut.contains(&message.from) || self.cut.contains(&message.to);
        let unlucky = (self.loss.as_mut()).is_some_and(|(rng, share)| rng.random_bool(*share));
        cut || unlucky || self.lost.contains(&message.msg_type)
    }

    pub(super) fn member(&mut self, raft_id: u64) -> &mut Running {
        self.members.get_mut(&raft_id).unwrap()
    }

    /// Carries messages until there are none.
    pub(super) fn settle(&mut self) {
        let mut reports = Vec::new();
        loop {
            let due = std::mem::take(&mut reports);
            let mut messages: Vec<Message> = Vec::new();
            for running in self.members.values_mut() {
                messages.extend(running.member.run().unwrap());
            }
            if messages.is_empty() && due.is_empty() {
                return;
            }
            for message in messages {
                let (from, to, snapshot) = (message.from, message.to, message.has_snapshot());
                let lost = self.is_lost(&message);
                let there = self.members.get_mut(&to).filter(|_| !lost);
                let arrived = there.is_some();
                if let Some(running) = there {
                    running.member.receive(message);
                }
                // What the transport would say.
                let sender = self.member(from);
                if snapshot {
                    // Later than the answer of the one that has it, as it may come.
                    reports.push((from, to, arrived));
                } else if !arrived {
                    sender.member.unreachable(to);
                }
            }
            for (from, to, arrived) in due {
                self.member(from).member.snapshot_sent(to, arrived);
            }
        }
    }

    pub(super) fn tick(&mut self, ticks: usize) {
        for _ in 0..ticks {
            for running in self.members.values_mut() {
                running.member.tick();
            }
            self.settle();
        }
    }

    pub(super) fn leader(&self) -> Option<u64> {
        let mut leaders = self.members.iter().filter(|(raft_id, running)| {
            running.replica.leadership().leader && !self.cut.contains(raft_id)
        });
        let leader = leaders.next().map(|(raft_id, _)| *raft_id);
        assert!(leaders.next().is_none(), "two leaders");
        leader
    }

    /// Whoever leads in the newest term, cut off or not.
    pub(super) fn any_leader(&self) -> Option<u64> {
        let leads = |(raft_id, running): (&u64, &Running)| {
            let leadership = running.replica.leadership();
            leadership.leader.then_some((leadership.term, *raft_id))
        };
        self.members
            .iter()
            .filter_map(leads)
            .max()
            .map(|(_, raft_id)| raft_id)
    }

    /// Elects `raft_id`.
    pub(super) fn elect(&mut self, raft_id: u64) {
        self.member(raft_id).member.campaign().unwrap();
        self.settle();
        assert_eq!(self.leader(), Some(raft_id));
    }
}
