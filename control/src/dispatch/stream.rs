//! The manager's end of one session's stream.

use swarm_api::v1;
use swarm_model::SessionId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Messages that wait for one agent to read them. Changes come a few times a second at most; an
/// agent this far behind is better served with the complete set.
const WAITING_MAX: usize = 64;

/// What goes to an agent.
pub(super) type Outbound = Result<v1::ManagerMessage, Status>;

/// Where one session's messages go.
#[derive(Debug)]
pub(super) struct Outlet {
    pub(super) session: SessionId,
    messages: mpsc::Sender<Outbound>,
    /// Room kept for the reason of the end, so that even an agent that does not read learns it.
    farewell: mpsc::OwnedPermit<Outbound>,
    ended: CancellationToken,
}

impl Outlet {
    /// An outlet for `session`, and the stream that it feeds.
    pub(super) fn new(session: SessionId) -> (Self, ReceiverStream<Outbound>) {
        let (messages, receiver) = mpsc::channel(WAITING_MAX + 1);
        let farewell = messages
            .clone()
            .try_reserve_owned()
            .expect("a new channel has room and a receiver");
        let outlet = Self {
            session,
            messages,
            farewell,
            ended: CancellationToken::new(),
        };
        (outlet, ReceiverStream::new(receiver))
    }

    /// Cancelled when the session has ended.
    pub(super) fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Queues `message`, unless the agent is too far behind or gone; then gives the reason to
    /// close the session with.
    pub(super) fn send(&self, message: v1::ManagerMessage) -> Result<(), Status> {
        self.messages.try_send(Ok(message)).map_err(|error| {
            Status::resource_exhausted(match error {
                mpsc::error::TrySendError::Full(_) => {
                    "the agent does not read its assignments fast enough"
                }
                mpsc::error::TrySendError::Closed(_) => "the agent is gone",
            })
        })
    }

    /// Ends the session and says why.
    pub(super) fn close(self, reason: Status) {
        self.farewell.send(Err(reason));
        self.ended.cancel();
    }
}
