//! What a message may hold that the model cannot.

use swarm_model::InvalidId;

/// A message that is no model value. `field` is the path of the field within its object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// Nothing where something is needed.
    #[error("{field} is missing")]
    Missing {
        /// Which field.
        field: &'static str,
    },
    /// Text that is no id.
    #[error("{field} is not valid")]
    Id {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        #[source]
        source: InvalidId,
    },
    /// Text that is not what it should be, and must not be seen.
    #[error("{field} cannot be read")]
    Secret {
        /// Which field.
        field: &'static str,
    },
    /// Text that is no address of the kind that the field holds.
    #[error("{field} {text:?} is not {expected}")]
    Address {
        /// Which field.
        field: &'static str,
        /// What it holds, cut to a readable length.
        text: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// A number that the model has no room for.
    #[error("{field} {value} is not within {min} to {max}")]
    Range {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: u64,
        /// The smallest there is.
        min: u64,
        /// The largest there is.
        max: u64,
    },
    /// An enum value of a later version, or of none.
    #[error("{field} {value} is unknown to this version: upgrade this node")]
    UnknownValue {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: i32,
    },
}
