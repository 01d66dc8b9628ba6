//! Virtual addresses of services.

use swarm_model::{EndpointMode, NetworkId, Service, Vip};

use super::address::{Pools, exhausted};
use crate::store::State;

/// The virtual addresses that `service` is to have, and what keeps it from having all of them;
/// empty when nothing. What it has of what it is to have, it keeps.
pub(super) fn settle(
    state: &State,
    service: &Service,
    pools: &mut Pools<'_>,
) -> (Vec<Vip>, String) {
    // One that is being removed keeps what it has until its last task is gone.
    if service.pending_delete {
        return (service.endpoint.vips.clone(), String::new());
    }
    let mut vips = Vec::new();
    let mut error = String::new();
    for network in wanted(state, service) {
        let mut owned = service.endpoint.vips.iter();
        if let Some(vip) = owned.find(|vip| vip.network == network) {
            vips.push(vip.clone());
        } else if let Some(address) = pools.next(&network) {
            vips.push(Vip { network, address });
        } else if error.is_empty() {
            error = refusal(state, &network);
        }
    }
    (vips, error)
}

/// What to tell whom `network` gives nothing.
pub(super) fn refusal(state: &State, network: &NetworkId) -> String {
    state.network(network).map_or_else(
        || {
            format!(
                "network {network} does not exist any more: take the service off it with \
                 `swarmctl service update --network-rm {network}`"
            )
        },
        |network| exhausted(network),
    )
}

/// The networks that `service` is to have an address on: those it asks for, and those that tasks
/// of it are still on, whose neighbours may know no other.
fn wanted(state: &State, service: &Service) -> Vec<NetworkId> {
    if service.spec.endpoint.mode == EndpointMode::Dnsrr {
        return Vec::new();
    }
    let mut networks: Vec<_> = service.spec.task.network_ids().collect();
    for vip in &service.endpoint.vips {
        if !networks.contains(&vip.network) && is_on(state, service, &vip.network) {
            networks.push(vip.network.clone());
        }
    }
    networks
}

/// Whether a task of `service` is on `network`. One that was lost with its node does not count: it is
/// nobody's endpoint, and its record may stay for as long as the service does.
fn is_on(state: &State, service: &Service, network: &NetworkId) -> bool {
    state
        .tasks_of_service(&service.id)
        .filter(|task| !task.status.state.is_terminal())
        .flat_map(|task| &task.attachments)
        .any(|attachment| attachment.network == *network)
}
