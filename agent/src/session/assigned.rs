//! What this node has been told to do and to know.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use crate::SharedMap;
use swarm_api::convert::ConvertError;
use swarm_api::v1;
use swarm_model::{EndpointMode, Network, NetworkId, NodeId, PortConfig, ServiceId, Task, TaskId};

/// Everything a manager has told this node; starts out empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Assigned {
    /// Which of this agent's sessions it was heard in; 0 for what was kept from an earlier start.
    pub(crate) session: u64,
    /// The generation this is; 0 before the first. Starts again with every session.
    pub(crate) generation: u64,
    /// Tasks of this node.
    pub(crate) tasks: BTreeMap<TaskId, Task>,
    /// Networks that it takes part in: the ingress network, and those that its tasks are on.
    pub(crate) networks: BTreeMap<NetworkId, Network>,
    /// Nodes of the ingress network, this one included.
    pub(crate) peers: BTreeMap<NodeId, Peer>,
    /// Services with published ports.
    pub(crate) services: SharedMap<ServiceId, PublishedService>,
    /// Tasks with an address on the ingress network, wherever they are.
    pub(crate) endpoints: SharedMap<TaskId, Endpoint>,
    /// Per network of a user in `networks`, the tasks on it, wherever they are.
    pub(crate) network_endpoints: BTreeMap<NetworkId, SharedMap<TaskId, NetworkEndpoint>>,
    /// Per network of a user in `networks`, the services on it, with or without tasks.
    pub(crate) network_services: BTreeMap<NetworkId, SharedMap<ServiceId, NetworkService>>,
}

/// A node of the ingress network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its address on the ingress network.
    pub(crate) ingress_address: Ipv4Addr,
    /// Where VXLAN packets to it are sent.
    pub(crate) data_path_address: IpAddr,
}

/// A service with published ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PublishedService {
    /// Its name.
    pub(crate) name: String,
    /// The key of its counters.
    pub(crate) index: u32,
    /// Its ports.
    pub(crate) ports: Vec<PortConfig>,
}

/// A task on the ingress network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Its service.
    pub(crate) service_id: ServiceId,
    /// Its node.
    pub(crate) node_id: NodeId,
    /// Its address.
    pub(crate) address: Ipv4Addr,
    /// Whether new connections go to it.
    pub(crate) balanced: Balanced,
}

/// A task on a network of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetworkEndpoint {
    /// `service.slot.id`.
    pub(crate) task_name: String,
    /// Its service.
    pub(crate) service_id: ServiceId,
    /// Its service's name.
    pub(crate) service_name: String,
    /// Its node.
    pub(crate) node_id: NodeId,
    /// Its address there.
    pub(crate) address: Ipv4Addr,
    /// Further names of its service there.
    pub(crate) aliases: Vec<String>,
    /// Whether new connections go to it.
    pub(crate) balanced: Balanced,
}

/// A service on a network of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetworkService {
    /// Its name.
    pub(crate) name: String,
    /// Its further names there.
    pub(crate) aliases: Vec<String>,
    /// Its virtual address there; none in the mode `dnsrr`, and until it is allocated.
    pub(crate) vip: Option<Ipv4Addr>,
    /// What its name stands for.
    pub(crate) mode: EndpointMode,
}

/// Whether new connections go to an endpoint (design: starting, ready, draining, gone).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Balanced {
    /// Not yet: reachable, no destination.
    NotYet,
    /// Yes.
    Yes,
    /// No more: a destination of weight 0, so that its connections run on.
    NoMore,
}

impl From<v1::EndpointState> for Balanced {
    /// What is not said is not balanced to.
    fn from(state: v1::EndpointState) -> Self {
        match state {
            v1::EndpointState::Ready => Self::Yes,
            v1::EndpointState::Draining => Self::NoMore,
            v1::EndpointState::Starting | v1::EndpointState::Unspecified => Self::NotYet,
        }
    }
}

impl From<Balanced> for v1::EndpointState {
    fn from(balanced: Balanced) -> Self {
        match balanced {
            Balanced::NotYet => Self::Starting,
            Balanced::Yes => Self::Ready,
            Balanced::NoMore => Self::Draining,
        }
    }
}

/// Why a message does not fit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AssignedError {
    #[error("generation {found} follows {expected_after}")]
    Gap { expected_after: u64, found: u64 },
    #[error("a change came before the complete set")]
    NoBase,
    #[error("an assignment without content")]
    Empty,
    #[error("an assigned {what} is not valid: {detail}")]
    Invalid { what: &'static str, detail: String },
    #[error(transparent)]
    Convert(#[from] ConvertError),
}

fn parse<T: std::str::FromStr>(what: &'static str, text: &str) -> Result<T, AssignedError> {
    text.parse().map_err(|_| AssignedError::Invalid {
        what,
        // Bounded: the text comes from outside.
        detail: text.chars().take(80).collect(),
    })
}

impl Assigned {
    /// This, after `message`. Unchanged when the message does not fit.
    pub(crate) fn after(&self, message: v1::Assignments) -> Result<Self, AssignedError> {
        let v1::Assignments {
            generation,
            complete,
            put,
            remove,
        } = message;
        let mut next = if complete {
            Self {
                session: self.session,
                ..Self::default()
            }
        } else if self.generation == 0 {
            return Err(AssignedError::NoBase);
        } else if generation != self.generation + 1 {
            return Err(AssignedError::Gap {
                expected_after: self.generation,
                found: generation,
            });
        } else {
            self.clone()
        };
        for key in remove {
            next.remove(key.key.ok_or(AssignedError::Empty)?)?;
        }
        for assignment in put {
            next.put(assignment.item.ok_or(AssignedError::Empty)?)?;
        }
        next.generation = generation;
        Ok(next)
    }

    fn put(&mut self, item: v1::assignment::Item) -> Result<(), AssignedError> {
        use v1::assignment::Item;
        match item {
            Item::Task(task) => {
                let task = Task::try_from(*task)?;
                self.tasks.insert(task.id.clone(), task);
            }
            Item::Network(network) => {
                let network = Network::try_from(*network)?;
                self.networks.insert(network.id.clone(), network);
            }
            Item::Peer(peer) => {
                let v1::NetworkPeer {
                    node_id,
                    ingress_address,
                    data_path_address,
                } = peer;
                let peer = Peer {
                    ingress_address: parse("ingress address", &ingress_address)?,
                    data_path_address: parse("data path address", &data_path_address)?,
                };
                self.peers.insert(parse("node id", &node_id)?, peer);
            }
            Item::Service(service) => {
                let v1::PublishedService {
                    service_id,
                    index,
                    ports,
                    name,
                } = service;
                let ports = ports
                    .into_iter()
                    .map(PortConfig::try_from)
                    .collect::<Result<_, _>>()?;
                let service = PublishedService { name, index, ports };
                self.services
                    .insert(parse("service id", &service_id)?, service);
            }
            Item::Endpoint(endpoint) => self.put_endpoint(&endpoint)?,
            Item::NetworkEndpoint(endpoint) => self.put_network_endpoint(endpoint)?,
            Item::NetworkService(service) => self.put_network_service(service)?,
        }
        Ok(())
    }

    fn put_endpoint(&mut self, endpoint: &v1::TaskEndpoint) -> Result<(), AssignedError> {
        let v1::TaskEndpoint {
            task_id,
            service_id,
            node_id,
            address,
            state: _,
        } = endpoint;
        let converted = Endpoint {
            service_id: parse("service id", service_id)?,
            node_id: parse("node id", node_id)?,
            address: parse("task address", address)?,
            balanced: endpoint.state().into(),
        };
        self.endpoints.insert(parse("task id", task_id)?, converted);
        Ok(())
    }

    fn put_network_endpoint(&mut self, endpoint: v1::NetworkEndpoint) -> Result<(), AssignedError> {
        let balanced = endpoint.state().into();
        let v1::NetworkEndpoint {
            network_id,
            task_id,
            task_name,
            service_id,
            service_name,
            node_id,
            address,
            aliases,
            state: _,
        } = endpoint;
        let converted = NetworkEndpoint {
            task_name,
            service_id: parse("service id", &service_id)?,
            service_name,
            node_id: parse("node id", &node_id)?,
            address: parse("task address", &address)?,
            aliases,
            balanced,
        };
        self.network_endpoints
            .entry(parse("network id", &network_id)?)
            .or_default()
            .insert(parse("task id", &task_id)?, converted);
        Ok(())
    }

    fn put_network_service(&mut self, service: v1::NetworkService) -> Result<(), AssignedError> {
        let v1::NetworkService {
            network_id,
            service_id,
            name,
            aliases,
            vip,
            mode,
        } = service;
        let mode = v1::EndpointMode::try_from(mode).map_err(|_| AssignedError::Invalid {
            what: "endpoint mode",
            detail: mode.to_string(),
        })?;
        let converted = NetworkService {
            name,
            aliases,
            vip: (!vip.is_empty())
                .then(|| parse("virtual address", &vip))
                .transpose()?,
            mode: mode.into(),
        };
        self.network_services
            .entry(parse("network id", &network_id)?)
            .or_default()
            .insert(parse("service id", &service_id)?, converted);
        Ok(())
    }

    fn remove(&mut self, key: v1::assignment_key::Key) -> Result<(), AssignedError> {
        use v1::assignment_key::Key;
        match key {
            Key::TaskId(id) => {
                self.tasks.remove(&parse::<TaskId>("task id", &id)?);
            }
            Key::NetworkId(id) => {
                self.networks
                    .remove(&parse::<NetworkId>("network id", &id)?);
            }
            Key::PeerNodeId(id) => {
                self.peers.remove(&parse::<NodeId>("node id", &id)?);
            }
            Key::ServiceId(id) => {
                self.services
                    .remove(&parse::<ServiceId>("service id", &id)?);
            }
            Key::EndpointTaskId(id) => {
                self.endpoints.remove(&parse::<TaskId>("task id", &id)?);
            }
            Key::NetworkEndpoint(key) => {
                let v1::NetworkEndpointKey {
                    network_id,
                    task_id,
                } = key;
                remove_inner(
                    &mut self.network_endpoints,
                    &parse("network id", &network_id)?,
                    &parse("task id", &task_id)?,
                );
            }
            Key::NetworkService(key) => {
                let v1::NetworkServiceKey {
                    network_id,
                    service_id,
                } = key;
                remove_inner(
                    &mut self.network_services,
                    &parse("network id", &network_id)?,
                    &parse("service id", &service_id)?,
                );
            }
        }
        Ok(())
    }

    /// The ingress network, when this node takes part in it.
    pub(crate) fn ingress(&self) -> Option<&Network> {
        self.networks.values().find(|network| network.spec.ingress)
    }

    /// The same as one complete message, to be kept on disk.
    pub(crate) fn to_message(&self) -> v1::Assignments {
        use v1::assignment::Item;
        let tasks = self
            .tasks
            .values()
            .map(|task| Item::Task(Box::new(task.into())));
        let networks = self
            .networks
            .values()
            .map(|network| Item::Network(Box::new(network.into())));
        let peers = self.peers.iter().map(|(id, peer)| {
            Item::Peer(v1::NetworkPeer {
                node_id: id.to_string(),
                ingress_address: peer.ingress_address.to_string(),
                data_path_address: peer.data_path_address.to_string(),
            })
        });
        let services = self.services.iter().map(|(id, service)| {
            Item::Service(v1::PublishedService {
                service_id: id.to_string(),
                index: service.index,
                ports: service.ports.iter().map(Into::into).collect(),
                name: service.name.clone(),
            })
        });
        let endpoints = self.endpoints.iter().map(|(id, endpoint)| {
            Item::Endpoint(v1::TaskEndpoint {
                task_id: id.to_string(),
                service_id: endpoint.service_id.to_string(),
                node_id: endpoint.node_id.to_string(),
                address: endpoint.address.to_string(),
                state: v1::EndpointState::from(endpoint.balanced).into(),
            })
        });
        let items = tasks
            .chain(networks)
            .chain(peers)
            .chain(services)
            .chain(endpoints)
            .chain(self.network_endpoint_items())
            .chain(self.network_service_items());
        v1::Assignments {
            generation: self.generation,
            complete: true,
            put: items
                .map(|item| v1::Assignment { item: Some(item) })
                .collect(),
            remove: Vec::new(),
        }
    }

    fn network_endpoint_items(&self) -> impl Iterator<Item = v1::assignment::Item> {
        let all = self.network_endpoints.iter();
        all.flat_map(|(network, tasks)| tasks.iter().map(move |(task, it)| (network, task, it)))
            .map(|(network, task, endpoint)| {
                let NetworkEndpoint {
                    task_name,
                    service_id,
                    service_name,
                    node_id,
                    address,
                    aliases,
                    balanced,
                } = endpoint;
                v1::assignment::Item::NetworkEndpoint(v1::NetworkEndpoint {
                    network_id: network.to_string(),
                    task_id: task.to_string(),
                    task_name: task_name.clone(),
                    service_id: service_id.to_string(),
                    service_name: service_name.clone(),
                    node_id: node_id.to_string(),
                    address: address.to_string(),
                    aliases: aliases.clone(),
                    state: v1::EndpointState::from(*balanced).into(),
                })
            })
    }

    fn network_service_items(&self) -> impl Iterator<Item = v1::assignment::Item> {
        let all = self.network_services.iter();
        all.flat_map(|(network, services)| services.iter().map(move |(id, it)| (network, id, it)))
            .map(|(network, id, service)| {
                let NetworkService {
                    name,
                    aliases,
                    vip,
                    mode,
                } = service;
                v1::assignment::Item::NetworkService(v1::NetworkService {
                    network_id: network.to_string(),
                    service_id: id.to_string(),
                    name: name.clone(),
                    aliases: aliases.clone(),
                    vip: vip.map_or_else(String::new, |vip| vip.to_string()),
                    mode: v1::EndpointMode::from(mode).into(),
                })
            })
    }
}

/// Removes `inner` under `outer`, and what is then empty.
fn remove_inner<A: Ord, B: Ord + Clone, T: Clone>(
    all: &mut BTreeMap<A, SharedMap<B, T>>,
    outer: &A,
    inner: &B,
) {
    if let Some(of_outer) = all.get_mut(outer) {
        of_outer.remove(inner);
        if of_outer.is_empty() {
            all.remove(outer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(node: &NodeId, octet: u8) -> v1::Assignment {
        v1::Assignment {
            item: Some(v1::assignment::Item::Peer(v1::NetworkPeer {
                node_id: node.to_string(),
                ingress_address: format!("10.255.0.{octet}"),
                data_path_address: format!("192.0.2.{octet}"),
            })),
        }
    }

    fn complete(put: Vec<v1::Assignment>) -> v1::Assignments {
        v1::Assignments {
            generation: 1,
            complete: true,
            put,
            remove: Vec::new(),
        }
    }

    #[test]
    fn changes_build_on_the_complete_set() {
        let mut rng = rand::rng();
        let (first, second) = (NodeId::random(&mut rng), NodeId::random(&mut rng));
        let assigned = Assigned::default()
            .after(complete(vec![peer(&first, 2)]))
            .unwrap();
        let change = v1::Assignments {
            generation: 2,
            complete: false,
            put: vec![peer(&second, 3)],
            remove: vec![v1::AssignmentKey {
                key: Some(v1::assignment_key::Key::PeerNodeId(first.to_string())),
            }],
        };
        let assigned = assigned.after(change).unwrap();
        assert_eq!(assigned.generation, 2);
        assert_eq!(assigned.peers.keys().collect::<Vec<_>>(), vec![&second]);
        let again = Assigned::default().after(assigned.to_message()).unwrap();
        assert_eq!(again, assigned);
        assert_eq!(again.session, 0);
    }

    #[test]
    fn networks_of_users_come_and_go() {
        let mut rng = rand::rng();
        let network = NetworkId::random(&mut rng);
        let (task, service) = (TaskId::random(&mut rng), ServiceId::random(&mut rng));
        let put = |item| v1::Assignment { item: Some(item) };
        let endpoint = v1::NetworkEndpoint {
            network_id: network.to_string(),
            task_id: task.to_string(),
            task_name: format!("web.1.{task}"),
            service_id: service.to_string(),
            service_name: "web".to_owned(),
            node_id: NodeId::random(&mut rng).to_string(),
            address: "10.0.1.3".to_owned(),
            aliases: vec!["www".to_owned()],
            state: v1::EndpointState::Ready.into(),
        };
        let on_network = v1::NetworkService {
            network_id: network.to_string(),
            service_id: service.to_string(),
            name: "web".to_owned(),
            aliases: vec!["www".to_owned()],
            vip: "10.0.1.2".to_owned(),
            mode: v1::EndpointMode::Vip.into(),
        };
        let assigned = Assigned::default()
            .after(complete(vec![
                put(v1::assignment::Item::NetworkEndpoint(endpoint)),
                put(v1::assignment::Item::NetworkService(on_network)),
            ]))
            .unwrap();
        assert_eq!(
            assigned.network_endpoints[&network]
                .get(&task)
                .map(|endpoint| endpoint.balanced),
            Some(Balanced::Yes)
        );
        let vip = assigned.network_services[&network]
            .get(&service)
            .unwrap()
            .vip;
        assert_eq!(vip, Some(Ipv4Addr::new(10, 0, 1, 2)));
        let again = Assigned::default().after(assigned.to_message()).unwrap();
        assert_eq!(again, assigned);

        let key = |key| v1::AssignmentKey { key: Some(key) };
        let gone = v1::Assignments {
            generation: 2,
            complete: false,
            put: Vec::new(),
            remove: vec![
                key(v1::assignment_key::Key::NetworkEndpoint(
                    v1::NetworkEndpointKey {
                        network_id: network.to_string(),
                        task_id: task.to_string(),
                    },
                )),
                key(v1::assignment_key::Key::NetworkService(
                    v1::NetworkServiceKey {
                        network_id: network.to_string(),
                        service_id: service.to_string(),
                    },
                )),
            ],
        };
        let assigned = assigned.after(gone).unwrap();
        assert_eq!(assigned.network_endpoints, BTreeMap::new());
        assert_eq!(assigned.network_services, BTreeMap::new());
    }

    #[test]
    fn a_gap_or_a_missing_base_is_refused() {
        let change = |generation| v1::Assignments {
            generation,
            ..v1::Assignments::default()
        };
        assert!(matches!(
            Assigned::default().after(change(1)),
            Err(AssignedError::NoBase)
        ));
        let assigned = Assigned::default().after(complete(Vec::new())).unwrap();
        assert!(matches!(
            assigned.after(change(3)),
            Err(AssignedError::Gap { .. })
        ));
        assert!(matches!(
            assigned.after(change(1)),
            Err(AssignedError::Gap { .. })
        ));
        assert!(assigned.after(change(2)).is_ok());
    }

    #[test]
    fn nonsense_is_refused() {
        let mut bad = peer(&NodeId::random(&mut rand::rng()), 2);
        if let Some(v1::assignment::Item::Peer(peer)) = &mut bad.item {
            peer.ingress_address = "everywhere".to_owned();
        }
        assert!(Assigned::default().after(complete(vec![bad])).is_err());
        let empty = v1::Assignment { item: None };
        assert!(matches!(
            Assigned::default().after(complete(vec![empty])),
            Err(AssignedError::Empty)
        ));
    }
}
