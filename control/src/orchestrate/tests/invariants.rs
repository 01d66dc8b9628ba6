//! Whatever people, agents and nodes do in whatever order: nothing is given twice, no slot has two
//! tasks, the passes come to rest, and in the end there is what was asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use swarm_model::{
    Availability, DesiredState, EndpointMode, NetworkId, NodeState, ServiceId, TaskState,
    Timestamp, UpdateOrder,
};

use crate::orchestrate::scenario::{Scenario, on, port};
use crate::orchestrate::slot::{is_lost, is_on_drained_node};

const NODES: [&str; 3] = ["h1", "h2", "h3"];
const NETWORKS: [&str; 2] = ["front", "back"];
const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
enum Event {
    Create {
        name: usize,
        replicas: u64,
        published: Option<u16>,
        start_first: bool,
    },
    Scale {
        name: usize,
        replicas: u64,
    },
    Update {
        name: usize,
    },
    Publish {
        name: usize,
        published: u16,
    },
    /// On these of the networks, found by a VIP or not.
    Attach {
        name: usize,
        networks: [bool; 2],
        mode: EndpointMode,
    },
    Remove {
        name: usize,
    },
    NodeState {
        node: usize,
        state: NodeState,
    },
    Availability {
        node: usize,
        availability: Availability,
    },
    /// The chosen task of those that can move does; badly, if so chosen.
    Task {
        choice: u8,
        fails: bool,
    },
    Agents,
    Time {
        ms: u64,
    },
    /// A new leader: nothing is remembered but the store.
    NewLeader,
}

fn event() -> impl Strategy<Value = Event> {
    let name = 0..NAMES.len();
    let node = 0..NODES.len();
    // Few numbers, so that services collide; 0 asks for any.
    let published = prop::sample::select(vec![0u16, 8080, 8081, 30000]);
    prop_oneof![
        2 => (name.clone(), 0..5u64, prop::option::of(published.clone()), any::<bool>()).prop_map(
            |(name, replicas, published, start_first)| {
                Event::Create { name, replicas, published, start_first }
            }
        ),
        2 => (name.clone(), 0..6u64).prop_map(|(name, replicas)| Event::Scale { name, replicas }),
        2 => name.clone().prop_map(|name| Event::Update { name }),
        1 => (name.clone(), published).prop_map(|(name, published)| {
            Event::Publish { name, published }
        }),
        2 => (name.clone(), any::<[bool; 2]>(), prop::sample::select(vec![
            EndpointMode::Vip, EndpointMode::Dnsrr,
        ])).prop_map(|(name, networks, mode)| Event::Attach { name, networks, mode }),
        1 => name.prop_map(|name| Event::Remove { name }),
        2 => (node.clone(), prop::sample::select(vec![
            NodeState::Unknown, NodeState::Ready, NodeState::Suspect, NodeState::Down,
        ])).prop_map(|(node, state)| Event::NodeState { node, state }),
        1 => (node, prop::sample::select(vec![
            Availability::Active, Availability::Pause, Availability::Drain,
        ])).prop_map(|(node, availability)| Event::Availability { node, availability }),
        8 => (any::<u8>(), prop::bool::weighted(0.2)).prop_map(|(choice, fails)| {
            Event::Task { choice, fails }
        }),
        2 => Just(Event::Agents),
        2 => (0..8000u64).prop_map(|ms| Event::Time { ms }),
        1 => Just(Event::NewLeader),
    ]
}

fn network(swarm: &Scenario, name: &str) -> NetworkId {
    let network = swarm.state.network_by_name(name);
    network.expect("made at the start").id.clone()
}

fn by_name(swarm: &Scenario, name: usize) -> Option<ServiceId> {
    let service = swarm.state.service_by_name(NAMES[name])?;
    (!service.pending_delete).then(|| service.id.clone())
}

fn happen(swarm: &mut Scenario, event: &Event) {
    match *event {
        Event::Create {
            name,
            replicas,
            published,
            start_first,
        } => {
            if swarm.state.service_by_name(NAMES[name]).is_none() {
                swarm.add_service(NAMES[name], replicas, |spec| {
                    spec.endpoint
                        .ports
                        .extend(published.map(|published| port(published, 80)));
                    if start_first {
                        spec.update.order = UpdateOrder::StartFirst;
                    }
                });
            }
        }
        Event::Scale { name, replicas } => {
            if let Some(id) = by_name(swarm, name) {
                swarm.scale(&id, replicas);
            }
        }
        Event::Update { name } => {
            if let Some(id) = by_name(swarm, name) {
                swarm.edit_service(&id, |spec| spec.task.force_update += 1);
            }
        }
        Event::Publish { name, published } => {
            if let Some(id) = by_name(swarm, name) {
                swarm.edit_service(&id, |spec| spec.endpoint.ports = vec![port(published, 80)]);
            }
        }
        Event::Attach {
            name,
            networks,
            mode,
        } => {
            if let Some(id) = by_name(swarm, name) {
                let attached: Vec<_> = NETWORKS
                    .iter()
                    .zip(networks)
                    .filter(|(_, attached)| *attached)
                    .map(|(name, _)| network(swarm, name))
                    .collect();
                swarm.edit_service(&id, |spec| {
                    spec.endpoint.mode = mode;
                    spec.task.networks.clear();
                    for network in &attached {
                        on(network)(spec);
                    }
                });
            }
        }
        Event::Remove { name } => {
            if let Some(id) = by_name(swarm, name) {
                swarm.remove_service(&id);
            }
        }
        Event::NodeState { node, state } => swarm.set_node_state(NODES[node], state),
        Event::Availability { node, availability } => {
            swarm.edit_node(NODES[node], |node| node.spec.availability = availability);
        }
        Event::Task { choice, fails } => move_task(swarm, choice, fails),
        Event::Agents => {
            swarm.agents();
        }
        Event::Time { ms } => swarm.advance(Duration::from_millis(ms)),
        Event::NewLeader => swarm.forget(),
    }
}

fn move_task(swarm: &mut Scenario, choice: u8, fails: bool) {
    let movable: Vec<_> = swarm
        .state
        .tasks()
        .filter(|task| swarm.next_report(task).is_some())
        .cloned()
        .collect();
    let Some(task) = movable.get(usize::from(choice) % movable.len().max(1)) else {
        return;
    };
    let next = if fails {
        Some(TaskState::Failed)
    } else {
        swarm.next_report(task)
    };
    swarm.report(&task.id, next.expect("the task is movable"));
}

fn check(swarm: &Scenario) -> Result<(), TestCaseError> {
    let mut addresses = BTreeSet::new();
    for node in swarm.state.nodes() {
        let address = node.ingress_address.expect("there are enough");
        prop_assert!(addresses.insert(address), "{address} is owned twice");
    }
    for task in swarm.state.tasks() {
        if task.status.state.is_terminal() && task.status.state != TaskState::Orphaned {
            continue;
        }
        if let Some(address) = task.ingress_address {
            prop_assert!(addresses.insert(address), "{address} is owned twice");
        }
    }
    let mut on_networks = BTreeSet::new();
    for service in swarm.state.services() {
        for vip in &service.endpoint.vips {
            let new = on_networks.insert((vip.network.clone(), vip.address));
            prop_assert!(new, "{vip:?} is owned twice");
        }
    }
    for task in swarm.state.tasks() {
        if task.status.state.is_terminal() && task.status.state != TaskState::Orphaned {
            continue;
        }
        for it in &task.attachments {
            let new = on_networks.insert((it.network.clone(), it.address));
            prop_assert!(new, "{it:?} is owned twice");
            prop_assert!(it.address != swarm.network(&it.network).gateway);
        }
        if task.status.state > TaskState::New && !task.status.state.is_terminal() {
            let networks = task.attachments.iter().map(|it| it.network.clone());
            prop_assert!(networks.eq(task.spec.network_ids()));
        }
    }
    let (mut ports, mut indexes) = (BTreeSet::new(), BTreeSet::new());
    for service in swarm.state.services() {
        prop_assert!(indexes.insert(service.endpoint.index));
        for port in &service.endpoint.ports {
            prop_assert!(
                ports.insert((port.protocol, port.published)),
                "{port:?} twice"
            );
        }
    }
    let mut live = BTreeMap::<_, (u64, bool)>::new();
    for task in swarm.state.tasks() {
        let ended = task.status.state.is_terminal() || is_lost(&swarm.state, task);
        if !ended && task.desired_state == DesiredState::Running {
            let (count, moves) = live.entry((&task.service_id, task.slot)).or_default();
            *count += 1;
            *moves |= is_on_drained_node(&swarm.state, task);
        }
    }
    for ((service, slot), (count, moves)) in live {
        let service = swarm.service(service);
        let start_first = service.spec.update.order == UpdateOrder::StartFirst;
        prop_assert!(
            count <= 1 + u64::from(start_first || moves),
            "slot {slot} has {count} tasks"
        );
    }
    for task in swarm
        .state
        .tasks()
        .filter(|task| task.status.state == TaskState::Assigned)
    {
        prop_assert!(task.node_id.is_some() && task.not_before == Timestamp::default());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn nothing_is_given_twice_and_all_comes_to_rest(
        events in prop::collection::vec(event(), 1..60),
    ) {
        let mut swarm = Scenario::with_nodes(&NODES);
        for name in NETWORKS {
            swarm.add_network(name, |_| {});
        }
        for event in &events {
            happen(&mut swarm, event);
            // Resting within a bound is asserted inside.
            swarm.settle();
            check(&swarm)?;
        }
        for node in NODES {
            swarm.edit_node(node, |node| {
                node.status.state = NodeState::Ready;
                node.spec.availability = Availability::Active;
            });
        }
        for _ in 0..40 {
            swarm.run();
            check(&swarm)?;
            swarm.advance(Duration::from_secs(5));
        }
        for service in swarm.state.services() {
            prop_assert!(!service.pending_delete);
            if !service.endpoint.error.is_empty() {
                // It lost a port to another; told, and nothing new is started.
                continue;
            }
            let running = swarm.running(&service.id);
            let current = running
                .iter()
                .filter(|task| task.template_version == service.template_version);
            prop_assert_eq!(
                current.count() as u64,
                service.spec.mode.replicas(),
                "{}",
                swarm.show(&service.id)
            );
            let vips = service.endpoint.vips.iter().map(|vip| vip.network.clone());
            if service.spec.endpoint.mode == EndpointMode::Vip {
                prop_assert!(vips.eq(service.spec.task.network_ids()), "{:?}", service.endpoint);
            } else {
                prop_assert_eq!(vips.count(), 0);
            }
        }
        let ended = |task: &swarm_model::Task| task.status.state.is_terminal();
        let stuck = swarm
            .state
            .tasks()
            .any(|task| !ended(task) && task.desired_state > DesiredState::Running);
        prop_assert!(!stuck);
        prop_assert!(swarm.running_in_total() <= swarm.wanted_in_total());
    }
}
