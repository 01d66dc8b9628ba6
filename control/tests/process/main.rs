//! The real `swarm-control`, started and ended as its agent does it.
#![allow(
    clippy::unwrap_used,
    reason = "a test program; clippy knows only the functions marked as tests"
)]

mod host;
mod join;
mod locked;
mod restart;
mod watch;
