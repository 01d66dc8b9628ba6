//! Why the manager does not start or go on: a message with the remedy for people, a code for the
//! agent.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use swarm_model::{InvalidCluster, NodeId};
use tokio::task::JoinError;

use crate::ca::{IssueError, OwnCertificateError};
use crate::raft::{AloneError, LogError, NodeError, StartError, Superseded};
use crate::recovery::CannotGoOn;
use crate::serve::SocketError;

/// Why the process ends other than by being told to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// No threads.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    /// No signal handlers.
    #[error("cannot watch for signals")]
    Signals(#[source] io::Error),
    /// Someone else has the port.
    #[error(
        "cannot listen on {0}: another process has this address; end it (`ss -ltnp` shows which) or \
         choose another listen address"
    )]
    AddressInUse(SocketAddr),
    /// The address is another host's.
    #[error("cannot listen on {0}: it is no address of this host; choose another listen address")]
    AddressNotHere(SocketAddr),
    /// Another reason not to listen.
    #[error("cannot listen on {address}")]
    Listen {
        /// On what.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The log did not open.
    #[error("cannot open the swarm's log")]
    Log(#[source] StartError),
    /// There is no log, and none was to be made.
    #[error(
        "{0} holds no swarm; `swarmctl swarm init` makes one, `swarmctl swarm join` joins another"
    )]
    NoSwarm(PathBuf),
    /// The log is another node's.
    #[error(
        "{path} belongs to node {found}, not to {wanted}; leave that swarm first with `swarmctl \
         swarm leave --force`"
    )]
    OtherNode {
        /// The state directory.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Whose it should be.
        wanted: NodeId,
    },
    /// The log has no swarm or not this node in it.
    #[error("the swarm's log does not hold {0}; restore the state directory from a copy")]
    Incomplete(&'static str),
    /// It could not be made the only manager.
    #[error("cannot go on with this manager alone; nothing was changed")]
    Alone(#[source] AloneError<CannotGoOn>),
    /// Another manager went on without this one.
    #[error(transparent)]
    Superseded(Superseded),
    /// Settings that no swarm may have.
    #[error("cannot make a swarm with these settings")]
    Settings(#[source] InvalidCluster),
    /// No root certificate for a new swarm.
    #[error("cannot make the root certificate of a new swarm")]
    Root(#[source] IssueError),
    /// It was demoted.
    #[error("node {0} is no manager of its swarm any more")]
    Demoted(NodeId),
    /// No certificate.
    #[error(transparent)]
    Certificate(#[from] OwnCertificateError),
    /// No socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A server ended.
    #[error("a server ended")]
    Server(#[source] tonic::transport::Error),
    /// A task ended for no reason.
    #[error("{0} ended although nobody told it to")]
    Ended(&'static str),
    /// A task panicked.
    #[error("a task failed")]
    Task(#[source] JoinError),
    /// The log ended.
    #[error("the swarm's log failed")]
    Raft(#[source] NodeError),
}

impl Failure {
    /// The code that the agent tells them apart by; listed in `swarm-control run --help`.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::AddressInUse(_) => 10,
            Self::AddressNotHere(_) => 11,
            Self::Log(StartError::Log(LogError::Locked { .. }))
            | Self::Alone(AloneError::Log(LogError::Locked { .. })) => 12,
            Self::NoSwarm(_) | Self::OtherNode { .. } => 13,
            Self::Superseded(_) => 14,
            _ => 1,
        })
    }
}
