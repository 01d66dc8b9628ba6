//! What this manager does not answer itself, since another one leads: it asks the leader in the
//! caller's name.
//!
//! Only a manager of the swarm is believed about who calls, and only for the methods that are
//! forwarded; the leader then judges the caller as if it had called itself. A call is forwarded once:
//! a manager that does not lead either says so.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use swarm_api::v1;
use swarm_api::v1::control_client::ControlClient;
use swarm_model::{NodeId, Role};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response, Uri};
use tonic::transport::Channel;
use tower::Layer;

use super::managers::no_leader;
use super::{Dialer, Identity, Peer};
use crate::store::Store;

/// Who calls, in the words of the manager that forwards: `local`, `anonymous`, or role and id of a node.
const CALLER_HEADER: &str = "swarm-caller";

/// How long a call waits for a leader: longer than an election, shorter than a person's patience.
const LEADER_DEADLINE: Duration = Duration::from_secs(5);

/// Pause before a leader that could not be reached is looked for again.
const LEADER_PAUSE: Duration = Duration::from_millis(100);

/// Whether a manager that does not lead forwards calls of `path`.
pub(super) fn is_forwarded(path: &str) -> bool {
    // A watch goes on where it is while leaders change.
    (path.starts_with("/swarm.v1.Control/") && path != "/swarm.v1.Control/Watch")
        || path == "/swarm.v1.NodeCa/IssueNodeCertificate"
        || path == "/swarm.v1.Managers/Join"
}

/// A claim to call in someone's name that is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("only a manager may call in another's name")]
pub(super) struct Forged;

/// Who calls, `peer` being at the other end of the connection. `is_manager` says whether a node is one
/// now.
pub(super) fn caller(
    peer: &Peer,
    path: &str,
    headers: &HeaderMap,
    is_manager: impl FnOnce(&NodeId) -> bool,
) -> Result<Peer, Forged> {
    let Some(words) = headers.get(CALLER_HEADER) else {
        return Ok(peer.clone());
    };
    let Identity::Node {
        id,
        role: Role::Manager,
    } = &peer.identity
    else {
        return Err(Forged);
    };
    if !is_forwarded(path) || !is_manager(id) {
        return Err(Forged);
    }
    let identity = words.to_str().ok().and_then(parse).ok_or(Forged)?;
    Ok(Peer {
        identity,
        address: None,
        forwarded_by: Some(id.clone()),
    })
}

fn parse(words: &str) -> Option<Identity> {
    match words {
        "local" => return Some(Identity::LocalOperator),
        "anonymous" => return Some(Identity::Anonymous),
        _ => {}
    }
    let (role, id) = words.split_once(' ')?;
    let role = [Role::Worker, Role::Manager]
        .into_iter()
        .find(|known| known.as_str() == role)?;
    Some(Identity::Node {
        id: id.parse().ok()?,
        role,
    })
}

fn words(identity: &Identity) -> String {
    match identity {
        Identity::LocalOperator => "local".to_owned(),
        Identity::Anonymous => "anonymous".to_owned(),
        Identity::Node { id, role } => format!("{} {id}", role.as_str()),
    }
}

/// Finds the leader and asks it. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Forwarder {
    store: Store,
    self_id: NodeId,
    dialer: Dialer,
    /// The connection to the last leader.
    channel: Arc<Mutex<Option<(SocketAddr, Channel)>>>,
}

/// Who is to answer.
enum Answerer {
    Here,
    There(Channel),
}

impl Forwarder {
    /// For the manager on node `self_id`.
    pub(crate) fn new(store: Store, self_id: NodeId, dialer: Dialer) -> Self {
        Self {
            store,
            self_id,
            dialer,
            channel: Arc::default(),
        }
    }

    /// The leader, as soon as there is one that can be reached.
    async fn leader(&self) -> Result<Answerer, Status> {
        let deadline = Instant::now() + LEADER_DEADLINE;
        let mut leadership = self.store.leadership();
        loop {
            let now = *leadership.borrow_and_update();
            if now.leader {
                return Ok(Answerer::Here);
            }
            let address = self.store.read(|state| {
                let other = state.nodes().filter(|node| node.id != self.self_id);
                let mut managers = other.filter_map(|node| node.manager.as_ref());
                let leads = managers.find(|manager| Some(manager.raft_id) == now.leader_id);
                leads.map(|manager| manager.address)
            });
            if let Some(address) = address {
                match timeout_at(deadline, self.channel(address)).await {
                    Ok(Ok(channel)) => return Ok(Answerer::There(channel)),
                    Ok(Err(error)) => tracing::debug!(%error, "the leader is not reached"),
                    Err(_elapsed) => {}
                }
            }
            let retry = async {
                match address {
                    // It may be back, or known to be gone, in a moment.
                    Some(_) => sleep(LEADER_PAUSE).await,
                    None => {
                        let _ = leadership.changed().await;
                    }
                }
            };
            if timeout_at(deadline, retry).await.is_err() {
                let members = self.store.members().borrow().clone();
                return Err(self.store.read(|state| no_leader(state, &members)).into());
            }
        }
    }

    async fn channel(&self, address: SocketAddr) -> Result<Channel, super::DialError> {
        let mut kept = self.channel.lock().await;
        if let Some((of, channel)) = &*kept
            && *of == address
        {
            let mut channel = channel.clone();
            if std::future::poll_fn(|context| channel.poll_ready(context))
                .await
                .is_ok()
            {
                return Ok(channel);
            }
        }
        *kept = None;
        let channel = self.dialer.connect(address).await?;
        *kept = Some((address, channel.clone()));
        Ok(channel)
    }

    async fn ask(&self, mut channel: Channel, mut request: Request<Body>) -> Response<Body> {
        // The channel puts its own authority in front of the path.
        let path = request.uri().path().parse::<Uri>().unwrap_or_default();
        *request.uri_mut() = path;
        let ready = std::future::poll_fn(|context| channel.poll_ready(context)).await;
        let answer = match ready {
            Ok(()) => channel.call(request).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(%error, "lost the leader");
                // The next call looks where the leader is then.
                *self.channel.lock().await = None;
                request_lost().into_http()
            }
        }
    }

    /// Asks the leader of this moment to give a node a role, in the name of `caller`: for a leader that
    /// has handed over so that another one may demote it.
    pub(super) async fn set_node_role(
        &self,
        message: v1::SetNodeRoleRequest,
        caller: &Identity,
    ) -> Result<v1::SetNodeRoleResponse, Status> {
        let Answerer::There(channel) = self.leader().await? else {
            return Err(Status::unavailable(
                "this manager leads again, no other one being ready to: try again in a moment",
            ));
        };
        let mut request = tonic::Request::new(message);
        if let Ok(words) = words(caller).parse() {
            request.metadata_mut().insert(CALLER_HEADER, words);
        }
        let answer = ControlClient::new(channel).set_node_role(request).await;
        answer.map(tonic::Response::into_inner)
    }
}

fn request_lost() -> Status {
    Status::unavailable(
        "lost the leader before it had answered: the change was made or not; look at it again in a \
         moment",
    )
}

/// Puts forwarding before every service; comes after the check of who may call.
#[derive(Clone, Debug)]
pub(super) struct ForwardLayer(pub(super) Forwarder);

impl<S> Layer<S> for ForwardLayer {
    type Service = Forwarding<S>;

    fn layer(&self, inner: S) -> Forwarding<S> {
        Forwarding {
            inner,
            forwarder: self.0.clone(),
        }
    }
}

/// Services of the leader, here or there.
#[derive(Clone, Debug)]
pub(super) struct Forwarding<S> {
    inner: S,
    forwarder: Forwarder,
}

impl<S> Service<Request<Body>> for Forwarding<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let leads = self.forwarder.store.leadership().borrow().leader;
        if leads || !is_forwarded(request.uri().path()) {
            return Box::pin(self.inner.call(request));
        }
        let peer = request.extensions().get::<Peer>().cloned();
        let forwarder = self.forwarder.clone();
        // The clone takes the place of the one that was found ready.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            match forwarder.leader().await {
                Err(status) => Ok(status.into_http()),
                Ok(Answerer::Here) => inner.call(request).await,
                Ok(Answerer::There(_))
                    if peer.as_ref().is_some_and(|it| it.forwarded_by.is_some()) =>
                {
                    let text = "the leader changed meanwhile: try again in a moment";
                    Ok(Status::unavailable(text).into_http())
                }
                Ok(Answerer::There(channel)) => {
                    let identity = peer.map_or(Identity::Anonymous, |peer| peer.identity);
                    // Letters, digits and a space.
                    if let Ok(words) = HeaderValue::from_str(&words(&identity)) {
                        request.headers_mut().insert(CALLER_HEADER, words);
                    }
                    Ok(forwarder.ask(channel, request).await)
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/swarm.v1.Control/ListNodes";

    fn id(digit: char) -> NodeId {
        digit.to_string().repeat(25).parse().unwrap()
    }

    fn peer(identity: Identity) -> Peer {
        Peer {
            identity,
            address: Some([192, 0, 2, 1].into()),
            forwarded_by: None,
        }
    }

    fn node(digit: char, role: Role) -> Identity {
        let id = id(digit);
        Identity::Node { id, role }
    }

    #[test]
    fn only_a_manager_is_believed_about_who_calls() {
        let claim = |words: &str| {
            HeaderMap::from_iter([(
                CALLER_HEADER.parse().unwrap(),
                HeaderValue::from_str(words).unwrap(),
            )])
        };
        let manager = peer(node('m', Role::Manager));
        for identity in [
            Identity::LocalOperator,
            Identity::Anonymous,
            node('w', Role::Worker),
            node('p', Role::Manager),
        ] {
            let headers = claim(&words(&identity));
            let seen = caller(&manager, PATH, &headers, |_| true).unwrap();
            assert_eq!(seen.identity, identity);
            assert_eq!(seen.forwarded_by, Some(id('m')));
            // A demoted or removed manager, other callers, other methods.
            assert_eq!(caller(&manager, PATH, &headers, |_| false), Err(Forged));
            for other in [
                Identity::Anonymous,
                Identity::LocalOperator,
                node('w', Role::Worker),
            ] {
                let forger = peer(other);
                assert_eq!(caller(&forger, PATH, &headers, |_| true), Err(Forged));
            }
            let session = "/swarm.v1.Dispatcher/Session";
            assert_eq!(caller(&manager, session, &headers, |_| true), Err(Forged));
        }
        for nonsense in ["", "root", "manager", "manager x", "LOCAL"] {
            assert_eq!(
                caller(&manager, PATH, &claim(nonsense), |_| true),
                Err(Forged)
            );
        }
        let plain = caller(&manager, PATH, &HeaderMap::new(), |_| false);
        assert_eq!(plain, Ok(manager));
    }
}
