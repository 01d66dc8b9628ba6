//! Init, join, leave, and going on after a restart.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use swarm_api::v1;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::local_control_client::LocalControlClient;
use swarm_model::{ClusterId, ClusterSpec, InvalidCluster, NodeId, Role, validate_cluster};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tonic::transport::{Channel, Endpoint, Uri};

use super::active::{Active, ActiveError};
use super::address::{self, AddressError};
use super::control_process::{Beginning, Bootstrap, ControlError, ControlProcess, Running};
use super::role;
use super::told::Told;
use super::trace::Scene;
use crate::config::Config;
use crate::identity::{
    Credentials, JoinError, KeyRequest, Membership, StateError, StateStore, TlsError, join,
};
use crate::network::{NetworkError, Reconciler};

/// A new swarm makes its keys and its first log entries: a second; a slow disk may take longer.
const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(30);

/// How long init and join wait for the session to open (Docker's join waits 20 s too); then it goes
/// on in the background.
pub(super) const SESSION_TIMEOUT: Duration = Duration::from_secs(20);

/// A local request is answered from memory, or by one commit.
pub(super) const LOCAL_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Why a request about this host was refused or failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LifecycleError {
    #[error(
        "this node is already part of a swarm: leave it with `swarmctl swarm leave` before it \
         makes or joins another"
    )]
    AlreadyMember,
    #[error("this node is not part of a swarm")]
    NotMember,
    #[error(
        "this node is the only manager of its swarm: leaving destroys the swarm, its services and \
         all its state; if that is meant, use `swarmctl swarm leave --force`"
    )]
    LastManager,
    #[error(
        "this node is a manager, and the others count on it: demote it first with `swarmctl node demote \
         self`, then leave; `swarmctl swarm leave --force` leaves all the same"
    )]
    Manager,
    #[error(
        "this node is not part of a swarm, so that there is nothing to go on with: put back its state \
         directory from a copy and start swarm-agent again, or leave --force-new-cluster out to make a \
         new swarm"
    )]
    NothingToForce,
    #[error(
        "this node is a worker and does not hold the swarm's state: use --force-new-cluster on a \
         manager"
    )]
    WorkerCannotForce,
    #[error(
        "the swarm has a leader, and nothing has to be forced: demote the managers that are not wanted \
         with `swarmctl node demote`"
    )]
    HasQuorum,
    #[error(transparent)]
    Settings(#[from] InvalidCluster),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Active(#[from] ActiveError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("this node is just joining or leaving a swarm: try again when that is done")]
    Busy,
    #[error("swarm-control did not start within {} s", BOOTSTRAP_TIMEOUT.as_secs())]
    BootstrapTimeout,
    #[error("swarm-control refused: {}", .0.message())]
    LocalControl(Box<tonic::Status>),
    #[error("swarm-control answered with an invalid {0}")]
    Answer(&'static str),
    #[error(
        "the node was admitted, but no session with a manager opened within {} s; it goes on trying \
         in the background: {error}; see `swarmctl swarm status`", SESSION_TIMEOUT.as_secs()
    )]
    NoSession { error: String },
}

impl LifecycleError {
    /// The gRPC code that fits.
    pub(super) fn code(&self) -> tonic::Code {
        match self {
            Self::AlreadyMember
            | Self::NotMember
            | Self::LastManager
            | Self::Manager
            | Self::NothingToForce
            | Self::WorkerCannotForce
            | Self::HasQuorum
            | Self::Network(NetworkError::NothingDesired) => tonic::Code::FailedPrecondition,
            Self::Settings(_)
            | Self::Address(_)
            | Self::Join(JoinError::Token(_) | JoinError::WrongSwarm { .. }) => {
                tonic::Code::InvalidArgument
            }
            Self::Join(JoinError::Refused(status)) => status.code(),
            Self::Join(_) | Self::NoSession { .. } | Self::Busy => tonic::Code::Unavailable,
            Self::State(_)
            | Self::Control(_)
            | Self::Tls(_)
            | Self::Active(_)
            | Self::Network(_)
            | Self::BootstrapTimeout
            | Self::LocalControl(_)
            | Self::Answer(_) => tonic::Code::Internal,
        }
    }
}

/// This host.
pub(crate) struct Agent {
    pub(super) config: Config,
    pub(super) state: StateStore,
    /// Held through init, join and leave, so that they come one after another.
    pub(super) active: Mutex<Option<Active>>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Agent {
    /// A host that goes on where it was.
    pub(crate) async fn start(config: Config) -> Result<Self, LifecycleError> {
        let state = StateStore::new(&config.state_dir);
        let active = start(&config, &state).await?;
        Ok(Self {
            config,
            state,
            active: Mutex::new(active),
        })
    }

    /// Makes a swarm with this node as its first manager.
    pub(super) async fn init(
        &self,
        request: v1::InitRequest,
    ) -> Result<v1::InitResponse, LifecycleError> {
        if request.force_new_cluster {
            return self.force_new_cluster(request).await;
        }
        let mut active = self.active.lock().await;
        if active.is_some() {
            return Err(LifecycleError::AlreadyMember);
        }
        let v1::InitRequest {
            advertise_address,
            listen_address,
            data_path_address,
            certificate_expiry_ms,
            force_new_cluster: _,
            autolock,
        } = request;
        let certificate_expiry = certificate_expiry(certificate_expiry_ms)?;
        let advertise = address::advertise_address(&advertise_address)?;
        let mut listen = address::listen_address(&listen_address, advertise.ip())?;
        if listen_address.is_empty() {
            listen.set_port(advertise.port());
        }
        let data_path = data_path(&data_path_address, advertise.ip())?;
        let node_id = NodeId::random(&mut rand::rng());
        let process = ControlProcess::new(&self.config, listen, advertise)?;
        let bootstrap = Bootstrap {
            node_id: node_id.clone(),
            data_path_address: data_path,
            certificate_expiry,
            autolock,
        };
        let running = process.spawn(&Beginning::Bootstrap(bootstrap))?;
        let membership = |cluster_id| {
            let managers = vec![advertise.to_string()];
            let mut new = Membership::new(node_id, cluster_id, Role::Manager, managers, data_path);
            new.listen_address = Some(listen);
            new.advertise_address = Some(advertise);
            new
        };
        let (founded, running) = match begun(running, self.found(membership)).await {
            Ok(begun) => begun,
            Err(error) => {
                self.state.clear()?;
                return Err(error);
            }
        };
        let response = founded.response();
        let Founded {
            membership,
            credentials,
            ..
        } = founded;
        let control = Some((process, running));
        self.activate(&mut active, membership, &credentials, control)
            .await?;
        Ok(response)
    }

    /// Waits for the manager that has just begun, and gets this node's certificate from it. `membership`
    /// gives this node's place in the swarm with that id.
    pub(super) async fn found(
        &self,
        membership: impl FnOnce(ClusterId) -> Membership,
    ) -> Result<Founded, LifecycleError> {
        let socket = self.config.control_socket();
        let key = KeyRequest::new()?;
        let issue = issue(&socket, &key.csr_der);
        let (channel, issued) = tokio::time::timeout(BOOTSTRAP_TIMEOUT, issue)
            .await
            .map_err(|_| LifecycleError::BootstrapTimeout)??;
        let mut request = tonic::Request::new(v1::GetJoinTokenRequest {
            role: v1::Role::Worker.into(),
            rotate: false,
        });
        request.set_timeout(LOCAL_REQUEST_TIMEOUT);
        let worker_token = ControlClient::new(channel.clone())
            .get_join_token(request)
            .await
            .map_err(|status| LifecycleError::LocalControl(Box::new(status)))?
            .into_inner()
            .token;
        let unlock_key = local_unlock_key(channel).await?;
        let cluster_id = issued
            .cluster_id
            .parse()
            .map_err(|_| LifecycleError::Answer("cluster id"))?;
        let membership = membership(cluster_id);
        let credentials = Credentials {
            key_pem: key.key_pem,
            certificate_pem: issued.certificate_chain_pem,
            root_pem: issued.root_ca_pem,
        };
        self.state.save(&membership, &credentials)?;
        Ok(Founded {
            membership,
            credentials,
            worker_token,
            unlock_key,
        })
    }

    /// Joins a swarm.
    pub(super) async fn join(
        &self,
        request: v1::JoinRequest,
    ) -> Result<v1::JoinResponse, LifecycleError> {
        let mut active = self.active.lock().await;
        if active.is_some() {
            return Err(LifecycleError::AlreadyMember);
        }
        let v1::JoinRequest {
            remote_address,
            token,
            advertise_address,
            data_path_address,
        } = request;
        let remote = address::with_port(&remote_address)?;
        let advertise = if advertise_address.is_empty() {
            SocketAddr::new(address::address_towards(remote)?, address::DEFAULT_PORT)
        } else {
            address::advertise_address(&advertise_address)?
        };
        let data_path = data_path(&data_path_address, advertise.ip())?;
        let joined = join(&remote.to_string(), &token).await?;
        let mut membership = Membership::new(
            joined.node_id,
            joined.cluster_id,
            joined.role,
            vec![remote.to_string()],
            data_path,
        );
        membership.advertise_address = Some(advertise);
        self.state.save(&membership, &joined.credentials)?;
        let node_id = membership.node_id.to_string();
        let control = match joined.role {
            Role::Worker => None,
            Role::Manager => match self.start_manager(&membership, &joined.credentials) {
                Ok(started) => Some(started),
                Err(error) => {
                    self.state.clear()?;
                    return Err(error.into());
                }
            },
        };
        self.activate(&mut active, membership, &joined.credentials, control)
            .await?;
        let role = match joined.role {
            Role::Worker => v1::Role::Worker,
            Role::Manager => v1::Role::Manager,
        };
        Ok(v1::JoinResponse {
            node_id,
            role: role.into(),
        })
    }

    /// Starts the manager process of a node that has just become a manager of a swarm with others.
    fn start_manager(
        &self,
        membership: &Membership,
        credentials: &Credentials,
    ) -> Result<(ControlProcess, Running), ControlError> {
        let process = role::process(&self.config, membership)?;
        process.give_certificate(credentials)?;
        let running = process.spawn(&Beginning::Usual)?;
        Ok((process, running))
    }

    /// Starts what a new member runs, and waits for its first session. A member that cannot start
    /// leaves nothing behind; one whose session does not open in time goes on trying.
    async fn activate(
        &self,
        active: &mut Option<Active>,
        membership: Membership,
        credentials: &Credentials,
        control: Option<(ControlProcess, Running)>,
    ) -> Result<(), LifecycleError> {
        match Active::start(&self.config, &self.state, membership, credentials, control).await {
            Ok(started) => {
                let connected = started.connected(SESSION_TIMEOUT).await;
                *active = Some(started);
                connected.map_err(|error| LifecycleError::NoSession { error })
            }
            Err(error) => {
                self.state.clear()?;
                Err(error.into())
            }
        }
    }

    /// Leaves the swarm: tasks end, networks go, and nothing is left.
    pub(super) async fn leave(&self, force: bool) -> Result<(), LifecycleError> {
        let mut active = self.active.lock().await;
        let Some(member) = active.as_ref() else {
            return Err(LifecycleError::NotMember);
        };
        if member.role() == Role::Manager {
            match (force, member.has_other_managers()) {
                (false, false) => return Err(LifecycleError::LastManager),
                (false, true) => return Err(LifecycleError::Manager),
                (true, true) => self.give_up_membership().await,
                (true, false) => {}
            }
        }
        if let Some(member) = active.take() {
            member.leave().await;
        }
        self.state.clear()?;
        Ok(())
    }

    /// Lets the other managers go on without this one, as far as they still can: a manager that is gone
    /// and was never given up counts for the majority.
    async fn give_up_membership(&self) {
        let socket = self.config.control_socket();
        let ask = async {
            let channel = control_channel(&socket).await;
            let request = v1::SetNodeRoleRequest {
                reference: "self".to_owned(),
                role: v1::Role::Worker.into(),
            };
            ControlClient::new(channel).set_node_role(request).await
        };
        match tokio::time::timeout(LOCAL_REQUEST_TIMEOUT, ask).await {
            Ok(Ok(_)) => {}
            Ok(Err(status)) => {
                tracing::warn!(
                    error = status.message(),
                    "leaving without the others' consent"
                );
            }
            Err(_) => tracing::warn!("leaving without the others' consent: no answer"),
        }
    }

    /// How this host stands.
    pub(super) async fn status(&self) -> v1::GetStatusResponse {
        // A join in progress holds the lock, and is what a person then wants to hear of.
        let Ok(active) = self.active.try_lock() else {
            return v1::GetStatusResponse {
                state: "pending".to_owned(),
                ..v1::GetStatusResponse::default()
            };
        };
        match active.as_ref() {
            Some(active) => active.status(),
            None => v1::GetStatusResponse {
                state: "inactive".to_owned(),
                ..v1::GetStatusResponse::default()
            },
        }
    }

    /// What this host tells of itself in numbers.
    pub(super) async fn stats(&self) -> Result<Told, LifecycleError> {
        let standing = {
            let active = self.active.try_lock().map_err(|_| LifecycleError::Busy)?;
            active.as_ref().ok_or(LifecycleError::NotMember)?.standing()
        };
        Ok(standing.told().await?)
    }

    /// The same, of a host that can tell less than that too.
    pub(crate) async fn told(&self) -> Told {
        match self.stats().await {
            Ok(told) => told,
            Err(LifecycleError::NotMember) => Told::default(),
            Err(error) => {
                tracing::debug!(error = crate::error_text(&error), "no counters");
                Told {
                    member: true,
                    ..Told::default()
                }
            }
        }
    }

    /// The networks of a member, and what its test of itself has found.
    pub(super) fn network(&self) -> Result<(Arc<Reconciler>, Vec<String>), LifecycleError> {
        let active = self.active.try_lock().map_err(|_| LifecycleError::Busy)?;
        let active = active.as_ref().ok_or(LifecycleError::NotMember)?;
        Ok((active.network(), active.found()))
    }

    /// Where a member looks for the packets of a trace, and what they mean.
    pub(super) fn scene(&self) -> Result<Scene, LifecycleError> {
        let active = self.active.try_lock().map_err(|_| LifecycleError::Busy)?;
        let active = active.as_ref().ok_or(LifecycleError::NotMember)?;
        Ok(Scene {
            bpffs_dir: self.config.bpffs_dir.clone(),
            node_id: active.membership().node_id,
            assigned: active.assigned(),
        })
    }

    /// Ends what this process does; containers, networks and the mesh go on.
    pub(crate) async fn stop(&self) {
        if let Some(active) = self.active.lock().await.take() {
            active.stop().await;
        }
    }
}

/// What a manager that has just begun has given this node.
pub(super) struct Founded {
    pub(super) membership: Membership,
    pub(super) credentials: Credentials,
    worker_token: String,
    unlock_key: String,
}

impl Founded {
    /// What a person is told of it.
    pub(super) fn response(&self) -> v1::InitResponse {
        v1::InitResponse {
            node_id: self.membership.node_id.to_string(),
            worker_token: self.worker_token.clone(),
            manager_address: self.membership.managers.join(", "),
            unlock_key: self.unlock_key.clone(),
        }
    }
}

/// Gets a certificate from the manager on `socket`, as soon as it answers; and the connection to it. A
/// manager that was just unlocked opens its socket a second time.
async fn issue(
    socket: &Path,
    csr: &[u8],
) -> Result<(Channel, v1::IssueManagerCertificateResponse), LifecycleError> {
    loop {
        let channel = control_channel(socket).await;
        let request = v1::IssueManagerCertificateRequest { csr: csr.to_vec() };
        let mut client = LocalControlClient::new(channel.clone());
        match client.issue_manager_certificate(request).await {
            Ok(issued) => return Ok((channel, issued.into_inner())),
            Err(status) if is_gone(&status) => tokio::time::sleep(POLL_INTERVAL).await,
            Err(status) => return Err(LifecycleError::LocalControl(Box::new(status))),
        }
    }
}

/// Whether the connection broke, rather than that the manager answered.
fn is_gone(status: &tonic::Status) -> bool {
    matches!(
        status.code(),
        tonic::Code::Unavailable | tonic::Code::Unknown
    )
}

/// What `begin` comes to with a manager's process that has just been spawned, and that process. Without
/// success it is stopped again.
pub(super) async fn begun(
    mut running: Running,
    begin: impl Future<Output = Result<Founded, LifecycleError>>,
) -> Result<(Founded, Running), LifecycleError> {
    let founded = tokio::select! {
        founded = begin => founded,
        end = running.ended() => Err(end.into()),
    };
    match founded {
        Ok(founded) => Ok((founded, running)),
        Err(error) => {
            running.stop().await;
            Err(error)
        }
    }
}

/// The unlock key as the manager behind `channel` knows it; empty without autolock.
pub(super) async fn local_unlock_key(channel: Channel) -> Result<String, LifecycleError> {
    let mut request = tonic::Request::new(v1::GetLocalUnlockKeyRequest {});
    request.set_timeout(LOCAL_REQUEST_TIMEOUT);
    let mut client = LocalControlClient::new(channel);
    let answer = client.get_local_unlock_key(request);
    let answer = answer
        .await
        .map_err(|status| LifecycleError::LocalControl(Box::new(status)))?;
    Ok(answer.into_inner().unlock_key)
}

/// Starts what `state` says, if this node is in a swarm.
pub(super) async fn start(
    config: &Config,
    state: &StateStore,
) -> Result<Option<Active>, LifecycleError> {
    let Some((membership, credentials)) = state.load()? else {
        return Ok(None);
    };
    let control = match membership.role {
        Role::Manager => {
            let process = role::process(config, &membership)?;
            let running = process.spawn(&Beginning::Usual)?;
            Some((process, running))
        }
        Role::Worker => None,
    };
    let started = Active::start(config, state, membership, &credentials, control).await?;
    Ok(Some(started))
}

fn data_path(asked: &str, default: IpAddr) -> Result<IpAddr, LifecycleError> {
    if asked.is_empty() {
        return Ok(default);
    }
    Ok(address::advertise_address(asked)?.ip())
}

/// The life of certificates that was asked for; none where none was.
fn certificate_expiry(milliseconds: u64) -> Result<Option<Duration>, InvalidCluster> {
    if milliseconds == 0 {
        return Ok(None);
    }
    let spec = ClusterSpec {
        certificate_expiry: Duration::from_millis(milliseconds),
        ..ClusterSpec::default()
    };
    validate_cluster(&spec).map(|()| Some(spec.certificate_expiry))
}

/// A channel to swarm-control's socket, as soon as it is there.
pub(super) async fn control_channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The address is only a name: the connector knows where to go.
    let endpoint = Endpoint::from_static("http://control.sock");
    loop {
        match endpoint.connect_with_connector(connector.clone()).await {
            Ok(channel) => return channel,
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}
