//! A manager that goes on alone after the others were lost: `init --force-new-cluster`.

use std::net::{IpAddr, SocketAddr};

use swarm_api::v1;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::local_control_client::LocalControlClient;
use swarm_model::Role;

use super::active::Active;
use super::control_process::{Beginning, ControlProcess, Running};
use super::lifecycle::{
    Agent, Founded, LOCAL_REQUEST_TIMEOUT, LifecycleError, POLL_INTERVAL, SESSION_TIMEOUT, begun,
    control_channel, local_unlock_key, start,
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
        readdress(&mut membership, Named::of(&request)?);
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
        let running = process.spawn(&Beginning::ForceNewCluster)?;
        let begin = async {
            if !unlock_key.is_empty() {
                self.unlock(unlock_key).await?;
            }
            self.found(membership).await
        };
        begun(running, begin).await
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

/// Addresses that a person names; the ones before count where none is named.
#[derive(Clone, Copy, Debug, Default)]
struct Named {
    advertise: Option<SocketAddr>,
    listen: Option<SocketAddr>,
    data_path: Option<IpAddr>,
}

impl Named {
    fn of(request: &v1::InitRequest) -> Result<Self, LifecycleError> {
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let advertise = given(&request.advertise_address);
        let listen = given(&request.listen_address);
        let data_path = given(&request.data_path_address);
        Ok(Self {
            advertise: advertise
                .map(|text| address::advertise_address(&text))
                .transpose()?,
            listen: listen.map(|text| address::with_port(&text)).transpose()?,
            data_path: data_path
                .map(|text| address::advertise_address(&text).map(|it| it.ip()))
                .transpose()?,
        })
    }
}

/// Gives a manager that goes on alone its addresses. It knows no other manager then.
fn readdress(membership: &mut Membership, named: Named) {
    let (old_listen, old) = role::addresses(membership);
    let advertise = named.advertise.unwrap_or(old);
    membership.advertise_address = Some(advertise);
    let follows = !old_listen.ip().is_unspecified() || old_listen.port() == old.port();
    if let Some(listen) = named.listen {
        membership.listen_address = Some(listen);
    } else if advertise != old && follows {
        // Every address, and the new port: what it listened on may be another host's address.
        membership.listen_address = None;
    }
    if let Some(data_path) = named.data_path {
        membership.data_path_address = data_path;
    } else if membership.data_path_address == old.ip() {
        membership.data_path_address = advertise.ip();
    }
    membership.managers = vec![advertise.to_string()];
}

#[cfg(test)]
mod tests {
    use swarm_model::{ClusterId, NodeId};

    use super::*;

    fn membership() -> Membership {
        let mut rng = rand::rng();
        let managers = vec!["192.0.2.1:2377".to_owned(), "192.0.2.2:2377".to_owned()];
        let mut membership = Membership::new(
            NodeId::random(&mut rng),
            ClusterId::random(&mut rng),
            Role::Manager,
            managers,
            [192, 0, 2, 2].into(),
        );
        membership.advertise_address = Some(at("192.0.2.2:2377"));
        membership.listen_address = Some(at("0.0.0.0:2377"));
        membership
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_stay_unless_others_are_named() {
        let before = membership();
        let mut after = before.clone();
        readdress(&mut after, Named::default());
        assert_eq!(after.managers, ["192.0.2.2:2377"]);
        after.managers.clone_from(&before.managers);
        assert_eq!(after, before);
    }

    #[test]
    fn a_host_that_moved_has_its_new_address_everywhere() {
        let named = Named {
            advertise: Some(at("198.51.100.7:2400")),
            ..Named::default()
        };
        for listen in ["0.0.0.0:2377", "192.0.2.2:2377"] {
            let mut moved = membership();
            moved.listen_address = Some(at(listen));
            readdress(&mut moved, named);
            assert_eq!(moved.managers, ["198.51.100.7:2400"]);
            assert_eq!(moved.data_path_address, IpAddr::from([198, 51, 100, 7]));
            let (listen, advertise) = role::addresses(&moved);
            assert_eq!(
                (listen, advertise),
                (at("0.0.0.0:2400"), at("198.51.100.7:2400"))
            );
        }
        // What a person chose stays where it can.
        let mut moved = membership();
        moved.listen_address = Some(at("0.0.0.0:4000"));
        moved.data_path_address = [203, 0, 113, 1].into();
        readdress(&mut moved, named);
        assert_eq!(role::addresses(&moved).0, at("0.0.0.0:4000"));
        assert_eq!(moved.data_path_address, IpAddr::from([203, 0, 113, 1]));
        let others = Named {
            listen: Some(at("0.0.0.0:5000")),
            data_path: Some([203, 0, 113, 2].into()),
            ..named
        };
        readdress(&mut moved, others);
        assert_eq!(role::addresses(&moved).0, at("0.0.0.0:5000"));
        assert_eq!(moved.data_path_address, IpAddr::from([203, 0, 113, 2]));
    }
}
