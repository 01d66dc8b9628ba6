//! What can go wrong with a node of the log.

use std::convert::Infallible;

use super::log::LogError;
use super::record::RecordError;
use crate::store::{CodecError, ProposeError, UpdateError};

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The log could not be made or read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The first changes are more than a log can start with.
    #[error("cannot start a log with the first changes")]
    Initial(#[source] UpdateError<Infallible>),
    /// The log is whole, but what it says cannot be carried out.
    #[error("cannot carry out what the log says")]
    Node(#[from] NodeError),
    /// The thread could not be started.
    #[error("cannot start the thread of the log")]
    Thread(#[source] std::io::Error),
}

/// Why a member did not go on alone. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AloneError<E> {
    /// The log could not be read or written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log is whole, but what it says cannot be carried out.
    #[error("cannot carry out what the log says")]
    Node(#[from] NodeError),
    /// The caller's own function refused.
    #[error(transparent)]
    Refused(E),
    /// An object that the log cannot hold.
    #[error("cannot write down what changes: {0:?}")]
    Change(ProposeError),
}

/// Why a node stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    /// The log could not be written. What the disk holds is known only after it is read again.
    #[error(transparent)]
    Log(#[from] LogError),
    /// raft-rs refused.
    #[error("raft refused to go on")]
    Raft(#[from] raft::Error),
    /// An entry of the log that this version cannot read.
    #[error("cannot read entry {index} of the log")]
    Entry {
        /// Its index.
        index: u64,
        /// What is wrong with it.
        #[source]
        source: CodecError,
    },
    /// A snapshot that this version cannot read.
    #[error("cannot read the snapshot of the log at {index}")]
    Snapshot {
        /// Its index.
        index: u64,
        /// What is wrong with it.
        #[source]
        source: CodecError,
    },
    /// An entry that changes the members, and that this version cannot read.
    #[error("cannot read the change of managers in entry {index} of the log")]
    MemberChange {
        /// Its index.
        index: u64,
        /// What is wrong with it.
        #[source]
        source: RecordError,
    },
    /// The thread ended without saying why: a bug, of which it printed the trace.
    #[error("the thread of the log panicked")]
    Panicked,
}

/// What is wrong inside a log file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Damage {
    /// redb says so.
    #[error("the database is not whole")]
    Database(#[source] Box<redb::Error>),
    /// A record is not what was written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A record is not there.
    #[error("the {0} is missing")]
    Missing(&'static str),
    /// Records contradict each other.
    #[error("{0}")]
    Contradiction(String),
}
