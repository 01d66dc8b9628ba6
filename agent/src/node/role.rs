//! A node's role and its managers, as the swarm tells them: kept for the next start, and acted on.
//!
//! | from | to | what happens |
//! |---|---|---|
//! | worker | manager | a manager's certificate, then swarm-control is started and joins the others |
//! | manager | worker | swarm-control ends and its state is removed, then a worker's certificate |
//!
//! Tasks and networks notice nothing. What breaks off half way begins again: `node.json` names the new
//! role once everything else is done.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_model::Role;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::address::{DEFAULT_PORT, unspecified};
use super::control_process::{Beginning, ControlError, ControlProcess, Running};
use crate::config::Config;
use crate::identity::{Connector, Membership, StateError, StateStore};
use crate::session::Report;

/// Time for a certificate of another role; then it is asked for again.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(15);

/// How soon a worker's certificate in place of a manager's is asked for again: as often as managers sign.
const SHED_INTERVAL: Duration = Duration::from_secs(60);

/// Pause after a change of role that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Why the node has not taken up its role.
#[derive(Debug, thiserror::Error)]
enum RoleError {
    #[error("no certificate of the new role within {} s", RENEWAL_TIMEOUT.as_secs())]
    NoCertificate,
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// A swarm-control that is kept up.
pub(super) struct Supervised {
    stop: CancellationToken,
    task: JoinHandle<()>,
    failure: watch::Sender<Option<String>>,
}

impl Supervised {
    /// Keeps `running` up until `stop`, or until it is ended. Meanwhile `failure` has what keeps it from
    /// running.
    pub(super) fn new(
        process: ControlProcess,
        running: Running,
        stop: &CancellationToken,
        failure: &watch::Sender<Option<String>>,
    ) -> Self {
        let stop = stop.child_token();
        let failure = failure.clone();
        let task = tokio::spawn(process.supervise(running, stop.clone(), failure.clone()));
        Self {
            stop,
            task,
            failure,
        }
    }

    /// Ends it, and waits for that.
    pub(super) async fn end(self) {
        self.stop.cancel();
        // It ends however the process does.
        let _ = self.task.await;
        self.failure.send_replace(None);
    }
}

/// What follows the role.
pub(super) struct RoleKeeper {
    pub(super) config: Config,
    pub(super) state: StateStore,
    pub(super) membership: watch::Sender<Membership>,
    pub(super) report: watch::Receiver<Report>,
    /// Asks for a new certificate now.
    pub(super) renew: Arc<Notify>,
    /// Changes when there is one.
    pub(super) connector: watch::Receiver<Connector>,
    pub(super) control: Option<Supervised>,
    /// What keeps it from running.
    pub(super) failure: watch::Sender<Option<String>>,
    pub(super) stop: CancellationToken,
}

impl RoleKeeper {
    /// Follows the report until `stop`; then ends swarm-control.
    pub(super) async fn run(mut self) {
        let stop = self.stop.clone();
        let mut last_shed: Option<Instant> = None;
        loop {
            self.keep_managers();
            let told = self.report.borrow_and_update().role;
            let now = self.membership.borrow().role;
            let mut failed = false;
            if let Some(role) = told.filter(|role| *role != now) {
                tracing::info!(role = role.as_str(), "this node is given another role");
                let changed = tokio::select! {
                    changed = self.change(role) => changed,
                    () = stop.cancelled() => break,
                };
                match changed {
                    Ok(()) => tracing::info!(role = role.as_str(), "this node has its new role"),
                    Err(error) => {
                        failed = true;
                        let error = crate::error_text(&error);
                        tracing::warn!(error, "cannot take up the new role yet");
                    }
                }
            }
            let says_too_much = self.says_too_much();
            if says_too_much && last_shed.is_none_or(|at| at.elapsed() >= SHED_INTERVAL) {
                last_shed = Some(Instant::now());
                self.renew.notify_one();
            }
            tokio::select! {
                changed = self.report.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(RETRY_INTERVAL), if failed => {}
                () = tokio::time::sleep(SHED_INTERVAL), if says_too_much => {}
                () = stop.cancelled() => break,
            }
        }
        if let Some(control) = self.control.take() {
            control.end().await;
        }
    }

    /// Whether this program's certificate is a manager's though the manager beside it has its own: it lies
    /// in the clear, and is to be replaced by a worker's.
    fn says_too_much(&self) -> bool {
        let membership = self.membership.borrow();
        let report = self.report.borrow();
        is_manager_certificate_needless(&membership, &report, self.connector.borrow().role())
    }

    fn keep_managers(&mut self) {
        let managers = self.report.borrow().managers.clone();
        let mut membership = self.membership.borrow().clone();
        if managers.is_empty() || managers == membership.managers {
            return;
        }
        membership.managers = managers;
        if let Err(error) = self.state.save_membership(&membership) {
            let error = crate::error_text(&error);
            tracing::warn!(error, "cannot keep the list of managers");
        }
        self.membership.send_replace(membership);
    }

    async fn change(&mut self, role: Role) -> Result<(), RoleError> {
        match role {
            Role::Manager => {
                self.renewed(role).await?;
                let mut membership = self.membership.borrow().clone();
                let (listen, advertise) = addresses(&membership);
                membership.listen_address = Some(listen);
                membership.advertise_address = Some(advertise);
                membership.role = role;
                if self.control.is_none() {
                    let process = process(&self.config, &membership)?;
                    if let Some((_, credentials)) = self.state.load()? {
                        process.give_certificate(&credentials)?;
                    }
                    let running = process.spawn(&Beginning::Usual)?;
                    let (stop, failure) = (&self.stop, &self.failure);
                    self.control = Some(Supervised::new(process, running, stop, failure));
                }
                self.keep(membership)
            }
            Role::Worker => {
                if let Some(control) = self.control.take() {
                    control.end().await;
                }
                self.state.clear_control()?;
                let mut membership = self.membership.borrow().clone();
                membership.role = role;
                self.keep(membership)?;
                // What the old one allows is decided by the node's role, so this may come last.
                self.renewed(role).await
            }
        }
    }

    fn keep(&mut self, membership: Membership) -> Result<(), RoleError> {
        self.state.save_membership(&membership)?;
        self.membership.send_replace(membership);
        Ok(())
    }

    /// Waits for a new certificate that says `role`.
    async fn renewed(&mut self, role: Role) -> Result<(), RoleError> {
        self.connector.mark_unchanged();
        self.renew.notify_one();
        let renewed = async {
            // It changes for other reasons too.
            while self.connector.changed().await.is_ok() {
                if self.connector.borrow_and_update().role() == Some(role) {
                    return true;
                }
            }
            false
        };
        match tokio::time::timeout(RENEWAL_TIMEOUT, renewed).await {
            Ok(true) => Ok(()),
            _ => Err(RoleError::NoCertificate),
        }
    }
}

/// Whether the node's certificate, which says `certified`, has served as a manager's: the manager on the
/// node is one of those that the swarm names.
fn is_manager_certificate_needless(
    membership: &Membership,
    report: &Report,
    certified: Option<Role>,
) -> bool {
    let own = addresses(membership).1.to_string();
    membership.role == Role::Manager
        && certified == Some(Role::Manager)
        && report.connected
        && report.managers.contains(&own)
}

/// The manager process of a node that is in a swarm with others.
pub(super) fn process(
    config: &Config,
    membership: &Membership,
) -> Result<ControlProcess, ControlError> {
    let (listen, advertise) = addresses(membership);
    Ok(ControlProcess::new(config, listen, advertise)?.member(membership))
}

/// Where a manager on this node listens and is dialled.
pub(super) fn addresses(membership: &Membership) -> (SocketAddr, SocketAddr) {
    let default = SocketAddr::new(membership.data_path_address, DEFAULT_PORT);
    let advertise = membership.advertise_address.unwrap_or(default);
    let listen = membership.listen_address;
    let listen = listen.unwrap_or(SocketAddr::new(
        unspecified(advertise.ip()),
        advertise.port(),
    ));
    (listen, advertise)
}

#[cfg(test)]
mod tests {
    use swarm_model::{ClusterId, NodeId};

    use super::*;

    #[test]
    fn a_managers_certificate_is_given_back_once_its_manager_is_one_of_them() {
        let mut rng = rand::rng();
        let managers = vec!["192.0.2.1:2377".to_owned(), "192.0.2.2:2377".to_owned()];
        let mut membership = Membership::new(
            NodeId::random(&mut rng),
            ClusterId::random(&mut rng),
            Role::Manager,
            managers.clone(),
            [192, 0, 2, 2].into(),
        );
        let mut report = Report {
            connected: true,
            managers: managers[..1].to_vec(),
            ..Report::default()
        };
        let needless = is_manager_certificate_needless;
        assert!(
            !needless(&membership, &report, Some(Role::Manager)),
            "not one of them yet"
        );
        report.managers = managers;
        assert!(needless(&membership, &report, Some(Role::Manager)));
        assert!(!needless(&membership, &report, Some(Role::Worker)));
        assert!(!needless(&membership, &report, None));
        report.connected = false;
        assert!(
            !needless(&membership, &report, Some(Role::Manager)),
            "nobody to ask"
        );
        report.connected = true;
        membership.role = Role::Worker;
        assert!(
            !needless(&membership, &report, Some(Role::Manager)),
            "the change of role does it"
        );
    }
}
