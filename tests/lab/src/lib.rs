//! The lab: several hosts in network namespaces of one kernel, on one underlay bridge.
//!
//! The kernel is that of a virtual machine which `cargo xtask lab up` boots, or, with `--native`,
//! this machine's own inside fresh namespaces. Either way the first process is `lab-guest init`
//! ([`init`]), which serves commands to the outside ([`server`], [`wire`], [`client`]) and lays out
//! hosts ([`topology`]), containerd and a registry ([`services`]) with a test image in it
//! ([`image`]). One `swarm-agent` per host is run by [`agent`].
//!
//! Tests of whole clusters live in `tests/lab/tests/*.rs`, run inside the lab, and use [`Lab`],
//! [`Host`] and [`wait_until`].
//!
//! Invariants: the root file system of the lab is never written to (an overlay in memory takes the
//! writes); everything that survives a boot is under [`SHARE_DIR`]; nothing here is part of the
//! product, so calling `ip`, `ctr` and the like is fine here and nowhere else.

pub mod agent;
pub mod bench;
pub mod client;
pub mod command;
pub mod daemon;
mod host;
pub mod image;
pub mod init;
pub mod load;
pub mod server;
pub mod services;
pub mod swarm;
pub mod topology;
mod wait;
pub mod wire;

pub use command::Output;
pub use host::{Host, Lab};
pub use image::WebAnswer;
pub use swarm::Swarm;
pub use wait::wait_until;

/// Where the directory shared with the machine outside is mounted inside the lab.
pub const SHARE_DIR: &str = "/lab";

/// Logs of everything the lab starts; the same directory as `log/` of the shared one.
pub const LOG_DIR: &str = "/var/log/lab";

/// State of the running lab (pid files, topology); in memory.
pub const RUN_DIR: &str = "/run/lab";

/// Search path inside the lab: the workspace's binaries first.
pub const SEARCH_PATH: &str =
    "/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
