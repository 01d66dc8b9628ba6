//! Names for tasks: a name server in the network namespace of every task, at 127.0.0.11.
//!
//! ```text
//! query ─> socket in the task's namespace ─> answer ─┬─> from the records of its networks
//!                                                    └─> forward ─> the host's own servers
//! ```
//!
//! * [`records`] is what has a name ([`assigned`]: from what the manager said), [`answer`] turns the bytes of a query into those of an answer,
//!   or into a [`forward`]ed query; [`resolv_conf`] reads the host's file and writes a container's.
//!   All of that is pure.
//! * [`socket`] opens the sockets inside a namespace, [`serve`] answers what comes in at them,
//!   [`upstream`] asks the host's servers from the host's namespace, [`server`] keeps all that, and
//!   [`kept`] has the sockets outlive the agent.
//!
//! Invariants:
//! * Answers come from what the manager said last, also after a restart of the agent and without
//!   any manager.
//! * A name is looked for on the asker's own networks and nowhere else.
//! * Every query is answered or lost, within 4 seconds; nobody waits in a queue. What is bounded,
//!   and why, stands with the constants of [`answer`], [`serve`] and [`upstream`].
//!
//! Deliberately absent: a cache, records of other types than A, AAAA and PTR for the swarm's names,
//! DNSSEC (its records are passed through), names on the ingress network.

mod answer;
mod assigned;
mod forward;
mod kept;
mod records;
mod resolv_conf;
mod serve;
mod server;
mod socket;
#[cfg(test)]
mod tests;
mod upstream;

use std::net::Ipv4Addr;

pub(crate) use kept::SocketStore;
pub(crate) use records::Asker;
pub(crate) use resolv_conf::resolv_conf_for_container;
pub(crate) use server::{NameServerConfig, NameServers};

/// Where a task's name server is, in its own network namespace.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// The host's file of servers and search domains.
pub(crate) const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";

/// The port of name servers.
const PORT: u16 = 53;
