//! A root certificate and key that somebody brings, and what they must be like to be a swarm's.

use std::time::Duration;

use rcgen::{KeyPair, PublicKeyData as _};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use swarm_model::{Secret, Timestamp};

use super::RootCa;
use super::issue::IssueError;
use super::subject::{SubjectError, key_id, parse, validity};

/// Most characters of the certificate's PEM, and of the key's: roots are a few kilobytes.
const PEM_MAX: usize = 16 * 1024;

/// How long a new root must still be good (swarmkit `controlapi/ca_rotation.go`): the swarm does not
/// watch for its end.
const LIFE_MIN: Duration = Duration::from_secs(365 * 24 * 3600);

/// Longest key identifier, in bytes: hashes are shorter.
const KEY_ID_MAX: usize = 64;

/// How often the new root can be changed before a rotation ends.
pub(super) const GIVEN_UP_MAX: usize = 32;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Why a root cannot be a swarm's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootRefused {
    /// One of the two alone.
    #[error(
        "a new root needs both its certificate and its private key, or an external CA that has the key: \
         give --ca-cert with --ca-key or --external-ca"
    )]
    Half,
    /// Larger than [`PEM_MAX`].
    #[error("the root certificate or its key is larger than {PEM_MAX} bytes")]
    TooLarge,
    /// None, or a chain.
    #[error("exactly one root certificate in PEM is needed")]
    Count,
    /// Not PEM.
    #[error("the root certificate is not PEM")]
    Pem(#[source] rustls_pki_types::pem::Error),
    /// Not X.509.
    #[error("cannot read the root certificate")]
    Read(#[from] SubjectError),
    /// It signs nothing.
    #[error(
        "the root certificate is not one of an authority: it needs the basic constraint CA:TRUE and, \
         where it names key usages, keyCertSign"
    )]
    NotAuthority,
    /// Somebody else signed it.
    #[error("the root certificate is not signed with its own key")]
    NotSelfSigned,
    /// Its certificates could not say who signed them.
    #[error(
        "the root certificate has no subject key identifier of at most {KEY_ID_MAX} bytes: make it with \
         `openssl req -x509`, or add subjectKeyIdentifier=hash"
    )]
    NoKeyId,
    /// Not good now, or not for long.
    #[error("the root certificate must be valid now and for {} days more", LIFE_MIN.as_secs() / 86_400)]
    Validity,
    /// Not a key that can sign.
    #[error(
        "cannot read the root's private key: it must be PKCS#8 in PEM and not encrypted, as `openssl pkcs8 \
         -topk8 -nocrypt` writes it; ECDSA on P-256 or P-384, Ed25519 or RSA"
    )]
    Key(#[source] rcgen::Error),
    /// The two do not belong together.
    #[error("the private key is not the root certificate's")]
    OtherKey,
    /// Nothing would change.
    #[error(
        "the new root has the key, or the key identifier, of one that the swarm has: a rotation needs \
         another key"
    )]
    SameKey,
    /// What is known of nodes may be from when they were on their way to it.
    #[error(
        "the swarm was on its way to this root before, and took another one: let this rotation end first, \
         or use a root with another key"
    )]
    GivenUp,
    /// Each is remembered.
    #[error("the new root was changed {GIVEN_UP_MAX} times in one rotation: let it end first")]
    Restless,
    /// An external authority that signs with another root.
    #[error(
        "the external CA {0} is named with a root that is not this swarm's: `swarmctl swarm ca --rotate \
         --ca-cert FILE --external-ca ...` changes the root to its"
    )]
    ExternalCaOfOther(String),
    /// There is no key here that either could be signed with, or a request for it.
    #[error(
        "the keys of the root of now and of the new one are both outside of the swarm, which cannot have one \
         signed by the other: rotate to a root of the swarm's own first (`swarmctl swarm ca --rotate`), and \
         from there to the new one"
    )]
    ExternalToExternal,
    /// It cannot be put to use.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

/// A root that can be a swarm's.
pub(crate) struct GivenRoot(RootCa);

impl GivenRoot {
    /// From what somebody brings, both PEM, at `now`; none where both are empty. `is_external`: an external
    /// authority has the key, which need not be there then.
    pub(crate) fn read(
        certificate_pem: &str,
        key_pem: Secret,
        is_external: bool,
        now: Timestamp,
    ) -> Result<Option<Self>, RootRefused> {
        match (certificate_pem.is_empty(), key_pem.is_empty()) {
            (true, true) if !is_external => return Ok(None),
            (false, false) => {}
            (false, true) if is_external => {}
            _ => return Err(RootRefused::Half),
        }
        if certificate_pem.len() > PEM_MAX || key_pem.len() > PEM_MAX {
            return Err(RootRefused::TooLarge);
        }
        let certificate_pem = only_block(certificate_pem).ok_or(RootRefused::Count)?;
        let der =
            CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(RootRefused::Pem)?;
        let certificate = parse(&der)?;
        let is_ca = matches!(certificate.basic_constraints(), Ok(Some(it)) if it.value.ca);
        let signs = match certificate.key_usage() {
            Ok(usage) => usage.is_none_or(|it| it.value.key_cert_sign()),
            Err(_) => false,
        };
        if !is_ca || !signs {
            return Err(RootRefused::NotAuthority);
        }
        let is_self_issued = certificate.subject() == certificate.issuer();
        if !is_self_issued || certificate.verify_signature(None).is_err() {
            return Err(RootRefused::NotSelfSigned);
        }
        let id = key_id(&der)?;
        if id.is_empty() || id.len() > 2 * KEY_ID_MAX {
            return Err(RootRefused::NoKeyId);
        }
        let validity = validity(&der)?;
        if now < validity.not_before || validity.left(now) < LIFE_MIN {
            return Err(RootRefused::Validity);
        }
        if !key_pem.is_empty() {
            let key = KeyPair::from_pem(&key_pem).map_err(RootRefused::Key)?;
            if key.subject_public_key_info() != certificate.public_key().raw {
                return Err(RootRefused::OtherKey);
            }
        }
        Ok(Some(Self(RootCa {
            certificate_pem,
            key_pem,
        })))
    }

    /// The root.
    pub(crate) fn into_inner(self) -> RootCa {
        self.0
    }
}

/// The one certificate in `text` as every manager keeps it: without what stands around it.
pub(super) fn only_block(text: &str) -> Option<String> {
    let begin = text.find(BEGIN)?;
    let block = &text[begin..];
    let end = block.find(END)? + END.len();
    if block[end..].contains(BEGIN) {
        return None;
    }
    let lines = block[..end].lines().map(str::trim);
    Some(lines.fold(String::new(), |text, line| text + line + "\n"))
}

#[cfg(test)]
#[path = "given/tests.rs"]
mod tests;
