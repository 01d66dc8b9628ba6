//! What an operation does to the kernel.
//!
//! The one place that knows the consequences (a deleted link takes its addresses with it). The
//! planner works on a copy of what was seen and applies every operation as it goes, so that later
//! stages see the result of earlier ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use swarm_ipvs::Op as IpvsOp;

use super::model::{
    Attached, Balanced, Device, FirewallState, IpvsTable, Link, LinkKind, MeshMaps, Namespace,
    Observed, Place, PortFlags, Route, SocketPrograms,
};
use super::names::{FORWARDING6, FORWARDING6_OF_NEW, HOST_LINK_SYSCTLS6, LOOPBACK};
use super::op::Op;

impl Observed {
    /// What the kernel holds after `op`. An operation on something that is not there does nothing.
    pub(super) fn apply(&mut self, op: &Op) {
        match op {
            Op::CreateNetns(place) => {
                let mut namespace = Namespace::default();
                namespace
                    .links
                    .insert(LOOPBACK.to_owned(), Link::new(LinkKind::Other, None, None));
                self.namespaces.entry(place.clone()).or_insert(namespace);
            }
            Op::DeleteNetns(place) => self.delete_netns(place),
            Op::CreateBridge { device, mac, mtu } => {
                self.insert(device, Link::new(LinkKind::Bridge, *mac, *mtu));
            }
            Op::CreateVxlan { device, mtu, vxlan } => {
                self.insert(
                    device,
                    Link::new(LinkKind::Vxlan(vxlan.clone()), None, *mtu),
                );
            }
            Op::CreateVeth { ends, mtu } => {
                let [one, other] = ends.as_ref();
                for (end, peer) in [(one, other), (other, one)] {
                    let kind = LinkKind::Veth(Some(peer.device.clone()));
                    self.insert(&end.device, Link::new(kind, end.mac, *mtu));
                }
            }
            Op::DeleteLink(device) => self.delete_link(device),
            Op::SetMac { device, mac } => {
                self.change(device, |link| link.mac = Some(*mac));
                // The kernel forgets a link's neighbours with its MAC address (neigh_changeaddr).
                if let Some(namespace) = self.namespaces.get_mut(&device.0) {
                    namespace
                        .neighbours
                        .retain(|(name, _), _| **name != *device.1);
                }
            }
            Op::SetMtu { device, mtu } => self.change(device, |link| link.mtu = Some(*mtu)),
            Op::SetUp(device) => {
                self.change(device, |link| link.up = true);
                self.add_connected_routes(device);
            }
            Op::SetMaster { device, master } => self.change(device, |link| {
                link.master = Some(master.clone());
                link.port = Some(PortFlags::INITIAL);
            }),
            Op::SetPortFlags { device, flags } => {
                self.change(device, |link| link.port = Some(*flags));
            }
            Op::Ipvs(IpvsOp::SetTimeouts(timeouts)) => self.ipvs_timeouts = Some(*timeouts),
            Op::Ipvs(op) => {
                if let Ok(table) = &mut self.ipvs {
                    apply_ipvs(table, op);
                }
            }
            Op::SetMeshConfig(_)
            | Op::SetNodeAddresses(_)
            | Op::SetIngressMacs(_)
            | Op::SetPublished(_)
            | Op::SetSources(_)
            | Op::SetIsolation(_)
            | Op::SetSockets(_)
            | Op::ChangePublished(_)
            | Op::ChangeSources(_)
            | Op::ChangeTargets(_)
            | Op::ChangeSockets { .. }
            | Op::AttachSockets
            | Op::RemovePins => {
                if let Ok(maps) = &mut self.mesh {
                    maps.apply(op);
                }
            }
            Op::AddAddress { device, .. }
            | Op::DeleteAddress { device, .. }
            | Op::Attach { device, .. }
            | Op::Detach { device, .. } => {
                let (place, name) = device;
                if let Some(namespace) = self.namespaces.get_mut(place) {
                    namespace.apply(name, op);
                }
                if matches!(op, Op::AddAddress { .. }) {
                    self.add_connected_routes(device);
                }
            }
            Op::SetNeighbour { device, .. }
            | Op::DeleteNeighbour { device, .. }
            | Op::SetTunnel { device, .. }
            | Op::DeleteTunnel { device, .. }
            | Op::SetForward { device, .. }
            | Op::DeleteForward { device, .. } => {
                let (place, name) = device.as_ref();
                if let Some(namespace) = self.namespaces.get_mut(place) {
                    namespace.apply(name, op);
                }
            }
            Op::SetFirewall(_) | Op::ChangeEgress { .. } | Op::RemoveFirewall => {
                if let Ok(firewall) = &mut self.firewall {
                    firewall.apply(op);
                }
            }
            Op::SetSysctl {
                place: Place::Host,
                key,
                value,
            } if key == FORWARDING6 => {
                if let Some(host) = self.namespaces.get_mut(&Place::Host) {
                    host.forward6(value);
                }
            }
            Op::SetSysctl { place, .. }
            | Op::SetRoute { place, .. }
            | Op::DeleteRoute { place, .. } => {
                if let Some(namespace) = self.namespaces.get_mut(place) {
                    namespace.apply("", op);
                }
            }
        }
    }

    fn insert(&mut self, (place, name): &Device, link: Link) {
        if let Some(namespace) = self.namespaces.get_mut(place) {
            namespace.links.insert(name.clone(), link);
        }
    }

    fn change(&mut self, (place, name): &Device, change: impl FnOnce(&mut Link)) {
        let namespace = self.namespaces.get_mut(place);
        if let Some(link) = namespace.and_then(|namespace| namespace.links.get_mut(name)) {
            change(link);
        }
    }

    /// The kernel routes the subnet of an address to its link while that is up.
    fn add_connected_routes(&mut self, (place, name): &Device) {
        let Some(namespace) = self.namespaces.get_mut(place) else {
            return;
        };
        if !namespace.links.get(name).is_some_and(|link| link.up) {
            return;
        }
        for (device, address) in &namespace.addresses {
            if device == name && address.prefix_len() < address.max_prefix_len() {
                let route = Route {
                    via: None,
                    device: name.clone(),
                    mtu: None,
                };
                namespace.routes.entry(address.trunc()).or_insert(route);
            }
        }
    }

    fn delete_netns(&mut self, place: &Place) {
        let Some(namespace) = self.namespaces.get(place) else {
            return;
        };
        for name in namespace.links.keys().cloned().collect::<Vec<_>>() {
            self.delete_link(&(place.clone(), name));
        }
        self.namespaces.remove(place);
        if let Ok(maps) = &mut self.mesh
            && let Some(sockets) = &mut maps.sockets
        {
            // Its successor has another cookie.
            sockets.scopes.remove(place);
        }
        if let (Place::Ingress, Ok(table)) = (place, &mut self.ipvs) {
            table.clear();
            self.ipvs_timeouts = None;
        }
    }

    fn delete_link(&mut self, device: &Device) {
        let (place, name) = device;
        let Some(namespace) = self.namespaces.get_mut(place) else {
            return;
        };
        let Some(link) = namespace.links.remove(name) else {
            return;
        };
        namespace.addresses.retain(|(of, _)| of != name);
        namespace.routes.retain(|_, route| route.device != *name);
        namespace.neighbours.retain(|(of, _), _| **of != *name);
        namespace.forwards.retain(|_, port| **port != *name);
        namespace.programs.retain(|(of, _), _| of != name);
        namespace
            .sysctls
            .retain(|key, _| !key.split('/').any(|part| part == name));
        match link.kind {
            LinkKind::Vxlan(_) => namespace.tunnels.clear(),
            LinkKind::Bridge => {
                namespace.forwards.clear();
                for port in namespace.links.values_mut() {
                    if port.master.as_ref() == Some(name) {
                        port.master = None;
                        port.port = None;
                    }
                }
            }
            LinkKind::Veth(_) | LinkKind::Other => {}
        }
        if let (Place::Host, Ok(maps)) = (place, &mut self.mesh)
            && let Some(config) = &mut maps.config
            && config.host_veth.as_ref() == Some(name)
        {
            // Its successor has another index.
            config.host_veth = None;
        }
        if let (Place::Ingress, Ok(maps)) = (place, &mut self.mesh)
            && let Some(isolation) = &mut maps.isolation
        {
            isolation.ports.remove(name);
        }
        if let (Place::Ingress, Ok(maps)) = (place, &mut self.mesh)
            && let Some(config) = &mut maps.config
            && config.vxlan.as_ref() == Some(name)
        {
            config.vxlan = None;
        }
        if let LinkKind::Veth(Some(peer)) = link.kind {
            self.delete_link(&peer);
        }
    }
}

impl Namespace {
    /// What the kernel does when the host's forwarding of IPv6 packets is set.
    fn forward6(&mut self, value: &str) {
        let of_links = HOST_LINK_SYSCTLS6.iter().map(|(_, key, _)| *key);
        let of_links = of_links.filter(|key| key.ends_with("/forwarding"));
        let mut keys: Vec<&str> = of_links.collect();
        keys.retain(|key| self.sysctls.contains_key(*key));
        for key in keys.into_iter().chain([FORWARDING6, FORWARDING6_OF_NEW]) {
            self.sysctls.insert(key.to_owned(), Some(value.to_owned()));
        }
    }

    /// The part of [`Observed::apply`] that stays within a namespace, on the link `name`.
    fn apply(&mut self, name: &str, op: &Op) {
        let name = || name.to_owned();
        match op {
            Op::SetSysctl { key, value, .. } => {
                self.sysctls.insert(key.clone(), Some(value.clone()));
            }
            Op::SetRoute {
                destination, route, ..
            } => {
                self.routes.insert(*destination, route.clone());
            }
            Op::DeleteRoute { destination, .. } => {
                self.routes.remove(destination);
            }
            Op::AddAddress { address, .. } => {
                self.addresses.insert((name(), *address));
            }
            Op::DeleteAddress { address, .. } => {
                self.addresses.remove(&(name(), *address));
                let subnet = address.trunc();
                let shared = self
                    .addresses
                    .iter()
                    .any(|(_, other)| other.trunc() == subnet);
                if !shared
                    && self
                        .routes
                        .get(&subnet)
                        .is_some_and(|route| route.via.is_none())
                {
                    self.routes.remove(&subnet);
                }
            }
            Op::SetNeighbour { address, mac, .. } => {
                self.neighbours.insert((name().into(), *address), *mac);
            }
            Op::DeleteNeighbour { address, .. } => {
                self.neighbours.remove(&(name().into(), *address));
            }
            Op::SetTunnel { mac, vtep, .. } => {
                self.tunnels.insert(*mac, *vtep);
            }
            Op::DeleteTunnel { mac, .. } => {
                self.tunnels.remove(mac);
            }
            Op::SetForward { mac, .. } => {
                self.forwards.insert(*mac, name().into());
            }
            Op::DeleteForward { mac, .. } => {
                self.forwards.remove(mac);
            }
            Op::Attach { program, .. } => {
                self.programs.insert((name(), *program), Attached::Current);
            }
            Op::Detach { program, .. } => {
                self.programs.remove(&(name(), *program));
            }
            _ => {}
        }
    }
}

impl FirewallState {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::SetFirewall(firewall) => {
                self.guarded = Some(firewall.guarded.clone());
                self.table = Some(firewall.clone());
            }
            Op::ChangeEgress { add, remove } => {
                if let Some(table) = &mut self.table {
                    table.egress.extend(add);
                    table.egress.retain(|address| !remove.contains(address));
                }
            }
            Op::RemoveFirewall => {
                self.table = None;
                self.guarded = None;
            }
            _ => {}
        }
    }
}

impl MeshMaps {
    pub(super) fn apply(&mut self, op: &Op) {
        match op {
            Op::SetMeshConfig(config) => self.config = Some(config.clone()),
            Op::SetNodeAddresses(addresses) => self.node_addresses = Some(addresses.clone()),
            Op::SetIngressMacs(macs) => self.ingress_macs = Some(macs.clone()),
            Op::SetPublished(published) => self.published = Some(published.clone()),
            Op::SetSources(sources) => self.sources = Some(sources.clone()),
            Op::SetIsolation(isolation) => self.isolation = Some(isolation.clone()),
            Op::SetSockets(sockets) => self.sockets = Some(sockets.clone()),
            Op::ChangePublished(changes) => {
                if let Some(published) = &mut self.published {
                    changes.make(published);
                }
            }
            Op::ChangeSources(changes) => {
                if let Some(sources) = &mut self.sources {
                    sources.retain(|source| !changes.remove.contains(source));
                    sources.extend(changes.put.keys());
                }
            }
            Op::ChangeTargets(changes) => {
                if let Some(isolation) = &mut self.isolation {
                    changes.make(Arc::make_mut(&mut isolation.targets));
                }
            }
            Op::ChangeSockets { services, slots } => {
                if let Some(sockets) = &mut self.sockets {
                    services.make(Arc::make_mut(&mut sockets.services));
                    slots.make(Arc::make_mut(&mut sockets.slots));
                }
            }
            Op::AttachSockets => self.socket_programs = SocketPrograms::Current,
            Op::RemovePins => *self = Self::default(),
            _ => {}
        }
    }
}

fn apply_ipvs(table: &mut IpvsTable, op: &IpvsOp) {
    match op {
        IpvsOp::AddService(service) | IpvsOp::UpdateService(service) => {
            table
                .entry(service.key)
                .and_modify(|balanced| balanced.config = service.config)
                .or_insert_with(|| {
                    Balanced::new(service.config, BTreeMap::new(), std::iter::empty())
                });
        }
        IpvsOp::DeleteService(key) => {
            table.remove(key);
        }
        IpvsOp::AddDestination(key, destination) | IpvsOp::UpdateDestination(key, destination) => {
            if let Some(balanced) = table.get_mut(key) {
                balanced.put(destination.key, destination.config);
            }
        }
        IpvsOp::DeleteDestination(key, destination) => {
            if let Some(balanced) = table.get_mut(key) {
                balanced.take_out(destination);
            }
        }
        IpvsOp::Flush => table.clear(),
        // Of the namespace, not of the table.
        IpvsOp::SetTimeouts(_) => {}
    }
}
