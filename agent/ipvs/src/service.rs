//! Virtual services: what clients connect to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;

use netlink_packet_core::DecodeError;

use crate::address::{self, Family, Protocol};
use crate::codec::{FlagsAndMask, ServiceAttr};
use crate::flags::ServiceFlags;
use crate::name::Name;
use crate::stats::Stats;

/// What identifies a service in one network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceKey {
    /// Packets to this address and port.
    Address {
        /// Transport protocol.
        protocol: Protocol,
        /// Address clients send to.
        address: IpAddr,
        /// Port clients send to; 0 stands for every port, which needs persistence.
        port: u16,
    },
    /// Packets carrying this firewall mark.
    Fwmark {
        /// Family of the packets: one mark can name a service of each family.
        family: Family,
        /// The mark.
        mark: NonZeroU32,
    },
}

impl ServiceKey {
    /// Family of the service.
    pub fn family(&self) -> Family {
        match self {
            Self::Address { address, .. } => Family::of(*address),
            Self::Fwmark { family, .. } => *family,
        }
    }

    /// The attributes that identify the service, all that deletion and dumps need.
    pub fn attrs(&self) -> Vec<ServiceAttr> {
        let family = ServiceAttr::Family(self.family().number());
        match *self {
            Self::Address {
                protocol,
                address,
                port,
            } => vec![
                family,
                ServiceAttr::Protocol(protocol.number()),
                ServiceAttr::Address(address::to_wire(address)),
                ServiceAttr::Port(port),
            ],
            Self::Fwmark { mark, .. } => vec![family, ServiceAttr::Fwmark(mark.get())],
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Address {
                protocol,
                address,
                port,
            } => {
                write!(f, "{protocol} {}", SocketAddr::new(address, port))
            }
            Self::Fwmark { family, mark } => write!(f, "fwmark {mark} {family}"),
        }
    }
}

/// Which bits of a client's address persistence looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Netmask {
    /// Mask of an IPv4 service.
    V4(Ipv4Addr),
    /// Prefix length of an IPv6 service, 1 to 128 bits.
    V6(u8),
}

impl Netmask {
    /// The mask that covers the whole address, `ipvsadm`'s default.
    pub fn full(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4(Ipv4Addr::BROADCAST),
            Family::V6 => Self::V6(128),
        }
    }

    /// Family of services the mask is good for.
    pub fn family(&self) -> Family {
        match self {
            Self::V4(_) => Family::V4,
            Self::V6(_) => Family::V6,
        }
    }

    /// The mask in network order for IPv4, the length in host order for IPv6.
    fn to_wire(self) -> [u8; 4] {
        match self {
            Self::V4(mask) => mask.octets(),
            Self::V6(length) => u32::from(length).to_ne_bytes(),
        }
    }

    fn from_wire(family: Family, bytes: [u8; 4]) -> Result<Self, DecodeError> {
        match family {
            Family::V4 => Ok(Self::V4(bytes.into())),
            Family::V6 => {
                let length = u32::from_ne_bytes(bytes);
                let length = u8::try_from(length)
                    .map_err(|_| format!("prefix length {length} of an IPv6 service"))?;
                Ok(Self::V6(length))
            }
        }
    }
}

/// How a service behaves: everything of it that can be updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServiceConfig {
    /// Scheduler; the kernel calls a service without one `none`.
    pub scheduler: Name,
    /// Flags, without [`ServiceFlags::HASHED`]: that one is the kernel's, never read into here and
    /// never sent.
    pub flags: ServiceFlags,
    /// Seconds a client stays with its destination when the service is persistent.
    pub timeout_s: u32,
    /// Which clients count as one for persistence.
    pub netmask: Netmask,
    /// Persistence engine.
    pub persistence_engine: Option<Name>,
}

/// A service as it is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Service {
    /// What identifies it.
    pub key: ServiceKey,
    /// How it behaves.
    pub config: ServiceConfig,
}

impl Service {
    /// A service without flags, persistence or engine.
    pub fn new(key: ServiceKey, scheduler: Name) -> Self {
        let config = ServiceConfig {
            scheduler,
            flags: ServiceFlags::empty(),
            timeout_s: 0,
            netmask: Netmask::full(key.family()),
            persistence_engine: None,
        };
        Self { key, config }
    }

    /// The attributes that add or update the service.
    ///
    /// The mask of the flags covers everything but [`ServiceFlags::HASHED`]: the kernel refuses to
    /// hash a new service that already claims to be.
    pub fn attrs(&self) -> Vec<ServiceAttr> {
        let ServiceConfig {
            scheduler,
            flags,
            timeout_s,
            netmask,
            persistence_engine,
        } = self.config;
        let mut attrs = self.key.attrs();
        attrs.push(ServiceAttr::Scheduler(scheduler));
        attrs.push(ServiceAttr::Flags(FlagsAndMask {
            flags: flags.without(ServiceFlags::HASHED).bits(),
            mask: !ServiceFlags::HASHED.bits(),
        }));
        attrs.push(ServiceAttr::TimeoutS(timeout_s));
        attrs.push(ServiceAttr::Netmask(netmask.to_wire()));
        attrs.extend(persistence_engine.map(ServiceAttr::PersistenceEngine));
        attrs
    }
}

/// A service as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServiceEntry {
    /// The service.
    pub service: Service,
    /// Its counters, from `STATS64` where the kernel has it (since 4.1).
    pub stats: Stats,
}

impl ServiceEntry {
    /// Reads the attributes of a service the kernel described; unknown attributes do not matter.
    pub fn from_attrs(attrs: &[ServiceAttr]) -> Result<Self, DecodeError> {
        let mut fields = Fields::default();
        for attr in attrs {
            match attr {
                ServiceAttr::Family(number) => fields.family = Some(Family::from_number(*number)?),
                ServiceAttr::Protocol(number) => fields.protocol = Some(*number),
                ServiceAttr::Address(bytes) => fields.address = Some(*bytes),
                ServiceAttr::Port(port) => fields.port = Some(*port),
                ServiceAttr::Fwmark(mark) => fields.mark = NonZeroU32::new(*mark),
                ServiceAttr::Scheduler(name) => fields.scheduler = Some(*name),
                ServiceAttr::Flags(pair) => fields.flags = Some(pair.flags),
                ServiceAttr::TimeoutS(timeout_s) => fields.timeout_s = Some(*timeout_s),
                ServiceAttr::Netmask(bytes) => fields.netmask = Some(*bytes),
                ServiceAttr::PersistenceEngine(name) => fields.persistence_engine = Some(*name),
                ServiceAttr::Stats(stats) => fields.stats = Some(Stats::from_attrs(stats)),
                ServiceAttr::Stats64(stats) => fields.stats64 = Some(Stats::from_attrs(stats)),
                ServiceAttr::Other(_) => {}
            }
        }
        fields.entry()
    }
}

/// The attributes of one service, gathered in whatever order they came.
#[derive(Default)]
struct Fields {
    family: Option<Family>,
    protocol: Option<u16>,
    address: Option<[u8; 16]>,
    port: Option<u16>,
    mark: Option<NonZeroU32>,
    scheduler: Option<Name>,
    flags: Option<u32>,
    timeout_s: Option<u32>,
    netmask: Option<[u8; 4]>,
    persistence_engine: Option<Name>,
    stats: Option<Stats>,
    stats64: Option<Stats>,
}

impl Fields {
    fn entry(self) -> Result<ServiceEntry, DecodeError> {
        let family = self.family.ok_or("service without an address family")?;
        let key = match self.mark {
            Some(mark) => ServiceKey::Fwmark { family, mark },
            None => ServiceKey::Address {
                protocol: Protocol::from_number(self.protocol.ok_or("service without a protocol")?),
                address: address::from_wire(
                    family,
                    self.address.ok_or("service without an address")?,
                ),
                port: self.port.ok_or("service without a port")?,
            },
        };
        let config = ServiceConfig {
            scheduler: self.scheduler.ok_or("service without a scheduler")?,
            flags: ServiceFlags::from_bits(self.flags.ok_or("service without flags")?)
                .without(ServiceFlags::HASHED),
            timeout_s: self.timeout_s.ok_or("service without a timeout")?,
            netmask: Netmask::from_wire(family, self.netmask.ok_or("service without a netmask")?)?,
            persistence_engine: self.persistence_engine,
        };
        Ok(ServiceEntry {
            service: Service { key, config },
            stats: self.stats64.or(self.stats).unwrap_or_default(),
        })
    }
}
