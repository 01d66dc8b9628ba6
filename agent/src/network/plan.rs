//! From what is to what is wanted: the operations, in an order of which every prefix is safe.
//!
//! A port is withdrawn before anything else happens and published after everything else exists; in
//! between, what is missing is made before what is left over goes. A port whose tasks move keeps
//! working throughout.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use swarm_ipvs::{Destination, DestinationKey, Op as IpvsOp, Service as IpvsService};

use super::desired::Desired;
use super::model::{
    Balanced, Device, IpvsTable, Link, LinkKind, MeshMaps, Observed, Place, SocketPrograms,
};
use super::names::{
    BRIDGE, FORWARDING6, FORWARDING6_OF_NEW, HOST_IS_ROUTER, HOST_PREFIX, HOST_VETH, INGRESS_VETH,
    LOOPBACK, TASK_DEVICE, VXLAN, forwarding_of, is_task_port,
};
use super::op::{Op, VethEnd};
use super::sockets::Sockets;
use super::wanted::{Problem, Wanted, wanted};

/// What to do, and what cannot be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// The operations in order.
    pub(super) ops: Vec<Op>,
    /// Parts of what is desired that are left out.
    pub(super) problems: Vec<Problem>,
}

/// What leads from `observed` to `desired`. Empty when nothing is to be done.
pub(super) fn plan(observed: &Observed, desired: &Desired) -> Plan {
    plan_for(observed.clone(), desired).0
}

/// The same, and what the kernel holds once it is carried out.
pub(super) fn plan_for(observed: Observed, desired: &Desired) -> (Plan, Wanted) {
    let (wanted, problems) = wanted(&observed, desired);
    let ops = difference(observed, &wanted);
    (Plan { ops, problems }, wanted)
}

/// What leads from `observed` to nothing of ours.
pub(super) fn teardown(observed: &Observed) -> Vec<Op> {
    let empty = MeshMaps {
        published: Some(BTreeMap::new()),
        sockets: Some(Sockets::default()),
        ..MeshMaps::default()
    };
    let wanted = Wanted {
        mesh: observed.mesh.is_ok().then_some(empty),
        ..Wanted::default()
    };
    let mut ops = difference(observed.clone(), &wanted);
    if observed.mesh.is_ok() {
        ops.push(Op::RemovePins);
    }
    if observed.firewall.is_ok() {
        ops.push(Op::RemoveFirewall);
    }
    ops
}

/// What leads from `observed` to `wanted`.
pub(super) fn difference(observed: Observed, wanted: &Wanted) -> Vec<Op> {
    let mut planner = Planner {
        wanted,
        now: observed,
        ops: Vec::new(),
    };
    planner.withdraw();
    planner.withdraw_sockets();
    planner.create_namespaces();
    planner.close_uplinks();
    planner.close_forwarding6();
    planner.set_firewall();
    planner.make_settings();
    planner.make_links();
    // Those of links that are new, before they do anything.
    planner.make_settings();
    planner.set_links_up();
    planner.assign_addresses();
    planner.set_routes();
    planner.set_tables();
    planner.attach_programs();
    planner.fill_maps();
    planner.balance();
    planner.balance_sockets();
    planner.publish();
    planner.unbalance();
    planner.delete_links();
    planner.detach_programs();
    planner.clear_routes();
    planner.clear_tables();
    planner.delete_namespaces();
    planner.ops
}

/// Each stage compares `now` with `wanted`; every operation is applied to `now` at once.
struct Planner<'a> {
    wanted: &'a Wanted,
    now: Observed,
    ops: Vec<Op>,
}

impl Planner<'_> {
    fn emit(&mut self, op: Op) {
        self.now.apply(&op);
        self.ops.push(op);
    }

    fn emit_all(&mut self, ops: Vec<Op>) {
        for op in ops {
            self.emit(op);
        }
    }

    /// Published ports that are to go: from here on they refuse.
    fn withdraw(&mut self) {
        let (Ok(now), Some(wanted)) = (&self.now.mesh, &self.wanted.mesh) else {
            return;
        };
        let (Some(now), Some(wanted)) = (&now.published, &wanted.published) else {
            return;
        };
        if now.keys().all(|key| wanted.contains_key(key)) {
            return;
        }
        let mut keep = now.clone();
        keep.retain(|key, _| wanted.contains_key(key));
        self.emit(Op::SetPublished(keep));
    }

    /// Services that sockets are no longer balanced to.
    fn withdraw_sockets(&mut self) {
        let (Ok(now), Some(wanted)) = (&self.now.mesh, &self.wanted.mesh) else {
            return;
        };
        let (Some(now), Some(wanted)) = (&now.sockets, &wanted.sockets) else {
            return;
        };
        if let Some(keep) = now.without_services_missing_in(wanted) {
            self.emit(Op::SetSockets(keep));
        }
    }

    fn create_namespaces(&mut self) {
        for place in self.wanted.namespaces.keys() {
            if !self.now.namespaces.contains_key(place) {
                self.emit(Op::CreateNetns(place.clone()));
            }
        }
    }

    /// Uplinks that forwarded for our tasks and are to do so no more. Before their guard goes.
    fn close_uplinks(&mut self) {
        let (Ok(now), Some(host)) = (&self.now.firewall, self.now.namespaces.get(&Place::Host))
        else {
            return;
        };
        let setting = |key: &str| host.sysctls.get(key).and_then(Option::as_deref);
        if setting(HOST_IS_ROUTER) == Some("1") {
            return;
        }
        let wanted = self.wanted.firewall.as_ref();
        let keep = |name: &String| wanted.is_some_and(|wanted| wanted.guarded.contains(name));
        let mut ops = Vec::new();
        for name in now.guarded.iter().flatten().filter(|name| !keep(name)) {
            let key = forwarding_of(name);
            if host.links.contains_key(name) && setting(&key) != Some("0") {
                let value = "0".to_owned();
                ops.push(Op::SetSysctl {
                    place: Place::Host,
                    key,
                    value,
                });
            }
        }
        self.emit_all(ops);
    }

    /// The host, where it forwarded IPv6 packets on our account and is to do so no more. Likewise.
    fn close_forwarding6(&mut self) {
        let Some(host) = self.now.namespaces.get(&Place::Host) else {
            return;
        };
        let is = |key: &str, value: &str| {
            host.sysctls.get(key).and_then(Option::as_deref) == Some(value)
        };
        let wanted = self.wanted.firewall.as_ref();
        let keep = wanted.is_some_and(|wanted| wanted.guarded6);
        if self.now.firewall.is_ok() && !keep && is(FORWARDING6, "1") && is(FORWARDING6_OF_NEW, "0")
        {
            self.emit(Op::SetSysctl {
                place: Place::Host,
                key: FORWARDING6.to_owned(),
                value: "0".to_owned(),
            });
        }
    }

    /// Before the first link forwards: what it is not to forward is kept out.
    fn set_firewall(&mut self) {
        let (Ok(now), Some(wanted)) = (&self.now.firewall, &self.wanted.firewall) else {
            return;
        };
        let op = match &now.table {
            Some(table) if table == wanted => return,
            Some(table) if table.guards_as(wanted) => Op::ChangeEgress {
                add: &wanted.egress - &table.egress,
                remove: &table.egress - &wanted.egress,
            },
            Some(_) | None => Op::SetFirewall(wanted.clone()),
        };
        self.emit(op);
    }

    fn make_settings(&mut self) {
        for (place, key, value) in &self.wanted.sysctls {
            if self.missing_link(place, key) || self.left_to_container(place) {
                continue;
            }
            let namespace = self.now.namespaces.get(place);
            let differs = match namespace.and_then(|namespace| namespace.sysctls.get(key)) {
                Some(Some(current)) => current != value,
                // The kernel has no such setting.
                Some(None) => false,
                None => true,
            };
            if differs {
                let (place, key, value) = (place.clone(), key.clone(), value.clone());
                self.emit(Op::SetSysctl { place, key, value });
            }
        }
    }

    /// Settings of a task's namespace are what its interface starts with; a container may have
    /// others.
    fn left_to_container(&self, place: &Place) -> bool {
        place.task().is_some()
            && self
                .now
                .link(&(place.clone(), TASK_DEVICE.to_owned()))
                .is_some()
    }

    /// Whether `key` is a setting of a link (`ipv4/conf/LINK/...`) that is not there yet.
    fn missing_link(&self, place: &Place, key: &str) -> bool {
        let mut parts = key.split('/').skip_while(|part| *part != "conf").skip(1);
        match parts.next() {
            None | Some("all" | "default") => false,
            Some(name) => self.now.link(&(place.clone(), name.to_owned())).is_none(),
        }
    }

    fn make_links(&mut self) {
        for (device, link) in &self.wanted.links {
            self.make_link(device, link);
        }
    }

    /// After all exist: a port that is down yet forwards nothing.
    fn set_links_up(&mut self) {
        for (device, link) in &self.wanted.links {
            let up = self.now.link(device).is_none_or(|now| now.up);
            if link.up && !up {
                self.emit(Op::SetUp(device.clone()));
            }
        }
    }

    fn make_link(&mut self, device: &Device, link: &Link) {
        if self
            .now
            .link(device)
            .is_none_or(|now| now.kind != link.kind)
        {
            self.replace_link(device, link);
        }
        let Some(now) = self.now.link(device).cloned() else {
            return;
        };
        if let Some(mac) = link.mac.filter(|mac| now.mac != Some(*mac)) {
            self.emit(Op::SetMac {
                device: device.clone(),
                mac,
            });
        }
        if let Some(mtu) = link.mtu.filter(|mtu| now.mtu != Some(*mtu)) {
            self.emit(Op::SetMtu {
                device: device.clone(),
                mtu,
            });
        }
        if let Some(master) = &link.master
            && now.master.as_ref() != Some(master)
        {
            self.emit(Op::SetMaster {
                device: device.clone(),
                master: master.clone(),
            });
        }
        if let Some(flags) = link.port
            && self
                .now
                .link(device)
                .is_some_and(|now| now.port != Some(flags))
        {
            self.emit(Op::SetPortFlags {
                device: device.clone(),
                flags,
            });
        }
    }

    /// Makes a link, and with a veth pair both ends, in the place of what there is.
    fn replace_link(&mut self, device: &Device, link: &Link) {
        let peer = match &link.kind {
            LinkKind::Veth(peer) => peer.clone(),
            LinkKind::Bridge | LinkKind::Vxlan(_) | LinkKind::Other => None,
        };
        for old in [Some(device), peer.as_ref()].into_iter().flatten() {
            if self.now.link(old).is_some() {
                self.emit(Op::DeleteLink(old.clone()));
            }
        }
        let (device, mtu) = (device.clone(), link.mtu);
        match &link.kind {
            LinkKind::Bridge => self.emit(Op::CreateBridge {
                device,
                mac: link.mac,
                mtu,
            }),
            LinkKind::Vxlan(vxlan) => {
                self.emit(Op::CreateVxlan {
                    device,
                    mtu,
                    vxlan: vxlan.clone(),
                });
            }
            LinkKind::Veth(Some(peer)) => {
                let wanted = self.wanted.namespaces.get(&peer.0);
                let peer_mac = wanted.and_then(|place| place.links.get(&peer.1)?.mac);
                let ends = Box::new([
                    VethEnd {
                        device,
                        mac: link.mac,
                    },
                    VethEnd {
                        device: peer.clone(),
                        mac: peer_mac,
                    },
                ]);
                self.emit(Op::CreateVeth { ends, mtu });
            }
            // Loopback comes with its namespace.
            LinkKind::Veth(None) | LinkKind::Other => {}
        }
    }

    /// Old addresses first: the kernel deletes all other addresses of a subnet with its first one.
    fn assign_addresses(&mut self) {
        let mut ops = Vec::new();
        for (place, wanted) in &self.wanted.namespaces {
            let Some(now) = self.now.namespaces.get(place) else {
                continue;
            };
            let ours = |name: &str| match place {
                Place::Host => name == HOST_VETH,
                Place::Ingress | Place::Overlay(_) => name == LOOPBACK || name == BRIDGE,
                Place::Task(_) => false,
            };
            for (name, address) in now.addresses.difference(&wanted.addresses) {
                if ours(name) {
                    let device = (place.clone(), name.clone());
                    ops.push(Op::DeleteAddress {
                        device,
                        address: *address,
                    });
                }
            }
        }
        for (place, wanted) in &self.wanted.namespaces {
            let Some(now) = self.now.namespaces.get(place) else {
                continue;
            };
            for (name, address) in wanted.addresses.difference(&now.addresses) {
                let device = (place.clone(), name.clone());
                ops.push(Op::AddAddress {
                    device,
                    address: *address,
                });
            }
        }
        self.emit_all(ops);
    }

    fn set_routes(&mut self) {
        let mut ops = Vec::new();
        for (place, wanted) in &self.wanted.namespaces {
            let Some(now) = self.now.namespaces.get(place) else {
                continue;
            };
            // In descending order, so that the default route comes after those on the links.
            for (&destination, route) in wanted.routes.iter().rev() {
                if now.routes.get(&destination) != Some(route) {
                    let (place, route) = (place.clone(), route.clone());
                    ops.push(Op::SetRoute {
                        place,
                        destination,
                        route,
                    });
                }
            }
        }
        self.emit_all(ops);
    }

    /// Neighbours and forwarding tables.
    fn set_tables(&mut self) {
        for (place, wanted) in &self.wanted.namespaces {
            let Some(now) = self.now.namespaces.get(place) else {
                continue;
            };
            let mut devices = Devices::of(place);
            let neighbours = missing(&now.neighbours, &wanted.neighbours);
            // No stage after this one asks for what is there and wanted: not applied to `now`, of
            // which there would be a second copy of tens of thousands of entries.
            self.ops.extend(neighbours.map(|((name, address), mac)| {
                let (device, address, mac) = (devices.get(name), *address, *mac);
                Op::SetNeighbour {
                    device,
                    address,
                    mac,
                }
            }));
            let tunnels = missing(&now.tunnels, &wanted.tunnels);
            self.ops.extend(tunnels.map(|(mac, vtep)| Op::SetTunnel {
                device: devices.get(VXLAN),
                mac: *mac,
                vtep: *vtep,
            }));
            let forwards = missing(&now.forwards, &wanted.forwards);
            self.ops.extend(forwards.map(|(mac, name)| Op::SetForward {
                device: devices.get(name),
                mac: *mac,
            }));
        }
    }

    fn attach_programs(&mut self) {
        let mut ops = Vec::new();
        for (place, wanted) in &self.wanted.namespaces {
            let Some(now) = self.now.namespaces.get(place) else {
                continue;
            };
            for ((name, program), _) in missing(&now.programs, &wanted.programs) {
                let device = (place.clone(), name.clone());
                ops.push(Op::Attach {
                    device,
                    program: *program,
                });
            }
        }
        self.emit_all(ops);
    }

    fn fill_maps(&mut self) {
        let (Ok(now), Some(wanted)) = (&self.now.mesh, &self.wanted.mesh) else {
            return;
        };
        let ops = [
            differing(&now.config, &wanted.config).map(Op::SetMeshConfig),
            differing(&now.node_addresses, &wanted.node_addresses).map(Op::SetNodeAddresses),
            differing(&now.ingress_macs, &wanted.ingress_macs).map(Op::SetIngressMacs),
            differing(&now.isolation, &wanted.isolation).map(Op::SetIsolation),
        ];
        self.emit_all(ops.into_iter().flatten().collect());
    }

    /// Services and destinations that are missing or different. Destinations in ascending order:
    /// nodes agree on Maglev's choices only when all have added them in the same order.
    fn balance(&mut self) {
        let timeouts = differing(&self.now.ipvs_timeouts, &self.wanted.ipvs_timeouts);
        if let (Ok(_), Some(timeouts)) = (&self.now.ipvs, timeouts) {
            self.emit(Op::Ipvs(IpvsOp::SetTimeouts(timeouts)));
        }
        if !self.now.tables.ipvs {
            return;
        }
        let (Ok(now), Some(wanted)) = (&self.now.ipvs, &self.wanted.ipvs) else {
            return;
        };
        // Not applied to `now` either.
        let ops = &mut self.ops;
        for (&key, balanced) in wanted {
            let old = now.get(&key);
            let service = IpvsService {
                key,
                config: balanced.config,
            };
            match old {
                None => ops.push(Op::Ipvs(IpvsOp::AddService(service))),
                Some(old) if old.config != balanced.config => {
                    ops.push(Op::Ipvs(IpvsOp::UpdateService(service)));
                }
                Some(_) => {}
            }
            let moved = moved(old, balanced);
            for (&to, &config) in &balanced.destinations {
                let destination = Destination { key: to, config };
                match old.and_then(|old| old.destinations.get(&to)) {
                    None => ops.push(Op::Ipvs(IpvsOp::AddDestination(key, destination))),
                    Some(_) if moved.contains(&to) => {
                        // The kernel finds its connections again when it is added anew.
                        ops.push(Op::Ipvs(IpvsOp::DeleteDestination(key, to)));
                        ops.push(Op::Ipvs(IpvsOp::AddDestination(key, destination)));
                    }
                    Some(old) if *old != config => {
                        ops.push(Op::Ipvs(IpvsOp::UpdateDestination(key, destination)));
                    }
                    Some(_) => {}
                }
            }
        }
    }

    /// Also without anything in the tables: what an earlier agent has attached has to go.
    fn balance_sockets(&mut self) {
        let (Ok(now), Some(wanted)) = (&self.now.mesh, &self.wanted.mesh) else {
            return;
        };
        let ops = [
            differing(&now.sockets, &wanted.sockets).map(Op::SetSockets),
            (wanted.socket_programs == SocketPrograms::Current
                && now.socket_programs == SocketPrograms::Outdated)
                .then_some(Op::AttachSockets),
        ];
        self.emit_all(ops.into_iter().flatten().collect());
    }

    /// Source ranges before the ports that look at them, and those of before after that: while a
    /// port changes its ranges, the clients of both may use it.
    fn publish(&mut self) {
        let (Ok(now), Some(wanted)) = (&self.now.mesh, &self.wanted.mesh) else {
            return;
        };
        let before = now.sources.iter().flatten();
        let all = wanted.sources.iter().flatten().chain(before);
        let sources = wanted.sources.is_some().then(|| all.copied().collect());
        let ops = [
            differing(&now.sources, &sources).map(Op::SetSources),
            differing(&now.published, &wanted.published).map(Op::SetPublished),
            differing(&sources, &wanted.sources).map(Op::SetSources),
        ];
        self.emit_all(ops.into_iter().flatten().collect());
    }

    /// From links that stay.
    fn detach_programs(&mut self) {
        let mut ops = Vec::new();
        for (place, now) in &self.now.namespaces {
            let wanted = self
                .wanted
                .namespaces
                .get(place)
                .map(|wanted| &wanted.programs);
            for entry in now.programs.keys() {
                if wanted.is_none_or(|wanted| !wanted.contains_key(entry)) {
                    let (name, program) = entry.clone();
                    ops.push(Op::Detach {
                        device: (place.clone(), name),
                        program,
                    });
                }
            }
        }
        self.emit_all(ops);
    }

    fn unbalance(&mut self) {
        if !self.now.tables.ipvs {
            return;
        }
        let (Ok(now), Some(wanted)) = (&self.now.ipvs, &self.wanted.ipvs) else {
            return;
        };
        let ops = stale_balanced(now, wanted);
        self.emit_all(ops);
    }

    /// Task ports and host links that nobody wants.
    fn delete_links(&mut self) {
        let mut ops = Vec::new();
        for (place, now) in &self.now.namespaces {
            let wanted = self
                .wanted
                .namespaces
                .get(place)
                .map(|wanted| &wanted.links);
            for name in now.links.keys() {
                let ours = match place {
                    Place::Host => name.starts_with(HOST_PREFIX),
                    Place::Ingress => is_task_port(name) || name == VXLAN || name == INGRESS_VETH,
                    // A namespace goes when its last user does, and the VXLAN device with it: its
                    // network identifier would not be free at once.
                    Place::Overlay(_) => is_task_port(name) || name == VXLAN,
                    Place::Task(_) => false,
                };
                if ours && wanted.is_none_or(|wanted| !wanted.contains_key(name)) {
                    ops.push((place.clone(), name.clone()));
                }
            }
        }
        for device in ops {
            // The other end of a pair is gone by now.
            if self.now.link(&device).is_some() {
                self.emit(Op::DeleteLink(device));
            }
        }
    }

    /// Routes to what is gone: those by our link in the host's namespace, and those by a next hop in
    /// the ingress namespace. The others there come and go with addresses.
    fn clear_routes(&mut self) {
        let mut ops = Vec::new();
        for (place, wanted) in &self.wanted.namespaces {
            let Some(now) = self.now.namespaces.get(place) else {
                continue;
            };
            for (&destination, route) in &now.routes {
                let ours = match place {
                    Place::Host => route.device == HOST_VETH,
                    Place::Ingress | Place::Overlay(_) => route.via.is_some(),
                    Place::Task(_) => false,
                };
                if ours && !wanted.routes.contains_key(&destination) {
                    ops.push(Op::DeleteRoute {
                        place: place.clone(),
                        destination,
                        route: route.clone(),
                    });
                }
            }
        }
        self.emit_all(ops);
    }

    /// Entries for tasks and nodes that are gone. Only the tables of networks' namespaces are all
    /// ours; a container may fill its own.
    fn clear_tables(&mut self) {
        let places = self.wanted.namespaces.keys();
        for place in places.filter(|place| place.is_network()) {
            self.clear_tables_of(place);
        }
    }

    fn clear_tables_of(&mut self, place: &Place) {
        let (Some(now), Some(wanted)) = (
            self.now.namespaces.get(place),
            self.wanted.namespaces.get(place),
        ) else {
            return;
        };
        let mut devices = Devices::of(place);
        let mut ops = Vec::new();
        for entry in now.neighbours.keys() {
            let (name, address) = entry;
            let ours = **name == *BRIDGE || **name == *INGRESS_VETH;
            if ours && !wanted.neighbours.contains_key(entry) {
                ops.push(Op::DeleteNeighbour {
                    device: devices.get(name),
                    address: *address,
                });
            }
        }
        for &mac in now.tunnels.keys() {
            if !wanted.tunnels.contains_key(&mac) {
                ops.push(Op::DeleteTunnel {
                    device: devices.get(VXLAN),
                    mac,
                });
            }
        }
        for (&mac, port) in &now.forwards {
            let ours = **port == *VXLAN || is_task_port(port);
            if ours && !wanted.forwards.contains_key(&mac) {
                ops.push(Op::DeleteForward {
                    device: devices.get(port),
                    mac,
                });
            }
        }
        self.emit_all(ops);
    }

    fn delete_namespaces(&mut self) {
        let places: Vec<_> = self.now.namespaces.keys().cloned().collect();
        // Tasks before the networks they hang on.
        for place in places.into_iter().rev() {
            if place != Place::Host && !self.wanted.namespaces.contains_key(&place) {
                self.emit(Op::DeleteNetns(place));
            }
        }
    }
}

/// The links of a namespace, for the many operations on each.
struct Devices<'a> {
    place: &'a Place,
    known: BTreeMap<String, Arc<Device>>,
}

impl<'a> Devices<'a> {
    fn of(place: &'a Place) -> Self {
        Self {
            place,
            known: BTreeMap::new(),
        }
    }

    fn get(&mut self, name: &str) -> Arc<Device> {
        if let Some(device) = self.known.get(name) {
            return device.clone();
        }
        let device = Arc::new((self.place.clone(), name.to_owned()));
        self.known.insert(name.to_owned(), device.clone());
        device
    }
}

/// Entries of `wanted` that `now` lacks or has with another value.
fn missing<'a, K: Ord, V: PartialEq>(
    now: &'a BTreeMap<K, V>,
    wanted: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    wanted
        .iter()
        .filter(|(key, value)| now.get(key) != Some(value))
}

/// What is wanted, when that is known and not what there is.
fn differing<T: Clone + PartialEq>(now: &Option<T>, wanted: &Option<T>) -> Option<T> {
    let wanted = wanted.as_ref();
    wanted
        .filter(|wanted| now.as_ref() != Some(wanted))
        .cloned()
}

/// The destinations that are to be there in a certain order and are in another: those behind the
/// first that is missing or not in its place.
fn moved(old: Option<&Balanced>, wanted: &Balanced) -> BTreeSet<DestinationKey> {
    let Some(old) = old.filter(|_| wanted.is_ordered()) else {
        return BTreeSet::new();
    };
    let mut places = old.order().into_iter();
    let in_place = |to: &&DestinationKey| places.any(|at| at == **to);
    let staying = wanted.destinations.keys().take_while(in_place).count();
    let rest = wanted.destinations.keys().skip(staying);
    rest.filter(|to| old.destinations.contains_key(to))
        .copied()
        .collect()
}

/// Destinations and services that nobody wants.
fn stale_balanced(now: &IpvsTable, wanted: &IpvsTable) -> Vec<Op> {
    let mut ops = Vec::new();
    for (&key, balanced) in now {
        let Some(keep) = wanted.get(&key) else {
            ops.push(Op::Ipvs(IpvsOp::DeleteService(key)));
            continue;
        };
        for &to in balanced.destinations.keys() {
            if !keep.destinations.contains_key(&to) {
                ops.push(Op::Ipvs(IpvsOp::DeleteDestination(key, to)));
            }
        }
    }
    ops
}

#[cfg(test)]
mod tests;
