//! The store: everything the swarm keeps, in memory, with indexes, the same on every manager.
//!
//! [`State`] is pure: a function of the changes applied to it, in order. [`Store`] is the shell
//! around it that the rest of a manager holds: reads come from memory, an update is proposed to a
//! backend (Raft, or memory alone for tests and simulation) and seen once it is applied here.
//!
//! Invariants:
//! * Nothing but [`State::apply`] changes a state, and it depends on its arguments alone: the same
//!   changes at the same indexes give the same state, whether replayed or read from a snapshot.
//! * Updates of one manager run one at a time, and a new leader's first update sees everything its
//!   predecessors committed; so what an update read is still true when its changes are applied.
//!
//! Deliberately absent: rules. Who may change what is decided by those who propose.

mod codec;
mod handle;
mod history;
mod index;
mod object;
mod state;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub(crate) use codec::{CodecError, decode_batch, decode_snapshot, encode_batch, encode_snapshot};
pub(crate) use handle::{Backend, Proposal, ProposeError, Replica};
pub(crate) use handle::{
    Leadership, MemberChange, Members, ReadError, Store, UPDATE_DEADLINE, Unavailable, UpdateError,
};
pub(crate) use history::{Action, Changed, Event, History, SharedObject, TooOld};
pub(crate) use object::{Change, Object, ObjectKey};
pub(crate) use state::State;
