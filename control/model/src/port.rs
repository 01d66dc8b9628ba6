//! Published ports: which port of the nodes leads to which port of a service's tasks, and how.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Most entries of one list of a port (addresses, interfaces, sources); keeps assignments small.
pub const MAX_PORT_LIST_LEN: usize = 64;

/// Longest session affinity. The kernel counts it in ticks of 32 bits; a week is far below that
/// and longer than any client comes back for.
pub const MAX_AFFINITY: Duration = Duration::from_secs(7 * 24 * 3600);

/// Longest name of a network interface (`IFNAMSIZ` less its NUL).
const MAX_INTERFACE_LEN: usize = 15;

/// A published port.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortConfig {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port inside the task, 1 to 65535.
    pub target: u16,
    /// Port on the nodes; 0 asks the swarm to choose one.
    pub published: u16,
    /// On which nodes it answers.
    pub mode: PublishMode,
    /// Node addresses on which it answers: those within any of these networks. Every address of the
    /// node when both this and `interfaces` are empty.
    pub addresses: Vec<IpNet>,
    /// Interfaces of the node on whose addresses it answers.
    pub interfaces: Vec<String>,
    /// Which tasks a node balances to.
    pub policy: RoutingPolicy,
    /// How IPVS chooses among them.
    pub scheduler: Scheduler,
    /// How long after its last connection a client address comes back to the same task. Whole
    /// seconds, at least one and at most [`MAX_AFFINITY`].
    pub affinity: Option<Duration>,
    /// Clients that may use it: those within any of these networks; everybody when empty.
    pub sources: Vec<IpNet>,
    /// Whether a task sees the ingress node's address on the ingress network instead of the
    /// client's. The same for all ports with one target and protocol; TCP and UDP only.
    pub snat: bool,
}

impl PortConfig {
    /// Whether this and `other`, of another service, cannot be published in one swarm. Two
    /// host-mode ports can: the scheduler keeps their tasks on different nodes.
    pub fn collides(&self, other: &Self) -> bool {
        let both_host = self.mode == PublishMode::Host && other.mode == PublishMode::Host;
        self.same_port(other) && !both_host
    }

    /// Whether this and `other` are one port of the nodes.
    pub fn same_port(&self, other: &Self) -> bool {
        self.protocol == other.protocol && self.published == other.published
    }

    /// What is wrong with it by itself.
    pub(crate) fn check(&self) -> Result<(), InvalidPort> {
        if self.target == 0 {
            return Err(InvalidPort::Target);
        }
        for (what, length) in [
            ("addresses", self.addresses.len()),
            ("interfaces", self.interfaces.len()),
            ("source ranges", self.sources.len()),
        ] {
            if length > MAX_PORT_LIST_LEN {
                return Err(InvalidPort::TooMany(what));
            }
        }
        if let Some(name) = self.interfaces.iter().find(|name| !is_interface(name)) {
            return Err(InvalidPort::Interface(name.chars().take(40).collect()));
        }
        if let Some(affinity) = self.affinity
            && (affinity.is_zero() || affinity > MAX_AFFINITY || affinity.subsec_nanos() != 0)
        {
            return Err(InvalidPort::Affinity);
        }
        if self.mode == PublishMode::Host && self.policy != RoutingPolicy::Cluster {
            return Err(InvalidPort::HostPolicy);
        }
        if self.snat && self.protocol == Protocol::Sctp {
            return Err(InvalidPort::SnatProtocol);
        }
        Ok(())
    }
}

/// The port as lists show it: `*:8080->80/tcp`.
impl fmt::Display for PortConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol.as_str();
        let (published, target) = (self.published, self.target);
        if self.addresses.is_empty() && self.interfaces.is_empty() {
            write!(f, "*:{published}->{target}/{protocol}")?;
        } else {
            let addresses = self.addresses.iter().map(|net| {
                if net.prefix_len() < net.max_prefix_len() {
                    return net.to_string();
                }
                match net.addr() {
                    IpAddr::V4(address) => address.to_string(),
                    IpAddr::V6(address) => format!("[{address}]"),
                }
            });
            let bound: Vec<_> = addresses.chain(self.interfaces.iter().cloned()).collect();
            write!(f, "{}:{published}->{target}/{protocol}", bound.join("|"))?;
        }
        match self.mode {
            PublishMode::Ingress => Ok(()),
            PublishMode::Host => f.write_str(" (host)"),
        }
    }
}

/// Whether the kernel could have an interface of that name (`dev_valid_name`).
fn is_interface(name: &str) -> bool {
    (1..=MAX_INTERFACE_LEN).contains(&name.len())
        && name != "."
        && name != ".."
        && !name
            .chars()
            .any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

/// What is wrong with a published port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPort {
    /// Target port 0.
    #[error("a published port needs a target port from 1 to 65535")]
    Target,
    /// A list of it is too long.
    #[error("a published port can have at most {MAX_PORT_LIST_LEN} {0}")]
    TooMany(&'static str),
    /// No interface has such a name.
    #[error("{0:?} is no name of a network interface (iface=)")]
    Interface(String),
    /// Affinity out of range.
    #[error("affinity is in whole seconds, from 1s to 168h")]
    Affinity,
    /// A policy where there is nothing to choose.
    #[error("policy is for mode=ingress: a port in mode=host always leads to the node's own task")]
    HostPolicy,
    /// A protocol whose packets cannot be translated.
    #[error(
        "snat is for TCP and UDP: an SCTP packet's checksum leaves no part of it to be changed"
    )]
    SnatProtocol,
    /// Ports that lead to the same port of a task, where packets no longer tell which was asked for.
    #[error(
        "target port {target}/{} is published with snat and without: give snat=true to all ports          that lead to it, or to none", .protocol.as_str()
    )]
    SnatDiffers {
        /// The target.
        target: u16,
        /// Its protocol.
        protocol: Protocol,
    },
}

/// A transport protocol.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The name, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// On which nodes a published port answers (Docker's publish modes).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// On every node, wherever the tasks are.
    #[default]
    Ingress,
    /// On nodes that have a task of the service, and leads to that one. A node has at most one.
    Host,
}

impl PublishMode {
    /// Docker's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Host => "host",
        }
    }
}

/// Which tasks a node balances the connections to that it takes in.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum RoutingPolicy {
    /// All of the service.
    #[default]
    Cluster,
    /// Its own; without one that is ready it refuses.
    Local,
    /// Its own, as long as it has one that is ready; else all.
    PreferLocal,
}

impl RoutingPolicy {
    /// The name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Local => "local",
            Self::PreferLocal => "prefer-local",
        }
    }
}

/// How IPVS chooses the task of a new connection, by the kernel's names of its schedulers.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    /// Round robin.
    #[default]
    Rr,
    /// Weighted round robin. All tasks weigh the same.
    Wrr,
    /// The task with the fewest connections through this node.
    Lc,
    /// By the client's address: one client, one task, as long as the tasks stay the same.
    Sh,
    /// Maglev, by the client's address and port: every node makes the same choice.
    Mh,
}

impl Scheduler {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Rr, Self::Wrr, Self::Lc, Self::Sh, Self::Mh];

    /// The kernel's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Sh => "sh",
            Self::Mh => "mh",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> PortConfig {
        PortConfig {
            target: 80,
            published: 8080,
            ..PortConfig::default()
        }
    }

    #[test]
    fn options_are_checked_one_by_one() {
        let changed = |change: &dyn Fn(&mut PortConfig)| {
            let mut port = port();
            change(&mut port);
            port.check()
        };
        assert_eq!(changed(&|_| {}), Ok(()));
        assert_eq!(changed(&|port| port.target = 0), Err(InvalidPort::Target));
        for (seconds, valid) in [(0, false), (1, true), (604_800, true), (604_801, false)] {
            let checked = changed(&|port| port.affinity = Some(Duration::from_secs(seconds)));
            assert_eq!(checked.is_ok(), valid, "{seconds} s");
        }
        let checked = changed(&|port| port.affinity = Some(Duration::from_millis(1500)));
        assert_eq!(checked, Err(InvalidPort::Affinity));
        for (name, valid) in [
            ("eth0", true),
            ("eth0.100", true),
            ("", false),
            ("..", false),
            ("a/b", false),
            ("a b", false),
            ("sixteen-bytes-xx", false),
        ] {
            let checked = changed(&|port| port.interfaces = vec![name.to_owned()]);
            assert_eq!(checked.is_ok(), valid, "{name:?}");
        }
        for (protocol, valid) in [
            (Protocol::Tcp, true),
            (Protocol::Udp, true),
            (Protocol::Sctp, false),
        ] {
            let checked = changed(&|port| {
                port.protocol = protocol;
                port.snat = true;
            });
            assert_eq!(checked.is_ok(), valid, "{}", protocol.as_str());
        }
        let many = vec![IpNet::from(IpAddr::from([10, 0, 0, 1])); MAX_PORT_LIST_LEN + 1];
        assert!(changed(&|port| port.sources.clone_from(&many)).is_err());
        assert!(changed(&|port| port.addresses.clone_from(&many)).is_err());
        let host = |policy| {
            changed(&|port| {
                port.mode = PublishMode::Host;
                port.policy = policy;
            })
        };
        assert_eq!(host(RoutingPolicy::Cluster), Ok(()));
        assert_eq!(host(RoutingPolicy::Local), Err(InvalidPort::HostPolicy));
    }

    #[test]
    fn only_two_host_mode_ports_get_along() {
        let ingress = port();
        let host = PortConfig {
            mode: PublishMode::Host,
            ..port()
        };
        let udp = PortConfig {
            protocol: Protocol::Udp,
            ..port()
        };
        assert!(ingress.collides(&ingress));
        assert!(ingress.collides(&host) && host.collides(&ingress));
        assert!(!host.collides(&host));
        assert!(!ingress.collides(&udp));
    }

    #[test]
    fn a_port_is_shown_as_docker_shows_it_and_with_what_it_is_bound_to() {
        assert_eq!(port().to_string(), "*:8080->80/tcp");
        let bound = PortConfig {
            mode: PublishMode::Host,
            addresses: vec![
                "192.0.2.1/32".parse().unwrap(),
                "10.0.0.0/8".parse().unwrap(),
                "2001:db8::1/128".parse().unwrap(),
            ],
            interfaces: vec!["eth1".to_owned()],
            ..port()
        };
        assert_eq!(
            bound.to_string(),
            "192.0.2.1|10.0.0.0/8|[2001:db8::1]|eth1:8080->80/tcp (host)"
        );
    }
}
