//! The thread that runs a member: it gives it a clock and a queue, and tells how it ended.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::error::{NodeError, StartError};
use super::log::Log;
use super::member::{Encoded, Member, SNAPSHOT_INTERVAL, bootstrap};
use crate::store::{
    Backend, Change, Leadership, Proposal, ProposeError, Replica, Store, Unavailable, encode_batch,
};

/// Time between two ticks of Raft: ten without a heartbeat make a follower ask for votes.
const TICK: Duration = Duration::from_millis(100);
/// Most ticks made up for after the thread could not run, on a suspended machine for one: as many
/// as a leader needs to find out that its followers are gone.
const MAX_MISSED_TICKS: u32 = 10;
/// Most inputs waiting for the thread. A store has one update on its way at a time, so this is
/// never filled by updates alone.
const QUEUE_LENGTH: usize = 16;

/// Where a log is.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Its directory; made, for its owner only, where it is missing.
    pub(crate) dir: PathBuf,
}

/// A running member of Raft. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Node {
    raft_id: u64,
    inputs: SyncSender<Input>,
    stop: Arc<AtomicBool>,
    ended: oneshot::Receiver<Result<(), NodeError>>,
}

enum Input {
    Propose(Encoded),
    /// Look whether to stop.
    Wake,
}

impl Node {
    /// Makes a new log of one member, `raft_id`, whose state is `initial`, and runs it. The store
    /// leads already. Blocks for a few writes to the disk.
    ///
    /// # Errors
    /// [`super::LogError::Exists`] where there is a log; nothing is changed then.
    pub(crate) fn bootstrap(
        config: &Config,
        raft_id: u64,
        initial: Vec<Change>,
    ) -> Result<(Store, Self), StartError> {
        let log = Log::open_or_create(&config.dir)?;
        bootstrap(&log, raft_id, initial)?;
        Self::start(log)
    }

    /// Runs the log that is in `config.dir`. The store holds all that was ever acknowledged, and
    /// leads already. Blocks while the log is read and for a few writes to the disk.
    ///
    /// # Errors
    /// [`super::LogError::Missing`] where there is no log, [`super::LogError::Locked`] while
    /// another process has it open.
    pub(crate) fn open(config: &Config) -> Result<(Store, Self), StartError> {
        Self::start(Log::open(&config.dir)?)
    }

    fn start(log: Log) -> Result<(Store, Self), StartError> {
        let recovered = log.recover()?;
        let raft_id = recovered.raft_id;
        let replica = Arc::new(Replica::default());
        let mut member = Member::new(log, recovered, Arc::clone(&replica), SNAPSHOT_INTERVAL)?;
        if !member.is_alone() {
            return Err(StartError::OtherMembers);
        }
        // Here rather than on the thread, so that the caller gets a store that is as full as the
        // log and leads: there is nobody whose vote, or silence, would have to be waited for.
        member.run()?;
        member.campaign()?;
        member.run()?;
        let (inputs, queue) = sync_channel(QUEUE_LENGTH);
        let (end, ended) = oneshot::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = Thread {
            member,
            queue,
            stop: Arc::clone(&stop),
            resign: Resign(Arc::clone(&replica)),
        };
        thread::Builder::new()
            .name("raft".to_owned())
            .spawn(move || {
                // Nobody listens when the node was dropped.
                let _ = end.send(thread.run());
            })
            .map_err(StartError::Thread)?;
        let backend = RaftBackend::new(inputs.clone());
        let node = Self {
            raft_id,
            inputs,
            stop,
            ended,
        };
        Ok((Store::new(replica, Arc::new(backend)), node))
    }

    /// This member's number in Raft.
    pub(crate) fn raft_id(&self) -> u64 {
        self.raft_id
    }

    /// Waits until the node has ended, which by itself it only does when something is wrong. The
    /// process then has no more use: what stands in its memory may not be on disk.
    pub(crate) async fn ended(&mut self) -> Result<(), NodeError> {
        (&mut self.ended).await.unwrap_or(Err(NodeError::Panicked))
    }

    /// Stops the node and waits until the log is closed: at most as long as one write takes.
    pub(crate) async fn stop(mut self) -> Result<(), NodeError> {
        self.request_stop();
        self.ended().await
    }

    /// Asks the thread to end.
    pub(super) fn request_stop(&self) {
        self.stop.store(true, Ordering::Release);
        // When the queue is full the thread is awake anyway.
        let _ = self.inputs.try_send(Input::Wake);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.request_stop();
    }
}

/// Encodes proposals and queues them for the thread.
struct RaftBackend {
    inputs: SyncSender<Input>,
    /// Upper half of the proposal ids of this run: those of an earlier run, still in the log, must
    /// not be taken for this one's.
    nonce: u32,
    next: AtomicU32,
}

impl RaftBackend {
    fn new(inputs: SyncSender<Input>) -> Self {
        Self {
            inputs,
            nonce: rand::random(),
            next: AtomicU32::new(0),
        }
    }
}

impl Backend for RaftBackend {
    fn propose(&self, mut proposal: Proposal) {
        // Wraps after four thousand million updates, when the first are long applied.
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let id = u64::from(self.nonce) << 32 | u64::from(number);
        let changes = std::mem::take(&mut proposal.changes);
        let bytes = match encode_batch(id, &changes) {
            Ok(bytes) => bytes,
            Err(refused) => return proposal.finish(Err(refused)),
        };
        let encoded = Encoded {
            id,
            bytes,
            proposal,
        };
        let (cause, input) = match self.inputs.try_send(Input::Propose(encoded)) {
            Ok(()) => return,
            Err(TrySendError::Full(input)) => (Unavailable::Busy, input),
            Err(TrySendError::Disconnected(input)) => (Unavailable::Stopped, input),
        };
        if let Input::Propose(encoded) = input {
            encoded
                .proposal
                .finish(Err(ProposeError::Unavailable(cause)));
        }
    }
}

struct Thread {
    member: Member,
    queue: Receiver<Input>,
    stop: Arc<AtomicBool>,
    resign: Resign,
}

/// However the thread ends, nobody may go on believing that this manager leads.
struct Resign(Arc<Replica>);

impl Drop for Resign {
    fn drop(&mut self) {
        let term = self.0.leadership().term;
        self.0.set_leadership(Leadership {
            leader: false,
            term,
            leader_id: None,
        });
    }
}

impl Thread {
    fn run(self) -> Result<(), NodeError> {
        let Self {
            mut member,
            queue,
            stop,
            resign: _resign,
        } = self;
        let mut next_tick = Instant::now() + TICK;
        while !stop.load(Ordering::Acquire) {
            match queue.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(Input::Propose(encoded)) => member.propose(encoded),
                Ok(Input::Wake) | Err(RecvTimeoutError::Timeout) => {}
                // The node and every store are gone.
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let now = Instant::now();
            for _ in 0..MAX_MISSED_TICKS {
                if next_tick > now {
                    break;
                }
                member.tick();
                next_tick += TICK;
            }
            next_tick = next_tick.max(now);
            // Alone in Raft there is nobody to send to.
            member.run()?;
        }
        member.close()
    }
}
