//! What a person can ask of the swarm. Reads come from memory; each change is one update of the
//! store, decided by the pure functions beside this module.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use swarm_api::convert::ConvertError;
use swarm_api::v1;
use swarm_api::v1::control_server::Control;
use swarm_model::{
    Availability, Cluster, ClusterSpec, JoinToken, NetworkSpec, Node, NodeId, Role, ServiceId,
    ServiceSpec, Task, UnlockKey,
};
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::forward::Forwarder;
use super::join_managers::reconfigure;
use super::managers::{self, RoleOutcome};
use super::refusal::{Refusal, outcome};
use super::watch::{Watched, Watches};
use super::{Identity, Peer, drain, lookup, networks, nodes, roots, services};
use crate::ca::rotation::{self, NewRoot};
use crate::ca::{GivenRoot, Signer, new_root};
use crate::clock;
use crate::store::{State, Store};

/// Answers managers on the network and whoever may open the local socket.
#[derive(Clone, Debug)]
pub(super) struct ControlService {
    pub(super) store: Store,
    pub(super) self_id: NodeId,
    pub(super) forwarder: Forwarder,
    pub(super) signer: Signer,
    pub(super) watches: Watches,
}

/// Time that another manager gets to lead in place of this one.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(5);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Control for ControlService {
    async fn get_cluster(
        &self,
        request: Request<v1::GetClusterRequest>,
    ) -> Answer<v1::GetClusterResponse> {
        let cluster = self.store.read(cluster)?;
        let shown = super::cluster::shown(&cluster, &self.asked(&request));
        Ok(Response::new(shown))
    }

    async fn update_cluster(
        &self,
        request: Request<v1::UpdateClusterRequest>,
    ) -> Answer<v1::UpdateClusterResponse> {
        let v1::UpdateClusterRequest { version, spec } = request.into_inner();
        let spec = spec.ok_or(Refusal::Missing("spec"))?;
        let spec = ClusterSpec::try_from(spec).map_err(Refusal::from)?;
        let updated = self
            .store
            .update(|state| {
                let now = clock::now();
                let cluster = super::cluster::update(state, version, spec, now, &mut rand::rng())?;
                let spec = cluster.as_ref().map(|it| it.spec.clone());
                Ok((cluster.into_iter().map(Into::into).collect(), spec))
            })
            .await;
        let spec = outcome(updated)?;
        tracing::info!(?spec, "changed the swarm's settings");
        Ok(Response::new(v1::UpdateClusterResponse {}))
    }

    async fn get_join_token(
        &self,
        request: Request<v1::GetJoinTokenRequest>,
    ) -> Answer<v1::GetJoinTokenResponse> {
        let asked = self.asked(&request);
        let v1::GetJoinTokenRequest { role, rotate } = request.into_inner();
        let role = read_role(role)?;
        if rotate {
            let rotated = self
                .store
                .update(|state| {
                    let cluster = cluster(state)?;
                    let cluster =
                        nodes::rotate_secret(&cluster, role, clock::now(), &mut rand::rng());
                    Ok((vec![cluster.into()], ()))
                })
                .await;
            outcome(rotated)?;
            tracing::info!(role = role.as_str(), "made a new join token");
        }
        let (cluster, address) = self.store.read(|state| {
            let address = nodes::manager_address(state, &asked).ok_or(Refusal::NotReady)?;
            Ok::<_, Refusal>((cluster(state)?, address))
        })?;
        let secret = match role {
            Role::Worker => &cluster.worker_secret,
            Role::Manager => &cluster.manager_secret,
        };
        Ok(Response::new(v1::GetJoinTokenResponse {
            token: JoinToken::new(&cluster.root_ca_pem, secret).to_string(),
            manager_address: address.to_string(),
        }))
    }

    async fn get_unlock_key(
        &self,
        request: Request<v1::GetUnlockKeyRequest>,
    ) -> Answer<v1::GetUnlockKeyResponse> {
        if request.into_inner().rotate {
            let rotated = self
                .store
                .update(|state| {
                    let now = clock::now();
                    let cluster = super::cluster::rotate_unlock_key(state, now, &mut rand::rng())?;
                    Ok((vec![cluster.into()], ()))
                })
                .await;
            outcome(rotated)?;
            tracing::info!("made a new unlock key");
        }
        let cluster = self.store.read(cluster)?;
        let unlock_key = cluster.lock.key.as_ref().map(UnlockKey::to_text);
        Ok(Response::new(v1::GetUnlockKeyResponse {
            unlock_key: unlock_key.unwrap_or_default(),
        }))
    }

    async fn rotate_root(
        &self,
        request: Request<v1::RotateRootRequest>,
    ) -> Answer<v1::RotateRootResponse> {
        let v1::RotateRootRequest {
            root_ca_pem,
            root_key_pem,
            certificate_expiry_ms,
            external_cas,
        } = request.into_inner();
        let now = clock::now();
        let is_external = !external_cas.is_empty();
        let given = GivenRoot::read(&root_ca_pem, root_key_pem.into(), is_external, now);
        let root = match given.map_err(Refusal::from)? {
            Some(given) => given.into_inner(),
            None => new_root(now).map_err(Refusal::from)?,
        };
        let root_ca_pem = root.certificate_pem.clone();
        let expiry = certificate_expiry_ms.map(Duration::from_millis);
        let before = self.store.read(cluster)?;
        let is_outside = rotation::is_signed_outside(&before, &root).map_err(Refusal::from)?;
        let cross_signed_pem = if is_outside {
            let signed = self.signer.cross_sign(&before, &root).await;
            Some(signed.map_err(Refusal::from)?)
        } else {
            None
        };
        let root = NewRoot {
            root,
            external_cas: external_cas.into_iter().map(Into::into).collect(),
            cross_signed_pem,
        };
        let begun = self
            .store
            .update(|state| {
                let rng = &mut rand::rng();
                let cluster = roots::rotate(state, &before, root, expiry, now, rng)?;
                Ok((vec![cluster.into()], ()))
            })
            .await;
        outcome(begun)?;
        tracing::info!("began to change the root certificate");
        Ok(Response::new(v1::RotateRootResponse { root_ca_pem }))
    }

    async fn get_root_rotation(
        &self,
        _: Request<v1::GetRootRotationRequest>,
    ) -> Answer<v1::GetRootRotationResponse> {
        let problem = self.signer.trouble();
        let progress = self.store.read(|state| roots::progress(state, problem))?;
        Ok(Response::new(progress))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Answer<v1::ListNodesResponse> {
        let members = self.store.members().borrow().clone();
        // One that is still catching up is none to count on.
        let counts = |id: &u64| members.voters.contains(id) && members.reachable.contains(id);
        let (nodes, reachable_managers) = self.store.read(|state| {
            let is_reachable = |node: &&Arc<Node>| {
                let manager = node.manager.as_ref();
                manager.is_some_and(|manager| counts(&manager.raft_id))
            };
            let managers = state.nodes().filter(is_reachable);
            (
                state.nodes().map(|node| (&**node).into()).collect(),
                managers.map(|node| node.id.to_string()).collect(),
            )
        });
        Ok(Response::new(v1::ListNodesResponse {
            nodes,
            self_id: self.asked(&request).to_string(),
            reachable_managers,
        }))
    }

    async fn get_node(&self, request: Request<v1::GetNodeRequest>) -> Answer<v1::GetNodeResponse> {
        let asked = self.asked(&request);
        let reference = request.into_inner().reference;
        let node = self
            .store
            .read(|state| lookup::node(state, &reference, &asked).cloned())?;
        Ok(Response::new(v1::GetNodeResponse {
            node: Some((&*node).into()),
        }))
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Answer<v1::RemoveNodeResponse> {
        let asked = self.asked(&request);
        let v1::RemoveNodeRequest { reference, force } = request.into_inner();
        let removed = self
            .store
            .update(|state| nodes::remove(state, &reference, force, &asked))
            .await;
        let id = outcome(removed)?;
        tracing::info!(node_id = %id, force, "removed a node");
        Ok(Response::new(v1::RemoveNodeResponse { id: id.to_string() }))
    }

    async fn update_node(
        &self,
        request: Request<v1::UpdateNodeRequest>,
    ) -> Answer<v1::UpdateNodeResponse> {
        let asked = self.asked(&request);
        let v1::UpdateNodeRequest {
            reference,
            availability,
            labels_add,
            labels_rm,
        } = request.into_inner();
        let edit = nodes::Edit {
            availability: availability.map(read_availability).transpose()?,
            labels_add: labels_add.into_iter().collect(),
            labels_rm,
        };
        let updated = self
            .store
            .update(|state| nodes::update(state, &reference, &edit, &asked, clock::now()))
            .await;
        let id = outcome(updated)?;
        tracing::info!(node_id = %id, ?edit, "updated a node");
        Ok(Response::new(v1::UpdateNodeResponse { id: id.to_string() }))
    }

    async fn get_drain(
        &self,
        request: Request<v1::GetDrainRequest>,
    ) -> Answer<v1::GetDrainResponse> {
        let asked = self.asked(&request);
        let reference = request.into_inner().reference;
        let (availability, tasks) = self.store.read(|state| {
            let node = lookup::node(state, &reference, &asked)?;
            let leaving = drain::leaving(state, &node.id);
            Ok::<_, Refusal>((node.spec.availability, leaving))
        })?;
        let told = |drain::Leaving { id, name, held_up }| v1::LeavingTask {
            id: id.to_string(),
            name,
            held_up,
        };
        Ok(Response::new(v1::GetDrainResponse {
            availability: v1::Availability::from(availability).into(),
            tasks: tasks.into_iter().map(told).collect(),
        }))
    }

    async fn set_node_role(
        &self,
        request: Request<v1::SetNodeRoleRequest>,
    ) -> Answer<v1::SetNodeRoleResponse> {
        let asked = self.asked(&request);
        let peer = request.extensions().get::<Peer>().cloned();
        let message = request.into_inner();
        let role = read_role(message.role)?;
        let decided = reconfigure(&self.store, |state, members| {
            let nodes = (&asked, &self.self_id);
            managers::set_role(
                state,
                members,
                &message.reference,
                role,
                nodes,
                clock::now(),
            )
        });
        let (id, changed) = match decided.await? {
            RoleOutcome::Changed(id) => (id, true),
            RoleOutcome::Unchanged(id) => (id, false),
            RoleOutcome::HandOver => {
                let mut leadership = self.store.leadership();
                self.store.hand_over();
                let handed = leadership.wait_for(|now| !now.leader);
                if timeout(HAND_OVER_DEADLINE, handed).await.is_err() {
                    return Err(Refusal::Electing.into());
                }
                tracing::info!("handed over, to be demoted by the next leader");
                // What `self` means is known here only.
                let reference = self.store.read(|state| {
                    lookup::node(state, &message.reference, &asked).map(|node| node.id.to_string())
                })?;
                let message = v1::SetNodeRoleRequest {
                    reference,
                    ..message
                };
                let caller = peer.map_or(Identity::LocalOperator, |peer| peer.identity);
                let answer = self.forwarder.set_node_role(message, &caller).await?;
                return Ok(Response::new(answer));
            }
        };
        if changed {
            tracing::info!(node_id = %id, role = role.as_str(), "a node has another role");
        }
        Ok(Response::new(v1::SetNodeRoleResponse {
            id: id.to_string(),
            changed,
        }))
    }

    async fn create_service(
        &self,
        request: Request<v1::CreateServiceRequest>,
    ) -> Answer<v1::CreateServiceResponse> {
        let spec = read_spec(request.into_inner().spec)?;
        let created = self
            .store
            .update(|state| {
                let service = services::create(state, spec, clock::now(), &mut rand::rng())?;
                let id = service.id.clone();
                Ok((vec![service.into()], id))
            })
            .await;
        let id = outcome(created)?;
        tracing::info!(service_id = %id, "created a service");
        Ok(Response::new(v1::CreateServiceResponse {
            service: Some(self.read_service(&id)?),
        }))
    }

    async fn update_service(
        &self,
        request: Request<v1::UpdateServiceRequest>,
    ) -> Answer<v1::UpdateServiceResponse> {
        let v1::UpdateServiceRequest { id, version, spec } = request.into_inner();
        let spec = read_spec(spec)?;
        let id: ServiceId = id
            .parse()
            .map_err(|source| ConvertError::Id {
                field: "id",
                source,
            })
            .map_err(Refusal::from)?;
        let updated = self
            .store
            .update(|state| {
                let service = services::update(state, &id, version, spec, clock::now())?;
                Ok((service.into_iter().map(Into::into).collect(), ()))
            })
            .await;
        outcome(updated)?;
        Ok(Response::new(v1::UpdateServiceResponse {
            service: Some(self.read_service(&id)?),
        }))
    }

    async fn remove_service(
        &self,
        request: Request<v1::RemoveServiceRequest>,
    ) -> Answer<v1::RemoveServiceResponse> {
        let reference = request.into_inner().reference;
        let removed = self
            .store
            .update(|state| services::remove(state, &reference, clock::now()))
            .await;
        let id = outcome(removed)?;
        tracing::info!(service_id = %id, "removing a service");
        Ok(Response::new(v1::RemoveServiceResponse {
            id: id.to_string(),
        }))
    }

    async fn get_service(
        &self,
        request: Request<v1::GetServiceRequest>,
    ) -> Answer<v1::GetServiceResponse> {
        let reference = request.into_inner().reference;
        let service = self
            .store
            .read(|state| lookup::service(state, &reference).cloned())?;
        Ok(Response::new(v1::GetServiceResponse {
            service: Some((&*service).into()),
        }))
    }

    async fn list_services(
        &self,
        _: Request<v1::ListServicesRequest>,
    ) -> Answer<v1::ListServicesResponse> {
        let summaries = self.store.read(|state| {
            state
                .services()
                .map(|service| {
                    let (running_tasks, desired_tasks) = services::counts(state, service);
                    v1::ServiceSummary {
                        service: Some((&**service).into()),
                        running_tasks,
                        desired_tasks,
                    }
                })
                .collect()
        });
        Ok(Response::new(v1::ListServicesResponse {
            services: summaries,
        }))
    }

    async fn create_network(
        &self,
        request: Request<v1::CreateNetworkRequest>,
    ) -> Answer<v1::CreateNetworkResponse> {
        let spec = request.into_inner().spec;
        let spec = spec.ok_or(Refusal::Missing("spec"))?;
        let spec = NetworkSpec::try_from(spec).map_err(Refusal::from)?;
        let created = self
            .store
            .update(|state| networks::create(state, spec, clock::now(), &mut rand::rng()))
            .await;
        let id = outcome(created)?;
        tracing::info!(network_id = %id, "created a network");
        let members = self
            .store
            .read(|state| networks::members(state, id.as_str()))?;
        Ok(Response::new(v1::CreateNetworkResponse {
            network: Some((&*members.network).into()),
        }))
    }

    async fn remove_network(
        &self,
        request: Request<v1::RemoveNetworkRequest>,
    ) -> Answer<v1::RemoveNetworkResponse> {
        let reference = request.into_inner().reference;
        let removed = self
            .store
            .update(|state| networks::remove(state, &reference))
            .await;
        let id = outcome(removed)?;
        tracing::info!(network_id = %id, "removed a network");
        Ok(Response::new(v1::RemoveNetworkResponse {
            id: id.to_string(),
        }))
    }

    async fn prune_networks(
        &self,
        _: Request<v1::PruneNetworksRequest>,
    ) -> Answer<v1::PruneNetworksResponse> {
        let pruned = self
            .store
            .update(|state| Ok::<_, Refusal>(networks::prune(state)))
            .await;
        let names = outcome(pruned)?;
        tracing::info!(?names, "removed the networks that nobody used");
        Ok(Response::new(v1::PruneNetworksResponse { names }))
    }

    async fn get_network(
        &self,
        request: Request<v1::GetNetworkRequest>,
    ) -> Answer<v1::GetNetworkResponse> {
        let v1::GetNetworkRequest { reference, verbose } = request.into_inner();
        let (members, hostnames) = self.store.read(|state| {
            let members = networks::members(state, &reference)?;
            let hostnames = hostnames(state, &members.tasks);
            Ok::<_, Refusal>((members, hostnames))
        })?;
        let network = Some((&*members.network).into());
        Ok(Response::new(if verbose {
            v1::GetNetworkResponse {
                network,
                services: members.services.iter().map(|it| (&**it).into()).collect(),
                tasks: members.tasks.iter().map(|it| (&**it).into()).collect(),
                hostnames,
            }
        } else {
            v1::GetNetworkResponse {
                network,
                ..v1::GetNetworkResponse::default()
            }
        }))
    }

    async fn list_networks(
        &self,
        _: Request<v1::ListNetworksRequest>,
    ) -> Answer<v1::ListNetworksResponse> {
        let networks = self.store.read(|state| {
            let mut networks: Vec<_> = state.networks().cloned().collect();
            networks.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
            networks
        });
        Ok(Response::new(v1::ListNetworksResponse {
            networks: networks.iter().map(|it| (&**it).into()).collect(),
        }))
    }

    type WatchStream = Watched;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Answer<Watched> {
        Ok(Response::new(
            self.watches.begin(request.into_inner()).await?,
        ))
    }

    async fn list_tasks(
        &self,
        request: Request<v1::ListTasksRequest>,
    ) -> Answer<v1::ListTasksResponse> {
        let reference = request.into_inner().service_reference;
        let (tasks, hostnames, problems) = self.store.read(|state| {
            let mut problems = Vec::new();
            let mut tasks: Vec<_> = if reference.is_empty() {
                state.tasks().cloned().collect()
            } else {
                let service = lookup::service(state, &reference)?;
                problems = services::problems(state, service);
                state.tasks_of_service(&service.id).cloned().collect()
            };
            tasks.sort_by(|a, b| order(a).cmp(&order(b)));
            let hostnames = hostnames(state, &tasks);
            Ok::<_, Refusal>((tasks, hostnames, problems))
        })?;
        Ok(Response::new(v1::ListTasksResponse {
            tasks: tasks.iter().map(|task| (&**task).into()).collect(),
            hostnames,
            problems,
        }))
    }
}

impl ControlService {
    /// The node whose manager was asked: this one, or the one that forwarded the call.
    fn asked<T>(&self, request: &Request<T>) -> NodeId {
        let peer = request.extensions().get::<Peer>();
        let forwarded_by = peer.and_then(|peer| peer.forwarded_by.clone());
        forwarded_by.unwrap_or_else(|| self.self_id.clone())
    }

    /// The service as it is after a change of it.
    fn read_service(&self, id: &ServiceId) -> Result<v1::Service, Refusal> {
        self.store.read(|state| {
            let service = state.service(id).ok_or_else(|| Refusal::NotFound {
                kind: "service",
                reference: id.to_string(),
            })?;
            Ok((&**service).into())
        })
    }
}

fn read_role(role: i32) -> Result<Role, Refusal> {
    match v1::Role::try_from(role) {
        Ok(v1::Role::Worker) => Ok(Role::Worker),
        Ok(v1::Role::Manager) => Ok(Role::Manager),
        Ok(v1::Role::Unspecified) | Err(_) => Err(Refusal::Missing("role")),
    }
}

fn read_availability(availability: i32) -> Result<Availability, Refusal> {
    match v1::Availability::try_from(availability) {
        Ok(v1::Availability::Unspecified) | Err(_) => Err(Refusal::Missing("availability")),
        Ok(availability) => Ok(availability.into()),
    }
}

fn cluster(state: &State) -> Result<Arc<Cluster>, Refusal> {
    state.cluster().cloned().ok_or(Refusal::NotReady)
}

fn read_spec(spec: Option<v1::ServiceSpec>) -> Result<ServiceSpec, Refusal> {
    Ok(spec.ok_or(Refusal::Missing("spec"))?.try_into()?)
}

/// By service and slot, the newest of a slot first.
fn order(task: &Task) -> impl Ord + '_ {
    (
        &task.service_name,
        &task.service_id,
        task.slot,
        std::cmp::Reverse(task.meta.created_at),
        &task.id,
    )
}

fn hostnames(state: &State, tasks: &[Arc<Task>]) -> HashMap<String, String> {
    let ids: BTreeSet<_> = tasks
        .iter()
        .filter_map(|task| task.node_id.as_ref())
        .collect();
    ids.into_iter()
        .filter_map(|id| state.node(id))
        .map(|node| {
            let name = lookup::display_name(node);
            (node.id.to_string(), name.to_owned())
        })
        .collect()
}
