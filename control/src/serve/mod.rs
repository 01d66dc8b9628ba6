//! What a manager answers: the gRPC services, over mutual TLS on the network and over a local
//! socket.
//!
//! A connection goes this way: [`listen`] accepts it and finishes TLS, [`peer`] says who is there,
//! [`authorise`] lets a call pass or not, and a service answers it. What a call changes is decided
//! in pure functions over the store's state ([`services`], [`nodes`], [`managers`], [`lookup`]).
//!
//! Invariants:
//! * Who calls is known from the connection alone, once, before the first byte of a request.
//! * Every method is in one table with who may call it; what is not in the table is refused.
//! * Whatever a caller did wrong is told in words that name the remedy, and changed nothing.
//! * No connection outlives the certificate that it was opened with, or the one that the node was
//!   given on it instead.
//! * What only the leader can answer is asked of it in the caller's name ([`forward`]); only managers
//!   may call in another's name.
//!
//! Deliberately absent: the user's own certificates, HTTP/1.

mod authorise;
mod cluster;
mod connection;
mod consistent;
mod control;
mod dial;
mod drain;
mod forward;
mod join_managers;
mod lease;
mod leases;
mod listen;
mod local_control;
mod locked;
mod lookup;
mod managers;
pub(crate) mod networks;
mod node_ca;
pub(crate) mod nodes;
mod peer;
mod rate;
mod refusal;
mod roots;
mod server;
pub(crate) mod services;
mod socket;
mod watch;

#[cfg(test)]
mod tests;

pub(crate) use authorise::EPOCH_HEADER;
pub(crate) use dial::{DialError, Dialer};
pub(crate) use locked::serve_locked;
pub(crate) use peer::{Identity, Peer};
pub(crate) use rate::TokenBucket;
pub(crate) use refusal::Refusal;
pub(crate) use server::{Network, serve_local, serve_network};
pub(crate) use socket::{SocketError, bind_socket};
