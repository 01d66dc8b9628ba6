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
//! * `sealer`: what is on disk is sealed with a key of this manager's own; `key_file`: that key.
//! * `cache`: the log as raft-rs reads it, in memory.
//! * `member`: core, log and state together, one synchronous step at a time.
//! * `reads`: reads that wait until a majority has confirmed that this member still leads.
//! * `alone`: what is left of a log whose other members are lost.
//! * `node`: the thread that gives them a clock and a queue.
//! * `stepped`: the same without a thread, for `simulation`.
//! * `wire`: messages as they travel; `transport` sends them to other managers, `serve` takes theirs.
//!
//! Invariants:
//! * Nothing is acknowledged, or sent to another manager, before what it rests on is on disk. When
//!   a write fails the node stops: what the disk then holds is known only after reading it again.
//! * The state is the snapshot plus the committed entries after it, whether replayed or not.
//! * Raft ids are never reused.
//! * Bytes on disk and on the wire are our own prost records. rust-protobuf, which raft-rs links,
//!   parses nothing but a change of members on the leader that has just made it.
//! * A message counts only if it comes over a connection of the manager that it says it is from.
//! * A new member has no vote before it has caught up: it can hold nobody up.
//!
//! Deliberately absent: changing several members at once.

mod alone;
mod cache;
mod core;
mod error;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod key_file;
mod log;
mod member;
mod node;
mod reads;
mod record;
mod sealer;
mod serve;
mod slog_drain;
mod stepped;
mod transport;
mod wire;

#[cfg(test)]
mod tests;

pub(crate) use error::{AloneError, NodeError, StartError};
#[cfg(any(test, fuzzing))]
pub(crate) use fuzz::{any_message, any_record};
pub(crate) use key_file::KeptKey;
pub(crate) use log::LogError;
pub(crate) use node::{Config, Node};
pub(crate) use serve::RaftService;
pub use stepped::{Committed, Envelope};
pub(crate) use stepped::{Outcome, Reading, Stepped, format, join};
pub(crate) use transport::{AddressBook, Superseded};
