//! Takes what other managers send, if they are who they say.

use std::sync::Arc;
use std::time::Duration;

use prost::bytes::Bytes;
use raft::eraftpb::Message;
use swarm_api::v1;
use swarm_api::v1::raft_delivery::Delivery;
use swarm_api::v1::raft_server::Raft;
use swarm_api::v1::raft_snapshot_part::Part;
use swarm_model::NodeId;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::node::Inbox;
use super::transport::AddressBook;
use super::wire::from_wire;
use crate::serve::{Identity, Peer};
use crate::store::{Store, decode_snapshot};

/// Most bytes of a snapshot: a swarm of ten times the size that is meant.
const STATE_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Room that is made for a snapshot before any of it has come.
const STATE_BYTES_TRUSTED: u64 = 1024 * 1024;

/// Time between two parts of a snapshot.
const PART_DEADLINE: Duration = Duration::from_secs(10);

/// Time that a manager has to say who it is, after it has opened a stream.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// The `Raft` service. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct RaftService {
    inbox: Inbox,
    store: Store,
    book: AddressBook,
    /// Snapshots that are being received: one is all that a member can use, and each is held in memory.
    snapshots: Arc<Semaphore>,
}

/// The other end of a stream.
struct Sender {
    node: NodeId,
    raft_id: u64,
}

impl RaftService {
    pub(super) fn new(inbox: Inbox, store: Store, book: AddressBook) -> Self {
        Self {
            inbox,
            store,
            book,
            snapshots: Arc::new(Semaphore::new(1)),
        }
    }

    /// The manager that says `hello`, if its certificate is that member's.
    fn admit(&self, node: NodeId, hello: Option<v1::RaftHello>) -> Result<Sender, Status> {
        let Some(v1::RaftHello { raft_id, address }) = hello else {
            return Err(Status::invalid_argument("a stream begins with a hello"));
        };
        let sender = Sender { node, raft_id };
        self.check(&sender)?;
        if let Ok(address) = address.parse() {
            self.book.note(raft_id, address);
        }
        Ok(sender)
    }

    /// Whether the member is still that node's, as far as this manager knows. A new manager knows
    /// nobody yet, and has only the certificate to go by.
    fn check(&self, sender: &Sender) -> Result<(), Status> {
        let known = self.store.read(|state| {
            state.cluster()?;
            let node = state.node(&sender.node);
            let manager = node.and_then(|node| node.manager.as_ref());
            Some(manager.is_some_and(|manager| manager.raft_id == sender.raft_id))
        });
        match known {
            None | Some(true) => Ok(()),
            Some(false) => Err(Status::permission_denied(format!(
                "node {} is not the manager that it says it is",
                sender.node
            ))),
        }
    }

    /// What travelled as `message`, if it is from `sender` to this member.
    fn read(&self, sender: &Sender, message: v1::RaftMessage) -> Result<Message, Status> {
        let message =
            from_wire(message).map_err(|error| Status::invalid_argument(error.to_string()))?;
        if message.from != sender.raft_id {
            return Err(Status::permission_denied(
                "the message is another manager's",
            ));
        }
        if message.to != self.inbox.raft_id() {
            // One for whoever had this address before.
            return Err(Status::failed_precondition(
                "the message is for another manager",
            ));
        }
        Ok(message)
    }

    async fn take(&self, message: Message) -> Result<(), Status> {
        let taken = self.inbox.receive(message).await;
        taken.map_err(|error| Status::unavailable(error.to_string()))
    }

    async fn deliveries(
        &self,
        sender: &Sender,
        mut incoming: Streaming<v1::RaftDelivery>,
    ) -> Result<(), Status> {
        while let Some(delivery) = incoming.message().await? {
            match delivery.delivery {
                Some(Delivery::Message(message)) => {
                    self.check(sender)?;
                    let message = self.read(sender, message)?;
                    if message.has_snapshot() {
                        return Err(Status::invalid_argument("a snapshot has a call of its own"));
                    }
                    self.take(message).await?;
                }
                Some(Delivery::Hello(_)) => {
                    return Err(Status::invalid_argument("only one hello is expected"));
                }
                // Something that a newer manager knows and this one does not.
                None => {}
            }
        }
        Ok(())
    }

    async fn snapshot(
        &self,
        node: NodeId,
        mut incoming: Streaming<v1::RaftSnapshotPart>,
    ) -> Result<(), Status> {
        let Ok(_turn) = self.snapshots.try_acquire() else {
            return Err(Status::resource_exhausted(
                "another snapshot is being received",
            ));
        };
        let Some(Part::Head(head)) = next_part(&mut incoming).await? else {
            return Err(Status::invalid_argument("a snapshot begins with its head"));
        };
        let v1::RaftSnapshotHead {
            hello,
            message,
            state_bytes,
        } = head;
        let sender = self.admit(node, hello)?;
        let message = message.ok_or_else(|| Status::invalid_argument("the message is missing"))?;
        let mut message = self.read(&sender, message)?;
        if !message.has_snapshot() || state_bytes > STATE_BYTES_MAX {
            return Err(Status::invalid_argument(
                "this is no snapshot, or too large a one",
            ));
        }
        // What is announced is not believed before it has come.
        let capacity = usize::try_from(state_bytes.min(STATE_BYTES_TRUSTED)).unwrap_or_default();
        let mut state = Vec::with_capacity(capacity);
        while (state.len() as u64) < state_bytes {
            let Some(Part::State(part)) = next_part(&mut incoming).await? else {
                return Err(Status::invalid_argument("the snapshot is cut short"));
            };
            state.extend(part);
        }
        if state.len() as u64 != state_bytes {
            return Err(Status::invalid_argument(
                "the snapshot is longer than announced",
            ));
        }
        // A state that cannot be read would stop this manager once it is written down.
        let index = message.get_snapshot().get_metadata().index;
        decode_snapshot(index, &state).map_err(|error| {
            Status::invalid_argument(format!("cannot read a snapshot: {error}"))
        })?;
        self.check(&sender)?;
        message.mut_snapshot().data = Bytes::from(state);
        tracing::info!(from = sender.raft_id, index, "received a snapshot");
        self.take(message).await
    }
}

async fn next_part(incoming: &mut Streaming<v1::RaftSnapshotPart>) -> Result<Option<Part>, Status> {
    let part = timeout(PART_DEADLINE, incoming.message())
        .await
        .map_err(|_| Status::deadline_exceeded("the snapshot does not go on"))??;
    Ok(part.and_then(|part| part.part))
}

/// The node whose certificate the caller has.
fn caller<T>(request: &Request<T>) -> Result<NodeId, Status> {
    match request.extensions().get::<Peer>() {
        Some(Peer {
            identity: Identity::Node { id, .. },
            ..
        }) => Ok(id.clone()),
        _ => Err(Status::unauthenticated("a manager's certificate is needed")),
    }
}

#[tonic::async_trait]
impl Raft for RaftService {
    type DeliverStream = ReceiverStream<Result<v1::RaftReceipt, Status>>;
    type DeliverSnapshotStream = ReceiverStream<Result<v1::RaftReceipt, Status>>;

    async fn deliver(
        &self,
        request: Request<Streaming<v1::RaftDelivery>>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        let node = caller(&request)?;
        let mut incoming = request.into_inner();
        let first = timeout(HELLO_DEADLINE, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the manager did not say hello"))??;
        let Some(Delivery::Hello(hello)) = first.and_then(|first| first.delivery) else {
            return Err(Status::invalid_argument("a stream begins with a hello"));
        };
        let sender = self.admit(node, Some(hello))?;
        let (receipts, stream) = mpsc::channel(1);
        let service = self.clone();
        tokio::spawn(async move {
            // Also when the other end of the connection is gone, which the read may not notice.
            let ended = tokio::select! {
                ended = service.deliveries(&sender, incoming) => ended,
                () = receipts.closed() => return,
            };
            if let Err(status) = ended {
                tracing::debug!(from = sender.raft_id, %status, "ended a stream of a manager");
                let _ = receipts.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn deliver_snapshot(
        &self,
        request: Request<Streaming<v1::RaftSnapshotPart>>,
    ) -> Result<Response<Self::DeliverSnapshotStream>, Status> {
        let node = caller(&request)?;
        let incoming = request.into_inner();
        let (receipts, stream) = mpsc::channel(1);
        let service = self.clone();
        tokio::spawn(async move {
            let outcome = tokio::select! {
                outcome = service.snapshot(node, incoming) => outcome,
                () = receipts.closed() => return,
            };
            let _ = receipts.send(outcome.map(|()| v1::RaftReceipt {})).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
