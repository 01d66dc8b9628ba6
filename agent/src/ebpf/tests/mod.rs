//! Tests against the running kernel. Each has its own network namespace, mount namespace and BPF
//! file system, so they run side by side and leave nothing behind.
//!
//! Without root they print SKIP; with `SWARM_TEST_REQUIRE_KERNEL=1` a skip is a failure.

mod attachment;
mod bench;
mod both_versions;
pub(crate) mod frame;
mod isolation;
mod maps;
mod packet;
mod path;
pub(crate) mod sandbox;
mod shortcut;
mod sockets;
mod trace;
mod translation;
mod tunnel;
pub(crate) mod verdicts;
