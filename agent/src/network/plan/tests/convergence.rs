//! From any state to any other, and back from any damage.

use super::damage::{damage, damages, pick};
use super::*;

pub(super) fn desires() -> impl Strategy<Value = Desired> {
    (
        1..5_u8,
        vec(1..5_u8, 0..6),
        vec(
            (8080..8084_u16, vec(any::<Index>(), 0..5), any::<bool>()),
            0..4,
        ),
        vec(0..8_u8, 6),
    )
        .prop_map(|(nodes, tasks, services, networks)| {
            let services: Vec<_> = services
                .into_iter()
                .map(|(port, members, draining)| {
                    let members: BTreeSet<usize> = members
                        .iter()
                        .filter_map(|index| pick(0..tasks.len(), index))
                        .collect();
                    (port, members.into_iter().collect(), draining)
                })
                .collect();
            on_networks(desired(nodes, &tasks, &services), &networks)
        })
}

/// Whether a packet for anything published finds a balancer, and from there every task. Ports in
/// `refusing` may have none.
fn published_ports_work(observed: &Observed, refusing: &BTreeSet<Published>) -> Result<(), String> {
    let (Ok(maps), Ok(table)) = (&observed.mesh, &observed.ipvs) else {
        return Ok(());
    };
    let ingress = observed.namespaces.get(&Place::Ingress);
    for published in maps
        .published
        .iter()
        .flatten()
        .map(|(published, _)| published)
    {
        let key = ServiceKey::Address {
            protocol: swarm_ipvs::Protocol::TCP,
            address: published.address,
            port: published.port,
        };
        let Some(balanced) = table.get(&key) else {
            if refusing.contains(published) {
                continue;
            }
            return Err(format!("{published:?} has no service"));
        };
        let ingress = ingress.ok_or("no ingress namespace")?;
        for destination in balanced.destinations.keys() {
            let mac = Mac::of(destination.address);
            let neighbour = ("br0".into(), destination.address);
            if !ingress.neighbours.contains_key(&neighbour) || !ingress.forwards.contains_key(&mac)
            {
                return Err(format!("{destination} of {published:?} cannot be reached"));
            }
            if &*ingress.forwards[&mac] == "vx0" && !ingress.tunnels.contains_key(&mac) {
                return Err(format!("{destination} of {published:?} is at no node"));
            }
        }
    }
    Ok(())
}

/// The published ports that refuse, because no task takes connections.
fn without_balancer(desired: &Desired) -> BTreeSet<Published> {
    let wanted = wanted(&host(), desired).0;
    let table = wanted.ipvs.unwrap();
    let balanced: BTreeSet<_> = table
        .keys()
        .map(|key| match *key {
            ServiceKey::Address { address, port, .. } => (address, port),
            ServiceKey::Fwmark { .. } => unreachable!("services are known by address"),
        })
        .collect();
    let published = wanted.mesh.unwrap().published.unwrap().into_keys();
    published
        .filter(|entry| !balanced.contains(&(entry.address, entry.port)))
        .collect()
}

proptest! {
    #[test]
    fn maglev_has_its_destinations_in_one_order_whatever_was_before(
        before in desires(),
        after in desires(),
        damages in vec(damages(), 0..3),
    ) {
        let mut observed = host();
        settle(&mut observed, &by_maglev(before, &[]));
        for item in &damages {
            damage(&mut observed, item);
        }
        settle(&mut observed, &by_maglev(after, &[]));
        for balanced in observed.ipvs.unwrap().values() {
            prop_assert!(balanced.order().is_sorted(), "{:?}", balanced.order());
            prop_assert_eq!(balanced.order().len(), balanced.destinations.len());
        }
    }

    #[test]
    fn any_state_leads_to_any_other_in_one_pass(
        before in desires(),
        after in desires(),
        ipv6 in any::<bool>(),
    ) {
        let (before, after) = (over(ipv6, before), over(ipv6, after));
        let mut observed = host();
        settle(&mut observed, &before);
        prop_assert_eq!(texts(&plan(&observed, &before).ops), Vec::<String>::new());
        settle(&mut observed, &after);
        prop_assert_eq!(texts(&plan(&observed, &after).ops), Vec::<String>::new());
        // What was before leaves no trace.
        let mut fresh = host();
        settle(&mut fresh, &after);
        prop_assert_eq!(observed, fresh);
    }

    #[test]
    fn nothing_is_planned_of_tables_that_were_not_looked_at(
        desired in desires(),
        ipv6 in any::<bool>(),
    ) {
        let desired = over(ipv6, desired);
        let mut observed = host();
        settle(&mut observed, &desired);
        let ingress = observed.namespaces.get_mut(&Place::Ingress).unwrap();
        ingress.neighbours.clear();
        ingress.tunnels.clear();
        ingress.forwards.clear();
        observed.ipvs = Ok(IpvsTable::new());
        prop_assert_ne!(texts(&plan(&observed, &desired).ops), Vec::<String>::new());
        observed.tables = Tables {
            ingress: false,
            ipvs: false,
        };
        prop_assert_eq!(texts(&plan(&observed, &desired).ops), Vec::<String>::new());
    }

    #[test]
    fn at_every_step_what_is_published_works(
        before in desires(),
        after in desires(),
        ipv6 in any::<bool>(),
    ) {
        let (before, after) = (over(ipv6, before), over(ipv6, after));
        let mut observed = host();
        let mut refusing = BTreeSet::new();
        for desired in [&before, &after] {
            refusing.extend(without_balancer(desired));
            for op in plan(&observed, desired).ops {
                observed.apply(&op);
                let works = published_ports_work(&observed, &refusing);
                prop_assert!(works.is_ok(), "after {}: {:?}", op, works);
            }
        }
    }

    #[test]
    fn any_damage_is_put_right_in_one_pass(
        desired in desires(),
        damages in vec(damages(), 1..6),
        ipv6 in any::<bool>(),
    ) {
        let desired = over(ipv6, desired);
        let mut observed = host();
        settle(&mut observed, &desired);
        let whole = observed.clone();
        for item in &damages {
            damage(&mut observed, item);
        }
        settle(&mut observed, &desired);
        prop_assert_eq!(texts(&plan(&observed, &desired).ops), Vec::<String>::new());
        // Settings that were not looked at count as made; everything else is as it was.
        prop_assert_eq!(observed, whole);
    }

    #[test]
    fn teardown_leaves_what_is_not_ours_and_nothing_else(desired in desires(), ipv6 in any::<bool>()) {
        let desired = over(ipv6, desired);
        let mut observed = host();
        settle(&mut observed, &desired);
        for op in teardown(&observed) {
            observed.apply(&op);
        }
        let mut expected = host();
        // The host's settings of our link are gone with it.
        expected.ipvs = Ok(IpvsTable::new());
        prop_assert_eq!(observed, expected);
    }

    #[test]
    fn links_of_others_are_not_touched(
        before in desires(),
        after in desires(),
        ipv6 in any::<bool>(),
    ) {
        let (before, after) = (over(ipv6, before), over(ipv6, after));
        let mut observed = host();
        let mut ops = settle(&mut observed, &before);
        ops.extend(settle(&mut observed, &after));
        ops.extend(teardown(&observed));
        for op in ops {
            match &op {
                Op::Attach { program: Program::MeshUplink, .. }
                | Op::Detach { program: Program::MeshUplink, .. } => {}
                Op::SetSysctl { place: Place::Host, key, .. } => {
                    let ours = key.ends_with("/forwarding") || key.contains("/sw-e1h/");
                    prop_assert!(ours, "{}", op);
                }
                op => {
                    let text = op.to_string();
                    let ours = !text.contains("in host") || text.contains("sw-");
                    prop_assert!(ours, "{}", op);
                }
            }
        }
    }
}
