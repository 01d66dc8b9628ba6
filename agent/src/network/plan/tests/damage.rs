//! What somebody may do to what the agent made.

use super::*;

/// A kind of damage; the index picks what it hits.
#[derive(Clone, Debug)]
pub(super) enum Damage {
    DeleteLink(Index),
    DeleteNetns(Index),
    SetDown(Index),
    ChangeMac(Index),
    ChangeMtu(Index),
    Release(Index),
    ChangePortFlags(Index),
    Address(Index),
    Route(Index),
    Neighbour(Index),
    Tunnel(Index),
    Forward(Index),
    Sysctl(Index),
    Program(Index),
    ClearIpvs,
    IpvsService(Index),
    Destination(Index),
    Config,
    Firewall(bool),
    Isolation,
    Sockets,
    SocketPrograms,
}

/// Any one of them.
pub(super) fn damages() -> impl Strategy<Value = Damage> {
    prop_oneof![
        any::<Index>().prop_map(Damage::DeleteLink),
        any::<Index>().prop_map(Damage::DeleteNetns),
        any::<Index>().prop_map(Damage::SetDown),
        any::<Index>().prop_map(Damage::ChangeMac),
        any::<Index>().prop_map(Damage::ChangeMtu),
        any::<Index>().prop_map(Damage::Release),
        any::<Index>().prop_map(Damage::ChangePortFlags),
        any::<Index>().prop_map(Damage::Address),
        any::<Index>().prop_map(Damage::Route),
        any::<Index>().prop_map(Damage::Neighbour),
        any::<Index>().prop_map(Damage::Tunnel),
        any::<Index>().prop_map(Damage::Forward),
        any::<Index>().prop_map(Damage::Sysctl),
        any::<Index>().prop_map(Damage::Program),
        Just(Damage::ClearIpvs),
        any::<Index>().prop_map(Damage::IpvsService),
        any::<Index>().prop_map(Damage::Destination),
        Just(Damage::Config),
        any::<bool>().prop_map(Damage::Firewall),
        Just(Damage::Isolation),
        Just(Damage::Sockets),
        Just(Damage::SocketPrograms),
    ]
}

/// One of these, when there is any.
pub(super) fn pick<T: Clone>(from: impl IntoIterator<Item = T>, index: &Index) -> Option<T> {
    let all: Vec<T> = from.into_iter().collect();
    (!all.is_empty()).then(|| index.get(&all).clone())
}

/// Changes one of these links.
fn change(
    observed: &mut Observed,
    from: &[Device],
    index: &Index,
    change: &dyn Fn(&mut Link),
) -> Option<Device> {
    let (place, name) = pick(from.to_vec(), index)?;
    change(observed.namespaces.get_mut(&place)?.links.get_mut(&name)?);
    Some((place, name))
}

/// Breaks something of ours.
pub(super) fn damage(observed: &mut Observed, damage: &Damage) {
    let ours = |place: &Place, name: &str| *place != Place::Host || name.starts_with("sw-");
    let devices: Vec<_> = observed
        .namespaces
        .iter()
        .flat_map(|(place, namespace)| {
            namespace
                .links
                .keys()
                .map(move |name| (place.clone(), name.clone()))
        })
        .filter(|(place, name)| ours(place, name))
        .collect();
    let others: Vec<_> = devices
        .iter()
        .filter(|(_, name)| name != "lo")
        .cloned()
        .collect();
    let networks = |observed: &mut Observed, change: &dyn Fn(&mut Namespace)| {
        let all = observed.namespaces.iter_mut();
        all.filter(|(place, _)| place.is_network())
            .for_each(|(_, namespace)| change(namespace));
    };
    match damage {
        Damage::DeleteLink(index) => {
            if let Some(device) = pick(others, index) {
                observed.apply(&Op::DeleteLink(device));
            }
        }
        Damage::DeleteNetns(index) => {
            let places = observed
                .namespaces
                .keys()
                .filter(|place| **place != Place::Host);
            if let Some(place) = pick(places.cloned(), index) {
                observed.apply(&Op::DeleteNetns(place));
            }
        }
        Damage::SetDown(index) => {
            // What the kernel does when a link goes down.
            if let Some((place, name)) = change(observed, &devices, index, &|link| link.up = false)
            {
                let namespace = observed.namespaces.get_mut(&place).unwrap();
                namespace.routes.retain(|_, route| route.device != name);
                namespace.neighbours.retain(|(of, _), _| **of != *name);
            }
        }
        Damage::ChangeMac(index) => {
            let wrong = Mac([2, 0, 0, 0, 0, 1]);
            let named: Vec<_> = others
                .iter()
                .filter(|device| observed.link(device).is_some_and(|link| link.mac.is_some()))
                .cloned()
                .collect();
            if let Some(device) = pick(named, index) {
                observed.apply(&Op::SetMac { device, mac: wrong });
            }
        }
        Damage::ChangeMtu(index) => {
            change(observed, &others, index, &|link| link.mtu = Some(1280));
        }
        Damage::Release(index) => {
            change(observed, &others, index, &|link| {
                link.master = None;
                link.port = None;
            });
        }
        Damage::ChangePortFlags(index) => {
            change(observed, &others, index, &|link| {
                if let Some(flags) = &mut link.port {
                    flags.learning = !flags.learning;
                }
            });
        }
        Damage::Address(index) => {
            let places = observed
                .namespaces
                .iter()
                .filter(|(place, _)| **place != Place::Host);
            let addresses: Vec<_> = places
                .flat_map(|(place, namespace)| {
                    namespace
                        .addresses
                        .iter()
                        .map(move |entry| (place.clone(), entry.clone()))
                })
                .collect();
            if let Some((place, (name, address))) = pick(addresses, index) {
                observed.apply(&Op::DeleteAddress {
                    device: (place, name),
                    address,
                });
            }
        }
        Damage::Route(index) => networks(observed, &|namespace| {
            if let Some(to) = pick(namespace.routes.keys().copied(), index) {
                namespace.routes.remove(&to);
            }
        }),
        Damage::Neighbour(index) => networks(observed, &|namespace| {
            if let Some(key) = pick(namespace.neighbours.keys().cloned(), index) {
                namespace.neighbours.remove(&key);
            }
        }),
        Damage::Tunnel(index) => networks(observed, &|namespace| {
            if let Some(mac) = pick(namespace.tunnels.keys().copied(), index) {
                namespace.tunnels.insert(mac, ip(9, 9));
            }
        }),
        Damage::Forward(index) => networks(observed, &|namespace| {
            if let Some(mac) = pick(namespace.forwards.keys().copied(), index) {
                namespace.forwards.remove(&mac);
            }
        }),
        Damage::Sysctl(index) => networks(observed, &|namespace| {
            if let Some(key) = pick(namespace.sysctls.keys().cloned(), index) {
                namespace.sysctls.insert(key, Some("7".to_owned()));
            }
        }),
        Damage::Program(index) => {
            for namespace in observed.namespaces.values_mut() {
                if let Some(key) = pick(namespace.programs.keys().cloned(), index) {
                    namespace.programs.remove(&key);
                }
            }
        }
        Damage::ClearIpvs => {
            observed.ipvs = Ok(IpvsTable::new());
            if let Some(timeouts) = &mut observed.ipvs_timeouts {
                timeouts.tcp_s = 900;
            }
        }
        Damage::IpvsService(index) => {
            let table = observed.ipvs.as_mut().unwrap();
            if let Some(key) = pick(table.keys().copied(), index) {
                table.remove(&key);
            }
        }
        Damage::Destination(index) => {
            let table = observed.ipvs.as_mut().unwrap();
            if let Some(key) = pick(table.keys().copied(), index) {
                let destinations = &mut table.get_mut(&key).unwrap().destinations;
                for config in destinations.values_mut() {
                    config.weight += 7;
                }
                let first = destinations.keys().next().copied();
                let balanced = table.get_mut(&key).unwrap();
                first.iter().for_each(|to| balanced.take_out(to));
            }
        }
        Damage::Config => observed.mesh.as_mut().unwrap().config = None,
        Damage::Isolation => observed.mesh.as_mut().unwrap().isolation = None,
        Damage::Sockets => observed.mesh.as_mut().unwrap().sockets = None,
        Damage::SocketPrograms => {
            observed.mesh.as_mut().unwrap().socket_programs = SocketPrograms::Outdated;
        }
        Damage::Firewall(flushed) => {
            let table = &mut observed.firewall.as_mut().unwrap().table;
            match table {
                Some(table) if !flushed => drop(table.egress.pop_first()),
                table => *table = None,
            }
        }
    }
}
