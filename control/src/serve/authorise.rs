//! Who may call what: one table, one layer.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use swarm_model::{NodeId, Role};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tower::Layer;

use super::connection::Caller;
use super::forward::{self, Forged};
use super::{Identity, Peer};
use crate::store::{State, Store};

/// Which epoch of the swarm a manager is of that does not take another for one
/// ([`swarm_model::Cluster::epoch`]).
pub(crate) const EPOCH_HEADER: &str = "swarm-epoch";

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// Everyone, also without a certificate.
    Anyone,
    /// Every node of the swarm.
    Node,
    /// Managers, and whoever may open the local socket.
    Manager,
    /// Managers alone: what they say to each other.
    Peer,
    /// Whoever may open the local socket, and nobody on the network.
    Local,
}

/// Every method there is.
const METHODS: [(&str, Access); 35] = [
    ("/swarm.v1.NodeCa/GetRootCertificate", Access::Anyone),
    ("/swarm.v1.NodeCa/IssueNodeCertificate", Access::Anyone),
    ("/swarm.v1.NodeCa/RenewNodeCertificate", Access::Node),
    ("/swarm.v1.Dispatcher/Session", Access::Node),
    ("/swarm.v1.Control/GetCluster", Access::Manager),
    ("/swarm.v1.Control/UpdateCluster", Access::Manager),
    ("/swarm.v1.Control/GetJoinToken", Access::Manager),
    ("/swarm.v1.Control/GetUnlockKey", Access::Manager),
    ("/swarm.v1.Control/RotateRoot", Access::Manager),
    ("/swarm.v1.Control/GetRootRotation", Access::Manager),
    ("/swarm.v1.Control/ListNodes", Access::Manager),
    ("/swarm.v1.Control/GetNode", Access::Manager),
    ("/swarm.v1.Control/RemoveNode", Access::Manager),
    ("/swarm.v1.Control/UpdateNode", Access::Manager),
    ("/swarm.v1.Control/GetDrain", Access::Manager),
    ("/swarm.v1.Control/SetNodeRole", Access::Manager),
    ("/swarm.v1.Control/CreateService", Access::Manager),
    ("/swarm.v1.Control/UpdateService", Access::Manager),
    ("/swarm.v1.Control/RemoveService", Access::Manager),
    ("/swarm.v1.Control/GetService", Access::Manager),
    ("/swarm.v1.Control/ListServices", Access::Manager),
    ("/swarm.v1.Control/CreateNetwork", Access::Manager),
    ("/swarm.v1.Control/RemoveNetwork", Access::Manager),
    ("/swarm.v1.Control/PruneNetworks", Access::Manager),
    ("/swarm.v1.Control/GetNetwork", Access::Manager),
    ("/swarm.v1.Control/ListNetworks", Access::Manager),
    ("/swarm.v1.Control/ListTasks", Access::Manager),
    ("/swarm.v1.Control/Watch", Access::Manager),
    ("/swarm.v1.Raft/Deliver", Access::Peer),
    ("/swarm.v1.Raft/DeliverSnapshot", Access::Peer),
    ("/swarm.v1.Managers/Join", Access::Peer),
    (
        "/swarm.v1.LocalControl/IssueManagerCertificate",
        Access::Local,
    ),
    ("/swarm.v1.LocalControl/GetManagerState", Access::Local),
    ("/swarm.v1.LocalControl/Unlock", Access::Local),
    ("/swarm.v1.LocalControl/GetLocalUnlockKey", Access::Local),
];

/// Why a call does not pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Denied {
    #[error(
        "this manager does not know the method that was called: it may be older than the caller"
    )]
    UnknownMethod,
    #[error("a certificate of this swarm is needed: join it first with `swarmctl swarm join`")]
    NoCertificate,
    #[error("only a manager may do this: run the command on a manager")]
    NotManager,
    #[error("this is answered on the manager's local socket only")]
    NotLocal,
    #[error(
        "node {0} was removed from the swarm: run `swarmctl swarm leave` on it, then join again"
    )]
    Removed(NodeId),
    #[error("this manager has not been sent the swarm yet: try again in a moment")]
    NotReady,
    #[error(transparent)]
    Forged(#[from] Forged),
}

impl From<Denied> for Status {
    fn from(denied: Denied) -> Self {
        let text = denied.to_string();
        match denied {
            Denied::UnknownMethod => Self::unimplemented(text),
            Denied::NotReady => Self::unavailable(text),
            Denied::NoCertificate => Self::unauthenticated(text),
            Denied::NotManager | Denied::NotLocal | Denied::Removed(_) | Denied::Forged(_) => {
                Self::permission_denied(text)
            }
        }
    }
}

fn access(path: &str) -> Option<Access> {
    let mut methods = METHODS.iter();
    let found = methods.find(|(method, _)| *method == path);
    found.map(|(_, access)| *access)
}

/// Whether `identity` may call `path`, the swarm being in `state`.
fn authorise(path: &str, identity: &Identity, state: &State) -> Result<(), Denied> {
    let access = access(path).ok_or(Denied::UnknownMethod)?;
    let role = match identity {
        _ if access == Access::Anyone => return Ok(()),
        Identity::Anonymous => return Err(Denied::NoCertificate),
        Identity::LocalOperator => {
            return match access {
                Access::Anyone | Access::Manager | Access::Local => Ok(()),
                Access::Node | Access::Peer => Err(Denied::NoCertificate),
            };
        }
        // A new manager knows nobody before it has been sent the log; until then a certificate under the
        // swarm's root is all there is to go by.
        Identity::Node { role, .. } if access == Access::Peer && state.cluster().is_none() => *role,
        // Nobody was removed either.
        Identity::Node { .. } if state.cluster().is_none() => return Err(Denied::NotReady),
        Identity::Node { id, role } => {
            let node = state.node(id).ok_or_else(|| Denied::Removed(id.clone()))?;
            // A certificate from before a demotion is good for no more than the node is now.
            node.role.min(*role)
        }
    };
    match access {
        Access::Anyone | Access::Node => Ok(()),
        Access::Manager | Access::Peer if role == Role::Manager => Ok(()),
        Access::Manager | Access::Peer => Err(Denied::NotManager),
        Access::Local => Err(Denied::NotLocal),
    }
}

/// Puts the check before every service.
#[derive(Clone, Debug)]
pub(super) struct AuthoriseLayer(pub(super) Store);

impl<S> Layer<S> for AuthoriseLayer {
    type Service = Authorised<S>;

    fn layer(&self, inner: S) -> Authorised<S> {
        Authorised {
            inner,
            store: self.0.clone(),
        }
    }
}

/// Services behind the check.
#[derive(Clone, Debug)]
pub(super) struct Authorised<S> {
    inner: S,
    store: Store,
}

impl<S> Service<Request<Body>> for Authorised<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let peer = (request.extensions().get::<Caller>()).map(|caller| caller.peer.clone());
        let peer = peer.unwrap_or(Peer {
            identity: Identity::Anonymous,
            address: None,
            forwarded_by: None,
        });
        let path = request.uri().path();
        let verdict = self.store.read(|state| {
            let is_manager = |id: &NodeId| {
                let node = state.node(id);
                node.is_some_and(|node| node.role == Role::Manager)
            };
            let caller = forward::caller(&peer, path, request.headers(), is_manager)?;
            authorise(path, &caller.identity, state).map(|()| caller)
        });
        match verdict {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Box::pin(self.inner.call(request))
            }
            Err(denied) => {
                let identity = &peer.identity;
                tracing::debug!(%denied, ?identity, "refused a call");
                let mut status = Status::from(denied);
                if access(path) == Some(Access::Peer) {
                    let epoch = |state: &State| state.cluster().map(|cluster| cluster.epoch);
                    if let Some(epoch) = self.store.read(epoch) {
                        status.metadata_mut().insert(EPOCH_HEADER, epoch.into());
                    }
                }
                let response = status.into_http();
                Box::pin(std::future::ready(Ok(response)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::tests::methods;

    /// The methods that the protocol files declare and a manager serves.
    fn declared() -> Vec<String> {
        let served = |method: &String| !method.starts_with("/swarm.v1.LocalAgent/");
        methods().into_iter().filter(served).collect()
    }

    #[test]
    fn the_table_has_every_method_once() {
        let mut table = METHODS.map(|(method, _)| method.to_owned());
        table.sort();
        assert_eq!(table.to_vec(), declared());
    }

    #[test]
    fn a_manager_that_knows_nobody_yet_says_so_and_calls_nobody_removed() {
        let id = NodeId::random(&mut rand::rng());
        let node = |role| Identity::Node {
            id: id.clone(),
            role,
        };
        let state = State::default();
        let session = "/swarm.v1.Dispatcher/Session";
        for role in [Role::Worker, Role::Manager] {
            let denied = authorise(session, &node(role), &state);
            assert_eq!(denied, Err(Denied::NotReady));
        }
        let deliver = "/swarm.v1.Raft/Deliver";
        assert_eq!(authorise(deliver, &node(Role::Manager), &state), Ok(()));
        let denied = authorise(deliver, &node(Role::Worker), &state);
        assert_eq!(denied, Err(Denied::NotManager));
    }

    #[test]
    fn what_is_not_in_the_table_is_refused() {
        let state = State::default();
        for path in ["", "/", "/swarm.v1.Control/Drop", "/swarm.v1.Control"] {
            assert_eq!(
                authorise(path, &Identity::LocalOperator, &state),
                Err(Denied::UnknownMethod)
            );
        }
    }
}
