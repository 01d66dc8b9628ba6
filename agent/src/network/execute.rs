//! Carrying operations out.

use std::net::Ipv4Addr;

use swarm_ipvs::Op as IpvsOp;

use crate::ebpf::{Config, Mac as EbpfMac};

use super::connection::VethPeer;
use super::kernel::{Failure, Kernel, KernelError, Scope};
use super::mesh;
use super::model::{Device, MeshConfig, Place, Vxlan};
use super::netlink::NetlinkError;
use super::netns::write_sysctl;
use super::op::{Op, VethEnd};

/// Entries of tables that are set by one datagram: some 10 KB.
const ENTRIES_AT_ONCE: usize = 128;

/// What operations cost, as [`Op::writes`] tells it.
pub(super) fn writes(ops: &[Op]) -> (usize, usize) {
    let writes = ops.iter().map(Op::writes);
    writes.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
}

/// Carries out `ops` in order. One that fails does not stop those after it, except that nothing is
/// published while what it needs is missing. Returns what failed.
pub(super) fn execute(kernel: &mut Kernel, ops: &[Op]) -> Vec<Failure> {
    let mut failures: Vec<Failure> = Vec::new();
    let mut guarded = true;
    let mut rest = ops;
    while let Some(op) = rest.first() {
        // The IPVS table takes many changes at once.
        let batch: Vec<IpvsOp> = rest.iter().map_while(ipvs_op).collect();
        if !batch.is_empty() {
            failures.extend(balance(kernel, &batch));
            rest = &rest[batch.len()..];
            continue;
        }
        let entries = entries_of_one_place(rest);
        if entries.len() > 1 {
            failures.extend(set_entries(kernel, entries));
            rest = &rest[entries.len()..];
            continue;
        }
        // A task of this node that cannot be connected, or a network that has nothing to do with
        // published ports, must not keep the services of the swarm from being published here.
        let sound = failures
            .iter()
            .all(|failure| matches!(failure.scope, Scope::Task(_) | Scope::Network(_)));
        rest = &rest[1..];
        let outcome = match op {
            Op::SetPublished(_) | Op::ChangePublished(_) if !sound => Err(KernelError::PutOff),
            // A link that forwards for our tasks must not do so for others.
            Op::SetSysctl {
                place: Place::Host, ..
            } if !guarded => Err(KernelError::PutOff),
            op => carry_out(kernel, op),
        };
        if let (Op::SetFirewall(_), Err(_)) = (op, &outcome) {
            guarded = false;
        }
        match outcome {
            Ok(()) => tracing::debug!(%op, "done"),
            Err(source) => {
                failures.push(failure(kernel, op, source));
            }
        }
    }
    failures
}

fn ipvs_op(op: &Op) -> Option<IpvsOp> {
    match op {
        Op::Ipvs(op) => Some(*op),
        _ => None,
    }
}

/// The first operations, as far as they set entries of tables in one namespace; no more than the
/// socket takes at once.
fn entries_of_one_place(ops: &[Op]) -> &[Op] {
    let first = ops.first().and_then(place_of_entry);
    let ops = &ops[..ops.len().min(ENTRIES_AT_ONCE)];
    let of_first = |op: &&Op| first.is_some() && place_of_entry(op) == first;
    &ops[..ops.iter().take_while(of_first).count()]
}

fn place_of_entry(op: &Op) -> Option<&Place> {
    match op {
        Op::SetNeighbour { device, .. }
        | Op::SetTunnel { device, .. }
        | Op::SetForward { device, .. } => Some(&device.0),
        _ => None,
    }
}

/// Sets them.
fn set_entries(kernel: &mut Kernel, ops: &[Op]) -> Vec<Failure> {
    let Some(place) = ops.first().and_then(Op::place) else {
        return Vec::new();
    };
    let outcomes = match kernel.at(place) {
        Ok(connection) => connection.set_entries(ops),
        Err(source) => return vec![failure(kernel, &ops[0], source)],
    };
    let outcomes = ops.iter().zip(outcomes);
    outcomes
        .filter_map(|(op, outcome)| Some(failure(kernel, op, outcome.err()?.into())))
        .collect()
}

fn failure(kernel: &Kernel, op: &Op, source: KernelError) -> Failure {
    Failure {
        action: op.to_string(),
        scope: scope(kernel, op),
        source,
    }
}

/// Who suffers when `op` fails.
fn scope(kernel: &Kernel, op: &Op) -> Scope {
    // The namespace that could not be made is not open.
    let places = kernel.open.keys().chain(op.place());
    let task = places
        .filter_map(Place::task)
        .find(|task| op.concerns(task));
    let task = task.map(|task| Scope::Task(task.clone()));
    let network = || op.network().map(|network| Scope::Network(network.clone()));
    task.or_else(network).unwrap_or(Scope::Node)
}

/// Changes the IPVS table by many operations at once.
fn balance(kernel: &mut Kernel, ops: &[IpvsOp]) -> Vec<Failure> {
    let failure = |op: &IpvsOp, source| Failure {
        action: Op::Ipvs(*op).to_string(),
        scope: Scope::Node,
        source,
    };
    match kernel.ipvs() {
        Ok(Some(ipvs)) => {
            let outcomes = ops.iter().zip(ipvs.apply(ops));
            outcomes
                .filter_map(|(op, outcome)| Some(failure(op, outcome.err()?.into())))
                .collect()
        }
        Ok(None) => {
            let source = KernelError::NoNetns(Place::Ingress.to_string());
            ops.first()
                .map(|op| failure(op, source))
                .into_iter()
                .collect()
        }
        Err(source) => ops
            .first()
            .map(|op| failure(op, source))
            .into_iter()
            .collect(),
    }
}

fn carry_out(kernel: &mut Kernel, op: &Op) -> Result<(), KernelError> {
    match op {
        Op::CreateNetns(place) => kernel.create_netns(place)?,
        Op::DeleteNetns(place) => kernel.delete_netns(place)?,
        Op::SetSysctl { place, key, value } => {
            let outcome = kernel.at(place)?.netns.run(|| write_sysctl(key, value))?;
            // False where the kernel has no such setting, which shows at the next look.
            outcome.map_err(|source| KernelError::Sysctl {
                key: key.clone(),
                source,
            })?;
        }
        Op::CreateBridge {
            device: (place, name),
            mac,
            mtu,
        } => {
            kernel.at(place)?.create_bridge(name, *mac, *mtu)?;
        }
        Op::CreateVxlan { device, mtu, vxlan } => create_vxlan(kernel, device, *mtu, vxlan)?,
        Op::CreateVeth { ends, mtu } => {
            let [one, other] = ends.as_ref();
            create_veth(kernel, one, other, *mtu)?;
        }
        Op::DeleteLink((place, name)) => {
            kernel.at(place)?.delete_link(name)?;
            // Of a pair, the other end's name may come back with another index.
            kernel
                .open
                .values_mut()
                .for_each(|connection| connection.indexes.clear());
        }
        Op::SetMac {
            device: (place, name),
            mac,
        } => kernel.at(place)?.set_mac(name, *mac)?,
        Op::SetMtu {
            device: (place, name),
            mtu,
        } => kernel.at(place)?.set_mtu(name, *mtu)?,
        Op::SetUp((place, name)) => kernel.at(place)?.set_up(name)?,
        Op::SetMaster {
            device: (place, name),
            master,
        } => {
            kernel.at(place)?.set_master(name, master)?;
        }
        Op::SetPortFlags {
            device: (place, name),
            flags,
        } => {
            kernel.at(place)?.set_port_flags(name, *flags)?;
        }
        Op::AddAddress {
            device: (place, name),
            address,
        } => {
            kernel.at(place)?.add_address(name, *address)?;
        }
        Op::DeleteAddress {
            device: (place, name),
            address,
        } => {
            kernel.at(place)?.delete_address(name, *address)?;
        }
        Op::SetRoute {
            place,
            destination,
            route,
        } => {
            kernel.at(place)?.set_route(*destination, route)?;
        }
        Op::DeleteRoute {
            place,
            destination,
            route,
        } => {
            kernel.at(place)?.delete_route(*destination, route)?;
        }
        Op::SetNeighbour { device, .. }
        | Op::SetTunnel { device, .. }
        | Op::SetForward { device, .. } => {
            let outcomes = kernel.at(&device.0)?.set_entries(std::slice::from_ref(op));
            outcomes.into_iter().collect::<Result<(), _>>()?;
        }
        Op::DeleteNeighbour { device, address } => {
            let (place, name) = device.as_ref();
            kernel.at(place)?.delete_neighbour(name, *address)?;
        }
        Op::DeleteTunnel { device, mac } => {
            let (place, name) = device.as_ref();
            kernel.at(place)?.delete_tunnel(name, *mac)?;
        }
        Op::DeleteForward { device, mac } => {
            let (place, name) = device.as_ref();
            kernel.at(place)?.delete_forward(name, *mac)?;
        }
        Op::Attach {
            device: (place, name),
            program,
        } => {
            let connection = kernel.at(place)?;
            let index = connection.index(name)?;
            let netns = connection.netns.clone();
            let mesh = &*kernel.mesh()?;
            netns.run(|| mesh.attach(*program, index))??;
        }
        Op::Detach {
            device: (place, name),
            program,
        } => {
            let connection = kernel.at(place)?;
            let index = connection.index(name)?;
            connection.netns.run(|| mesh::detach(*program, index))??;
        }
        Op::SetMeshConfig(config) => {
            let config = indexes(kernel, config)?;
            kernel.mesh()?.set_config(config)?;
        }
        Op::SetNodeAddresses(addresses) => kernel.mesh()?.set_node_addresses(addresses)?,
        Op::SetIngressMacs(macs) => kernel.mesh()?.set_ingress_macs(macs)?,
        Op::SetPublished(published) => kernel.mesh()?.set_published(published)?,
        Op::SetSources(sources) => kernel.mesh()?.set_sources(sources)?,
        Op::SetFirewall(firewall) => kernel.firewall()?.set(firewall)?,
        Op::ChangeEgress { add, remove } => kernel.firewall()?.change_egress(add, remove)?,
        Op::RemoveFirewall => kernel.firewall()?.remove()?,
        Op::SetIsolation(isolation) => {
            let ingress = kernel.at(&Place::Ingress)?;
            // A port that could not be made is missing, and that is its own failure.
            let ports = isolation.ports.iter();
            let ports = ports
                .filter_map(|(name, port)| Some((ingress.index(name).ok()?, *port)))
                .collect();
            kernel.mesh()?.set_isolation(ports, &isolation.targets)?;
        }
        Op::SetSockets(sockets) => {
            // A namespace that could not be made is missing, and that is its own failure.
            let cookies = kernel.cookies();
            kernel.mesh()?.set_sockets(sockets, &cookies)?;
        }
        Op::ChangePublished(changes) => kernel.mesh()?.change_published(changes)?,
        Op::ChangeSources(changes) => kernel.mesh()?.change_sources(changes)?,
        Op::ChangeTargets(changes) => kernel.mesh()?.change_targets(changes)?,
        Op::ChangeSockets { services, slots } => {
            kernel.mesh()?.change_sockets(services, slots)?;
        }
        Op::AttachSockets => kernel.mesh()?.attach_sockets()?,
        Op::RemovePins => kernel.mesh.remove_pins()?,
        Op::Ipvs(op) => {
            if let Some(ipvs) = kernel.ipvs()? {
                ipvs.apply(&[*op]).into_iter().collect::<Result<(), _>>()?;
            }
        }
    }
    Ok(())
}

fn create_vxlan(
    kernel: &mut Kernel,
    (place, name): &Device,
    mtu: Option<u32>,
    vxlan: &Vxlan,
) -> Result<(), KernelError> {
    let inside = kernel.at(place)?.netns.clone();
    Ok(kernel
        .at(&Place::Host)?
        .create_vxlan(&inside, name, mtu, vxlan)?)
}

fn create_veth(
    kernel: &mut Kernel,
    one: &VethEnd,
    other: &VethEnd,
    mtu: Option<u32>,
) -> Result<(), KernelError> {
    let (place, name) = &one.device;
    let (peer_place, peer) = &other.device;
    let netns = kernel.at(peer_place)?.netns.clone();
    let peer = VethPeer {
        netns: &netns,
        name: peer,
        mac: other.mac,
    };
    Ok(kernel.at(place)?.create_veth(name, one.mac, &peer, mtu)?)
}

/// Address and VNI as a VXLAN packet has them (RFC 7348, section 5).
fn tunnel_words((vtep, vni): (Ipv4Addr, u32)) -> (u32, u32) {
    (u32::from_ne_bytes(vtep.octets()), (vni << 8).to_be())
}

/// The links by index instead of name; 0 where there is none.
fn indexes(kernel: &mut Kernel, config: &MeshConfig) -> Result<Config, KernelError> {
    let mut index = |place, name: &Option<String>| {
        let Some(name) = name else {
            return Ok(0);
        };
        match kernel.at(&place)?.index(name) {
            Err(NetlinkError::NoAnswer) => Ok(0),
            outcome => outcome.map_err(KernelError::from),
        }
    };
    let (vtep, vni) = config.tunnel.map_or((0, 0), tunnel_words);
    Ok(Config {
        e1h_ifindex: index(Place::Host, &config.host_veth)?,
        uplink_ifindex: index(Place::Host, &config.uplink)?,
        vxlan_ifindex: index(Place::Ingress, &config.vxlan)?,
        vtep,
        vni,
        reserved: 0,
        mac: EbpfMac::new(config.mac.0),
    })
}
