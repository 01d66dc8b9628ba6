//! Reading the kernel.

mod balancer;
mod counters;
mod links;
mod tables;

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_route::AddressFamily;
use nix::errno::Errno;
use swarm_ipvs::{IpvsError, Timeouts};

use crate::error_text::error_text;

pub(super) use balancer::printed;
pub(super) use counters::count;

use super::connection::Connection;
use super::kernel::{Failure, Kernel, KernelError, unreadable};
use super::listeners::listeners;
use super::mesh::LoadedMesh;
use super::model::{
    Attached, Balanced, FirewallState, IpvsTable, Namespace, Observed, Place, Program, Tables,
};
use super::names::{
    FORWARDING6, FORWARDING6_OF_NEW, HOST_IS_ROUTER, HOST_LINK_SYSCTLS, HOST_LINK_SYSCTLS6,
    HOST_VETH, INGRESS_LINK_SYSCTLS, INGRESS_SYSCTLS, INGRESS_SYSCTLS6, INGRESS_VETH, LOOPBACK,
    OVERLAY_SYSCTLS, OVERLAY_SYSCTLS6, VXLAN, accept_ra_of, forwarding_of, is_task_device,
    is_task_port, without_ipv6_of,
};
use super::netlink::NetlinkError;
use super::netns::read_sysctl;
use super::wanted::{advertised_to, uplinks};

/// A namespace's content, and what is needed to see across namespaces.
struct Seen {
    namespace: Namespace,
    /// The other end of each veth pair.
    peers: BTreeMap<String, links::OtherEnd>,
    /// Link of the default route with the lowest metric.
    default_link: Option<String>,
}

/// What else is done while looking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::network) enum Look {
    /// Programs that are not loaded are loaded, names of namespaces that are gone are removed, and
    /// what somebody else has changed in maps is put right: as a plan wants it that is carried out.
    AndRepair,
    /// Nothing is changed in the kernel. The maps are as the kernel holds them.
    Only,
}

/// Whether to stop looking, because there is something more urgent to do.
pub(in crate::network) type Interrupt<'a> = &'a dyn Fn() -> bool;

/// Reads everything. What could not be read in the namespace of a task or of a user's network is
/// returned beside it, with that namespace taken as missing; anything else that cannot be read is an error, and so is being interrupted
/// ([`KernelError::Interrupted`]). Of the large tables those of `tables` are read.
pub(super) fn observe(
    kernel: &mut Kernel,
    look: Look,
    tables: Tables,
    interrupt: Interrupt<'_>,
) -> Result<(Observed, Vec<Failure>), KernelError> {
    let go_on = || match interrupt() {
        true => Err(KernelError::Interrupted),
        false => Ok(()),
    };
    let mut failures = kernel.connect(look)?;
    let families = families(kernel.ipv6()?);
    let Kernel { open, mesh, .. } = kernel;
    // Loaded first: what is attached is told by comparing with what is loaded.
    let mut mesh = match look {
        Look::AndRepair => mesh.load(),
        Look::Only => mesh.look(),
    };
    let mut seen = BTreeMap::new();
    for (place, connection) in open.iter_mut() {
        go_on()?;
        let entries = tables.ingress || *place != Place::Ingress;
        match read(place, connection, (families, entries), mesh.as_deref().ok()) {
            Ok(content) => {
                seen.insert(place.clone(), content);
            }
            Err(source) if !matches!(place, Place::Host | Place::Ingress) => {
                failures.push(unreadable(place, source));
            }
            Err(error) => return Err(error),
        }
    }
    links::pair_veths(&mut seen, open)?;
    go_on()?;

    let link_name = |index: u32| open.get(&Place::Host)?.name_of(index);
    let port_name = |index: u32| open.get(&Place::Ingress)?.name_of(index);
    let cookies = open.iter();
    let cookies = cookies.map(|(place, connection)| (connection.cookie, place));
    let mesh = match &mut mesh {
        Ok(mesh) => Ok(match look {
            Look::AndRepair => mesh.maps(link_name, port_name, &cookies.collect())?,
            Look::Only => mesh.held(link_name, port_name, &cookies.collect())?,
        }),
        Err(reason) => Err(reason.clone()),
    };
    let ipvs = read_ipvs(kernel, tables.ipvs, &go_on)?;
    let ipvs_timeouts = match &ipvs {
        Ok(_) => ipvs_timeouts(kernel)?,
        Err(_) => None,
    };
    let firewall = firewall(kernel)?;
    let default_uplink = seen
        .get(&Place::Host)
        .and_then(|host| host.default_link.clone());
    let listeners = listeners().unwrap_or_else(|error| {
        // Nothing depends on them but a report.
        tracing::debug!(
            error = error_text(&error),
            "listeners of the host are not known"
        );
        BTreeSet::new()
    });
    let namespaces = seen
        .into_iter()
        .map(|(place, content)| (place, content.namespace))
        .collect();
    Ok((
        Observed {
            namespaces,
            ipvs,
            ipvs_timeouts,
            mesh,
            default_uplink,
            listeners,
            firewall,
            ipv6: families.len() > 1,
            tables,
        },
        failures,
    ))
}

/// What there is of nf_tables; why there are none where the kernel has none.
fn firewall(kernel: &mut Kernel) -> Result<Result<FirewallState, String>, KernelError> {
    match kernel.firewall()?.read() {
        Ok(state) => Ok(Ok(state)),
        // No such protocol; no such subsystem.
        Err(error @ NetlinkError::Open(_)) => Ok(Err(error_text(&error))),
        Err(error) => match error.errno() {
            Some(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::EPROTONOSUPPORT) => {
                Ok(Err(error_text(&error)))
            }
            _ => Err(error.into()),
        },
    }
}

fn ipvs_timeouts(kernel: &mut Kernel) -> Result<Option<Timeouts>, KernelError> {
    match kernel.ipvs()? {
        Some(ipvs) => Ok(Some(ipvs.timeouts()?)),
        None => Ok(None),
    }
}

fn read_ipvs(
    kernel: &mut Kernel,
    with_table: bool,
    go_on: &dyn Fn() -> Result<(), KernelError>,
) -> Result<Result<IpvsTable, String>, KernelError> {
    let ipvs = match kernel.ipvs() {
        Ok(Some(ipvs)) => ipvs,
        Ok(None) => return Ok(Ok(IpvsTable::new())),
        Err(KernelError::Ipvs(error @ IpvsError::Unsupported)) => {
            return Ok(Err(error_text(&error)));
        }
        Err(error) => return Err(error),
    };
    let mut table = IpvsTable::new();
    let services = if with_table {
        ipvs.services()?
    } else {
        Vec::new()
    };
    for entry in services {
        go_on()?;
        let key = entry.service.key;
        let destinations = ipvs.destinations(&key)?;
        // The kernel puts each new one at the head of its list (`__ip_vs_update_dest`), and dumps
        // the list from there.
        let order = destinations.iter().rev();
        let order = order.map(|entry| entry.destination.key);
        let destinations = destinations.iter();
        let destinations =
            destinations.map(|entry| (entry.destination.key, entry.destination.config));
        let balanced = Balanced::new(entry.service.config, destinations.collect(), order);
        table.insert(key, balanced);
    }
    Ok(Ok(table))
}

/// The address families of the kernel. One that it has not, it would answer for with all others.
fn families(ipv6: bool) -> &'static [AddressFamily] {
    const ALL: &[AddressFamily] = &[AddressFamily::Inet, AddressFamily::Inet6];
    if ipv6 { ALL } else { &ALL[..1] }
}

fn read(
    place: &Place,
    connection: &mut Connection,
    (families, entries): (&[AddressFamily], bool),
    mesh: Option<&LoadedMesh>,
) -> Result<Seen, KernelError> {
    let mut namespace = Namespace::default();
    let peers = links::read(connection, &mut namespace)?;
    let mut default_link = None;
    for &family in families {
        tables::read_addresses(connection, family, &mut namespace)?;
        let found = tables::read_routes(connection, family, &mut namespace)?;
        default_link = default_link.or(found);
        if entries {
            tables::read_neighbours(connection, family, &mut namespace)?;
        }
    }
    if entries && place.is_network() {
        tables::read_forwarding(connection, &mut namespace)?;
    }
    let keys = settings(place, &namespace);
    let hooks = hooks(place, &namespace, &connection.indexes);
    if !keys.is_empty() || !hooks.is_empty() {
        let (sysctls, programs) = connection.netns.run(|| {
            let programs = mesh.map(|mesh| attached(mesh, hooks)).unwrap_or_default();
            (read_sysctls(keys), programs)
        })?;
        (namespace.sysctls, namespace.programs) = (sysctls?, programs);
    }
    Ok(Seen {
        namespace,
        peers,
        default_link,
    })
}

/// The settings that concern us in a namespace.
fn settings(place: &Place, namespace: &Namespace) -> BTreeSet<String> {
    let there = |name: &str| namespace.links.contains_key(name);
    let link_settings = match place {
        Place::Host => HOST_LINK_SYSCTLS.iter().chain(HOST_LINK_SYSCTLS6),
        Place::Ingress => INGRESS_LINK_SYSCTLS.iter().chain(&[]),
        Place::Overlay(_) => {
            let keys = OVERLAY_SYSCTLS.iter().chain(OVERLAY_SYSCTLS6);
            return keys.map(|(key, _)| (*key).to_owned()).collect();
        }
        Place::Task(_) => {
            let devices = namespace.links.keys().filter(|name| is_task_device(name));
            return devices.map(|name| without_ipv6_of(name)).collect();
        }
    };
    let of_links = link_settings
        .filter(|(name, ..)| there(name))
        .map(|(_, key, _)| (*key).to_owned());
    let uplinks = match place {
        Place::Host => uplinks(namespace),
        Place::Ingress | Place::Overlay(_) | Place::Task(_) => BTreeSet::new(),
    };
    let of_uplinks = uplinks.iter().map(|name| forwarding_of(name));
    let of_host = [HOST_IS_ROUTER, FORWARDING6, FORWARDING6_OF_NEW].map(str::to_owned);
    let of_host = of_host.into_iter().filter(|_| *place == Place::Host);
    let advertised_to = match place {
        Place::Host => advertised_to(namespace),
        Place::Ingress | Place::Overlay(_) | Place::Task(_) => BTreeSet::new(),
    };
    let of_advertised = advertised_to.iter().map(|name| accept_ra_of(name));
    let global = INGRESS_SYSCTLS
        .iter()
        .chain(INGRESS_SYSCTLS6)
        .filter(|_| *place == Place::Ingress)
        .map(|(key, _)| (*key).to_owned());
    of_links
        .chain(of_uplinks)
        .chain(of_host)
        .chain(of_advertised)
        .chain(global)
        .collect()
}

fn read_sysctls(keys: BTreeSet<String>) -> Result<BTreeMap<String, Option<String>>, KernelError> {
    let read = |key: String| match read_sysctl(&key) {
        Ok(value) => Ok((key, value)),
        Err(source) => Err(KernelError::Sysctl { key, source }),
    };
    keys.into_iter().map(read).collect()
}

/// Where our programs could be: a link's name and index, and the program.
type Hook = (String, u32, Program);

fn hooks(place: &Place, namespace: &Namespace, indexes: &BTreeMap<String, u32>) -> Vec<Hook> {
    let mut hooks = Vec::new();
    for name in namespace.links.keys() {
        let Some(&index) = indexes.get(name) else {
            continue;
        };
        let programs: &[Program] = match place {
            Place::Host if name == LOOPBACK => &[],
            Place::Host if name == HOST_VETH => &[Program::MeshOut],
            Place::Host => &[Program::MeshUplink],
            Place::Ingress if name == INGRESS_VETH => &[Program::ShortcutIn],
            Place::Ingress if name == VXLAN => &[Program::ShortcutLearn, Program::ShortcutOut],
            Place::Ingress if is_task_port(name) => &[Program::FlowLearn, Program::FlowReturn],
            Place::Ingress | Place::Overlay(_) | Place::Task(_) => &[],
        };
        hooks.extend(
            programs
                .iter()
                .map(|program| (name.clone(), index, *program)),
        );
    }
    hooks
}

/// What is in our programs' places. A link that cannot be asked counts as one without: it may be
/// somebody else's and just going away; and where it matters, attaching tells what is wrong.
fn attached(mesh: &LoadedMesh, hooks: Vec<Hook>) -> BTreeMap<(String, Program), Attached> {
    let mut programs = BTreeMap::new();
    for (name, index, program) in hooks {
        match mesh.attached(program, index) {
            Ok(Some(attached)) => {
                programs.insert((name, program), attached);
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(name, error = error_text(&error), "not asked"),
        }
    }
    programs
}
