//! The leader's conversation with every agent: what each is to do and to know goes out, what is
//! observed of nodes and tasks comes in.
//!
//! * [`assignment`] (pure): what a node is to know, from the store, and how two such sets differ.
//! * [`overlay`] (pure): the same of networks of users.
//! * [`session`] (pure): which sessions there are, what each was sent and has acknowledged, which
//!   tasks are drained.
//! * [`liveness`] (pure): which nodes were heard, and what follows from silence.
//! * [`mod@observe`] (pure): what reports of agents change in the store.
//! * [`reports`]: what of them waits to be written down.
//! * [`Dispatcher`] is the shell: the gRPC stream, the clock, the store.
//!
//! Invariants:
//! * Every session is told every change, in order and without gaps; one that does not keep up is
//!   closed, and begins anew with the complete set.
//! * A task counts as drained only once every node that could send it a new connection has said
//!   that it does not, by a generation of its present session.
//! * A node reports about its own tasks only, and a task's observed state never goes back.
//! * Heartbeats never reach the store: only a change of a node's state does.
//!
//! Locks: the store's read lock is taken before the sessions', never the other way round.
//!
//! Deliberately absent: decisions about tasks (`orchestrate`), a second detector of dead nodes.

pub(crate) mod assignment;
mod liveness;
mod observe;
mod overlay;
mod reports;
mod serve;
mod session;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use liveness::{Liveness, Verdict};
pub(crate) use observe::{Report, greet, judge, observe};
pub(crate) use serve::Dispatcher;
pub(crate) use session::Sessions;
pub(crate) use wire::welcome;
