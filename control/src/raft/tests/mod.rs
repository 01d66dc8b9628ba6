//! The log against a medium that fails, restarts, other members, and a clock.

mod alone;
mod cluster;
mod disk;
mod file;
mod member;
mod members;
mod node;
mod peers;
mod reads;

use std::sync::Arc;

use tokio::sync::{Mutex, oneshot};

use super::error::NodeError;
use super::log::Log;
use super::member::{Encoded, Member, bootstrap};
use crate::store::{Change, MemberChange, Proposal, ProposeError, Replica, State};
use disk::Disk;

/// Small, so that tests come past it often.
const SNAPSHOT_INTERVAL: u64 = 5;

/// The outcome of a proposal, once there is one.
type Outcome = oneshot::Receiver<Result<(), ProposeError>>;

/// A member on a medium of its own, without a thread.
struct Running {
    member: Member,
    replica: Arc<Replica>,
    disk: Disk,
}

fn bootstrapped(raft_id: u64) -> Disk {
    let disk = Disk::default();
    let log = Log::with_backend(disk.clone()).unwrap();
    bootstrap(&log, raft_id, Vec::new()).unwrap();
    drop(log);
    disk
}

impl Running {
    /// The member whose log is on `disk`, as it stands before any election.
    fn open(disk: Disk) -> Result<Self, NodeError> {
        let log = Log::with_backend(disk.clone())?;
        let recovered = log.recover()?;
        let replica = Arc::new(Replica::default());
        let mut member = Member::new(log, recovered, Arc::clone(&replica), SNAPSHOT_INTERVAL)?;
        assert!(member.run()?.is_empty());
        Ok(Self {
            member,
            replica,
            disk,
        })
    }

    /// The lone member whose log is on `disk`, leading.
    fn lead(disk: Disk) -> Result<Self, NodeError> {
        let mut running = Self::open(disk)?;
        running.member.campaign()?;
        assert!(running.member.run()?.is_empty());
        assert!(running.replica.leadership().leader);
        Ok(running)
    }

    fn propose(&mut self, changes: &[Change]) -> Outcome {
        self.reconfigure(changes, None)
    }

    fn reconfigure(&mut self, changes: &[Change], member: Option<MemberChange>) -> Outcome {
        let (done, outcome) = oneshot::channel();
        let turn = Arc::new(Mutex::new(())).try_lock_owned().unwrap();
        let encoded = Encoded::of(Proposal {
            changes: changes.to_vec(),
            member,
            term: self.replica.leadership().term,
            done,
            turn,
        });
        self.member.propose(encoded.unwrap());
        outcome
    }

    /// Makes `changes`, and says whether that was acknowledged. Without that, they may be made
    /// all the same; with it, what failed came later.
    fn try_update(&mut self, changes: &[Change]) -> (bool, Result<(), NodeError>) {
        let mut outcome = self.propose(changes);
        let run = self
            .member
            .run()
            .map(|messages| assert!(messages.is_empty()));
        let acknowledged = outcome.try_recv() == Ok(Ok(()));
        assert!(acknowledged || run.is_err());
        (acknowledged, run)
    }

    fn update(&mut self, changes: &[Change]) {
        let (_acknowledged, run) = self.try_update(changes);
        run.unwrap();
    }

    fn state(&self) -> State {
        self.replica.read(State::clone)
    }
}
