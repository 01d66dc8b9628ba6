//! The kernel as data: what was seen of it, or is wanted in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use swarm_ipvs::{DestinationConfig, DestinationKey, Name, ServiceConfig, ServiceKey, Timeouts};
use swarm_model::{NetworkId, Protocol, TaskId};

use super::isolation::Isolation;
use super::listeners::Listener;
use super::names::{INGRESS_NETNS, NETWORK_NAME_BYTES, OVERLAY_NETNS_PREFIX, TASK_NETNS_PREFIX};
use super::sockets::Sockets;

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Mac(pub(super) [u8; 6]);

impl Mac {
    /// The MAC address of whoever has `address` on the overlay: 02:42 (locally administered) and
    /// the address. Nobody has to ask, and every node says the same.
    pub(super) fn of(address: IpAddr) -> Self {
        let last_four = match address {
            IpAddr::V4(address) => address.octets(),
            IpAddr::V6(address) => {
                let [.., a, b, c, d] = address.octets();
                [a, b, c, d]
            }
        };
        let [a, b, c, d] = last_four;
        Self([0x02, 0x42, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A network namespace of this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Place {
    /// The one the agent was started in.
    Host,
    /// The ingress network's.
    Ingress,
    /// That of a user's network.
    Overlay(NetworkName),
    /// A task's.
    Task(TaskId),
}

impl Place {
    /// The task whose namespace it is.
    pub(super) fn task(&self) -> Option<&TaskId> {
        match self {
            Self::Task(task) => Some(task),
            Self::Host | Self::Ingress | Self::Overlay(_) => None,
        }
    }

    /// Whether there is a bridge in it with the tasks of a network.
    pub(super) fn is_network(&self) -> bool {
        matches!(self, Self::Ingress | Self::Overlay(_))
    }
}

/// What a network's namespace is named by: the first 12 characters of the network's id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NetworkName(String);

impl NetworkName {
    /// The name of a network.
    pub(crate) fn of(network: &NetworkId) -> Self {
        Self(network.short().to_owned())
    }

    /// The name in the name of a file, where it can be one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        (text.len() == NETWORK_NAME_BYTES && text.bytes().all(valid)).then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Ingress => f.write_str(INGRESS_NETNS),
            Self::Overlay(network) => write!(f, "{OVERLAY_NETNS_PREFIX}{network}"),
            Self::Task(task) => write!(f, "{TASK_NETNS_PREFIX}{task}"),
        }
    }
}

/// A link somewhere.
pub(super) type Device = (Place, String);

/// What a link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LinkKind {
    /// A bridge.
    Bridge,
    /// One end of a veth pair. The other end is nothing when it is in no namespace of ours.
    Veth(Option<Device>),
    /// A VXLAN device.
    Vxlan(Vxlan),
    /// Something else.
    Other,
}

/// What makes a VXLAN device; all of it fixed at its creation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vxlan {
    /// Network identifier.
    pub(super) vni: u32,
    /// Source address of the outer packets.
    pub(super) local: Option<IpAddr>,
    /// Destination port of the outer packets.
    pub(super) port: u16,
    /// Whether it learns where addresses are from what it receives.
    pub(super) learning: bool,
    /// Whether outer packets over IPv4 have a UDP checksum. Those that have one are not unpacked by
    /// `mesh_uplink`.
    pub(super) udp_checksum: bool,
}

/// How a bridge port treats frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PortFlags {
    /// Learn source addresses.
    pub(super) learning: bool,
    /// Send frames for unknown addresses.
    pub(super) flood: bool,
    /// Send multicast frames.
    pub(super) multicast_flood: bool,
    /// Send broadcast frames.
    pub(super) broadcast_flood: bool,
    /// Answer ARP requests and neighbour solicitations for what lies behind the port from the bridge's neighbours instead of
    /// sending them.
    pub(super) neighbour_suppress: bool,
}

impl PortFlags {
    /// A port the kernel has just made.
    pub(super) const INITIAL: Self = Self {
        learning: true,
        flood: true,
        multicast_flood: true,
        broadcast_flood: true,
        neighbour_suppress: false,
    };
}

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// What it is.
    pub(super) kind: LinkKind,
    /// Its MAC address. Nothing where any will do.
    pub(super) mac: Option<Mac>,
    /// Its MTU in bytes. Nothing where any will do.
    pub(super) mtu: Option<u32>,
    /// Whether it is set up.
    pub(super) up: bool,
    /// The bridge it is a port of.
    pub(super) master: Option<String>,
    /// How the bridge treats it.
    pub(super) port: Option<PortFlags>,
}

/// Where packets for a destination go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Next hop; nothing for what is on the link itself.
    pub(super) via: Option<IpAddr>,
    /// Link.
    pub(super) device: String,
    /// Largest packet in bytes, where that is less than the link's.
    pub(super) mtu: Option<u32>,
}

/// One of our eBPF programs on a link; each has one direction it is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Program {
    /// Uplink, ingress: takes published ports into the ingress namespace.
    MeshUplink,
    /// Host end of the veth pair, ingress: sends replies out.
    MeshOut,
    /// Task port, egress: remembers which node a flow came through.
    FlowLearn,
    /// Task port, ingress: sends replies back to that node.
    FlowReturn,
    /// Ingress end of the veth pair, ingress: packets of balanced connections go straight on.
    ShortcutIn,
    /// VXLAN device, egress: remembers what was balanced.
    ShortcutLearn,
    /// VXLAN device, ingress: answers go straight back.
    ShortcutOut,
}

/// What is in a program's place on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attached {
    /// The program itself.
    Current,
    /// Another one, such as an earlier agent's.
    Outdated,
}

/// What is in a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Namespace {
    /// Links by name.
    pub(super) links: BTreeMap<String, Link>,
    /// Addresses of global scope by link. Of IPv6 only those that stay: no temporary ones (RFC
    /// 8981), and none that are, or have turned out to be, somebody else's.
    pub(super) addresses: BTreeSet<(String, IpNet)>,
    /// Unicast routes of the main table with the metric the kernel gives by itself.
    pub(super) routes: BTreeMap<IpNet, Route>,
    /// Permanent neighbours by link.
    pub(super) neighbours: BTreeMap<(Arc<str>, IpAddr), Mac>,
    /// The VXLAN device's own table: at which node a MAC address is.
    pub(super) tunnels: BTreeMap<Mac, IpAddr>,
    /// The bridge's static table: behind which port a MAC address is.
    pub(super) forwards: BTreeMap<Mac, Arc<str>>,
    /// Settings under `/proc/sys/net`: nothing where the kernel has no such setting, no entry where
    /// nobody has looked yet.
    pub(super) sysctls: BTreeMap<String, Option<String>>,
    /// Programs in our places by link.
    pub(super) programs: BTreeMap<(String, Program), Attached>,
}

/// A published port of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Published {
    /// Node address.
    pub(super) address: IpAddr,
    /// Port.
    pub(super) port: u16,
    /// Transport protocol.
    pub(super) protocol: Protocol,
}

/// What is published there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PublishedAs {
    /// The service's index in the counters.
    pub(super) service: u32,
    /// Whether only clients listed in [`MeshMaps::sources`] may use it.
    pub(super) restricted: bool,
    /// Whether it has a balancer. Without one it is refused, which the programs count.
    pub(super) answered: bool,
}

/// A network whose clients may use a restricted port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source {
    /// Port.
    pub(super) port: u16,
    /// Transport protocol.
    pub(super) protocol: Protocol,
    /// The network.
    pub(super) net: IpNet,
}

/// An IPVS service but for its key.
#[derive(Clone, Debug, Eq)]
pub(super) struct Balanced {
    /// How it behaves.
    pub(super) config: ServiceConfig,
    /// Its destinations.
    pub(super) destinations: BTreeMap<DestinationKey, DestinationConfig>,
    /// The same in the order they were added, which is part of what Maglev's table is made from;
    /// nothing where that is ascending, as it is wanted.
    order: Option<Box<[DestinationKey]>>,
}

impl Balanced {
    /// A service with these destinations, which were added in this order.
    pub(super) fn new(
        config: ServiceConfig,
        destinations: BTreeMap<DestinationKey, DestinationConfig>,
        order: impl Iterator<Item = DestinationKey> + Clone,
    ) -> Self {
        let ascending = order.clone().is_sorted();
        Self {
            config,
            destinations,
            order: (!ascending).then(|| order.collect()),
        }
    }

    /// The destinations in the order they were added.
    pub(super) fn order(&self) -> Vec<DestinationKey> {
        match &self.order {
            Some(order) => order.to_vec(),
            None => self.destinations.keys().copied().collect(),
        }
    }

    /// Adds a destination, or gives one that is there another configuration.
    pub(super) fn put(&mut self, key: DestinationKey, config: DestinationConfig) {
        let mut order = self.order();
        if self.destinations.insert(key, config).is_none() {
            order.push(key);
            self.order = (!order.is_sorted()).then(|| order.into());
        }
    }

    /// Takes a destination out.
    pub(super) fn take_out(&mut self, key: &DestinationKey) {
        let mut order = self.order();
        self.destinations.remove(key);
        order.retain(|other| other != key);
        self.order = (!order.is_sorted()).then(|| order.into());
    }

    /// Whether nodes agree on a choice only when they added the destinations in the same order.
    pub(super) fn is_ordered(&self) -> bool {
        self.config.scheduler == Name::MH
    }
}

impl PartialEq for Balanced {
    /// The order counts where the scheduler looks at it.
    fn eq(&self, other: &Self) -> bool {
        self.config == other.config
            && self.destinations == other.destinations
            && (!self.is_ordered() || self.order == other.order)
    }
}

/// The table of the ingress namespace.
pub(super) type IpvsTable = BTreeMap<ServiceKey, Balanced>;

/// Which links the programs redirect to, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MeshConfig {
    /// The host end of the veth pair.
    pub(super) host_veth: Option<String>,
    /// The link of the host's default route.
    pub(super) uplink: Option<String>,
    /// The VXLAN device of the ingress namespace.
    pub(super) vxlan: Option<String>,
    /// This node's MAC address on the ingress network.
    pub(super) mac: Mac,
    /// This end of the tunnel and the ingress network's VNI. Nothing where the programs leave the
    /// tunnel to the host's stack: IPv6 between nodes.
    pub(super) tunnel: Option<(Ipv4Addr, u32)>,
}

/// The maps of the eBPF programs. Nothing where this process has written none yet: then they hold
/// what an earlier agent left in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MeshMaps {
    /// Where to redirect to.
    pub(super) config: Option<MeshConfig>,
    /// Addresses of this node.
    pub(super) node_addresses: Option<BTreeSet<IpAddr>>,
    /// MAC addresses of the ingress nodes, each with a number of the node.
    pub(super) ingress_macs: Option<BTreeMap<Mac, u32>>,
    /// Published ports.
    pub(super) published: Option<BTreeMap<Published, PublishedAs>>,
    /// Who may use those that are restricted.
    pub(super) sources: Option<BTreeSet<Source>>,
    /// Who may talk to whom on the ingress network.
    pub(super) isolation: Option<Isolation>,
    /// What the socket programs know.
    pub(super) sockets: Option<Sockets>,
    /// Whether those are attached.
    pub(super) socket_programs: SocketPrograms,
}

/// The socket programs at the cgroup root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum SocketPrograms {
    /// Not, or not all of them, or an earlier agent's.
    #[default]
    Outdated,
    /// They are attached.
    Current,
    /// They cannot be attached here; why, with the remedy.
    Impossible(String),
}

/// Our table of the host's nf_tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Firewall {
    /// Addresses of the tasks here that may reach the outside: masqueraded. Others stay inside.
    pub(super) egress: BTreeSet<IpAddr>,
    /// Uplinks that forward IPv4 packets for our tasks and for nobody else.
    pub(super) guarded: BTreeSet<String>,
    /// Whether the host forwards IPv6 packets for our tasks and for nobody else.
    pub(super) guarded6: bool,
}

impl Firewall {
    /// Whether two differ at most in who may leave.
    pub(super) fn guards_as(&self, other: &Self) -> bool {
        (&self.guarded, self.guarded6) == (&other.guarded, other.guarded6)
    }
}

/// A chain of somebody else's that lets nothing through the host but what its rules name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Obstacle {
    /// Whether it sees IPv6 packets alone.
    pub(crate) ipv6: bool,
    /// Family and table, as `nft` names them.
    pub(crate) table: String,
    /// Chain.
    pub(crate) chain: String,
}

/// What was seen of the host's nf_tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FirewallState {
    /// Our table; nothing where it is missing or not as we make it.
    pub(super) table: Option<Firewall>,
    /// Uplinks that forward on our account, as this process has read or said last; nothing when it
    /// has done neither.
    pub(super) guarded: Option<BTreeSet<String>>,
    /// What may keep our tasks from the outside all the same.
    pub(super) obstacles: Vec<Obstacle>,
}

/// What was seen of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Observed {
    /// The namespaces there are; the host's always is. In it, links and addresses of others are
    /// listed too.
    pub(super) namespaces: BTreeMap<Place, Namespace>,
    /// The IPVS table, or why there is none. Empty while there is no ingress namespace.
    pub(super) ipvs: Result<IpvsTable, String>,
    /// How long IPVS remembers connections; none where there is no table yet.
    pub(super) ipvs_timeouts: Option<Timeouts>,
    /// The maps, or why there are none.
    pub(super) mesh: Result<MeshMaps, String>,
    /// The link of the host's default route.
    pub(super) default_uplink: Option<String>,
    /// Processes of the host that listen.
    pub(super) listeners: BTreeSet<Listener>,
    /// The host's nf_tables, or why there are none.
    pub(super) firewall: Result<FirewallState, String>,
    /// Whether the kernel does IPv6.
    pub(super) ipv6: bool,
    /// Those that were read. The others are empty here, and nothing is planned of them.
    pub(super) tables: Tables,
}

/// Which of the large tables a look reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tables {
    /// Neighbours and forwarding entries of the ingress namespace.
    pub(super) ingress: bool,
    /// The IPVS table.
    pub(super) ipvs: bool,
}

impl Tables {
    /// All of them.
    pub(super) const ALL: Self = Self {
        ingress: true,
        ipvs: true,
    };
}

impl Observed {
    /// This without the tables that grow with the swarm: what there is to know for planning what
    /// changes in those.
    pub(super) fn context(&self) -> Self {
        let namespaces = self.namespaces.iter().map(|(place, namespace)| {
            let namespace = Namespace {
                links: namespace.links.clone(),
                addresses: namespace.addresses.clone(),
                routes: namespace.routes.clone(),
                sysctls: namespace.sysctls.clone(),
                ..Namespace::default()
            };
            (place.clone(), namespace)
        });
        Self {
            namespaces: namespaces.collect(),
            ipvs: self
                .ipvs
                .as_ref()
                .map(|_| IpvsTable::new())
                .map_err(Clone::clone),
            ipvs_timeouts: self.ipvs_timeouts,
            mesh: self
                .mesh
                .as_ref()
                .map(|_| MeshMaps::default())
                .map_err(Clone::clone),
            default_uplink: self.default_uplink.clone(),
            listeners: BTreeSet::new(),
            firewall: self.firewall.clone(),
            ipv6: self.ipv6,
            tables: Tables::ALL,
        }
    }

    /// A link, where there is one.
    pub(super) fn link(&self, (place, name): &Device) -> Option<&Link> {
        self.namespaces.get(place)?.links.get(name)
    }
}

impl Link {
    /// A link just made: down, no port of anything.
    pub(super) fn new(kind: LinkKind, mac: Option<Mac>, mtu: Option<u32>) -> Self {
        Self {
            kind,
            mac,
            mtu,
            up: false,
            master: None,
            port: None,
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MeshUplink => "mesh_uplink",
            Self::MeshOut => "mesh_out",
            Self::FlowLearn => "flow_learn",
            Self::FlowReturn => "flow_return",
            Self::ShortcutIn => "shortcut_in",
            Self::ShortcutLearn => "shortcut_learn",
            Self::ShortcutOut => "shortcut_out",
        })
    }
}
