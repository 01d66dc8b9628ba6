//! The in-memory indexed state.

use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_model::{Cluster, Network, NetworkId, Node, NodeId, Service, ServiceId, Task, TaskId};

use super::history::{Action, Event, SharedObject};
use super::index::Index;
use super::{Change, Object, ObjectKey};

/// Everything the swarm keeps, at one Raft index. Objects are shared, so a clone costs the maps
/// but not what they hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    index: u64,
    cluster: Option<Arc<Cluster>>,
    nodes: BTreeMap<NodeId, Arc<Node>>,
    services: BTreeMap<ServiceId, Arc<Service>>,
    tasks: BTreeMap<TaskId, Arc<Task>>,
    networks: BTreeMap<NetworkId, Arc<Network>>,
    services_by_name: Index<String, ServiceId, Service>,
    tasks_by_service: Index<ServiceId, TaskId, Task>,
    tasks_by_node: Index<NodeId, TaskId, Task>,
    networks_by_name: Index<String, NetworkId, Network>,
    /// By what their specs ask for and what they have an address on.
    services_by_network: Index<NetworkId, ServiceId, Service>,
    /// By what their specs ask for.
    tasks_by_network: Index<NetworkId, TaskId, Task>,
}

impl State {
    /// The Raft index of the last change applied; 0 before the first.
    pub(crate) fn index(&self) -> u64 {
        self.index
    }

    /// The swarm itself; none only before it is made.
    pub(crate) fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    /// The node with this id.
    pub(crate) fn node(&self, id: &NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(id)
    }

    /// Every node, by id.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// The service with this id.
    pub(crate) fn service(&self, id: &ServiceId) -> Option<&Arc<Service>> {
        self.services.get(id)
    }

    /// Every service, by id.
    pub(crate) fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The service with this name.
    pub(crate) fn service_by_name(&self, name: &str) -> Option<&Arc<Service>> {
        self.services_by_name.get(name).next()
    }

    /// The task with this id.
    pub(crate) fn task(&self, id: &TaskId) -> Option<&Arc<Task>> {
        self.tasks.get(id)
    }

    /// Every task, by id.
    pub(crate) fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    /// The tasks of a service, by id.
    pub(crate) fn tasks_of_service(
        &self,
        id: &ServiceId,
    ) -> impl Iterator<Item = &Arc<Task>> + use<'_> {
        self.tasks_by_service.get(id)
    }

    /// The tasks that were given to a node, by id.
    pub(crate) fn tasks_of_node(&self, id: &NodeId) -> impl Iterator<Item = &Arc<Task>> + use<'_> {
        self.tasks_by_node.get(id)
    }

    /// Every network, by id.
    pub(crate) fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.values()
    }

    /// The network with this id.
    pub(crate) fn network(&self, id: &NetworkId) -> Option<&Arc<Network>> {
        self.networks.get(id)
    }

    /// The network with this name.
    pub(crate) fn network_by_name(&self, name: &str) -> Option<&Arc<Network>> {
        self.networks_by_name.get(name).next()
    }

    /// The services that are to be on a network of a user, or still have an address there, by id.
    pub(crate) fn services_of_network(
        &self,
        id: &NetworkId,
    ) -> impl Iterator<Item = &Arc<Service>> + use<'_> {
        self.services_by_network.get(id)
    }

    /// The tasks, ended ones too, that are or were to be on a network of a user, by id.
    pub(crate) fn tasks_of_network(
        &self,
        id: &NetworkId,
    ) -> impl Iterator<Item = &Arc<Task>> + use<'_> {
        self.tasks_by_network.get(id)
    }

    /// The network that carries published ports.
    pub(crate) fn ingress_network(&self) -> Option<&Arc<Network>> {
        self.networks.values().find(|network| network.spec.ingress)
    }

    /// Makes `changes`, in order. Every object put gets `index` as its `meta.version`, which is
    /// then also the state's. Gives what became of each object; nothing where one was to be removed that
    /// was not there.
    pub(crate) fn apply(&mut self, index: u64, changes: Vec<Change>) -> Vec<Event> {
        let mut events = Vec::with_capacity(changes.len());
        for change in changes {
            match change {
                Change::Put(mut object) => {
                    object.meta_mut().version = index;
                    events.push(self.put(object));
                }
                Change::Remove(key) => {
                    let object = self.remove(&key);
                    events.extend(object.map(|object| Event {
                        action: Action::Remove,
                        object,
                    }));
                }
            }
        }
        self.index = index;
        events
    }

    /// The state at `index` that holds `objects` as they are, versions included: a snapshot.
    pub(super) fn restore(index: u64, objects: impl IntoIterator<Item = Object>) -> Self {
        let mut state = Self {
            index,
            ..Self::default()
        };
        for object in objects {
            state.put(object);
        }
        state
    }

    fn put(&mut self, object: Object) -> Event {
        // The old object's index entries go first: the new one may stand elsewhere.
        let (is_new, object) = match object {
            Object::Cluster(cluster) => {
                let cluster = Arc::new(cluster);
                let old = self.cluster.replace(Arc::clone(&cluster));
                (old.is_none(), SharedObject::Cluster(cluster))
            }
            Object::Node(node) => {
                let node = Arc::new(node);
                let old = self.nodes.insert(node.id.clone(), Arc::clone(&node));
                (old.is_none(), SharedObject::Node(node))
            }
            Object::Service(service) => {
                let old = self.remove_service(&service.id);
                let (id, service) = (service.id.clone(), Arc::new(service));
                self.services_by_name
                    .insert(&service.spec.name, &id, &service);
                for network in networks_of(&service) {
                    self.services_by_network.insert(&network, &id, &service);
                }
                self.services.insert(id, Arc::clone(&service));
                (old.is_none(), SharedObject::Service(service))
            }
            Object::Task(task) => {
                let old = self.remove_task(&task.id);
                let (id, task) = (task.id.clone(), Arc::new(task));
                self.tasks_by_service.insert(&task.service_id, &id, &task);
                if let Some(node) = &task.node_id {
                    self.tasks_by_node.insert(node, &id, &task);
                }
                for network in task.spec.network_ids() {
                    self.tasks_by_network.insert(&network, &id, &task);
                }
                self.tasks.insert(id, Arc::clone(&task));
                (old.is_none(), SharedObject::Task(task))
            }
            Object::Network(network) => {
                let old = self.remove_network(&network.id);
                let (id, network) = (network.id.clone(), Arc::new(network));
                self.networks_by_name
                    .insert(&network.spec.name, &id, &network);
                self.networks.insert(id, Arc::clone(&network));
                (old.is_none(), SharedObject::Network(network))
            }
        };
        let action = if is_new {
            Action::Create
        } else {
            Action::Update
        };
        Event { action, object }
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<SharedObject> {
        match key {
            ObjectKey::Cluster(id) => {
                (self.cluster.take_if(|cluster| cluster.id == *id)).map(SharedObject::Cluster)
            }
            ObjectKey::Node(id) => self.nodes.remove(id).map(SharedObject::Node),
            ObjectKey::Service(id) => self.remove_service(id).map(SharedObject::Service),
            ObjectKey::Task(id) => self.remove_task(id).map(SharedObject::Task),
            ObjectKey::Network(id) => self.remove_network(id).map(SharedObject::Network),
        }
    }

    fn remove_service(&mut self, id: &ServiceId) -> Option<Arc<Service>> {
        let old = self.services.remove(id)?;
        self.services_by_name.remove(&old.spec.name, id);
        for network in networks_of(&old) {
            self.services_by_network.remove(&network, id);
        }
        Some(old)
    }

    fn remove_network(&mut self, id: &NetworkId) -> Option<Arc<Network>> {
        let old = self.networks.remove(id)?;
        self.networks_by_name.remove(&old.spec.name, id);
        Some(old)
    }

    fn remove_task(&mut self, id: &TaskId) -> Option<Arc<Task>> {
        let old = self.tasks.remove(id)?;
        self.tasks_by_service.remove(&old.service_id, id);
        if let Some(node) = &old.node_id {
            self.tasks_by_node.remove(node, id);
        }
        for network in old.spec.network_ids() {
            self.tasks_by_network.remove(&network, id);
        }
        Some(old)
    }
}

/// The networks that `service` asks for, and those that it has an address on.
fn networks_of(service: &Service) -> impl Iterator<Item = NetworkId> + '_ {
    let held = service.endpoint.vips.iter().map(|vip| vip.network.clone());
    service.spec.task.network_ids().chain(held)
}
