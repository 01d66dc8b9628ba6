//! The thread that runs a member: it gives it a clock and a queue, and tells how it ended.
//!
//! What the member wants sent goes to [`Node::transport`]; what others sent goes in through [`Inbox`]. Both queues are bounded. A message that finds no room is lost, as one on the network
//! may be: Raft sends again what matters.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use raft::eraftpb::Message;
use swarm_model::UnlockKey;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::alone::go_on_alone;
use super::error::{AloneError, NodeError, StartError};
use super::key_file::{KeptKey, SealedKey};
use super::log::{Log, LogError};
use super::member::{Encoded, Member, SNAPSHOT_INTERVAL, bootstrap};
use super::reads::Reader;
use super::serve::RaftService;
use super::transport::{AddressBook, Superseded, Transport};
use crate::seal::Seal;
use crate::serve::Dialer;
use crate::store::{
    Backend, Change, Leadership, Proposal, ProposeError, ReadError, Replica, State, Store,
    Unavailable,
};

/// Time between two ticks of Raft: ten without a heartbeat make a follower ask for votes.
const TICK: Duration = Duration::from_millis(100);
/// Most ticks made up for after the thread could not run, on a suspended machine for one: as many
/// as a leader needs to find out that its followers are gone.
const MAX_MISSED_TICKS: u32 = 10;
/// Most inputs waiting for the thread. A store has one update on its way at a time; the rest are
/// messages of at most six other managers, each of about a megabyte at most.
const QUEUE_LENGTH: usize = 64;
/// Messages waiting for the transport, which only sorts them into queues of its own: a step of Raft
/// makes a few for each of six others.
const OUTGOING_LENGTH: usize = 1024;
/// Pause before a message that found no room is tried again: a write to a busy disk.
const ROOM_PAUSE: Duration = Duration::from_millis(5);
/// How often it is tried. A member that does not take it for so long is as good as down.
const ROOM_TRIES: u32 = 200;

/// Where a log is.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Its directory; made, for its owner only, where it is missing.
    pub(crate) dir: PathBuf,
    /// Opens its key, if that is sealed.
    pub(crate) unlock: Option<UnlockKey>,
}

/// A running member of Raft. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Node {
    raft_id: u64,
    inputs: SyncSender<Input>,
    stop: Arc<AtomicBool>,
    ended: oneshot::Receiver<Result<(), NodeError>>,
    outgoing: Option<mpsc::Receiver<Message>>,
    kept_key: Option<KeptKey>,
    file_seal: Seal,
}

enum Input {
    Propose(Encoded),
    ReadIndex(Reader),
    Receive(Box<Message>),
    Unreachable(u64),
    SnapshotSent {
        raft_id: u64,
        arrived: bool,
    },
    HandOver,
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
        let log = Log::open_or_create(&config.dir, config.unlock.as_ref())?;
        bootstrap(&log, raft_id, initial)?;
        Self::start(log)
    }

    /// Makes a new log of the member `raft_id`, which the other members will send everything, and
    /// runs it. The store is empty until they do. Blocks for a few writes to the disk.
    ///
    /// # Errors
    /// [`super::LogError::Exists`] where there is a log; nothing is changed then.
    pub(crate) fn join(config: &Config, raft_id: u64) -> Result<(Store, Self), StartError> {
        let log = Log::open_or_create(&config.dir, config.unlock.as_ref())?;
        log.join(raft_id)?;
        Self::start(log)
    }

    /// Runs the log that is in `config.dir`. The store holds all that this member has written down
    /// and knows to be committed; that of a lone member leads already. Blocks while the log is read
    /// and for a few writes to the disk.
    ///
    /// # Errors
    /// [`super::LogError::Missing`] where there is no log, [`super::LogError::Locked`] while
    /// another process has it open.
    pub(crate) fn open(config: &Config) -> Result<(Store, Self), StartError> {
        Self::start(Log::open(&config.dir, config.unlock.as_ref())?)
    }

    /// Makes the member whose log is in `config.dir` its only one, as `raft_id`, with everything that
    /// the log holds and what `decide` gives for that state and the number the member had. Not to be
    /// called while other members may come back as such. Does not run it.
    ///
    /// # Errors
    /// As [`Node::open`], and what `decide` refuses; nothing has changed then.
    pub(crate) fn go_on_alone<E>(
        config: &Config,
        raft_id: u64,
        decide: impl FnOnce(&State, u64) -> Result<Vec<Change>, E>,
    ) -> Result<(), AloneError<E>> {
        go_on_alone(
            &Log::open(&config.dir, config.unlock.as_ref())?,
            raft_id,
            decide,
        )
    }

    fn start(log: Log) -> Result<(Store, Self), StartError> {
        let (kept_key, file_seal) = (log.kept_key().cloned(), log.file_seal().clone());
        let recovered = log.recover()?;
        let raft_id = recovered.raft_id;
        let replica = Arc::new(Replica::default());
        let mut member = Member::new(log, recovered, Arc::clone(&replica), SNAPSHOT_INTERVAL)?;
        // Here rather than on the thread, so that the caller gets a store that is as full as the
        // log and, where this member is alone, leads: there is nobody whose vote, or silence, would
        // have to be waited for. Nothing is sent before time passes, so nothing is lost either.
        member.run()?;
        if member.is_alone() {
            member.campaign()?;
            member.run()?;
        }
        let (outbox, outgoing) = mpsc::channel(OUTGOING_LENGTH);
        let (inputs, queue) = sync_channel(QUEUE_LENGTH);
        let (end, ended) = oneshot::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = Thread {
            member,
            queue,
            outbox,
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
        let backend = RaftBackend {
            inputs: inputs.clone(),
        };
        let node = Self {
            raft_id,
            inputs,
            stop,
            ended,
            outgoing: Some(outgoing),
            kept_key,
            file_seal,
        };
        Ok((Store::new(replica, Arc::new(backend)), node))
    }

    /// The log's key in `config.dir`, if it is sealed.
    pub(crate) fn sealed_key(config: &Config) -> Result<Option<SealedKey>, LogError> {
        Log::sealed_key(&config.dir)
    }

    /// How the log's key is kept; none where it is not in a file.
    pub(crate) fn kept_key(&self) -> Option<&KeptKey> {
        self.kept_key.as_ref()
    }

    /// What seals this manager's other files.
    pub(crate) fn file_seal(&self) -> &Seal {
        &self.file_seal
    }

    /// This member's number in Raft.
    pub(crate) fn raft_id(&self) -> u64 {
        self.raft_id
    }

    /// What takes the messages of other managers.
    pub(crate) fn service(&self, store: &Store, book: &AddressBook) -> RaftService {
        RaftService::new(self.inbox(), store.clone(), book.clone())
    }

    /// Sends what this member has to say to the others, over connections of `dialer`, for as long as it
    /// runs, or until another manager tells it that they have gone on without it. They reach it at
    /// `address`. None the second time: each message is sent once.
    pub(crate) fn transport(
        &mut self,
        book: AddressBook,
        dialer: Dialer,
        address: SocketAddr,
    ) -> Option<impl Future<Output = Result<(), Superseded>> + Send + 'static> {
        let outgoing = self.outgoing.take()?;
        let transport = Transport {
            inbox: self.inbox(),
            book,
            dialer,
            address,
        };
        Some(transport.run(outgoing))
    }

    fn inbox(&self) -> Inbox {
        Inbox {
            raft_id: self.raft_id,
            inputs: self.inputs.clone(),
        }
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

/// Gives a member what comes from others. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Inbox {
    raft_id: u64,
    inputs: SyncSender<Input>,
}

/// The member takes nothing: it has ended, or its disk is stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this manager's log takes no messages: see the manager's own log for the cause")]
pub(super) struct Stuck;

impl Inbox {
    /// The member's number.
    pub(super) fn raft_id(&self) -> u64 {
        self.raft_id
    }

    /// Gives it a message. Waits for room, so that the sender is slowed down, not for its effect.
    pub(super) async fn receive(&self, message: Message) -> Result<(), Stuck> {
        self.give(Input::Receive(Box::new(message))).await
    }

    /// Tells it that a message to `raft_id` was not delivered. Not worth waiting for.
    pub(super) fn unreachable(&self, raft_id: u64) {
        let _ = self.inputs.try_send(Input::Unreachable(raft_id));
    }

    /// Tells it whether the snapshot to `raft_id` arrived.
    pub(super) async fn snapshot_sent(&self, raft_id: u64, arrived: bool) -> Result<(), Stuck> {
        self.give(Input::SnapshotSent { raft_id, arrived }).await
    }

    async fn give(&self, mut input: Input) -> Result<(), Stuck> {
        for _ in 0..ROOM_TRIES {
            match self.inputs.try_send(input) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(_)) => return Err(Stuck),
                Err(TrySendError::Full(back)) => input = back,
            }
            sleep(ROOM_PAUSE).await;
        }
        Err(Stuck)
    }
}

/// Encodes proposals and queues them for the thread.
struct RaftBackend {
    inputs: SyncSender<Input>,
}

impl Backend for RaftBackend {
    fn propose(&self, proposal: Proposal) {
        let Some(encoded) = Encoded::of(proposal) else {
            return;
        };
        let (cause, input) = match self.inputs.try_send(Input::Propose(encoded)) {
            Ok(()) => return,
            Err(TrySendError::Full(input)) => (Unavailable::Busy, input),
            Err(TrySendError::Disconnected(input)) => (Unavailable::Stopped, input),
        };
        if let Input::Propose(encoded) = input {
            encoded.refuse(ProposeError::Unavailable(cause));
        }
    }

    fn read_index(&self, done: Reader) {
        let (cause, input) = match self.inputs.try_send(Input::ReadIndex(done)) {
            Ok(()) => return,
            Err(TrySendError::Full(input)) => (ReadError::Busy, input),
            Err(TrySendError::Disconnected(input)) => (ReadError::Stopped, input),
        };
        if let Input::ReadIndex(done) = input {
            let _ = done.send(Err(cause));
        }
    }

    fn hand_over(&self) {
        // Whoever wants it watches the leadership, and asks again.
        let _ = self.inputs.try_send(Input::HandOver);
    }
}

struct Thread {
    member: Member,
    queue: Receiver<Input>,
    outbox: mpsc::Sender<Message>,
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
            outbox,
            stop,
            resign: _resign,
        } = self;
        let mut next_tick = Instant::now() + TICK;
        while !stop.load(Ordering::Acquire) {
            match queue.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(input) => {
                    take(&mut member, input);
                    // What came meanwhile shares the write to the disk.
                    for input in queue.try_iter().take(QUEUE_LENGTH) {
                        take(&mut member, input);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
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
            for message in member.run()? {
                // Without a transport, or one that keeps up, it is lost; Raft sends it again, but a
                // snapshot only when it hears of it.
                let lost = outbox
                    .try_send(message)
                    .err()
                    .map(mpsc::error::TrySendError::into_inner);
                if let Some(lost) = lost.filter(Message::has_snapshot) {
                    member.snapshot_sent(lost.to, false);
                }
            }
        }
        member.close()
    }
}

fn take(member: &mut Member, input: Input) {
    match input {
        Input::Propose(encoded) => member.propose(encoded),
        Input::ReadIndex(reader) => member.read_index(reader),
        Input::Receive(message) => member.receive(*message),
        Input::Unreachable(raft_id) => member.unreachable(raft_id),
        Input::SnapshotSent { raft_id, arrived } => member.snapshot_sent(raft_id, arrived),
        Input::HandOver => member.hand_over(),
        Input::Wake => {}
    }
}
