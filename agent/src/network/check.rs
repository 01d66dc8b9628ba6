//! What differs between the plan and the kernel, in words. Pure.
//!
//! A plan says what to *do*; a person who asks wants to know what *is*. Each operation is told as
//! what it finds in the kernel, compared with what was seen. What follows from something else is
//! not told: of a missing link not that it is not up, of a missing namespace not what it lacks.
//!
//! Invariant: there is a difference exactly when the plan has an operation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::mem::discriminant;
use std::sync::Arc;

use swarm_ipvs::{DestinationKey, Op as IpvsOp, ServiceKey};

use crate::error_text::error_text;

use super::isolation::Isolation;
use super::kernel::Failure;
use super::model::{Attached, Device, MeshConfig, MeshMaps, Observed, Place};
use super::names::FIREWALL_TABLE;
use super::op::Op;
use super::sockets::Sockets;

/// Most differences told, so that the answer stays below gRPC's 4 MiB (a line is at most some 200
/// bytes). Who lacks more than this lacks one thing that all of them hang on.
const DIFFERENCES_MAX: usize = 8_192;

/// Something in the kernel that is not as planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// The network namespace, as its file is named; `host` for the host's.
    pub(crate) place: String,
    /// What is not as planned, and why it is not put right where trying has failed.
    pub(crate) text: String,
}

/// What a comparison has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    /// The differences, at most [`DIFFERENCES_MAX`].
    pub(crate) differences: Vec<Difference>,
    /// How many more there are.
    pub(crate) left_out: usize,
    /// What this host cannot have, and what could not be looked at.
    pub(crate) problems: Vec<String>,
}

/// What `ops`, planned for `observed`, find to do. `failures` are those of the last pass: an
/// operation that has failed tells why.
pub(super) fn check(observed: &Observed, ops: &[Op], failures: &[Arc<Failure>]) -> Checked {
    let failures: BTreeMap<&str, &Failure> = failures
        .iter()
        .map(|failure| (failure.action.as_str(), failure.as_ref()))
        .collect();
    let comparison = Comparison::new(observed, ops);
    let mut differences = Vec::new();
    for op in ops {
        let place = place_of(op);
        let mut texts = comparison.texts(op);
        if let (Some(failure), Some(last)) =
            (failures.get(op.to_string().as_str()), texts.last_mut())
        {
            last.push_str("; putting it right has failed: ");
            last.push_str(&error_text(&failure.source));
        }
        differences.extend(texts.into_iter().map(|text| Difference {
            place: place.clone(),
            text,
        }));
    }
    if differences.is_empty() {
        // Told as what is to be done, rather than not at all.
        differences.extend(ops.iter().map(|op| Difference {
            place: place_of(op),
            text: format!("to be done: {op}"),
        }));
    }
    let left_out = differences.len().saturating_sub(DIFFERENCES_MAX);
    differences.truncate(DIFFERENCES_MAX);
    Checked {
        differences,
        left_out,
        problems: Vec::new(),
    }
}

/// Where an operation is; of those that name no namespace, where what they change is.
fn place_of(op: &Op) -> String {
    let place = match op {
        Op::Ipvs(_) => &Place::Ingress,
        // Its first end; both are named in the text.
        Op::CreateVeth { ends, .. } => &ends[0].device.0,
        op => op.place().unwrap_or(&Place::Host),
    };
    place.to_string()
}

/// What was seen, and what of a plan makes others of its operations mere consequences.
struct Comparison<'a> {
    observed: &'a Observed,
    /// Namespaces that are to go.
    deleted: BTreeSet<&'a Place>,
    /// Links that are to be made.
    made: BTreeSet<&'a Device>,
    /// IPVS services that are to be made.
    services: BTreeSet<ServiceKey>,
    /// Their destinations that are to be made.
    added: BTreeSet<(ServiceKey, DestinationKey)>,
    /// Those that are to go.
    removed: BTreeSet<(ServiceKey, DestinationKey)>,
    /// The last operation on each map.
    last: Vec<&'a Op>,
}

impl<'a> Comparison<'a> {
    fn new(observed: &'a Observed, ops: &'a [Op]) -> Self {
        let mut comparison = Self {
            observed,
            deleted: BTreeSet::new(),
            made: BTreeSet::new(),
            services: BTreeSet::new(),
            added: BTreeSet::new(),
            removed: BTreeSet::new(),
            last: Vec::new(),
        };
        for op in ops {
            comparison.note(op);
        }
        comparison
    }

    fn note(&mut self, op: &'a Op) {
        match op {
            Op::DeleteNetns(place) => drop(self.deleted.insert(place)),
            Op::CreateBridge { device, .. } | Op::CreateVxlan { device, .. } => {
                self.made.insert(device);
            }
            Op::CreateVeth { ends, .. } => self.made.extend(ends.iter().map(|end| &end.device)),
            Op::Ipvs(IpvsOp::AddService(service)) => drop(self.services.insert(service.key)),
            Op::Ipvs(IpvsOp::AddDestination(key, to)) => drop(self.added.insert((*key, to.key))),
            Op::Ipvs(IpvsOp::DeleteDestination(key, to)) => drop(self.removed.insert((*key, *to))),
            op if writes_map(op) => {
                let same = |other: &&Op| discriminant(*other) != discriminant(op);
                self.last.retain(same);
                self.last.push(op);
            }
            _ => {}
        }
    }

    /// What `op` finds; nothing where another one says it.
    fn texts(&self, op: &Op) -> Vec<String> {
        if self.follows(op) {
            return Vec::new();
        }
        match op {
            Op::SetMeshConfig(planned) => match &self.observed.mesh {
                Ok(now) => self.of_config(now.config.as_ref(), planned),
                Err(_) => Vec::new(),
            },
            op if writes_map(op) => match &self.observed.mesh {
                Ok(now) if self.last.iter().any(|last| std::ptr::eq(*last, op)) => of_map(now, op),
                _ => Vec::new(),
            },
            Op::ChangeEgress { add, remove } => {
                let table = format!("nf_tables table inet {FIREWALL_TABLE}");
                let lacking = add.iter();
                let lacking =
                    lacking.map(|address| format!("egress of {address} is missing in {table}"));
                let left = remove.iter();
                let left =
                    left.map(|address| format!("egress of {address} is left over in {table}"));
                lacking.chain(left).collect()
            }
            op => self.of_one(op).into_iter().collect(),
        }
    }

    /// Which links the programs do not know, but for those that are missing themselves.
    fn of_config(&self, now: Option<&MeshConfig>, planned: &MeshConfig) -> Vec<String> {
        let was = |link: fn(&MeshConfig) -> &Option<String>| now.and_then(|now| link(now).clone());
        let links = [
            (
                "the mesh",
                Place::Host,
                was(|was| &was.host_veth),
                &planned.host_veth,
            ),
            (
                "the outside",
                Place::Host,
                was(|was| &was.uplink),
                &planned.uplink,
            ),
            (
                "other nodes",
                Place::Ingress,
                was(|was| &was.vxlan),
                &planned.vxlan,
            ),
        ];
        let mut texts = Vec::new();
        for (what, place, was, planned) in links {
            let missing = |name: &String| self.observed.link(&(place, name.clone())).is_none();
            if was != *planned && !planned.as_ref().is_some_and(missing) {
                texts.push(format!(
                    "the mesh programs find {what} by {}, planned is {}",
                    or_none(was.as_ref()),
                    or_none(planned.as_ref())
                ));
            }
        }
        if now.is_none_or(|now| now.mac != planned.mac) {
            let mac = planned.mac;
            texts.push(format!(
                "the mesh programs do not know this node's MAC address {mac}"
            ));
        }
        if let Some((vtep, vni)) = planned.tunnel
            && now.is_none_or(|now| now.tunnel != planned.tunnel)
        {
            texts.push(format!(
                "the mesh programs do not know the tunnel to {vtep}, network {vni}"
            ));
        }
        texts
    }

    fn absent(&self, place: &Place) -> bool {
        !self.observed.namespaces.contains_key(place) || self.deleted.contains(place)
    }

    /// Whether `op` is only there because of another difference.
    fn follows(&self, op: &Op) -> bool {
        let absent =
            |device: &Device| self.absent(&device.0) || self.observed.link(device).is_none();
        match op {
            Op::CreateNetns(_) | Op::DeleteNetns(_) => false,
            Op::CreateVeth { ends, .. } => ends.iter().all(|end| self.absent(&end.device.0)),
            Op::CreateBridge { device, .. } | Op::CreateVxlan { device, .. } => {
                self.absent(&device.0)
            }
            // One that is in the way of another, or goes with its namespace.
            Op::DeleteLink(device) => self.absent(&device.0) || self.made.contains(device),
            Op::SetSysctl { place, key, .. } => {
                let link = link_of_setting(key);
                let device = |name: &str| (place.clone(), name.to_owned());
                self.absent(place) || link.is_some_and(|name| absent(&device(name)))
            }
            Op::SetRoute { place, route, .. } | Op::DeleteRoute { place, route, .. } => {
                absent(&(place.clone(), route.device.clone()))
            }
            Op::Ipvs(_) if self.absent(&Place::Ingress) => true,
            Op::Ipvs(IpvsOp::AddDestination(key, _)) => self.services.contains(key),
            Op::Ipvs(IpvsOp::DeleteDestination(key, to)) => self.added.contains(&(*key, *to)),
            op => op.device().is_some_and(absent),
        }
    }

    /// What a single operation finds.
    fn of_one(&self, op: &Op) -> Option<String> {
        let observed = self.observed;
        match op {
            Op::CreateNetns(place) => Some(format!(
                "network namespace {place} is missing, with all that is in it"
            )),
            Op::DeleteNetns(place) => Some(format!("network namespace {place} is left over")),
            Op::CreateBridge { device, .. } => Some(missing_link(observed, device, "bridge")),
            Op::CreateVxlan { device, .. } => Some(missing_link(observed, device, "vxlan device")),
            Op::CreateVeth { ends, .. } => {
                let [one, other] = ends.as_ref();
                let (place, peer) = (&other.device.0, &other.device.1);
                let text = missing_link(observed, &one.device, "veth link");
                Some(format!("{text} (its other end is {peer} in {place})"))
            }
            Op::AttachSockets => {
                Some("the socket programs are not attached to the cgroup root".to_owned())
            }
            Op::SetFirewall(_) => Some(format!(
                "nf_tables table inet {FIREWALL_TABLE} is missing or another"
            )),
            Op::Ipvs(op) => Some(self.of_ipvs(op)),
            Op::SetSysctl { place, key, value } => {
                let settings = &observed.namespaces.get(place)?.sysctls;
                let now = settings.get(key).cloned().flatten();
                (now.as_ref() != Some(value)).then(|| match now {
                    Some(now) => format!("net/{key} is {now}, planned is {value}"),
                    None => format!("net/{key} is not known to be {value}"),
                })
            }
            Op::SetRoute {
                place,
                destination,
                route,
            } => {
                let now = observed.namespaces.get(place)?.routes.get(destination);
                let by = &route.device;
                (now != Some(route)).then(|| match now {
                    Some(_) => format!("the route to {destination} is another, planned is by {by}"),
                    None => format!("the route to {destination} by {by} is missing"),
                })
            }
            Op::DeleteRoute {
                destination, route, ..
            } => Some(format!(
                "a route to {destination} by {} is left over",
                route.device
            )),
            op => of_link(observed, op.device()?, op),
        }
    }

    fn of_ipvs(&self, op: &IpvsOp) -> String {
        match op {
            IpvsOp::AddService(service) => format!("ipvs service {} is missing", service.key),
            IpvsOp::UpdateService(service) => {
                format!("ipvs service {} is set otherwise than planned", service.key)
            }
            IpvsOp::DeleteService(key) => format!("ipvs service {key} is left over"),
            IpvsOp::AddDestination(key, to) => {
                let what = match self.removed.contains(&(*key, to.key)) {
                    true => "out of order",
                    false => "missing",
                };
                format!("destination {} of ipvs service {key} is {what}", to.key)
            }
            IpvsOp::UpdateDestination(key, to) => format!(
                "destination {} of ipvs service {key} has another weight or other settings than \
                 planned",
                to.key
            ),
            IpvsOp::DeleteDestination(key, to) => {
                format!("destination {to} of ipvs service {key} is left over")
            }
            IpvsOp::SetTimeouts(timeouts) => {
                format!("ipvs has other timeouts than planned, which are {timeouts}")
            }
            IpvsOp::Flush => "ipvs services are left over".to_owned(),
        }
    }
}

/// Whether an operation writes an eBPF map as a whole.
fn writes_map(op: &Op) -> bool {
    matches!(
        op,
        Op::SetMeshConfig(_)
            | Op::SetNodeAddresses(_)
            | Op::SetIngressMacs(_)
            | Op::SetPublished(_)
            | Op::SetSources(_)
            | Op::SetIsolation(_)
            | Op::SetSockets(_)
    )
}

/// The link that `key` is a setting of (`ipv4/conf/LINK/...`).
fn link_of_setting(key: &str) -> Option<&str> {
    let mut parts = key.split('/').skip_while(|part| *part != "conf").skip(1);
    parts
        .next()
        .filter(|name| !matches!(*name, "all" | "default"))
}

fn missing_link(observed: &Observed, device: &Device, kind: &str) -> String {
    let name = &device.1;
    match observed.link(device) {
        None => format!("{kind} {name} is missing, with all that is on it"),
        Some(_) => format!("{name} is another link than the {kind} planned"),
    }
}

/// What an operation on a link that is there finds.
fn of_link(observed: &Observed, device: &Device, op: &Op) -> Option<String> {
    let (place, name) = (observed.namespaces.get(&device.0)?, &device.1);
    let link = place.links.get(name)?;
    match op {
        Op::DeleteLink(_) => Some(format!("link {name} is left over")),
        Op::SetMac { mac, .. } => (link.mac != Some(*mac)).then(|| {
            format!(
                "{name} has MAC address {}, planned is {mac}",
                or_none(link.mac)
            )
        }),
        Op::SetMtu { mtu, .. } => (link.mtu != Some(*mtu))
            .then(|| format!("{name} has MTU {}, planned is {mtu}", or_none(link.mtu))),
        Op::SetUp(_) => (!link.up).then(|| format!("{name} is down")),
        Op::SetMaster { master, .. } => {
            (link.master.as_ref() != Some(master)).then(|| format!("{name} is no port of {master}"))
        }
        Op::SetPortFlags { flags, .. } => (link.master.is_some() && link.port != Some(*flags))
            .then(|| format!("{name} is a bridge port with other flags than planned")),
        Op::AddAddress { address, .. } => (!place.addresses.contains(&(name.clone(), *address)))
            .then(|| format!("address {address} is missing on {name}")),
        Op::DeleteAddress { address, .. } => {
            Some(format!("address {address} is left over on {name}"))
        }
        Op::SetNeighbour { address, mac, .. } => {
            let now = place
                .neighbours
                .get(&(name.as_str().into(), *address))
                .copied();
            (now != Some(*mac)).then(|| match now {
                Some(now) => format!("neighbour {address} on {name} is at {now}, planned is {mac}"),
                None => format!("neighbour {address} at {mac} is missing on {name}"),
            })
        }
        Op::DeleteNeighbour { address, .. } => {
            Some(format!("neighbour {address} is left over on {name}"))
        }
        Op::SetTunnel { mac, vtep, .. } => {
            let now = place.tunnels.get(mac).copied();
            (now != Some(*vtep)).then(|| match now {
                Some(now) => format!("{name} sends {mac} to node {now}, planned is {vtep}"),
                None => format!("{name} does not know that {mac} is at node {vtep}"),
            })
        }
        Op::DeleteTunnel { mac, .. } => Some(format!(
            "forwarding of {mac} to a node is left over on {name}"
        )),
        Op::SetForward { mac, .. } => (place.forwards.get(mac).map(AsRef::as_ref)
            != Some(name.as_str()))
        .then(|| format!("the bridge does not know that {mac} is behind {name}")),
        Op::DeleteForward { mac, .. } => Some(format!(
            "forwarding of {mac} to {name} is left over on the bridge"
        )),
        Op::Attach { program, .. } => match place.programs.get(&(name.clone(), *program)) {
            Some(Attached::Current) => None,
            Some(Attached::Outdated) => Some(format!(
                "{name} has another program in the place of {program}"
            )),
            None => Some(format!("program {program} is missing on {name}")),
        },
        Op::Detach { program, .. } => Some(format!("program {program} is left over on {name}")),
        _ => None,
    }
}

fn or_none(value: Option<impl fmt::Display>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| value.to_string())
}

fn of_map(now: &MeshMaps, op: &Op) -> Vec<String> {
    const UNREADABLE: &str = "holds what this agent would not write";
    match op {
        Op::SetNodeAddresses(planned) => match &now.node_addresses {
            Some(now) => of_sets(now, planned, |address| {
                format!("node address {address} in the mesh programs")
            }),
            None => vec![format!("the map of node addresses {UNREADABLE}")],
        },
        Op::SetIngressMacs(planned) => match &now.ingress_macs {
            Some(now) => of_tables(now, planned, |mac| {
                format!("ingress node {mac} in the mesh programs")
            }),
            None => vec![format!("the map of ingress nodes {UNREADABLE}")],
        },
        Op::SetPublished(planned) => match &now.published {
            Some(now) => of_tables(now, planned, |port| {
                let (number, protocol) = (port.port, port.protocol.as_str());
                format!("published port {number}/{protocol} at {}", port.address)
            }),
            None => vec![format!("the map of published ports {UNREADABLE}")],
        },
        Op::SetSources(planned) => match &now.sources {
            Some(now) => of_sets(now, planned, |source| {
                let (number, protocol) = (source.port, source.protocol.as_str());
                format!("source range {} of port {number}/{protocol}", source.net)
            }),
            None => vec![format!("the map of source ranges {UNREADABLE}")],
        },
        Op::SetIsolation(planned) => match &now.isolation {
            Some(now) => of_isolation(now, planned),
            None => vec!["the isolation of tasks speaks of a port that is gone".to_owned()],
        },
        Op::SetSockets(planned) => match &now.sockets {
            Some(now) => of_sockets(now, planned),
            None => vec!["the socket programs know of a namespace that is gone".to_owned()],
        },
        _ => Vec::new(),
    }
}

fn of_sets<T: Ord>(
    now: &BTreeSet<T>,
    planned: &BTreeSet<T>,
    name: impl Fn(&T) -> String,
) -> Vec<String> {
    let lacking = planned
        .difference(now)
        .map(|item| format!("{} is missing", name(item)));
    let left = now
        .difference(planned)
        .map(|item| format!("{} is left over", name(item)));
    lacking.chain(left).collect()
}

fn of_tables<K: Ord, V: PartialEq>(
    now: &BTreeMap<K, V>,
    planned: &BTreeMap<K, V>,
    name: impl Fn(&K) -> String,
) -> Vec<String> {
    let differing = planned
        .iter()
        .filter_map(|(key, value)| match now.get(key) {
            Some(now) if now == value => None,
            Some(_) => Some(format!("{} is another than planned", name(key))),
            None => Some(format!("{} is missing", name(key))),
        });
    let left = now.keys().filter(|key| !planned.contains_key(key));
    let left = left.map(|key| format!("{} is left over", name(key)));
    differing.chain(left).collect()
}

fn of_isolation(now: &Isolation, planned: &Isolation) -> Vec<String> {
    let mut texts = of_tables(&now.ports, &planned.ports, |port| {
        format!("the description of the task behind {port} in its programs")
    });
    texts.extend(of_tables(&now.targets, &planned.targets, |target| {
        format!("published target {target:?} that tasks may reach")
    }));
    texts
}

fn of_sockets(now: &Sockets, planned: &Sockets) -> Vec<String> {
    let mut texts = of_tables(&now.scopes, &planned.scopes, |place| {
        format!("the balancing of sockets in {place}")
    });
    texts.extend(of_tables(&now.services, &planned.services, |service| {
        format!("the address {service:?} that sockets ask for")
    }));
    texts.extend(of_tables(&now.slots, &planned.slots, |slot| {
        format!("the list {slot:x} of tasks that sockets are balanced to")
    }));
    texts
}
