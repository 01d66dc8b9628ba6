//! Fixed names, numbers and kernel settings of the data plane.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use swarm_ipvs::Timeouts;
use swarm_model::TaskId;

/// Prefix of our links in the host's namespace.
pub(super) const HOST_PREFIX: &str = "sw-";
/// Host end of the veth pair into the ingress namespace.
pub(super) const HOST_VETH: &str = "sw-e1h";
/// Its other end, in the ingress namespace.
pub(super) const INGRESS_VETH: &str = "e1";
/// The bridge of a network's namespace.
pub(super) const BRIDGE: &str = "br0";
/// The VXLAN device of a network's namespace.
pub(super) const VXLAN: &str = "vx0";
/// A task's interface on the ingress network.
pub(super) const TASK_DEVICE: &str = "eth0";
/// Loopback, in every namespace.
pub(super) const LOOPBACK: &str = "lo";

/// Directory of the named namespaces in the run directory.
pub(super) const NETNS_DIR: &str = "netns";
/// Name of the ingress namespace under `<run-dir>/netns`.
pub(super) const INGRESS_NETNS: &str = "ingress";
/// Namespaces of users' networks are named this and the network's name.
pub(super) const OVERLAY_NETNS_PREFIX: &str = "net-";
/// Length of a network's name: that of a short id.
pub(super) const NETWORK_NAME_BYTES: usize = 12;
/// Task namespaces are named this and the task's id.
pub(super) const TASK_NETNS_PREFIX: &str = "task-";

/// Next hop of the ingress namespace's default route: an address that only stands for the host end
/// of the veth pair, in the link-local range (RFC 3927), where nothing routed can lie. The host
/// does not carry it; a permanent neighbour entry says which MAC address it has.
pub(super) const EGRESS_GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 255, 1));
/// The same for IPv6, from fe80::/10 (RFC 4291), with the same MAC address.
pub(super) const EGRESS_GATEWAY6: IpAddr =
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xff01));
/// Next hop of the host's route into the ingress network: stands for `e1`, and gives it a MAC
/// address by the same rule as everything else. No interface carries it.
pub(super) const EGRESS_LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 255, 2));

/// The same for IPv6, with the same MAC address.
pub(super) const EGRESS_LOCAL6: IpAddr =
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xff02));

/// Our table in the host's nf_tables, of family inet.
pub(super) const FIREWALL_TABLE: &str = "swarm";

/// The host's own address on `sw-e1h`, from which it talks to tasks: link-local, with the last two
/// bytes of the node's ingress address. No two nodes have the same while the ingress network is a
/// /16 or smaller. Nothing for IPv6.
pub(super) fn host_address(ingress: IpAddr) -> Option<IpAddr> {
    match ingress {
        IpAddr::V4(ingress) => {
            let [_, _, a, b] = ingress.octets();
            Some(IpAddr::from([169, 254, a, b]))
        }
        IpAddr::V6(_) => None,
    }
}

/// UDP port of VXLAN (RFC 7348).
pub(super) const VXLAN_PORT: u16 = 4789;
/// What VXLAN adds to a packet over IPv4: outer IP 20, UDP 8, VXLAN 8, inner Ethernet 14 bytes.
pub(super) const VXLAN_OVERHEAD: u32 = 50;
/// The same over IPv6, whose header has 40 bytes.
pub(super) const VXLAN_OVERHEAD6: u32 = 70;
/// The smallest MTU with which the kernel does IPv6 on a link (RFC 8200, section 5).
pub(super) const IPV6_MIN_MTU: u32 = 1280;
/// MTU assumed for an underlay that is not there: Ethernet's.
pub(super) const DEFAULT_MTU: u32 = 1500;

/// Name of the bridge port of a task: `t` and 12 characters of its id, within the kernel's 15.
pub(super) fn task_port(task: &TaskId) -> String {
    format!("t{}", task.short())
}

/// Name of a task's interface on a network: on the ingress network number 0, on its others from 1.
pub(super) fn task_device(number: usize) -> String {
    format!("eth{number}")
}

/// Whether a link of a task's namespace may be one that [`task_device`] names.
pub(super) fn is_task_device(name: &str) -> bool {
    name.strip_prefix("eth")
        .is_some_and(|number| number.parse::<usize>().is_ok())
}

/// Whether a link of a network's namespace is a task's port.
pub(super) fn is_task_port(name: &str) -> bool {
    name.len() == 13
        && name.starts_with('t')
        && name[1..]
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// Settings of the ingress namespace under `/proc/sys/net`, in the order they are made. Those that
/// the kernel does not have (`vs` without ip_vs, `bridge` without br_netfilter) are left out.
pub(super) const INGRESS_SYSCTLS: &[(&str, &str)] = &[
    // A new namespace takes over whatever the first namespace has, so say it. First of all, because
    // changing it resets other settings.
    ("ipv4/ip_forward", "1"),
    // A client's address is behind e1, also when the packet with it comes out of the overlay from a
    // task: a reverse path check on br0 would drop replies. The larger of `all` and the interface's
    // own counts; `default` is what new interfaces start with.
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    // A task that calls a published port comes in by br0 and leaves by br0: no redirects to it.
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    // Frames that are only bridged must not pass the netfilter hooks that IPVS sits on.
    ("bridge/bridge-nf-call-iptables", "0"),
    // A published port without a ready task refuses every client at once, not one in a second.
    ("ipv4/icmp_ratelimit", "0"),
    ("ipv4/vs/conntrack", "0"),
    // A connection to a destination that is gone is rescheduled by its next packet, ...
    ("ipv4/vs/expire_nodest_conn", "1"),
    // ... persistence templates of a destination with weight 0 likewise, ...
    ("ipv4/vs/expire_quiescent_template", "1"),
    // ... and so is a new connection from a reused client port.
    ("ipv4/vs/conn_reuse_mode", "1"),
    // A packet in the middle of a connection may create an entry: the client's address moved here
    // from another node.
    ("ipv4/vs/sloppy_tcp", "1"),
    // Replies leave by the default route whatever their source address: no second look at the
    // routes for each of them.
    ("ipv4/vs/snat_reroute", "0"),
    // No socket of this namespace ever takes a packet: none is worth being looked for early.
    ("ipv4/ip_early_demux", "0"),
];

/// How long IPVS in the ingress namespace remembers connections without a packet.
///
/// TCP: an idle connection is forgotten by its ends after TCP's keep-alive at the latest, where
/// that is on: 7200 s and nine probes 75 s apart (tcp(7)). So the balancer keeps it longer; whoever
/// is idle for longer without keep-alive is rescheduled by his next packet, and reset. What a
/// client that vanished costs until then is one entry of 300 bytes. The others are the kernel's.
pub(super) const TIMEOUTS: Timeouts = Timeouts {
    tcp_s: 9000,
    tcp_fin_s: 120,
    udp_s: 300,
};

/// The same per interface: they exist once the interface does.
pub(super) const INGRESS_LINK_SYSCTLS: &[(&str, &str, &str)] = &[
    (BRIDGE, "ipv4/conf/br0/rp_filter", "0"),
    (BRIDGE, "ipv4/conf/br0/send_redirects", "0"),
    (INGRESS_VETH, "ipv4/conf/e1/rp_filter", "0"),
];

/// Settings of the namespace of a user's network.
pub(super) const OVERLAY_SYSCTLS: &[(&str, &str)] = &[
    // A new namespace takes over whatever the first namespace has. Here is nothing to forward to.
    ("ipv4/ip_forward", "0"),
    // Frames that are only bridged are nobody's to filter.
    ("bridge/bridge-nf-call-iptables", "0"),
];

/// Settings of the namespace of a user's network with IPv6.
pub(super) const OVERLAY_SYSCTLS6: &[(&str, &str)] = &[
    // The host may have been started with it disabled.
    (IPV6_SETTING, "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    // Here is nothing to forward to, ...
    ("ipv6/conf/all/forwarding", "0"),
    // ... and no link needs an address of its own making.
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/autoconf", "0"),
];

/// In the host's namespace. The route look-up of `mesh_out` (`bpf_fib_lookup`) answers only for an
/// interface that forwards, as does the host's stack; the host's `ip_forward` is not ours to set.
pub(super) const HOST_LINK_SYSCTLS: &[(&str, &str, &str)] =
    &[(HOST_VETH, "ipv4/conf/sw-e1h/forwarding", "1")];

/// Whether the host is a router: for everybody, not only where it forwards for our tasks.
pub(super) const HOST_IS_ROUTER: &str = "ipv4/ip_forward";

/// The setting that makes a link of the host forward what comes in by it. `name` is a link's.
pub(super) fn forwarding_of(name: &str) -> String {
    format!("ipv4/conf/{name}/forwarding")
}

/// Whether the host forwards IPv6 packets at all: links have no say in that. Writing it writes the
/// `forwarding` of every link, and [`FORWARDING6_OF_NEW`].
pub(super) const FORWARDING6: &str = "ipv6/conf/all/forwarding";
/// What new links start with: nothing depends on it. The kernel sets it with [`FORWARDING6`] and we
/// take it back, so that it tells on whose account the host forwards: where both are set, it is a
/// router by its owner's will.
pub(super) const FORWARDING6_OF_NEW: &str = "ipv6/conf/default/forwarding";

/// Whether a link of the host takes what routers advertise: 0 never, 1 unless it forwards, 2 also
/// then. `name` is the link's.
pub(super) fn accept_ra_of(name: &str) -> String {
    format!("ipv6/conf/{name}/accept_ra")
}

/// Tells by its existence whether the kernel does IPv6.
pub(super) const IPV6_SETTING: &str = "ipv6/conf/all/disable_ipv6";

/// Settings of the ingress namespace for IPv6.
pub(super) const INGRESS_SYSCTLS6: &[(&str, &str)] = &[
    // The host may have been started with it disabled.
    (IPV6_SETTING, "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/all/forwarding", "1"),
    // No link here needs an address of its own making: without one there are no redirects, no
    // router solicitations and no duplicate address detection.
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/autoconf", "0"),
];

/// Settings of a task's namespace for IPv6. They are made before its interface is, and then left
/// to the container.
pub(super) const TASK_SYSCTLS6: &[(&str, &str)] = &[
    (IPV6_SETTING, "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    // Addresses are given and unique; there is no router to wait for.
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/autoconf", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
];

/// Whether the container wants no IPv6 on this interface of its own, as with
/// `--sysctl net.ipv6.conf.all.disable_ipv6=1`.
pub(super) fn without_ipv6_of(device: &str) -> String {
    format!("ipv6/conf/{device}/disable_ipv6")
}

/// In the host's namespace: as [`HOST_LINK_SYSCTLS`], and no address of the link's own making.
pub(super) const HOST_LINK_SYSCTLS6: &[(&str, &str, &str)] = &[
    (HOST_VETH, "ipv6/conf/sw-e1h/forwarding", "1"),
    (HOST_VETH, "ipv6/conf/sw-e1h/addr_gen_mode", "1"),
];
