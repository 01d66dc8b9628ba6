//! A whole manager without threads, sockets, clock and disk, for `tests/sim`.
//!
//! [`Manager`] holds the cores that a manager is made of (Raft's member and its log, the state, the
//! passes of the leader, the dispatcher's sessions and liveness) and does what the shells around
//! them do (`store::Store`, `leader`, `dispatch::Dispatcher`), one synchronous step at a time: its
//! caller brings the time, the medium of the log and the messages, and draws all randomness from
//! one seed. So a swarm of many can be run on virtual time, and run again.
//!
//! Invariants:
//! * Nothing here decides: what a manager does is decided in the same code as in the product.
//! * The same seed and the same calls give the same answers.
//!
//! Deliberately absent: TLS and who may call what (`serve`), certificates (`ca`).

mod lead;
mod manager;
mod placement;
mod request;
mod view;

pub use crate::raft::{Committed, Envelope};
pub use manager::{Answer, Founding, Manager, Outcome, Output, Stopped, ToAgent};
pub use placement::Placement;
pub use request::Request;
pub use view::View;
