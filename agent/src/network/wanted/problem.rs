//! What of the desired state is not even tried, in words that name the remedy.

use std::net::IpAddr;

use ipnet::IpNet;
use swarm_model::{Protocol, ServiceId};

use crate::network::model::Obstacle;
use crate::network::names::{HOST_VETH, IPV6_MIN_MTU};

/// Why a part of what is desired is not even tried. The rest is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    /// Nothing can be balanced.
    #[error("no port is published on this node: {reason}")]
    IpvsMissing {
        /// What is missing, with the remedy.
        reason: String,
    },
    /// No program can be attached.
    #[error("no port is published on this node, the mesh's eBPF programs are missing: {reason}")]
    ProgramsNotLoaded {
        /// What is missing, with the remedy.
        reason: String,
    },
    /// No socket program can be attached.
    #[error(
        "virtual addresses of services, and published ports asked for on this node itself, do not \
         answer: {reason}"
    )]
    SocketsNotBalanced {
        /// What is missing, with the remedy.
        reason: String,
    },
    /// The data-path address is not the host's.
    #[error(
        "tasks on other nodes cannot be reached: data-path address {address} is on no interface of \
         this host that is up; give the node another one (--data-path-addr) or set the interface up"
    )]
    DataPathNotHere {
        /// The address.
        address: IpAddr,
    },
    /// A node cannot be reached over the underlay.
    #[error(
        "tasks on {count} other nodes cannot be reached: the data-path address {theirs} of one of \
         them is of another IP version than this node's, {ours}; give all nodes one of the same \
         (--data-path-addr)"
    )]
    OtherDataPathVersion {
        /// How many nodes.
        count: usize,
        /// The address of one of them.
        theirs: IpAddr,
        /// This node's address.
        ours: IpAddr,
    },
    /// The links are too narrow.
    #[error(
        "tasks here have no IPv6: the network's MTU is {mtu}, and IPv6 needs {IPV6_MIN_MTU}; raise \
         the MTU of the link with the data-path address"
    )]
    TooNarrowForIpv6 {
        /// The overlay's MTU in bytes.
        mtu: u32,
    },
    /// A process of the host gets nothing from outside any more.
    #[error(
        "a process of this node listens on port {port}/{} at {}, and gets no connections from \
         outside while the port is published: stop it (`ss -lntup 'sport = :{port}'` names it) or \
         publish another port", .protocol.as_str(), everywhere(.address)
    )]
    PortShadowed {
        /// The service that has the port.
        service: ServiceId,
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// Where the process listens.
        address: IpAddr,
    },
    /// Nothing can be masqueraded.
    #[error("tasks on this node do not reach the outside, the kernel has no nf_tables: {reason}")]
    NoFirewall {
        /// Why.
        reason: String,
    },
    /// Somebody else's firewall may keep tasks from the outside.
    #[error(
        "tasks on this node may not reach the outside: chain {} of the host's nf_tables table {} \
         drops what no rule of it names; let link {HOST_VETH} through, where it is Docker's by \
         `{iptables} -I DOCKER-USER -i {HOST_VETH} -j ACCEPT` and `{iptables} -I DOCKER-USER -o \
         {HOST_VETH} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`",
        .0.chain, .0.table, iptables = iptables(.0)
    )]
    EgressBlocked(Obstacle),
    /// The host has the ingress network's addresses elsewhere.
    #[error(
        "tasks on this node do not reach the outside: the host routes {subnet}, the ingress \
         network's, to {device}; remove that route, or give the ingress network another subnet"
    )]
    SubnetTaken {
        /// The subnet.
        subnet: IpNet,
        /// The link it is routed to.
        device: String,
    },
}

impl Problem {
    /// The service that it is about, where it is about one.
    pub(crate) fn service(&self) -> Option<&ServiceId> {
        match self {
            Self::PortShadowed { service, .. } => Some(service),
            Self::IpvsMissing { .. }
            | Self::ProgramsNotLoaded { .. }
            | Self::SocketsNotBalanced { .. }
            | Self::DataPathNotHere { .. }
            | Self::NoFirewall { .. }
            | Self::EgressBlocked(_)
            | Self::SubnetTaken { .. }
            | Self::OtherDataPathVersion { .. }
            | Self::TooNarrowForIpv6 { .. } => None,
        }
    }
}

/// The command that changes such a chain.
fn iptables(obstacle: &Obstacle) -> &'static str {
    if obstacle.ipv6 {
        "ip6tables"
    } else {
        "iptables"
    }
}

fn everywhere(address: &IpAddr) -> String {
    if address.is_unspecified() {
        "every address".to_owned()
    } else {
        address.to_string()
    }
}
