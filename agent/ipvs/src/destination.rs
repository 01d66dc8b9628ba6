//! Destinations, IPVS's "real servers": where packets of a service go.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::DecodeError;

use crate::address::{self, Family};
use crate::codec::{DestinationAttr, uapi};
use crate::stats::Stats;

/// What identifies a destination within its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationKey {
    /// Address of the server.
    pub address: IpAddr,
    /// Port of the server. 0 keeps the port the client asked for.
    pub port: u16,
}

impl DestinationKey {
    /// The attributes that identify the destination.
    pub fn attrs(&self) -> Vec<DestinationAttr> {
        vec![
            DestinationAttr::Address(address::to_wire(self.address)),
            DestinationAttr::Port(self.port),
            DestinationAttr::Family(Family::of(self.address).number()),
        ]
    }
}

impl fmt::Display for DestinationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// How packets reach a destination, the `IP_VS_CONN_F_FWD_MASK` bits of its connection flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Forward {
    /// Rewrite the destination address and port (`ipvsadm -m`).
    Masquerade,
    /// The destination is this host.
    Local,
    /// Encapsulate (`ipvsadm -i`).
    Tunnel(Tunnel),
    /// Send to the destination's MAC address, packet untouched (`ipvsadm -g`).
    Route,
    /// Past the cache, to the address the client asked for. Only the kernel makes these.
    Bypass,
}

/// Encapsulation of [`Forward::Tunnel`]. Kernels before 5.2 know only the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Tunnel {
    /// Kind of encapsulation.
    pub kind: TunnelKind,
    /// UDP port of GUE, else 0.
    pub port: u16,
    /// `IP_VS_TUNNEL_ENCAP_FLAG_*` of GUE and GRE, else 0.
    pub flags: u16,
}

/// Kind of encapsulation, `IP_VS_CONN_F_TUNNEL_TYPE_*`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum TunnelKind {
    /// IP in IP.
    #[default]
    Ipip,
    /// Generic UDP encapsulation.
    Gue,
    /// Generic routing encapsulation.
    Gre,
}

impl TunnelKind {
    fn number(self) -> u8 {
        match self {
            Self::Ipip => uapi::IP_VS_CONN_F_TUNNEL_TYPE_IPIP,
            Self::Gue => uapi::IP_VS_CONN_F_TUNNEL_TYPE_GUE,
            Self::Gre => uapi::IP_VS_CONN_F_TUNNEL_TYPE_GRE,
        }
    }

    fn from_number(number: u8) -> Result<Self, DecodeError> {
        match number {
            uapi::IP_VS_CONN_F_TUNNEL_TYPE_IPIP => Ok(Self::Ipip),
            uapi::IP_VS_CONN_F_TUNNEL_TYPE_GUE => Ok(Self::Gue),
            uapi::IP_VS_CONN_F_TUNNEL_TYPE_GRE => Ok(Self::Gre),
            other => Err(format!("unknown tunnel type {other}").into()),
        }
    }
}

impl Forward {
    fn conn_flags(self) -> u32 {
        match self {
            Self::Masquerade => uapi::IP_VS_CONN_F_MASQ,
            Self::Local => uapi::IP_VS_CONN_F_LOCALNODE,
            Self::Tunnel(_) => uapi::IP_VS_CONN_F_TUNNEL,
            Self::Route => uapi::IP_VS_CONN_F_DROUTE,
            Self::Bypass => uapi::IP_VS_CONN_F_BYPASS,
        }
    }

    fn from_conn_flags(flags: u32, tunnel: Tunnel) -> Result<Self, DecodeError> {
        match flags & uapi::IP_VS_CONN_F_FWD_MASK {
            uapi::IP_VS_CONN_F_MASQ => Ok(Self::Masquerade),
            uapi::IP_VS_CONN_F_LOCALNODE => Ok(Self::Local),
            uapi::IP_VS_CONN_F_TUNNEL => Ok(Self::Tunnel(tunnel)),
            uapi::IP_VS_CONN_F_DROUTE => Ok(Self::Route),
            uapi::IP_VS_CONN_F_BYPASS => Ok(Self::Bypass),
            other => Err(format!("unknown forwarding method {other}").into()),
        }
    }
}

/// How a destination is used: everything of it that can be updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DestinationConfig {
    /// How packets reach it.
    pub forward: Forward,
    /// Share of new connections; 0 drains: connections that exist run on, no new ones arrive. The
    /// kernel refuses more than `i32::MAX`.
    pub weight: u32,
    /// Connections above which it counts as overloaded and gets no more; 0 is no limit.
    pub upper_threshold: u32,
    /// Connections below which an overloaded one gets new ones again; 0 stands for three quarters
    /// of the upper threshold. Not above the upper threshold.
    pub lower_threshold: u32,
}

impl Default for DestinationConfig {
    /// Masquerading, weight 1, no thresholds.
    fn default() -> Self {
        Self {
            forward: Forward::Masquerade,
            weight: 1,
            upper_threshold: 0,
            lower_threshold: 0,
        }
    }
}

/// A destination as it is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Destination {
    /// What identifies it.
    pub key: DestinationKey,
    /// How it is used.
    pub config: DestinationConfig,
}

impl Destination {
    /// A destination with the default configuration.
    pub fn new(key: DestinationKey) -> Self {
        Self {
            key,
            config: DestinationConfig::default(),
        }
    }

    /// The attributes that add or update the destination.
    pub fn attrs(&self) -> Vec<DestinationAttr> {
        let DestinationConfig {
            forward,
            weight,
            upper_threshold,
            lower_threshold,
        } = self.config;
        let mut attrs = self.key.attrs();
        attrs.push(DestinationAttr::ConnFlags(forward.conn_flags()));
        attrs.push(DestinationAttr::Weight(weight));
        attrs.push(DestinationAttr::UpperThreshold(upper_threshold));
        attrs.push(DestinationAttr::LowerThreshold(lower_threshold));
        if let Forward::Tunnel(tunnel) = forward {
            attrs.push(DestinationAttr::TunnelType(tunnel.kind.number()));
            attrs.push(DestinationAttr::TunnelPort(tunnel.port));
            attrs.push(DestinationAttr::TunnelFlags(tunnel.flags));
        }
        attrs
    }
}

/// A destination as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DestinationEntry {
    /// The destination.
    pub destination: Destination,
    /// Established connections.
    pub active_connections: u32,
    /// Connections in any other state.
    pub inactive_connections: u32,
    /// Connections that persistence holds.
    pub persistent_connections: u32,
    /// Its counters, from `STATS64` where the kernel has it (since 4.1).
    pub stats: Stats,
}

impl DestinationEntry {
    /// Reads the attributes of a destination the kernel described. `service_family` stands in for
    /// the family on kernels that do not send it (before 3.18).
    pub fn from_attrs(
        attrs: &[DestinationAttr],
        service_family: Family,
    ) -> Result<Self, DecodeError> {
        let mut fields = Fields::default();
        for attr in attrs {
            match attr {
                DestinationAttr::Address(bytes) => fields.address = Some(*bytes),
                DestinationAttr::Port(port) => fields.port = Some(*port),
                DestinationAttr::Family(number) => {
                    fields.family = Some(Family::from_number(*number)?);
                }
                DestinationAttr::ConnFlags(flags) => fields.conn_flags = Some(*flags),
                DestinationAttr::Weight(weight) => fields.weight = Some(*weight),
                DestinationAttr::UpperThreshold(count) => fields.upper_threshold = *count,
                DestinationAttr::LowerThreshold(count) => fields.lower_threshold = *count,
                DestinationAttr::ActiveConnections(count) => fields.active = *count,
                DestinationAttr::InactiveConnections(count) => fields.inactive = *count,
                DestinationAttr::PersistentConnections(count) => fields.persistent = *count,
                DestinationAttr::TunnelType(number) => {
                    fields.tunnel.kind = TunnelKind::from_number(*number)?;
                }
                DestinationAttr::TunnelPort(port) => fields.tunnel.port = *port,
                DestinationAttr::TunnelFlags(flags) => fields.tunnel.flags = *flags,
                DestinationAttr::Stats(stats) => fields.stats = Some(Stats::from_attrs(stats)),
                DestinationAttr::Stats64(stats) => fields.stats64 = Some(Stats::from_attrs(stats)),
                DestinationAttr::Other(_) => {}
            }
        }
        fields.entry(service_family)
    }
}

/// The attributes of one destination, gathered in whatever order they came.
#[derive(Default)]
struct Fields {
    address: Option<[u8; 16]>,
    port: Option<u16>,
    family: Option<Family>,
    conn_flags: Option<u32>,
    weight: Option<u32>,
    upper_threshold: u32,
    lower_threshold: u32,
    active: u32,
    inactive: u32,
    persistent: u32,
    tunnel: Tunnel,
    stats: Option<Stats>,
    stats64: Option<Stats>,
}

impl Fields {
    fn entry(self, service_family: Family) -> Result<DestinationEntry, DecodeError> {
        let family = self.family.unwrap_or(service_family);
        let key = DestinationKey {
            address: address::from_wire(
                family,
                self.address.ok_or("destination without an address")?,
            ),
            port: self.port.ok_or("destination without a port")?,
        };
        let conn_flags = self
            .conn_flags
            .ok_or("destination without a forwarding method")?;
        let config = DestinationConfig {
            forward: Forward::from_conn_flags(conn_flags, self.tunnel)?,
            weight: self.weight.ok_or("destination without a weight")?,
            upper_threshold: self.upper_threshold,
            lower_threshold: self.lower_threshold,
        };
        Ok(DestinationEntry {
            destination: Destination { key, config },
            active_connections: self.active,
            inactive_connections: self.inactive,
            persistent_connections: self.persistent,
            stats: self.stats64.or(self.stats).unwrap_or_default(),
        })
    }
}
