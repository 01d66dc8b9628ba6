//! Errors of the handle.

use std::fmt;
use std::io;

use netlink_packet_core::DecodeError;
use nix::errno::Errno;

use crate::exchange::{Fault, MAX_DUMP_ATTEMPTS, MAX_STALE_MESSAGES};
use crate::op::Op;
use crate::socket::RECEIVE_TIMEOUT_MS;

/// What can go wrong between this process and the kernel's IPVS.
#[derive(Debug, thiserror::Error)]
pub enum IpvsError {
    /// The kernel does not know the family `IPVS`.
    #[error("the kernel has no IPVS: load it with `modprobe ip_vs`")]
    Unsupported,
    /// The generic netlink socket could not be opened.
    #[error("open a generic netlink socket")]
    Open {
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The operation cannot be put to the kernel; nothing was sent.
    #[error("{action}: {reason}")]
    Invalid {
        /// Action and object.
        action: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The kernel refused; nothing has changed.
    #[error("{action}: {refusal}")]
    Refused {
        /// Action and object.
        action: String,
        /// Why.
        refusal: Refusal,
    },
    /// The request could not be sent; nothing has changed.
    #[error("{action}: send the request")]
    Send {
        /// Action and object.
        action: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The request was sent, the answer could not be received: the outcome is not known.
    #[error("{action}: receive the answer, the outcome is not known")]
    Receive {
        /// Action and object.
        action: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The kernel did not answer in time: the outcome is not known.
    #[error("{action}: no answer within {timeout_ms} ms, the outcome is not known")]
    TimedOut {
        /// Action and object.
        action: String,
        /// How long the wait was, in milliseconds.
        timeout_ms: u64,
    },
    /// Answers were lost because the socket's receive buffer was full (`ENOBUFS`): the outcome is
    /// not known.
    #[error("{action}: the receive buffer overran and answers were lost, the outcome is not known")]
    Overrun {
        /// Action and object.
        action: String,
    },
    /// An answer could not be understood: the outcome is not known.
    #[error("{action}: the answer is malformed")]
    Malformed {
        /// Action and object.
        action: String,
        /// Where it stopped making sense.
        #[source]
        source: DecodeError,
    },
    /// The socket held answers to other requests without end.
    #[error("{action}: more than {limit} answers to other requests, the outcome is not known")]
    Flooded {
        /// Action and object.
        action: String,
        /// How many were passed over.
        limit: usize,
    },
    /// The table changed, or seemed to, during every attempt to dump it.
    #[error("{action}: the table changed during each of {attempts} dumps")]
    Unstable {
        /// Action and object.
        action: String,
        /// How often it was tried.
        attempts: usize,
    },
    /// Sent in one batch with an operation whose answer failed: the outcome is not known.
    #[error("{action}: sent, but the answers to its batch were lost, the outcome is not known")]
    Unconfirmed {
        /// Action and object.
        action: String,
    },
    /// Not sent, because the socket failed at an earlier operation; nothing has changed.
    #[error("{action}: not sent, the socket failed at an earlier operation")]
    NotSent {
        /// Action and object.
        action: String,
    },
}

impl IpvsError {
    /// Why the kernel refused, if that is what happened.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(*refusal),
            _ => None,
        }
    }

    /// Puts a fault of the conversation in the words of the change it happened to.
    pub(crate) fn of_op(op: &Op, fault: Fault) -> Self {
        let refused = |errno| Refusal::of(errno, Some(op));
        Self::of(op.to_string(), fault, refused)
    }

    /// Puts a fault of the conversation in the words of the query it happened to.
    pub(crate) fn of_query(action: String, fault: Fault) -> Self {
        Self::of(action, fault, |errno| Refusal::of(errno, None))
    }

    fn of(action: String, fault: Fault, refused: impl FnOnce(i32) -> Refusal) -> Self {
        match fault {
            Fault::Refused(errno) => Self::Refused {
                action,
                refusal: refused(errno),
            },
            Fault::Send(source) => Self::Send { action, source },
            Fault::Receive(source) => Self::Receive { action, source },
            Fault::TimedOut => Self::TimedOut {
                action,
                timeout_ms: RECEIVE_TIMEOUT_MS,
            },
            Fault::Overrun => Self::Overrun { action },
            Fault::Malformed(source) => Self::Malformed { action, source },
            Fault::Flooded => Self::Flooded {
                action,
                limit: MAX_STALE_MESSAGES,
            },
            Fault::Unstable => Self::Unstable {
                action,
                attempts: MAX_DUMP_ATTEMPTS,
            },
            Fault::Unconfirmed => Self::Unconfirmed { action },
            Fault::NotSent => Self::NotSent { action },
        }
    }
}

/// Why the kernel refused, from the error number and what was asked
/// (net/netfilter/ipvs/ip_vs_ctl.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The service or destination exists already (`EEXIST`).
    Exists,
    /// There is no such service (`ESRCH`).
    NoSuchService,
    /// The service has no such destination (`ENOENT`).
    NoSuchDestination,
    /// The kernel has no such scheduler or persistence engine (`ENOENT`), and could not load one.
    NoSuchModule,
    /// This needs `CAP_NET_ADMIN` in the initial user namespace (`EPERM`).
    NotPermitted,
    /// Any other error number.
    Other(i32),
}

impl Refusal {
    fn of(errno: i32, op: Option<&Op>) -> Self {
        match (Errno::from_raw(errno), op) {
            (Errno::EEXIST, _) => Self::Exists,
            (Errno::ESRCH, _) => Self::NoSuchService,
            (Errno::ENOENT, Some(Op::AddService(_) | Op::UpdateService(_))) => Self::NoSuchModule,
            (Errno::ENOENT, Some(Op::UpdateDestination(..) | Op::DeleteDestination(..))) => {
                Self::NoSuchDestination
            }
            (Errno::EPERM, _) => Self::NotPermitted,
            _ => Self::Other(errno),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists => f.write_str("file exists"),
            Self::NoSuchService => f.write_str("no such service"),
            Self::NoSuchDestination => f.write_str("no such destination"),
            Self::NoSuchModule => f.write_str("no such scheduler or persistence engine"),
            Self::NotPermitted => f.write_str("operation not permitted, CAP_NET_ADMIN is needed"),
            Self::Other(errno) => f.write_str(&Errno::from_raw(*errno).desc().to_ascii_lowercase()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Protocol;
    use crate::destination::{Destination, DestinationKey};
    use crate::name::Name;
    use crate::service::{Service, ServiceKey};

    const ENOENT: Fault = Fault::Refused(Errno::ENOENT as i32);

    #[test]
    fn a_refusal_says_what_could_not_be_done_and_why() {
        let key = ServiceKey::Address {
            protocol: Protocol::TCP,
            address: [10, 0, 0, 1].into(),
            port: 80,
        };
        let add = Op::AddService(Service::new(key, Name::RR));
        let to = DestinationKey {
            address: [10, 1, 0, 2].into(),
            port: 8080,
        };
        let update = Op::UpdateDestination(key, Destination::new(to));
        let cases = [
            (
                add,
                Fault::Refused(17),
                "add service tcp 10.0.0.1:80: file exists",
            ),
            (
                add,
                ENOENT,
                "add service tcp 10.0.0.1:80: no such scheduler or persistence engine",
            ),
            (
                update,
                ENOENT,
                "update destination 10.1.0.2:8080 of service tcp 10.0.0.1:80: no such destination",
            ),
            (
                add,
                Fault::Refused(34),
                "add service tcp 10.0.0.1:80: math result not representable",
            ),
            (
                Op::Flush,
                Fault::TimedOut,
                "delete all services: no answer within 5000 ms, the outcome is not known",
            ),
        ];
        for (op, fault, text) in cases {
            assert_eq!(IpvsError::of_op(&op, fault).to_string(), text);
        }
    }
}
