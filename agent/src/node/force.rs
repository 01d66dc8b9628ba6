//! A manager that goes on alone after the others were lost: `init --force-new-cluster`.

use swarm_api::v1;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::local_control_client::LocalControlClient;
use swarm_model::Role;

use super::active::Active;
use super::control_process::{Beginning, ControlProcess, Running};
use super::lifecycle::{
    Agent, Founded, LOCAL_REQUEST_TIMEOUT, LifecycleError, POLL_INTERVAL, SESSION_TIMEOUT,
    control_channel, data_path, local_unlock_key, start,
};
use super::{address, role};
use crate::identity::Membership;

impl Agent {
    /// Makes this node the only manager of its swarm, which keeps everything else. Tasks and the mesh go
    /// on meanwhile, as over a restart of this program.
    pub(super) async fn force_new_cluster(
        &self,
        request: v1::InitRequest,
    ) -> Result<v1::InitResponse, LifecycleError> {
        let mut active = self.active.lock().await;
        let member = active.as_ref().ok_or(LifecycleError::NothingToForce)?;
        let mut membership = member.membership();
        if membership.role != Role::Manager {
            return Err(LifecycleError::WorkerCannotForce);
        }
        readdress(&mut membership, &request)?;
        let unlock_key = self.check_no_quorum().await?;
        let process = role::process(&self.config, &membership)?;
        if let Some(member) = active.take() {
            member.stop().await;
        }
        let forced = self.go_on_alone(&process, membership, unlock_key).await;
        let (founded, running) = match forced {
            Ok(forced) => forced,
            Err(error) => {
                // As it was: by what is on disk.
                *active = start(&self.config, &self.state).await?;
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
        let started =
            Active::start(&self.config, &self.state, membership, &credentials, control).await?;
        let connected = started.connected(SESSION_TIMEOUT).await;
        *active = Some(started);
        connected.map_err(|error| LifecycleError::NoSession { error })?;
        Ok(response)
    }

    async fn go_on_alone(
        &self,
        process: &ControlProcess,
        mut membership: Membership,
        unlock_key: String,
    ) -> Result<(Founded, Running), LifecycleError> {
        let membership = |cluster_id| {
            membership.cluster_id = cluster_id;
            membership
        };
        let mut running = process.spawn(&Beginning::ForceNewCluster)?;
        let begin = async {
            if !unlock_key.is_empty() {
                self.unlock(unlock_key).await?;
            }
            self.found(membership).await
        };
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

    /// Gives the process that begins the key that it waits for: it had it before, from a person.
    async fn unlock(&self, unlock_key: String) -> Result<(), LifecycleError> {
        let socket = self.config.control_socket();
        let unlock = async {
            let channel = control_channel(&socket).await;
            let request = v1::UnlockRequest { unlock_key };
            let unlocked = LocalControlClient::new(channel.clone())
                .unlock(request)
                .await;
            unlocked.map_err(|status| LifecycleError::LocalControl(Box::new(status)))?;
            // Until its socket is the usual one, every other call is refused.
            loop {
                let channel = control_channel(&socket).await;
                match local_unlock_key(channel).await {
                    Ok(_) => return Ok(()),
                    Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
                }
            }
        };
        tokio::time::timeout(LOCAL_REQUEST_TIMEOUT, unlock)
            .await
            .map_err(|_| LifecycleError::BootstrapTimeout)?
    }

    /// Refuses while other managers can still be had by asking, and while the manager is locked. Gives
    /// its unlock key, which is empty without autolock.
    async fn check_no_quorum(&self) -> Result<String, LifecycleError> {
        let socket = self.config.control_socket();
        let ask = async {
            let channel = control_channel(&socket).await;
            let unlock_key = local_unlock_key(channel.clone()).await?;
            let list = v1::ListNodesRequest {};
            // Without an answer there is no leader that this manager reaches.
            let nodes = ControlClient::new(channel).list_nodes(list).await;
            let nodes = nodes.map_or_else(|_| Vec::new(), |answer| answer.into_inner().nodes);
            if nodes.iter().filter(|node| node.manager.is_some()).count() > 1 {
                return Err(LifecycleError::HasQuorum);
            }
            Ok(unlock_key)
        };
        // A manager that does not run may be what has to be mended.
        let asked = tokio::time::timeout(LOCAL_REQUEST_TIMEOUT, ask).await;
        asked.unwrap_or_else(|_| Ok(String::new()))
    }
}

/// Gives a manager that goes on alone the addresses that are asked for; those it has, where none are. It
/// knows no other manager then.
fn readdress(membership: &mut Membership, request: &v1::InitRequest) -> Result<(), LifecycleError> {
    let before = membership.advertise_address;
    if !request.advertise_address.is_empty() {
        membership.advertise_address =
            Some(address::advertise_address(&request.advertise_address)?);
    }
    let (old_listen, advertise) = role::addresses(membership);
    if !request.listen_address.is_empty() {
        let listen = address::listen_address(&request.listen_address, advertise.ip())?;
        membership.listen_address = Some(listen);
    } else if before != membership.advertise_address && !old_listen.ip().is_unspecified() {
        // What it listened on may be another host's address.
        membership.listen_address = None;
    }
    if !request.data_path_address.is_empty() {
        membership.data_path_address = data_path(&request.data_path_address, advertise.ip())?;
    } else if before.is_some_and(|it| it.ip() == membership.data_path_address) {
        membership.data_path_address = advertise.ip();
    }
    membership.managers = vec![advertise.to_string()];
    Ok(())
}
