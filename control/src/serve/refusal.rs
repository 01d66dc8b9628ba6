//! What is refused, in words for a person, and as which gRPC code. The one place where errors become
//! a [`Status`].

use swarm_api::convert::ConvertError;
use swarm_model::{
    InvalidCluster, InvalidNetwork, InvalidNode, InvalidSpec, InvalidUnlockKey, NetworkId, NodeId,
    PortConfig, PublishMode, ServiceId,
};
use tonic::{Code, Status};

use crate::allocate::NoNetwork;
use crate::ca::{IssueError, Refused, RootRefused};
use crate::error_text::error_text;
use crate::store::UpdateError;

/// Why a call is not carried out. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// Not what the protocol says.
    #[error("the request cannot be read")]
    Convert(#[from] ConvertError),
    /// A spec that makes no sense.
    #[error(transparent)]
    Spec(#[from] InvalidSpec),
    /// Settings of the swarm that make no sense.
    #[error(transparent)]
    Cluster(#[from] InvalidCluster),
    /// A network's spec that makes no sense.
    #[error(transparent)]
    NetworkSpec(#[from] InvalidNetwork),
    /// A node's spec that makes no sense.
    #[error(transparent)]
    NodeSpec(#[from] InvalidNode),
    /// A node is to be changed, and nothing is named.
    #[error("nothing is asked of the node: name an availability, or labels to add or to remove")]
    NothingToUpdate,
    /// A label that is to be removed and is not there.
    #[error("node {name} has no label {key:?}; `swarmctl node inspect {name}` shows those it has")]
    NoLabel {
        /// Its host name or id.
        name: String,
        /// What was to be removed.
        key: String,
    },
    /// Addresses that cannot be had.
    #[error(transparent)]
    Network(#[from] NoNetwork),
    /// The name is another network's.
    #[error(
        "network {name} exists already ({by}); choose another name, or remove it with `swarmctl \
         network rm {name}`"
    )]
    NetworkNameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        by: NetworkId,
    },
    /// Tasks would lose it.
    #[error(
        "network {name} is in use by {services}: remove these services, or take them off it with \
         `swarmctl service update --network-rm {name} SERVICE`, and wait until their tasks have \
         moved"
    )]
    NetworkInUse {
        /// Its name.
        name: String,
        /// Some of those that use it.
        services: String,
    },
    /// Published ports need it.
    #[error("the ingress network carries published ports and cannot be removed")]
    IngressNetwork,
    /// Every task is on it anyway.
    #[error(
        "services are not attached to the ingress network by name: publish ports with --publish \
         instead"
    )]
    AttachedToIngress,
    /// One of Docker's networks of every node.
    #[error(
        "the network {0} of a node cannot be used by services: make one for them with `swarmctl \
         network create`"
    )]
    NodeLocalNetwork(String),
    /// One interface a network.
    #[error("the service is attached to network {0} twice: name each network once")]
    AttachedTwice(String),
    /// A field left out.
    #[error("the request has no {0}")]
    Missing(&'static str),
    /// Nothing to look for.
    #[error("say which {0}: by name, id, or the beginning of an id")]
    EmptyReference(&'static str),
    /// Nothing found.
    #[error("there is no {kind} {reference:?}; `swarmctl {kind} ls` lists them")]
    NotFound {
        /// `node`, `service` or `network`.
        kind: &'static str,
        /// What was looked for.
        reference: String,
    },
    /// Several found.
    #[error("{kind} {reference:?} can mean any of {candidates}; use more of the id")]
    Ambiguous {
        /// `node`, `service` or `network`.
        kind: &'static str,
        /// What was looked for.
        reference: String,
        /// Some of what was found.
        candidates: String,
    },
    /// The name is another service's.
    #[error(
        "name {name} is already taken by service {by}; choose another or remove it with `swarmctl \
         service rm {name}`"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        by: ServiceId,
    },
    /// The service is on its way out.
    #[error("service {0} is being removed; wait until `swarmctl service ls` no longer shows it")]
    BeingRemoved(String),
    /// The port is another service's.
    #[error(
        "port {}/{} is already published by service {by}{}; choose another or remove it with \
         `swarmctl service rm {by}`", .port.published, .port.protocol.as_str(),
        in_mode(*.mode, .port.mode)
    )]
    PortTaken {
        /// The port.
        port: Box<PortConfig>,
        /// Name of the service that has it.
        by: String,
        /// In which mode that service has it.
        mode: PublishMode,
    },
    /// The port carries the swarm's own traffic.
    #[error(
        "port {}/{} is needed by the swarm itself ({what}); choose another",
        .port.published, .port.protocol.as_str()
    )]
    PortReserved {
        /// The port.
        port: Box<PortConfig>,
        /// For what.
        what: &'static str,
    },
    /// A service keeps its name.
    #[error("service {0} cannot be given another name; create one with the new name instead")]
    Rename(String),
    /// Made from an older version.
    #[error("update out of sequence: the {0} changed since it was read; read it again and repeat")]
    OutOfSequence(&'static str),
    /// The node may still be running tasks.
    #[error(
        "node {name} is {state}; stop its agent and wait until it is down, or remove it all the \
         same with `swarmctl node rm --force {name}`"
    )]
    NodeNotDown {
        /// Its host name or id.
        name: String,
        /// Its state.
        state: &'static str,
    },
    /// Managers hold the log.
    #[error("node {0} is a manager; demote it first with `swarmctl node demote {0}`")]
    NodeIsManager(String),
    /// Only managers hold the log.
    #[error("node {0} is not a manager; promote it first with `swarmctl node promote {0}`")]
    NotAManager(String),
    /// Somebody has to hold the log.
    #[error(
        "node {0} is the last manager of the swarm: promote another node first with `swarmctl node \
         promote`"
    )]
    LastManager(String),
    /// What is left could decide nothing.
    #[error(
        "manager {name} cannot be demoted: of the {left} managers that would be left {needed} are \
         needed, and {reachable} can be reached; bring others back, or promote more, first"
    )]
    QuorumLoss {
        /// Its host name or id.
        name: String,
        /// Managers without it.
        left: usize,
        /// Those of them that are heard.
        reachable: usize,
        /// How many are needed.
        needed: usize,
    },
    /// A leader that has just been elected knows nothing of the others.
    #[error(
        "the swarm's leader has changed, and the new one has not heard from the other managers yet: try \
         again in a moment"
    )]
    NotHeardYet,
    /// As many as are of use.
    #[error("the swarm has {0} managers, the most there can be; demote one first")]
    TooManyManagers(usize),
    /// More likely a broken source of randomness than chance.
    #[error("the number {0} of the new manager is taken or none: let it choose another")]
    RaftIdTaken(u64),
    /// A manager that the others cannot call.
    #[error(
        "the other managers cannot reach this one at {0}: check the address that it advertises, and \
         that nothing between them keeps TCP from that port"
    )]
    NotDialable(std::net::SocketAddr),
    /// Most managers are gone.
    #[error(
        "the swarm has lost its quorum: {needed} of its {managers} managers are needed and {reachable} \
         can be reached; not reached: {}; what runs goes on running, and nothing can be changed until \
         they are back; if they are lost for good, `swarmctl swarm init --force-new-cluster` goes on with \
         this manager alone and keeps everything else", .missing.join(", ")
    )]
    NoQuorum {
        /// All managers.
        managers: usize,
        /// How many are needed.
        needed: usize,
        /// Those that are heard.
        reachable: usize,
        /// Names and addresses of the others.
        missing: Vec<String>,
    },
    /// It takes a second or two.
    #[error(
        "the swarm has no leader just now, its managers are choosing one: try again in a moment"
    )]
    Electing,
    /// It was restarted, and the swarm's autolock is on.
    #[error(
        "this manager is locked: autolock is on, and it was restarted; what runs on this node goes on; \
         unlock it with `swarmctl swarm unlock`"
    )]
    Locked,
    /// It runs.
    #[error("this manager is not locked")]
    NotLocked,
    /// Text that is none.
    #[error(transparent)]
    UnlockKey(InvalidUnlockKey),
    /// Another one.
    #[error(
        "the unlock key does not open this manager, and nothing was changed: `swarmctl swarm unlock-key` on \
         a manager that runs prints the key; one that was not running when the key was rotated needs the \
         key from before"
    )]
    WrongUnlockKey,
    /// Guessing.
    #[error("too many keys were tried; wait a few seconds and try again")]
    TooManyUnlocks,
    /// There is nothing to rotate.
    #[error(
        "autolock is off, and there is no unlock key; turn it on with `swarmctl swarm update --autolock`"
    )]
    NoUnlockKey,
    /// The join token is not accepted.
    #[error(transparent)]
    Token(#[from] Refused),
    /// Only nodes have certificates to renew.
    #[error("only a node of the swarm can renew its certificate")]
    NotNode,
    /// More certificates than a node needs.
    #[error("this node renews its certificate too often; try again in half a minute")]
    TooManyRenewals,
    /// More joins than are handled.
    #[error("too many hosts are joining at once; try again in a few seconds")]
    TooManyJoins,
    /// No room for another node.
    #[error("the swarm has {0} nodes, the most there can be; remove some with `swarmctl node rm`")]
    TooManyNodes(usize),
    /// An id drawn twice; more likely a broken source of randomness than chance.
    #[error("the new node's id {0} is already in use; try again")]
    NodeIdTaken(NodeId),
    /// No certificate.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// Nobody could sign certificates.
    #[error(
        "the swarm has no key of its root: without an external CA for that root no certificate could be \
         signed; name another in its place, or change the root to one of the swarm's own first, with \
         `swarmctl swarm ca --rotate`"
    )]
    LastExternalCa,
    /// A root that cannot be the swarm's.
    #[error(transparent)]
    Root(#[from] RootRefused),
    /// More watches than are kept up.
    #[error("too many watch this manager at once; end some, or watch another manager")]
    TooManyWatches,
    /// What a watch is to go on after is not kept.
    #[error(
        "what changed after version {version} is not kept any more, only what did after {oldest}: list again, \
         and watch from now on"
    )]
    ResumeTooOld {
        /// Asked for.
        version: u64,
        /// The oldest that could be.
        oldest: u64,
    },
    /// What a watch is to go on after has not happened here.
    #[error(
        "version {version} has not come yet, the newest here is {newest}: this manager is behind, or that \
         is not a version of this swarm"
    )]
    ResumeNotReached {
        /// Asked for.
        version: u64,
        /// The newest here.
        newest: u64,
    },
    /// The watcher did not keep up.
    #[error(
        "this watch reads more slowly than the swarm changes: it was told everything up to version {version}, \
         and what changed up to {oldest} is not kept any more; list again, and watch from now on"
    )]
    WatchTooSlow {
        /// Told up to this.
        version: u64,
        /// The oldest to go on after.
        oldest: u64,
    },
    /// The store has no swarm yet.
    #[error("the manager is still starting; try again in a moment")]
    NotReady,
}

/// The holder's mode where it is not the one asked for, and so the reason.
fn in_mode(held: PublishMode, asked: PublishMode) -> String {
    if held == asked {
        String::new()
    } else {
        format!(" in mode {}", held.as_str())
    }
}

impl Refusal {
    fn code(&self) -> Code {
        match self {
            Self::Convert(_)
            | Self::Spec(_)
            | Self::Cluster(_)
            | Self::NetworkSpec(_)
            | Self::NodeSpec(_)
            | Self::NothingToUpdate
            | Self::NoLabel { .. }
            | Self::AttachedToIngress
            | Self::NodeLocalNetwork(_)
            | Self::AttachedTwice(_)
            | Self::Network(NoNetwork::Overlap { .. } | NoNetwork::Underlay { .. })
            | Self::Missing(_)
            | Self::EmptyReference(_)
            | Self::Ambiguous { .. }
            | Self::PortReserved { .. }
            | Self::Rename(_)
            | Self::UnlockKey(_)
            | Self::WrongUnlockKey
            | Self::Token(Refused::Invalid(_)) => Code::InvalidArgument,
            Self::NotFound { .. } => Code::NotFound,
            // What gRPC says for: read again and repeat.
            Self::OutOfSequence(_) => Code::Aborted,
            Self::NameTaken { .. } | Self::PortTaken { .. } | Self::NetworkNameTaken { .. } => {
                Code::AlreadyExists
            }
            Self::BeingRemoved(_)
            | Self::NetworkInUse { .. }
            | Self::IngressNetwork
            | Self::NodeNotDown { .. }
            | Self::NodeIsManager(_)
            | Self::NotAManager(_)
            | Self::LastManager(_)
            | Self::QuorumLoss { .. }
            | Self::TooManyManagers(_)
            | Self::Locked
            | Self::NotLocked
            | Self::NoUnlockKey
            | Self::LastExternalCa
            | Self::NotDialable(_) => Code::FailedPrecondition,
            Self::Token(Refused::OtherSwarm | Refused::Secret) => Code::PermissionDenied,
            Self::NotNode => Code::PermissionDenied,
            Self::TooManyJoins
            | Self::TooManyUnlocks
            | Self::TooManyRenewals
            | Self::TooManyWatches
            | Self::TooManyNodes(_)
            | Self::Network(NoNetwork::NoSubnet | NoNetwork::NoVni) => Code::ResourceExhausted,
            Self::Issue(IssueError::External(_))
            | Self::Root(RootRefused::Issue(IssueError::External(_))) => Code::Unavailable,
            Self::Issue(IssueError::NoSigner)
            | Self::Root(RootRefused::Issue(IssueError::NoSigner))
            | Self::Root(RootRefused::ExternalToExternal) => Code::FailedPrecondition,
            Self::Issue(error) | Self::Root(RootRefused::Issue(error))
                if error.is_callers_fault() =>
            {
                Code::InvalidArgument
            }
            Self::Issue(_) | Self::Root(RootRefused::Issue(_)) => Code::Internal,
            Self::Root(_) => Code::InvalidArgument,
            // What gRPC says for a place that is not there.
            Self::ResumeTooOld { .. } | Self::WatchTooSlow { .. } => Code::OutOfRange,
            Self::NodeIdTaken(_)
            | Self::ResumeNotReached { .. }
            | Self::NotReady
            | Self::RaftIdTaken(_)
            | Self::NoQuorum { .. }
            | Self::NotHeardYet
            | Self::Electing => Code::Unavailable,
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code(), error_text(&refusal))
    }
}

/// What a finished update gives its caller.
pub(super) fn outcome<R>(result: Result<R, UpdateError<Refusal>>) -> Result<R, Status> {
    result.map_err(|error| {
        let code = match &error {
            UpdateError::Refused(refusal) => refusal.code(),
            UpdateError::NotLeader { .. } | UpdateError::Unavailable(_) => Code::Unavailable,
            UpdateError::TooLarge { .. } | UpdateError::Invalid(_) => Code::InvalidArgument,
            UpdateError::Members => Code::Aborted,
        };
        Status::new(code, error_text(&error))
    })
}
