//! Who this node is: its key, its certificate, and which swarm it is in.
//!
//! Invariants:
//! * The private key is made here and never leaves this host.
//! * A root certificate is trusted only after its digest was found in the join token.
//! * Which other roots are trusted is believed of a manager that a trusted root vouches for, and of nobody
//!   else; they are on disk before a certificate of theirs is.
//! * Key and certificate are in one file and replaced in one step, before they are used.
//! * `node.json` is written last: a node with that file has everything else it needs.

mod join;
mod renew;
mod state;
mod tls;

pub(crate) use join::{JoinError, join};
pub(crate) use renew::Renewer;
pub(crate) use state::{Membership, StateError, StateStore};
pub(crate) use tls::{Connector, Credentials, KeyRequest, Roots, TlsError};
