//! The manager of a swarm: `swarm-control`.
//!
//! A child of `swarm-agent` on hosts whose role is manager, without privileges. It keeps the swarm's
//! state in a replicated log, decides what runs where, and answers nodes and people.
//!
//! * `store` holds the state in memory; `raft` is the log under it.
//! * `orchestrate`, `allocate`, `schedule` decide, purely; `leader` lets them, on the leader.
//! * `dispatch` tells agents what to do and hears what they did.
//! * `ca` makes certificates; `serve` answers calls and knows who may make which.
//! * `seal` and `private_file` keep what must not be read; `autolock` follows the swarm's lock.
//! * `recovery` lets one manager go on without the others.
//! * `membership` makes this manager one of those that hold the log.
//! * `config`, `bootstrap`, `run`, `process` and `failure` put it together.
//!
//! A library, so that a simulation can drive the cores; `swarm-control` the program is [`main`].
//!
//! Invariants:
//! * Every change of the state goes through `Store::update`, and so through the log.
//! * The process ends when its agent does (its standard input closes), and the data plane does not
//!   notice when it ends.
//! * Secrets (the root's key, join secrets) are in the log and in memory, and in no message printed.
//!
//! Deliberately absent: anything that touches the kernel or containers.

mod allocate;
mod autolock;
mod bootstrap;
mod ca;
mod clock;
mod config;
mod dispatch;
mod error_text;
mod failure;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod leader;
mod membership;
mod orchestrate;
mod private_file;
mod process;
mod raft;
mod recovery;
mod run;
mod schedule;
mod seal;
mod serve;
pub mod simulation;
mod store;

pub use process::main;
