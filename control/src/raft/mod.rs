//! The replicated log: every change of the store goes through it, on every manager in one order.
//!
//! ```text
//! Store::update -> Proposal -> node (thread) -> core (raft-rs) -> log (redb, fsync)
//!                                                  committed -> Replica::apply -> who watches
//! ```
//!
//! * [`core`]: a pure driver over raft-rs. Ticks, proposals and messages go in; what to
//!   write, to send and to apply comes out. No clock, no disk, no tasks.
//! * `log`: the disk. What one step of Raft writes is one atomic redb transaction.
//! * `sealer`: what is on disk is sealed with a key of this manager's own.
//! * `cache`: the log as raft-rs reads it, in memory.
//! * `member`: core, log and state together, one synchronous step at a time.
//! * `node`: the thread that gives them a clock and a queue.
//! * `stepped`: the same without a thread, for `simulation`.
//!
//! Invariants:
//! * Nothing is acknowledged, or sent to another manager, before what it rests on is on disk. When
//!   a write fails the node stops: what the disk then holds is known only after reading it again.
//! * The state is the snapshot plus the committed entries after it, whether replayed or not.
//! * Raft ids are never reused.
//! * Bytes on disk are our own prost records; rust-protobuf, which raft-rs links, parses nothing.
//!
//! Deliberately absent so far: other managers. A log has one voter; the core already hands out and
//! takes the messages that a transport will carry.

mod cache;
mod core;
mod error;
mod log;
mod member;
mod node;
mod record;
mod sealer;
mod slog_drain;
mod stepped;

#[cfg(test)]
mod tests;

pub(crate) use error::{NodeError, StartError};
pub(crate) use log::LogError;
pub(crate) use node::{Config, Node};
pub use stepped::{Committed, Envelope};
pub(crate) use stepped::{Outcome, Stepped, format, join};
