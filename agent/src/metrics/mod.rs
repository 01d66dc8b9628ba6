//! What this node has counted, for Prometheus: over HTTP at the address of `--metrics-addr`. Nothing
//! listens without that option.
//!
//! [`families`] (pure) says what is told, [`text`] writes it, [`serve()`] answers.
//!
//! Absent: metrics of containers (their processors and memory are the container runtime's to tell),
//! encryption and authentication: bind it to a loopback or a management address.

mod families;
mod serve;
mod text;

pub(crate) use serve::{listen, serve};
