//! What becomes of the store when a person creates, updates or removes a service. Pure.

use std::collections::BTreeSet;

use rand::Rng;
use swarm_model::{
    Endpoint, Meta, NodeProblem, NodeState, PortConfig, Protocol, PublishMode, Service, ServiceId,
    ServiceSpec, Task, TaskState, Timestamp, validate_service,
};

use super::refusal::Refusal;
use super::{lookup, networks};
use crate::store::{Change, State};

/// Where VXLAN packets arrive (RFC 7348).
const VXLAN_PORT: u16 = 4789;

/// A service made from `spec`, with an id drawn from `rng`.
pub(crate) fn create(
    state: &State,
    mut spec: ServiceSpec,
    now: Timestamp,
    rng: &mut impl Rng,
) -> Result<Service, Refusal> {
    validate_service(&spec)?;
    if let Some(other) = state.service_by_name(&spec.name) {
        return Err(if other.pending_delete {
            Refusal::BeingRemoved(spec.name)
        } else {
            Refusal::NameTaken {
                name: spec.name,
                by: other.id.clone(),
            }
        });
    }
    check_ports(state, &spec, None)?;
    networks::resolve(state, &mut spec)?;
    Ok(Service {
        id: ServiceId::random(rng),
        meta: Meta {
            version: 0,
            created_at: now,
            updated_at: now,
        },
        spec,
        previous_spec: None,
        template_version: 1,
        endpoint: Endpoint::default(),
        pending_delete: false,
    })
}

/// Service `id` with `spec` in place of its own, `spec` having been made from `version`. None when
/// that changes nothing.
pub(crate) fn update(
    state: &State,
    id: &ServiceId,
    version: u64,
    mut spec: ServiceSpec,
    now: Timestamp,
) -> Result<Option<Service>, Refusal> {
    let current = state.service(id).ok_or_else(|| Refusal::NotFound {
        kind: "service",
        reference: id.to_string(),
    })?;
    if current.pending_delete {
        return Err(Refusal::BeingRemoved(current.spec.name.clone()));
    }
    if current.meta.version != version {
        return Err(Refusal::OutOfSequence("service"));
    }
    if current.spec.name != spec.name {
        return Err(Refusal::Rename(current.spec.name.clone()));
    }
    validate_service(&spec)?;
    check_ports(state, &spec, Some(id))?;
    networks::resolve(state, &mut spec)?;
    if current.spec == spec {
        return Ok(None);
    }
    let mut service = Service::clone(current);
    service.meta.updated_at = now;
    if service.spec.task != spec.task || host_ports(&service.spec) != host_ports(&spec) {
        service.template_version += 1;
    }
    let previous = std::mem::replace(&mut service.spec, spec);
    service.previous_spec = Some(Box::new(previous));
    Ok(Some(service))
}

/// The service that `reference` means, marked for removal; without a change when it already is.
pub(crate) fn remove(
    state: &State,
    reference: &str,
    now: Timestamp,
) -> Result<(Vec<Change>, ServiceId), Refusal> {
    let service = lookup::service(state, reference)?;
    if service.pending_delete {
        return Ok((Vec::new(), service.id.clone()));
    }
    let mut service = Service::clone(service);
    service.pending_delete = true;
    service.meta.updated_at = now;
    let id = service.id.clone();
    Ok((vec![service.into()], id))
}

/// How many of a service's tasks run, and how many should.
pub(super) fn counts(state: &State, service: &Service) -> (u64, u64) {
    let running = state
        .tasks_of_service(&service.id)
        .filter(|task| runs(state, task))
        .count();
    let desired = if service.pending_delete {
        0
    } else {
        service.spec.mode.replicas()
    };
    (running as u64, desired)
}

/// What keeps the ports of `service` from working as they should on nodes that are heard, a line for
/// each node and problem.
pub(super) fn problems(state: &State, service: &Service) -> Vec<String> {
    let concerns = |problem: &&NodeProblem| match &problem.service {
        Some(about) => *about == service.id,
        None => service.is_published(),
    };
    let mut lines: Vec<_> = state
        .nodes()
        .filter(|node| node.status.state != NodeState::Down)
        .flat_map(|node| {
            let problems = node.status.problems.iter().filter(concerns);
            let name = lookup::display_name(node);
            problems.map(move |problem| format!("{name}: {}", problem.text))
        })
        .collect();
    lines.sort();
    lines
}

/// Whether a task is running as far as anyone knows: nobody can say so of a node that is down.
fn runs(state: &State, task: &Task) -> bool {
    let heard = task
        .node_id
        .as_ref()
        .and_then(|id| state.node(id))
        .is_some_and(|node| node.status.state != NodeState::Down);
    heard && task.status.state == TaskState::Running
}

/// Whether the ports that `spec` asks for are free; `own` may have them already.
fn check_ports(state: &State, spec: &ServiceSpec, own: Option<&ServiceId>) -> Result<(), Refusal> {
    for port in spec
        .endpoint
        .ports
        .iter()
        .filter(|port| port.published != 0)
    {
        if let Some(what) = reserved(state, port) {
            return Err(Refusal::PortReserved {
                port: Box::new(port.clone()),
                what,
            });
        }
        let holder = state
            .services()
            .filter(|other| Some(&other.id) != own)
            .find_map(|other| Some((other, holds(other, port)?)));
        if let Some((other, mode)) = holder {
            return Err(Refusal::PortTaken {
                port: Box::new(port.clone()),
                by: other.spec.name.clone(),
                mode,
            });
        }
    }
    Ok(())
}

/// In which mode `service` has the port on the nodes, by request or by the allocator's choice, where
/// it does not share it.
fn holds(service: &Service, port: &PortConfig) -> Option<PublishMode> {
    let asked = service.spec.endpoint.ports.iter();
    let mut held = asked.chain(&service.endpoint.ports);
    held.find(|held| port.collides(held)).map(|held| held.mode)
}

/// What the scheduler places tasks by: a change of it replaces the tasks, as in swarmkit
/// (`orchestrator/task.go`, `IsTaskDirty`).
fn host_ports(spec: &ServiceSpec) -> BTreeSet<(Protocol, u16)> {
    let host = |port: &&PortConfig| port.mode == PublishMode::Host;
    let ports = spec.endpoint.ports.iter().filter(host);
    ports.map(|port| (port.protocol, port.published)).collect()
}

/// What the swarm itself uses a port for. Published ports are taken off the uplink before the host
/// sees them, so publishing one of these would cut the swarm's own traffic.
fn reserved(state: &State, port: &PortConfig) -> Option<&'static str> {
    match port.protocol {
        Protocol::Udp => (port.published == VXLAN_PORT).then_some("overlay traffic"),
        Protocol::Sctp => None,
        Protocol::Tcp => state
            .nodes()
            .filter_map(|node| node.manager.as_ref())
            .any(|manager| manager.address.port() == port.published)
            .then_some("nodes reach the manager there"),
    }
}
