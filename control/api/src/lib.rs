//! The gRPC of a swarm: generated messages and services ([`v1`]), and the conversions between them
//! and the model ([`convert`]).
//!
//! Invariants:
//! * What comes from outside becomes a model type only through `TryFrom`: that is the one door, and
//!   it refuses what the model could not hold.
//! * Conversions to the wire destructure exhaustively, so that a new field cannot be forgotten.
//!
//! Deliberately absent: sockets, TLS, authorisation.

pub mod convert;
mod redacted;

/// Everything that the protocol files say (`google.protobuf.FileDescriptorSet`): so that a test can go
/// through every method there is.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The line of metadata with which a call of `Control` asks for a consistent answer.
pub const CONSISTENCY_METADATA: &str = "swarm-consistency";

/// Its one value: the answer sees everything that was acknowledged before the call, by any manager.
pub const LINEARIZABLE: &str = "linearizable";

pub mod v1 {
    //! Generated from `proto/swarm/v1`. Meanings stand in the `.proto` files.
    #![allow(
        missing_docs,
        missing_debug_implementations,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated code"
    )]
    tonic::include_proto!("swarm.v1");
}
