//! Keeps this manager a member of the log, reached where it really is.
//!
//! A new manager asks to be made a member, of the manager that it was told of, until it sees itself in
//! the store. One whose address has changed, or whose certificate comes from another root, says so the same
//! way. One that has been demoted does
//! nothing: its agent ends it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use swarm_api::v1;
use swarm_api::v1::managers_client::ManagersClient;
use swarm_model::{Node, NodeId, Role};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::Status;

use crate::clock;
use crate::serve::Dialer;
use crate::store::{State, Store, UpdateError};

/// Pause before it is asked again: a leader may be being chosen.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Time for an answer: a change of members may have to wait for another one.
const JOIN_DEADLINE: Duration = Duration::from_secs(20);

/// This manager, as it should be in the store.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    pub(crate) store: Store,
    pub(crate) dialer: Dialer,
    pub(crate) self_id: NodeId,
    pub(crate) raft_id: u64,
    /// Where others reach it.
    pub(crate) address: SocketAddr,
    /// A manager to ask while the store knows none.
    pub(crate) remote: Option<SocketAddr>,
    /// Key identifier of the root that has signed the certificate that it shows, hexadecimal.
    pub(crate) issuer: watch::Receiver<String>,
}

impl Membership {
    /// Runs until the store is gone.
    pub(crate) async fn keep(mut self) {
        let mut changed = self.store.watch();
        let mut told = String::new();
        loop {
            changed.borrow_and_update();
            self.issuer.mark_unchanged();
            let Some(managers) = self.store.read(|state| self.to_ask(state)) else {
                told.clear();
                let news = tokio::select! {
                    news = changed.changed() => news,
                    news = self.issuer.changed() => news,
                };
                if news.is_err() {
                    return;
                }
                continue;
            };
            let outcome = if self.store.leadership().borrow().leader {
                self.record().await
            } else {
                self.ask(&managers).await
            };
            if let Err(error) = outcome {
                if error != told {
                    tracing::warn!(error, "this manager is not taken up yet");
                    told = error;
                }
                sleep(RETRY_PAUSE).await;
            } else {
                // What was agreed on comes with the log.
                let _ = timeout(RETRY_PAUSE, changed.changed()).await;
            }
        }
    }

    /// The managers to ask; nothing when all is as it should be.
    fn to_ask(&self, state: &State) -> Option<Vec<SocketAddr>> {
        let node = state.node(&self.self_id);
        if node.is_some_and(|node| node.role == Role::Worker) {
            return None;
        }
        let is_right = node
            .and_then(|node| node.manager.as_ref())
            .is_some_and(|it| {
                it.raft_id == self.raft_id
                    && it.address == self.address
                    && it.certificate_issuer == *self.issuer.borrow()
            });
        if is_right {
            return None;
        }
        let others = state.nodes().filter(|node| node.id != self.self_id);
        let known = others.filter_map(|node| node.manager.as_ref().map(|it| it.address));
        Some(known.chain(self.remote).collect())
    }

    /// Writes down where this manager is reached, as only the leader can.
    async fn record(&self) -> Result<(), String> {
        let update = self.store.update(|state| {
            let mut changes = Vec::new();
            if let Some(node) = state.node(&self.self_id) {
                let mut node = Node::clone(node);
                if let Some(manager) = &mut node.manager {
                    manager.address = self.address;
                    manager.certificate_issuer.clone_from(&self.issuer.borrow());
                    node.meta.updated_at = clock::now();
                    changes.push(node.into());
                }
            }
            Ok::<_, Infallible>((changes, ()))
        });
        update
            .await
            .map_err(|error: UpdateError<Infallible>| error.to_string())
    }

    async fn ask(&self, managers: &[SocketAddr]) -> Result<(), String> {
        let mut last = "no other manager is known".to_owned();
        for address in managers {
            match timeout(JOIN_DEADLINE, self.join(*address)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => last = error,
                Err(_elapsed) => last = format!("manager {address} does not answer"),
            }
        }
        Err(last)
    }

    async fn join(&self, address: SocketAddr) -> Result<(), String> {
        let channel = self.dialer.connect(address).await;
        let channel = channel.map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
        let request = v1::JoinManagersRequest {
            raft_id: self.raft_id,
            address: self.address.to_string(),
            certificate_issuer: self.issuer.borrow().clone(),
        };
        let answer = ManagersClient::new(channel).join(request).await;
        answer
            .map(drop)
            .map_err(|status: Status| status.message().to_owned())
    }
}
