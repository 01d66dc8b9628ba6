//! The swarm's certificate authority: what makes a host a member, and what proves it afterwards.
//!
//! Invariants:
//! * A certificate says what the swarm decided, never what the request asked for: of a request only
//!   its public key is used.
//! * The root's key is in the replicated store and in managers' memory, never in a file.
//! * TLS 1.3 only, one crypto provider, named in [`creds`]; sessions are never resumed, so that every
//!   connection shows a certificate that is valid now.
//! * While the root is changed ([`rotation`]) every chain can be traced back to the root before, and every
//!   node trusts that one: at each step any two nodes verify each other.
//!
//! * Where an external authority is named for the root ([`external`]), it signs, and what it answers is
//!   checked before anybody gets it.
//!
//! Deliberately absent: revocation lists (a node that is removed is refused because
//! the store no longer has it).

mod admit;
mod creds;
pub(crate) mod external;
mod given;
mod issue;
mod own;
pub(crate) mod rotation;
mod signer;
mod subject;

pub(crate) use admit::{Refused, admit};
pub(crate) use creds::{client_config, server_config};
pub(crate) use given::{GivenRoot, RootRefused};
pub(crate) use issue::{Authority, IssueError, RootCa, Term, new_root};
pub(crate) use own::{CredentialsFile, Needed, OwnCertificate, OwnCertificateError};
pub(crate) use signer::{ExternalFailure, Signer};
pub(crate) use subject::{Subject, validity};
#[cfg(test)]
pub(crate) use subject::{issuer_of, key_id};
