//! IPVS, the kernel's layer 4 load balancer, over generic netlink: a codec and a blocking handle.
//!
//! * [`Ipvs`] is the handle: open it inside the network namespace whose table is meant, then list,
//!   add, update and delete services and their destinations, one by one or many at once with
//!   [`Ipvs::apply`].
//! * [`Service`], [`Destination`] and their keys are plain values, comparable and ordered, so that
//!   a reconciler can compute the difference between two tables without touching the kernel.
//! * [`codec`] is the wire format alone, on `netlink-packet-core` and `netlink-packet-generic`, for
//!   whoever brings a socket of their own.
//!
//! # Invariants
//!
//! * Nothing the kernel (or anybody else) sends makes the codec panic: what cannot be understood is
//!   a `DecodeError`, and attributes newer than this crate are kept as they are.
//! * Every wait has a deadline, every retry a bound, and never more requests are in flight than
//!   their acknowledgements fit the socket's receive buffer.
//! * An error names the action and its object, and says so where the outcome is not known.
//!
//! # Deliberately absent
//!
//! The sync daemon, zeroing of counters and the old `setsockopt` interface. Connection flags of a destination other than its forwarding method: the
//! kernel masks them off in both directions of this interface (`ip_vs_genl_parse_dest` and
//! `ip_vs_genl_fill_dest` in net/netfilter/ipvs/ip_vs_ctl.c).
//!
//! # Example
//!
//! ```no_run
//! use swarm_ipvs::{Destination, DestinationKey, Ipvs, Name, Protocol, Service, ServiceKey};
//!
//! # fn main() -> Result<(), swarm_ipvs::IpvsError> {
//! let mut ipvs = Ipvs::open()?;
//! let key = ServiceKey::Address {
//!     protocol: Protocol::TCP,
//!     address: [10, 0, 0, 1].into(),
//!     port: 80,
//! };
//! ipvs.add_service(&Service::new(key, Name::RR))?;
//! let task = DestinationKey { address: [10, 255, 0, 7].into(), port: 8080 };
//! ipvs.add_destination(&key, &Destination::new(task))?;
//! # Ok(())
//! # }
//! ```

pub mod codec;

mod address;
mod destination;
mod error;
mod exchange;
mod flags;
mod handle;
mod info;
mod name;
mod op;
mod service;
mod socket;
mod stats;
mod timeouts;

pub use address::{Family, Protocol};
pub use destination::{
    Destination, DestinationConfig, DestinationEntry, DestinationKey, Forward, Tunnel, TunnelKind,
};
pub use error::{IpvsError, Refusal};
pub use exchange::{MAX_DUMP_ATTEMPTS, MAX_IN_FLIGHT};
pub use flags::ServiceFlags;
pub use handle::Ipvs;
pub use info::{Info, Version};
pub use name::{InvalidName, Name};
pub use op::Op;
pub use service::{Netmask, Service, ServiceConfig, ServiceEntry, ServiceKey};
pub use socket::RECEIVE_TIMEOUT_MS;
pub use stats::Stats;
pub use timeouts::Timeouts;
