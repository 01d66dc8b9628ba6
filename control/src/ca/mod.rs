//! The swarm's certificate authority: what makes a host a member, and what proves it afterwards.
//!
//! Invariants:
//! * A certificate says what the swarm decided, never what the request asked for: of a request only
//!   its public key is used.
//! * The root's key is in the replicated store and in managers' memory, never in a file.
//! * TLS 1.3 only, one crypto provider, named in [`creds`]; sessions are never resumed, so that every
//!   connection shows a certificate that is valid now.
//!
//! Deliberately absent: rotation of the root, external authorities, revocation lists (a node that is
//! removed is refused because the store no longer has it).

mod admit;
mod creds;
mod issue;
mod own;
mod subject;

pub(crate) use admit::{Refused, admit};
pub(crate) use creds::{client_config, server_config};
pub(crate) use issue::{Authority, IssueError, RootCa, Term, new_root};
pub(crate) use own::{CredentialsFile, OwnCertificate, OwnCertificateError};
pub(crate) use subject::{Subject, validity};
