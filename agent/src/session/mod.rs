//! The conversation with the leading manager.
//!
//! [`Assigned`] is the pure part: what this node has been told, built from one complete message and
//! the changes after it. [`run()`] is the shell: it keeps a session open, hands what it hears to a
//! `watch` channel, and reports statuses and applied generations.
//!
//! Invariants:
//! * A message that does not fit (a gap in generations, a change before the complete set, a value
//!   that the model refuses) ends the session; the next one starts with a complete set again.
//! * While no manager answers, what was last heard stays in force.

mod assigned;
mod run;

pub(crate) use assigned::{Assigned, AssignedError, Balanced, Endpoint, NetworkEndpoint};
#[cfg(test)]
pub(crate) use assigned::{NetworkService, Peer, PublishedService};
pub(crate) use run::{Report, Session, run};
