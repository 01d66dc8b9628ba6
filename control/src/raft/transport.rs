//! Carries what this member wants sent to the others: a queue and a stream for each.
//!
//! A message that finds no room in its queue is dropped, the newest one: those before it are what the
//! other side needs first, and Raft sends again what got lost. When a manager cannot be reached its
//! whole queue is dropped: what was to be said is said anew once it is back. A snapshot goes beside the
//! queue, on a call of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::bytes::Bytes;
use raft::eraftpb::Message;
use swarm_api::v1;
use swarm_api::v1::raft_client::RaftClient;
use swarm_api::v1::raft_delivery::Delivery;
use swarm_api::v1::raft_snapshot_part::Part;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::node::Inbox;
use super::wire::to_wire;
use crate::serve::{DialError, Dialer, EPOCH_HEADER};
use crate::store::{State, Store};

/// Messages that wait for one manager. A leader has 64 with entries on their way at most; the rest
/// are heartbeats and answers.
const QUEUE_LENGTH: usize = 128;

/// Messages handed to the stream and not written yet.
const STREAM_LENGTH: usize = 4;

/// Time that a stream gets to take a message. A manager that reads nothing for so long is as good as
/// down.
const SEND_DEADLINE: Duration = Duration::from_secs(2);

/// Pause after a manager could not be reached: short, since a new leader is to be heard within an
/// election timeout, long enough not to fill its backlog.
const DIAL_PAUSE: Duration = Duration::from_millis(250);

/// Bytes of a snapshot in one message.
const PART_BYTES: usize = 256 * 1024;

/// Time that a snapshot gets to arrive: the largest state at a few megabytes a second.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(120);

/// Addresses of managers that are not in the store; a swarm has seven managers at most.
const HEARD_MAX: usize = 16;

/// Where managers are reached.
#[derive(Clone, Debug)]
pub(crate) struct AddressBook {
    store: Store,
    /// Of managers that have said so themselves, for as long as the store does not know them: a new
    /// manager's is empty.
    heard: Arc<Mutex<BTreeMap<u64, SocketAddr>>>,
}

impl AddressBook {
    /// Of the managers in `store`.
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            heard: Arc::default(),
        }
    }

    /// Where the member `raft_id` is reached, if that is known.
    pub(super) fn address(&self, raft_id: u64) -> Option<SocketAddr> {
        let known = self.store.read(|state| {
            let mut managers = state.nodes().filter_map(|node| node.manager.as_ref());
            let found = managers.find(|manager| manager.raft_id == raft_id);
            found.map(|manager| manager.address)
        });
        known.or_else(|| self.heard().get(&raft_id).copied())
    }

    /// The epoch that this manager is of; none while it has not been sent the swarm's state.
    fn epoch(&self) -> Option<u64> {
        let epoch = |state: &State| state.cluster().map(|cluster| cluster.epoch);
        self.store.read(epoch)
    }

    /// Takes note of what a manager says of itself.
    pub(super) fn note(&self, raft_id: u64, address: SocketAddr) {
        if self.store.read(|state| state.cluster().is_some()) {
            // What the swarm has agreed on counts.
            self.heard().clear();
            return;
        }
        let mut heard = self.heard();
        if heard.len() < HEARD_MAX || heard.contains_key(&raft_id) {
            heard.insert(raft_id, address);
        }
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, SocketAddr>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What every connection needs.
#[derive(Clone, Debug)]
pub(super) struct Transport {
    pub(super) inbox: Inbox,
    pub(super) book: AddressBook,
    pub(super) dialer: Dialer,
    /// Where this manager is reached.
    pub(super) address: SocketAddr,
}

/// This manager's state counts no more: while it was away another one went on without it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "while this manager was away the swarm lost its quorum and went on with another manager alone \
     ({by}): the state here counts no more; this node becomes a worker as soon as its agent reaches that \
     manager, or leaves with `swarmctl swarm leave --force` and can be joined again"
)]
pub(crate) struct Superseded {
    /// Where the manager is reached that says so.
    by: SocketAddr,
}

/// Why a message did not get there.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{}", .0.message())]
    Refused(Box<Status>),
    #[error("it does not read what it is sent")]
    Stalled,
    #[error("the address of the manager is not known")]
    NoAddress,
    #[error("the stream ended")]
    Ended,
    #[error(transparent)]
    Superseded(Superseded),
}

impl From<Status> for SendError {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl Transport {
    /// Carries messages until there will be no more, or until it is told that they count no more.
    pub(super) async fn run(self, mut outgoing: mpsc::Receiver<Message>) -> Result<(), Superseded> {
        let mut queues: BTreeMap<u64, mpsc::Sender<Message>> = BTreeMap::new();
        let mut tasks = JoinSet::new();
        loop {
            let message = tokio::select! {
                message = outgoing.recv() => message,
                Some(Ok(ended)) = tasks.join_next() => {
                    ended?;
                    continue;
                }
            };
            let Some(message) = message else {
                return Ok(());
            };
            let to = message.to;
            if message.has_snapshot() {
                // Raft makes the next one for this member only once it has heard of this one.
                tasks.spawn(self.clone().snapshot(message));
                continue;
            }
            if !queues.contains_key(&to) {
                // Those of members that have gone end with their queues.
                queues.retain(|raft_id, _| self.book.address(*raft_id).is_some());
                let (queue, messages) = mpsc::channel(QUEUE_LENGTH);
                tasks.spawn(self.clone().deliver(to, messages));
                queues.insert(to, queue);
            }
            let dropped = (queues.get(&to)).is_none_or(|queue| queue.try_send(message).is_err());
            if dropped {
                tracing::debug!(
                    raft_id = to,
                    "dropped a message to a manager that is behind"
                );
                self.inbox.unreachable(to);
            }
        }
    }

    fn hello(&self) -> v1::RaftHello {
        v1::RaftHello {
            raft_id: self.inbox.raft_id(),
            address: self.address.to_string(),
        }
    }

    async fn client(&self, to: u64) -> Result<RaftClient<tonic::transport::Channel>, SendError> {
        let address = self.book.address(to).ok_or(SendError::NoAddress)?;
        Ok(RaftClient::new(self.dialer.connect(address).await?))
    }

    /// Delivers `messages` to the member `to` until there will be no more.
    async fn deliver(
        self,
        to: u64,
        mut messages: mpsc::Receiver<Message>,
    ) -> Result<(), Superseded> {
        let mut reached = true;
        // A connection is made when there is something to say.
        while let Some(first) = messages.recv().await {
            let error = match self.stream(to, first, &mut messages, &mut reached).await {
                Ok(()) => break,
                Err(SendError::Superseded(superseded)) => return Err(superseded),
                Err(error) => anyhow::Error::from(error),
            };
            // Once for each time that it goes away.
            if std::mem::replace(&mut reached, false) {
                tracing::warn!(raft_id = to, "lost a manager: {error:#}");
            } else {
                tracing::debug!(raft_id = to, "a manager is not reached: {error:#}");
            }
            self.inbox.unreachable(to);
            sleep(DIAL_PAUSE).await;
            while messages.try_recv().is_ok() {}
        }
        Ok(())
    }

    /// Sends `first` and what follows on one stream. Returns when there will be no more.
    async fn stream(
        &self,
        to: u64,
        first: Message,
        messages: &mut mpsc::Receiver<Message>,
        reached: &mut bool,
    ) -> Result<(), SendError> {
        let mut client = self.client(to).await?;
        let (stream, deliveries) = mpsc::channel(STREAM_LENGTH);
        send(&stream, Delivery::Hello(self.hello())).await?;
        let call = client.deliver(ReceiverStream::new(deliveries));
        let answer = timeout(SEND_DEADLINE, call).await;
        let answer = answer.map_err(|_| SendError::Stalled)?;
        let mut receipts = answer
            .map_err(|status| self.refused(to, status))?
            .into_inner();
        if !std::mem::replace(reached, true) {
            tracing::info!(raft_id = to, "reached a manager again");
        }
        let mut next = Some(first);
        loop {
            if let Some(message) = next.take() {
                match to_wire(message) {
                    Ok(message) => send(&stream, Delivery::Message(message)).await?,
                    Err(error) => tracing::error!(%error, "left a message out"),
                }
            }
            tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => next = Some(message),
                    None => return Ok(()),
                },
                // Nothing comes but the end.
                ended = receipts.message() => {
                    ended.map_err(|status| self.refused(to, status))?;
                    return Err(SendError::Ended);
                }
            }
        }
    }

    /// What it means that the member `to` takes nothing, for the reason `status`.
    fn refused(&self, to: u64, status: Status) -> SendError {
        let theirs = status.metadata().get(EPOCH_HEADER);
        let theirs = theirs.and_then(|epoch| epoch.to_str().ok()?.parse::<u64>().ok());
        let own = self.book.epoch();
        match (theirs, own, self.book.address(to)) {
            (Some(theirs), Some(own), Some(by)) if theirs > own => {
                SendError::Superseded(Superseded { by })
            }
            _ => status.into(),
        }
    }

    /// Sends a snapshot, and tells the member how that went.
    async fn snapshot(self, message: Message) -> Result<(), Superseded> {
        let (to, index) = (message.to, message.get_snapshot().get_metadata().index);
        let sent = timeout(SNAPSHOT_DEADLINE, self.send_snapshot(to, message)).await;
        let outcome = sent.unwrap_or(Err(SendError::Stalled));
        match &outcome {
            Ok(()) => tracing::info!(raft_id = to, index, "sent a snapshot"),
            Err(error) => tracing::warn!(raft_id = to, index, %error, "could not send a snapshot"),
        }
        if outcome.is_err() {
            // Raft tries again with the next heartbeat's answer.
            sleep(DIAL_PAUSE).await;
        }
        // When the member takes nothing any more, nothing is lost either.
        let _ = self.inbox.snapshot_sent(to, outcome.is_ok()).await;
        // A member that takes no snapshot for that reason takes no message either, and says so there.
        Ok(())
    }

    async fn send_snapshot(&self, to: u64, mut message: Message) -> Result<(), SendError> {
        let state: Bytes = std::mem::take(&mut message.mut_snapshot().data);
        let message = to_wire(message).map_err(|error| Status::internal(error.to_string()))?;
        let mut client = self.client(to).await?;
        let head = v1::RaftSnapshotHead {
            hello: Some(self.hello()),
            message: Some(message),
            state_bytes: state.len() as u64,
        };
        let (stream, parts) = mpsc::channel(STREAM_LENGTH);
        let call = client.deliver_snapshot(ReceiverStream::new(parts));
        let send = async {
            let head = std::iter::once(Part::Head(head));
            let parts = state
                .chunks(PART_BYTES)
                .map(|part| Part::State(part.to_vec()));
            for part in head.chain(parts) {
                let part = v1::RaftSnapshotPart { part: Some(part) };
                if stream.send(part).await.is_err() {
                    // The answer says why.
                    break;
                }
            }
            drop(stream);
        };
        let receive = async {
            let mut receipts = call.await?.into_inner();
            receipts.message().await?.ok_or(SendError::Ended)
        };
        let ((), receipt) = tokio::join!(send, receive);
        receipt.map(|v1::RaftReceipt {}| ())
    }
}

async fn send(
    stream: &mpsc::Sender<v1::RaftDelivery>,
    delivery: Delivery,
) -> Result<(), SendError> {
    let delivery = v1::RaftDelivery {
        delivery: Some(delivery),
    };
    match timeout(SEND_DEADLINE, stream.send(delivery)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(SendError::Ended),
        Err(_elapsed) => Err(SendError::Stalled),
    }
}
