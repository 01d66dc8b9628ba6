//! What is planned from what changed leads to what is planned from everything.

use super::damage::pick;
use super::*;
use crate::network::answering::entries;
use crate::network::desired::{TaskSockets, VirtualService};
use crate::network::increment::{Increment, Index as Increments, plan_increment, slice};

/// What may change by increments: which of the tasks of other nodes there are, the services with their
/// members, and which virtual services.
#[derive(Clone, Debug)]
struct Step {
    present: u8,
    services: Vec<(u16, Vec<Index>, bool, bool)>,
    virtual_services: u8,
    /// Whether there are the tasks of this node: where that changes, everything is looked at.
    local: bool,
}

fn steps() -> impl Strategy<Value = Step> {
    let service = (
        8080..8084_u16,
        vec(any::<Index>(), 0..4),
        any::<bool>(),
        any::<bool>(),
    );
    (any::<u8>(), vec(service, 0..4), any::<u8>(), 0..8_u8).prop_map(
        |(present, services, virtual_services, local)| Step {
            present,
            services,
            virtual_services,
            local: local > 0,
        },
    )
}

/// The desired state of a step. A task is of one service.
fn at(step: &Step, nodes: u8, tasks: &[u8], networks: &[u8], ipv6: bool) -> Desired {
    let mut free: BTreeSet<usize> = (0..tasks.len()).collect();
    let mut services = Vec::new();
    for (port, members, draining, _) in &step.services {
        let members = members
            .iter()
            .filter_map(|index| pick(0..tasks.len(), index));
        let members: BTreeSet<_> = members.filter(|task| free.remove(task)).collect();
        services.push((*port, members.into_iter().collect(), *draining));
    }
    let mut desired = on_networks(super::desired(nodes, tasks, &services), networks);
    let mut restricted = step.services.iter().map(|(.., restricted)| *restricted);
    for service in desired.services.values_mut() {
        if restricted.next() == Some(true) {
            service.ports[0].sources = vec!["192.168.0.0/16".parse().unwrap()];
        }
    }
    let mut gone = BTreeSet::new();
    for (number, node) in (0..).zip(tasks) {
        let here = (*node).clamp(1, nodes) == 1;
        let there = if here {
            step.local
        } else {
            step.present & (1 << number) != 0
        };
        if there {
            continue;
        }
        let task = id::<TaskId>('t', number);
        gone.insert(ip(1, number));
        desired.tasks.remove(&task);
        desired.local_tasks.remove(&task);
        for members in desired.members.values_mut() {
            members.remove(&task);
        }
    }
    for service in desired.services.values_mut() {
        service
            .backends
            .retain(|backend| !gone.contains(&backend.address));
    }
    for (network, members) in &desired.members {
        let network_number: u8 = network.as_str()[1..4].parse().unwrap();
        let service = |number: u8| VirtualService {
            addresses: [IpAddr::from([10, 0, network_number, 200 + number])].into(),
            ready: members
                .values()
                .map(|task| task.address)
                .filter(|address| matches!(address, IpAddr::V4(it) if it.octets()[3] % 3 == number))
                .collect(),
        };
        let there = (0..3).filter(|number| {
            step.virtual_services & (1 << ((network_number * 3 + number) % 8)) != 0
        });
        let services = there.map(|number| (id::<ServiceId>('s', number), service(number)));
        let services = services.collect();
        desired.virtual_services.insert(network.clone(), services);
    }
    for (task, local) in &desired.local_tasks {
        let sockets = TaskSockets {
            networks: (local.attachments.iter())
                .map(|attachment| attachment.network.clone())
                .collect(),
            published: true,
        };
        desired.task_sockets.insert(task.clone(), sockets);
    }
    over(ipv6, desired)
}

/// What a node does: increments where they are enough, else everything.
#[derive(Default)]
struct Follower {
    base: Option<(Desired, Observed, Increments)>,
    answering: BTreeMap<crate::network::Entry, u64>,
}

impl Follower {
    /// Whether it was by an increment.
    fn follow(&mut self, observed: &mut Observed, desired: &Desired) -> bool {
        let planned = self.base.as_ref().and_then(|(before, context, index)| {
            plan_increment(context, &slice(index, before, desired)?)
        });
        if let (Some(increment), Some((before, _, index))) = (&planned, &mut self.base) {
            let Increment { ops, answering } = increment;
            ops.iter().for_each(|op| observed.apply(op));
            let [gone, come] = answering;
            self.answering.retain(|entry, _| !gone.contains_key(entry));
            self.answering.extend(come.clone());
            index.follow(before, desired);
            *before = desired.clone();
            return true;
        }
        let context = observed.context();
        settle(observed, desired);
        self.answering = entries(&wanted(&host(), desired).0);
        self.base = Some((desired.clone(), context, Increments::of(desired)));
        false
    }
}

proptest! {
    #[test]
    fn increments_lead_where_a_look_at_everything_does(
        nodes in 1..5_u8,
        tasks in vec(1..5_u8, 0..8),
        networks in vec(0..8_u8, 8),
        steps in vec(steps(), 1..6),
        ipv6 in any::<bool>(),
    ) {
        let mut follower = Follower::default();
        let mut observed = host();
        for step in &steps {
            let desired = at(step, nodes, &tasks, &networks, ipv6);
            follower.follow(&mut observed, &desired);
            prop_assert_eq!(texts(&plan(&observed, &desired).ops), Vec::<String>::new());
            let mut fresh = host();
            settle(&mut fresh, &desired);
            prop_assert_eq!(&observed, &fresh);
            let (_, _, index) = follower.base.as_ref().unwrap();
            prop_assert_eq!(index, &Increments::of(&desired));
            prop_assert_eq!(&follower.answering, &entries(&wanted(&host(), &desired).0));
        }
    }
}

/// `count` services with one task each, all of other nodes.
fn many(count: u8) -> Desired {
    let tasks = vec![2; usize::from(count)];
    let services: Vec<_> = (0..count)
        .map(|number| (8000 + u16::from(number), vec![usize::from(number)], false))
        .collect();
    super::desired(2, &tasks, &services)
}

#[test]
fn one_more_service_costs_the_same_however_many_there_are() {
    let cost = |count: u8| {
        let mut observed = host();
        let mut follower = Follower::default();
        assert!(!follower.follow(&mut observed, &many(count)));
        let (before, context, index) = follower.base.as_ref().unwrap();
        let slice = slice(index, before, &many(count + 1)).unwrap();
        let ops = plan_increment(context, &slice).unwrap().ops;
        ops.iter().map(Op::writes).collect::<Vec<_>>()
    };
    let few = cost(3);
    // A neighbour, two forwarding entries, and at both IPv4 addresses a service and a destination.
    let messages: usize = few.iter().map(|(messages, _)| messages).sum();
    assert_eq!(messages, 7, "{few:?}");
    assert_eq!(cost(100), few);
}

#[test]
fn what_others_want_too_is_looked_at() {
    let before = many(4);
    let index = Increments::of(&before);
    let sliced = |after: &Desired| slice(&index, &before, after).is_some();
    assert!(sliced(&many(5)));
    // Two services with one port: the first has it, until it goes.
    let mut shared = many(5);
    for (service, _) in many(5).services.iter().skip(4) {
        let mut taken = many(5).services.get(service).unwrap().clone();
        taken.ports[0].published = 8000;
        shared.services.insert(service.clone(), taken);
    }
    assert!(!sliced(&shared));
    // Two tasks with one address.
    let mut shared = many(5);
    let task = id::<TaskId>('t', 4);
    let mut taken = shared.tasks.get(&task).unwrap().clone();
    taken.address = ip(1, 0);
    shared.tasks.insert(task, taken);
    assert!(!sliced(&shared));
    // Anything else.
    let mut other = many(5);
    other.local.vtep = IpAddr::from([192, 168, 1, 9]);
    assert!(!sliced(&other));
}
