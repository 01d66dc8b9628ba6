//! Between the wire and the model: `TryFrom<v1::X>` for `swarm_model::X`, `From<&swarm_model::X>`
//! for `v1::X`.
//!
//! * Ids, addresses and numbers are read strictly; [`ConvertError`] names the field.
//! * What is not said takes the model's default: a missing sub-message, an unspecified enum (TCP for
//!   a protocol). An enum value that this version does not know is refused, never guessed.
//! * Times travel in whole milliseconds; what is finer is cut off.
//!
//! Whether a spec makes sense is not asked here but by `swarm_model::validate_service`.

mod cluster;
mod enumeration;
mod error;
mod field;
mod network;
mod node;
mod port;
mod service;
mod task;

#[cfg(test)]
mod tests;

pub use error::ConvertError;
