//! Certificates that an authority outside of the swarm signs, by CFSSL's protocol: who is asked, what for,
//! and whether the answer is what was asked for. Pure; asking is [`super::Signer`].
//!
//! Nothing that comes back is believed. A node gets a certificate that has its key and the names that the
//! swarm decided on and no others, that the swarm's root has signed, that every other node will take, and
//! that is good now: whatever else an authority answers is an error with words.
//!
//! Deliberately absent: authorities between the root and nodes' certificates, tokens of CFSSL's
//! `authsign`, its labels.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::Rng;
use rcgen::{CertificateParams, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};
use swarm_model::{
    CERTIFICATE_BACKDATE, Cluster, ExternalCa, MAX_CERTIFICATE_EXPIRY, MIN_CERTIFICATE_EXPIRY,
    Timestamp,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::creds::{CredentialsError, provider, roots};
use super::given::{RootRefused, only_block};
use super::issue::{IssueError, RootCa, copied, names, request_key, sample};
use super::subject::{SubjectError, issuer_of, key_id, parse, validity};
use super::{Subject, rotation};

/// Largest answer that is read (swarmkit `ca/external.go`): a certificate is about a kilobyte.
pub(super) const MAX_ANSWER_BYTES: usize = 256 * 1024;

/// The profile that the authority is to sign another root with (swarmkit `ca/external.go`).
const CROSS_SIGNING_PROFILE: &str = "CA";

/// How long a node's certificate must still be good when it comes. Nodes take the first hour of its life for
/// time that had passed when it was made, as in those of the swarm's own: the rest is to be as long as the
/// shortest life of one of these.
const NODE_LIFE_MIN: Duration = CERTIFICATE_BACKDATE.saturating_add(MIN_CERTIFICATE_EXPIRY);

/// How long another root that was signed must still be good: until the swarm has changed over to it.
const CROSS_SIGNED_LIFE_MIN: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long at most: as long as the oldest roots are.
const CROSS_SIGNED_LIFE_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Most characters of an authority's own words that are repeated.
const MAX_QUOTED_CHARS: usize = 200;

/// What is wrong with an authority's answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadAnswer {
    /// Larger than [`MAX_ANSWER_BYTES`].
    #[error("its answer is larger than {MAX_ANSWER_BYTES} bytes")]
    TooLarge,
    /// A web page, half of an answer, or something else.
    #[error(
        "its answer, HTTP status {0}, is not CFSSL's: the URL of a CFSSL server ends in /api/v1/cfssl/sign"
    )]
    Protocol(u16),
    /// It says no.
    #[error("it refuses to sign: {0}")]
    Refused(String),
    /// Success without a certificate, or with several.
    #[error("its answer does not hold exactly one certificate")]
    Count,
    /// Not PEM.
    #[error("its certificate is not PEM")]
    Pem(#[source] rustls_pki_types::pem::Error),
    /// Not X.509, or without the names that every node's has.
    #[error("its certificate cannot be a node's")]
    Read(#[from] SubjectError),
    /// Another key than the request's.
    #[error("its certificate has another key than the one that was sent")]
    Key,
    /// Another subject than was asked for.
    #[error("its certificate has another subject than was asked for")]
    Subject,
    /// Other host names than were asked for.
    #[error("its certificate has other subject alternative names than were asked for")]
    Names,
    /// It could sign others.
    #[error("its certificate is one of an authority: a node's must not be")]
    Authority,
    /// It cannot sign others.
    #[error(
        "its certificate is not one of an authority: its profile {CROSS_SIGNING_PROFILE:?} must have is_ca \
         and the usage \"cert sign\""
    )]
    NoAuthority,
    /// It is not for both ends of a connection.
    #[error(
        "its certificate lacks a usage: its profile must have \"digital signature\", \"server auth\" and \
         \"client auth\""
    )]
    Usage,
    /// Another root's.
    #[error("its certificate is not signed by the swarm's root itself")]
    Root,
    /// Not good now, or not for long, or for ever.
    #[error(
        "its certificate must be valid now, and for {} to {} minutes more: check its clock and the expiry \
         in its profile", .min.as_secs() / 60, .max.as_secs() / 60
    )]
    Validity {
        /// At least.
        min: Duration,
        /// At most.
        max: Duration,
    },
    /// Who checks certificates does not take it.
    #[error("its certificate would be refused by other nodes")]
    Verify(#[source] rustls::Error),
    /// The root is none that certificates can be checked with.
    #[error(transparent)]
    Check(#[from] CredentialsError),
}

/// The external authorities that sign for `cluster`, in the order in which they are asked; none when a
/// manager signs itself. They come before a key that the swarm has (Docker does the same).
pub(super) fn asked(cluster: &Cluster) -> Result<Option<Vec<ExternalCa>>, IssueError> {
    let key = match &cluster.rotation {
        None => &cluster.root_key_pem,
        Some(rotation) => &rotation.root_key_pem,
    };
    let found = of_root(cluster, rotation::target(cluster));
    if !found.is_empty() {
        return Ok(Some(found));
    }
    if key.is_empty() {
        return Err(IssueError::NoSigner);
    }
    Ok(None)
}

/// The external authorities of `cluster` that sign with the root `root_pem`.
pub(super) fn of_root(cluster: &Cluster, root_pem: &str) -> Vec<ExternalCa> {
    let all = cluster.spec.external_cas.iter();
    all.filter(|ca| ca.root_ca_pem == root_pem)
        .cloned()
        .collect()
}

/// `cas` as they are kept: with their roots, which are `default` where they have none, as the swarm writes
/// them. Refused where a root is not one of `roots`.
pub(crate) fn named(
    cas: Vec<ExternalCa>,
    default: &str,
    roots: &[&str],
) -> Result<Vec<ExternalCa>, RootRefused> {
    let named = cas.into_iter().map(|ca| {
        let root_ca_pem = match &*ca.root_ca_pem {
            "" => default.to_owned(),
            text => only_block(text).ok_or(RootRefused::Count)?,
        };
        if roots.contains(&&*root_ca_pem) {
            Ok(ExternalCa { root_ca_pem, ..ca })
        } else {
            Err(RootRefused::ExternalCaOfOther(ca.url))
        }
    });
    named.collect()
}

/// Whether somebody signs for every root of `cluster` that new certificates depend on.
pub(crate) fn is_signed_for(cluster: &Cluster) -> bool {
    let is_signed = |root: &str, has_key: bool| has_key || !of_root(cluster, root).is_empty();
    let rotation = cluster.rotation.as_ref();
    is_signed(&cluster.root_ca_pem, !cluster.root_key_pem.is_empty())
        && rotation.is_none_or(|it| is_signed(&it.root_ca_pem, !it.root_key_pem.is_empty()))
}

/// A certificate that is asked for.
#[derive(Debug)]
pub(crate) struct Wanted {
    csr: Vec<u8>,
    /// Its public key, DER.
    key: Vec<u8>,
    /// Who is to sign it, PEM.
    root_pem: String,
    whose: Whose,
}

/// Whose certificate it is to be.
#[derive(Debug)]
enum Whose {
    /// A node's, with its host names.
    Node(Subject, Vec<String>),
    /// That of the swarm's next root, with its name in DER, and a certificate that this one has signed.
    Root(Vec<u8>, CertificateDer<'static>),
}

#[derive(Serialize)]
struct Request<'a> {
    certificate_request: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<RequestSubject<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    hosts: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    profile: &'static str,
}

#[derive(Serialize)]
struct RequestSubject<'a> {
    #[serde(rename = "CN")]
    common_name: &'a str,
    names: [RequestName<'a>; 1],
}

#[derive(Serialize)]
struct RequestName<'a> {
    #[serde(rename = "OU")]
    unit: &'a str,
    #[serde(rename = "O")]
    organization: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    success: bool,
    result: Option<Signed>,
    errors: Option<Vec<Message>>,
}

#[derive(Deserialize)]
struct Signed {
    certificate: String,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
}

impl Wanted {
    /// `subject`'s certificate of the root that `cluster` signs with now, for the key of the request `csr`
    /// (PKCS#10, DER), of which nothing else is used.
    pub(crate) fn node(
        cluster: &Cluster,
        csr: &[u8],
        subject: &Subject,
    ) -> Result<Self, IssueError> {
        let (_, key) = request_key(csr)?;
        Ok(Self {
            csr: csr.to_vec(),
            key,
            root_pem: rotation::target(cluster).to_owned(),
            whose: Whose::Node(subject.clone(), names(subject)),
        })
    }

    /// Name and key of the new root `root` in a certificate that the root of now of `cluster` signs.
    /// `now` and `rng` are for a certificate that is only used to see whether others would take its like.
    pub(super) fn root(
        cluster: &Cluster,
        root: &RootCa,
        now: Timestamp,
        rng: &mut impl Rng,
    ) -> Result<Self, IssueError> {
        let der = CertificateDer::from_pem_slice(root.certificate_pem.as_bytes());
        let der = der.map_err(|_| IssueError::RootCertificate(SubjectError::Malformed))?;
        let certificate = parse(&der).map_err(IssueError::RootCertificate)?;
        let key = KeyPair::from_pem(&root.key_pem).map_err(IssueError::Root)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = copied(certificate.subject())?;
        let csr = params.serialize_request(&key).map_err(IssueError::Root)?;
        Ok(Self {
            csr: csr.der().to_vec(),
            key: certificate.public_key().raw.to_vec(),
            root_pem: cluster.root_ca_pem.clone(),
            whose: Whose::Root(
                certificate.subject().as_raw().to_vec(),
                sample(cluster, root, now, rng)?,
            ),
        })
    }

    /// What the authority is sent, JSON.
    pub(super) fn request(&self) -> String {
        let (subject, hosts, profile) = match &self.whose {
            Whose::Node(subject, names) => {
                let name = RequestName {
                    unit: subject.role.organizational_unit(),
                    organization: subject.cluster_id.as_str(),
                };
                let subject = RequestSubject {
                    common_name: subject.node_id.as_str(),
                    names: [name],
                };
                (Some(subject), names.as_slice(), "")
            }
            // Its name is taken from the request: it must come out byte for byte.
            Whose::Root(..) => (None, [].as_slice(), CROSS_SIGNING_PROFILE),
        };
        let request = Request {
            certificate_request: pem("CERTIFICATE REQUEST", &self.csr),
            subject,
            hosts,
            profile,
        };
        // Text and lists of text: nothing that JSON has no form for.
        serde_json::to_string(&request).unwrap_or_default()
    }

    /// The certificate in `answer`, which came with the HTTP status `status` at `now`: PEM, and how long it
    /// is good from then.
    pub(crate) fn read(
        &self,
        status: u16,
        answer: &[u8],
        now: Timestamp,
    ) -> Result<(String, Duration), BadAnswer> {
        if answer.len() > MAX_ANSWER_BYTES {
            return Err(BadAnswer::TooLarge);
        }
        let answer: Answer =
            serde_json::from_slice(answer).map_err(|_| BadAnswer::Protocol(status))?;
        let signed = match (answer.success, answer.result) {
            (true, Some(signed)) => signed,
            (true, None) => return Err(BadAnswer::Count),
            (false, _) => return Err(BadAnswer::Refused(words(answer.errors))),
        };
        let block = only_block(&signed.certificate).ok_or(BadAnswer::Count)?;
        let der = CertificateDer::from_pem_slice(block.as_bytes()).map_err(BadAnswer::Pem)?;
        let left = self.check(&der, now)?;
        Ok((pem("CERTIFICATE", &der), left))
    }

    fn check(&self, der: &CertificateDer<'_>, now: Timestamp) -> Result<Duration, BadAnswer> {
        let certificate = parse(der)?;
        if certificate.public_key().raw != self.key {
            return Err(BadAnswer::Key);
        }
        let root = CertificateDer::from_pem_slice(self.root_pem.as_bytes());
        let root = root.map_err(CredentialsError::Pem)?;
        // Not yet a proof, but told in plain words; and by this a rotation knows who has a certificate of
        // which root.
        if issuer_of(der)? != key_id(&root)? {
            return Err(BadAnswer::Root);
        }
        let is_ca = matches!(certificate.basic_constraints(), Ok(Some(it)) if it.value.ca);
        let (min, max) = match &self.whose {
            Whose::Node(subject, names) => {
                if Subject::from_der(der)? != *subject {
                    return Err(BadAnswer::Subject);
                }
                if is_ca {
                    return Err(BadAnswer::Authority);
                }
                if !has_names(&certificate, names) {
                    return Err(BadAnswer::Names);
                }
                if !has_node_usages(&certificate) {
                    return Err(BadAnswer::Usage);
                }
                (NODE_LIFE_MIN, MAX_CERTIFICATE_EXPIRY)
            }
            Whose::Root(name, _) => {
                if certificate.subject().as_raw() != name {
                    return Err(BadAnswer::Subject);
                }
                let signs = match certificate.key_usage() {
                    Ok(usage) => usage.is_none_or(|it| it.value.key_cert_sign()),
                    Err(_) => false,
                };
                if !is_ca || !signs {
                    return Err(BadAnswer::NoAuthority);
                }
                (CROSS_SIGNED_LIFE_MIN, CROSS_SIGNED_LIFE_MAX)
            }
        };
        let good = validity(der)?;
        let left = good.left(now);
        if now < good.not_before || left < min || left > max {
            return Err(BadAnswer::Validity { min, max });
        }
        match &self.whose {
            Whose::Node(..) => verify(der, &[], &self.root_pem, now)?,
            Whose::Root(_, sample) => {
                verify(sample, std::slice::from_ref(der), &self.root_pem, now)?;
            }
        }
        Ok(left)
    }
}

/// What everybody will do who trusts `roots_pem` and is shown the certificate `der` with what is `between`.
pub(super) fn verify(
    der: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    roots_pem: &str,
    now: Timestamp,
) -> Result<(), BadAnswer> {
    let roots = roots(roots_pem)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider())
        .build()
        .map_err(|error| CredentialsError::Root(error.into()))?;
    let now = UnixTime::since_unix_epoch(Duration::from_millis(now.0));
    let verified = verifier.verify_client_cert(der, between, now);
    verified.map(drop).map_err(BadAnswer::Verify)
}

/// Whether just these are the names that hosts are found by.
fn has_names(certificate: &X509Certificate<'_>, names: &[String]) -> bool {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return false;
    };
    let found = &extension.value.general_names;
    let texts = found.iter().map(|name| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    });
    let texts: Option<BTreeSet<&str>> = texts.collect();
    texts == Some(names.iter().map(String::as_str).collect())
}

fn has_node_usages(certificate: &X509Certificate<'_>) -> bool {
    let (Ok(usage), Ok(extended)) = (certificate.key_usage(), certificate.extended_key_usage())
    else {
        return false;
    };
    usage.is_none_or(|it| it.value.digital_signature())
        && extended.is_none_or(|it| it.value.any || (it.value.server_auth && it.value.client_auth))
}

/// An authority's own words, for a line of a log.
fn words(errors: Option<Vec<Message>>) -> String {
    let Some(Message { code, message }) = errors.into_iter().flatten().next() else {
        return "it does not say why".to_owned();
    };
    let plain = message
        .chars()
        .map(|it| if it.is_control() { ' ' } else { it });
    let text: String = plain.take(MAX_QUOTED_CHARS).collect();
    format!("{text:?} (code {code})")
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII. Lines are of 64 characters (RFC 7468).
        let (line, next) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = next;
    }
    pem + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests;
