//! What becomes of the store when a person creates or removes networks, and attaches services to
//! them. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use swarm_model::{
    Network, NetworkId, NetworkSpec, Service, ServiceSpec, Task, Timestamp, validate_network,
};

use super::lookup;
use super::refusal::Refusal;
use crate::allocate::make_network;
use crate::store::{Change, State};

/// Networks of every node in Docker, which services here cannot be put on.
const NODE_LOCAL: [&str; 3] = ["host", "bridge", "none"];

/// Services that a refusal names; more would not be read.
const MAX_SHOWN: usize = 5;

/// A network made from `spec`, with an id drawn from `rng`.
pub(crate) fn create(
    state: &State,
    spec: NetworkSpec,
    now: Timestamp,
    rng: &mut impl rand::Rng,
) -> Result<(Vec<Change>, NetworkId), Refusal> {
    validate_network(&spec)?;
    if let Some(other) = state.network_by_name(&spec.name) {
        return Err(Refusal::NetworkNameTaken {
            name: spec.name,
            by: other.id.clone(),
        });
    }
    let cluster = state.cluster().ok_or(Refusal::NotReady)?;
    let (network, cluster) = make_network(state, cluster, spec, now, rng)?;
    let id = network.id.clone();
    Ok((vec![network.into(), cluster.into()], id))
}

/// The removal of the network that `reference` means, which nobody may be using.
pub(crate) fn remove(state: &State, reference: &str) -> Result<(Vec<Change>, NetworkId), Refusal> {
    let network = lookup::network(state, reference)?;
    if network.spec.ingress {
        return Err(Refusal::IngressNetwork);
    }
    let mut users: Vec<_> = users(state, &network.id).into_iter().collect();
    if !users.is_empty() {
        if users.len() > MAX_SHOWN {
            let more = users.len() - MAX_SHOWN;
            users.truncate(MAX_SHOWN);
            users.push(format!("{more} more"));
        }
        return Err(Refusal::NetworkInUse {
            name: network.spec.name.clone(),
            services: users.join(", "),
        });
    }
    let id = network.id.clone();
    Ok((vec![Change::remove(id.clone())], id))
}

/// The removal of every network that nobody uses, and their names.
pub(super) fn prune(state: &State) -> (Vec<Change>, Vec<String>) {
    let mut unused: Vec<_> = state
        .networks()
        .filter(|network| !network.spec.ingress && users(state, &network.id).is_empty())
        .collect();
    unused.sort_by_key(|network| &network.spec.name);
    let changes = unused.iter().map(|it| Change::remove(it.id.clone()));
    let names = unused.iter().map(|it| it.spec.name.clone());
    (changes.collect(), names.collect())
}

/// The names of the services on a network: those that ask for it, have an address there, or still
/// have a task there.
fn users(state: &State, id: &NetworkId) -> BTreeSet<String> {
    let services = state.services_of_network(id);
    let tasks = tasks(state, id);
    services
        .map(|service| service.spec.name.clone())
        .chain(tasks.map(|task| task.service_name.clone()))
        .collect()
}

/// The tasks on a network that have not ended.
fn tasks<'a>(state: &'a State, id: &NetworkId) -> impl Iterator<Item = &'a Arc<Task>> + use<'a> {
    let tasks = state.tasks_of_network(id);
    tasks.filter(|task| !task.status.state.is_terminal())
}

/// A network with all that is on it: services by name, tasks by service and slot.
#[derive(Debug)]
pub(super) struct Members {
    pub(super) network: Arc<Network>,
    pub(super) services: Vec<Arc<Service>>,
    pub(super) tasks: Vec<Arc<Task>>,
}

/// The network that `reference` means, and all that is on it.
pub(super) fn members(state: &State, reference: &str) -> Result<Members, Refusal> {
    let network = lookup::network(state, reference)?;
    let mut services: Vec<_> = state.services_of_network(&network.id).cloned().collect();
    services.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    let mut tasks: Vec<_> = tasks(state, &network.id).cloned().collect();
    tasks.sort_by(|a, b| (&a.service_name, a.slot, &a.id).cmp(&(&b.service_name, b.slot, &b.id)));
    Ok(Members {
        network: Arc::clone(network),
        services,
        tasks,
    })
}

/// Replaces what people call the networks of `spec` by their ids.
pub(super) fn resolve(state: &State, spec: &mut ServiceSpec) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    for attachment in &mut spec.task.networks {
        let network = match lookup::network(state, &attachment.target) {
            Err(Refusal::NotFound { .. }) if NODE_LOCAL.contains(&attachment.target.as_str()) => {
                return Err(Refusal::NodeLocalNetwork(attachment.target.clone()));
            }
            found => found?,
        };
        if network.spec.ingress {
            return Err(Refusal::AttachedToIngress);
        }
        if !seen.insert(&network.id) {
            return Err(Refusal::AttachedTwice(network.spec.name.clone()));
        }
        attachment.target = network.id.to_string();
    }
    Ok(())
}
