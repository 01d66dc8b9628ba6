//! This host's life in a swarm: nothing, then `init` or `join`, then `leave`.
//!
//! | state | on | next |
//! |---|---|---|
//! | inactive | init, join | active, or inactive again when it failed, with nothing left behind |
//! | active | start of the agent | active: containers, networks and the manager process go on |
//! | active | another role | active: the manager process starts or ends, see [`role`] |
//! | active | init --force-new-cluster | active, as the swarm's only manager, with everything it had |
//! | active | leave | inactive, with nothing left behind |
//!
//! Nothing of the swarm runs on a host that is inactive.

mod active;
mod address;
mod control_process;
mod force;
mod host_networks;
mod lifecycle;
mod local;
mod lock;
mod role;
mod told;
mod trace;

pub(crate) use lifecycle::Agent;
pub(crate) use local::serve;
pub(crate) use lock::lock;
pub(crate) use told::{Told, ToldTask};
