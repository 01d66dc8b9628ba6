//! Who is at the other end of a connection.

use std::net::IpAddr;

use rustls_pki_types::CertificateDer;
use swarm_model::{ClusterId, NodeId, Role};

use crate::ca::Subject;

/// Who calls. Found once per connection; see [`Peer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Someone on the network without a certificate.
    Anonymous,
    /// A node, by its certificate.
    Node {
        /// Which.
        id: NodeId,
        /// What the certificate trusts it with.
        role: Role,
    },
    /// Whoever may open the local socket.
    LocalOperator,
}

/// The other end of a connection. Every request carries it in its extensions:
/// `request.extensions().get::<Peer>()`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Who it is.
    pub(crate) identity: Identity,
    /// Where it calls from; none on the local socket, and where another manager forwarded the call.
    pub(crate) address: Option<IpAddr>,
    /// The manager that forwarded the call, if one did: who calls is what it says.
    pub(crate) forwarded_by: Option<NodeId>,
}

/// A certificate under our root that is not one of our nodes'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate is not one of a node of this swarm")]
pub(crate) struct Stranger;

impl Identity {
    /// Whoever showed `chain` (leaf first) in a TLS handshake that verified it against our root.
    pub(super) fn from_chain(
        chain: Option<&[CertificateDer<'_>]>,
        cluster_id: &ClusterId,
    ) -> Result<Self, Stranger> {
        let Some(leaf) = chain.and_then(<[_]>::first) else {
            return Ok(Self::Anonymous);
        };
        match Subject::from_der(leaf) {
            Ok(subject) if subject.cluster_id == *cluster_id => Ok(Self::Node {
                id: subject.node_id,
                role: subject.role,
            }),
            _ => Err(Stranger),
        }
    }
}
