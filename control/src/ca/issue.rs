//! Making certificates: request in, certificate out.

use std::time::Duration;

use rand::Rng;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use swarm_model::{CERTIFICATE_BACKDATE, Cluster, NodeId, Role, Secret, Timestamp};
use time::OffsetDateTime;
use x509_parser::asn1_rs::Tag;
use x509_parser::certificate::X509Certificate;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::X509Name;

use super::subject::{SubjectError, parse, subject_key_id};
use super::{ExternalFailure, Subject, rotation};

/// Largest request that is looked at. A P-256 request with a few names is about 400 bytes.
pub(crate) const MAX_CSR_BYTES: usize = 8 * 1024;

/// Life of a root certificate (swarmkit `ca/certificates.go`).
const ROOT_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// Name of every swarm's root.
const ROOT_NAME: &str = "swarm-ca";

/// Bytes of an uncompressed P-256 point (SEC 1, 2.3.3).
const P256_POINT_BYTES: usize = 65;

/// Bytes of a serial number: at most 20 (RFC 5280, 4.1.2.2), and 159 random bits are plenty.
const SERIAL_BYTES: usize = 20;

/// A root certificate and its private key, PEM.
pub(crate) struct RootCa {
    /// The certificate.
    pub(crate) certificate_pem: String,
    /// The key, PKCS#8; empty where only an external authority has it.
    pub(crate) key_pem: Secret,
}

/// From when to when a certificate is asked to be valid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Term {
    /// The moment of issue.
    pub(crate) now: Timestamp,
    /// How long it is good for.
    pub(crate) life: Duration,
}

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueError {
    /// Larger than [`MAX_CSR_BYTES`].
    #[error("the certificate request is larger than {MAX_CSR_BYTES} bytes")]
    TooLarge,
    /// Not PKCS#10.
    #[error("the certificate request cannot be read: it must be PKCS#10 in DER")]
    Malformed,
    /// Not signed by the key in it.
    #[error("the certificate request is not signed by the key that it carries")]
    Signature,
    /// Not an ECDSA key on P-256.
    #[error("the key in the certificate request is not ECDSA on P-256")]
    Key,
    /// The root's certificate cannot be read.
    #[error("cannot read the swarm's root certificate")]
    RootCertificate(#[source] SubjectError),
    /// The root in the store cannot be used.
    #[error("cannot use the swarm's root certificate")]
    Root(#[source] rcgen::Error),
    /// The certificate could not be signed.
    #[error("cannot sign the certificate")]
    Sign(#[source] rcgen::Error),
    /// A root's name that cannot be written in another certificate.
    #[error(
        "the name in the new root certificate cannot be copied: use one value for each attribute, as \
         UTF8String or PrintableString"
    )]
    RootName,
    /// A moment that no certificate can name.
    #[error("the clock or the certificate life is out of range")]
    Time,
    /// The root's key is nowhere that is known.
    #[error(
        "the swarm has no key of its root, and no external CA is named that has it: name one with \
         `swarmctl swarm update --external-ca`"
    )]
    NoSigner,
    /// No external authority has signed it.
    #[error(transparent)]
    External(#[from] ExternalFailure),
}

impl IssueError {
    /// Whether the request is to blame, rather than this manager.
    pub(crate) fn is_callers_fault(&self) -> bool {
        match self {
            Self::TooLarge | Self::Malformed | Self::Signature | Self::Key | Self::RootName => true,
            Self::Root(_)
            | Self::RootCertificate(_)
            | Self::Sign(_)
            | Self::Time
            | Self::NoSigner
            | Self::External(_) => false,
        }
    }
}

/// Makes the root of a new swarm: ECDSA on P-256, valid for 20 years from `now`. The key is drawn
/// from the system's source of randomness.
pub(crate) fn new_root(now: Timestamp) -> Result<RootCa, IssueError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::Root)?;
    let mut params = CertificateParams::default();
    set_term(
        &mut params,
        Term {
            now,
            life: ROOT_LIFE,
        },
    )?;
    params.distinguished_name = DistinguishedName::new();
    // As authorities that rewrite names write this one: then they can sign it, too (`external`).
    let name = ROOT_NAME.try_into().map_err(IssueError::Root)?;
    let name = DnValue::PrintableString(name);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(IssueError::Root)?;
    Ok(RootCa {
        certificate_pem: certificate.pem(),
        key_pem: key.serialize_pem().into(),
    })
}

/// A swarm's root, ready to sign.
pub(crate) struct Authority {
    /// What follows the certificate itself in a chain.
    tail_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The authority of `cluster`: the new root while it is being changed.
    pub(crate) fn new(cluster: &Cluster) -> Result<Self, IssueError> {
        let key_pem = match &cluster.rotation {
            None => &cluster.root_key_pem,
            Some(rotation) => &rotation.root_key_pem,
        };
        Ok(Self {
            tail_pem: rotation::chain_tail(cluster),
            issuer: issuer(rotation::target(cluster), key_pem)?,
        })
    }

    /// Signs the public key of the request `csr` (PKCS#10, DER) as `subject`'s. Whatever names,
    /// usages and extensions the request asks for are ignored. Gives the chain, leaf first, PEM.
    ///
    /// `rng` draws the serial number.
    pub(crate) fn issue(
        &self,
        csr: &[u8],
        subject: &Subject,
        term: Term,
        rng: &mut impl Rng,
    ) -> Result<String, IssueError> {
        let (key, _) = request_key(csr)?;
        let params = leaf(subject, term, rng)?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(IssueError::Sign)?;
        Ok(certificate.pem() + &self.tail_pem)
    }
}

/// A certificate that `root` has signed, of some node of `cluster` at `now`, DER. Nobody has its key.
pub(super) fn sample(
    cluster: &Cluster,
    root: &RootCa,
    now: Timestamp,
    rng: &mut impl Rng,
) -> Result<CertificateDer<'static>, IssueError> {
    let subject = Subject {
        node_id: NodeId::random(rng),
        role: Role::Worker,
        cluster_id: cluster.id.clone(),
    };
    let life = cluster.spec.certificate_expiry;
    let params = leaf(&subject, Term { now, life }, rng)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IssueError::Sign)?;
    let issuer = issuer(&root.certificate_pem, &root.key_pem)?;
    let signed = params.signed_by(&key, &issuer);
    Ok(signed.map_err(IssueError::Sign)?.der().clone())
}

fn issuer(certificate_pem: &str, key_pem: &Secret) -> Result<Issuer<'static, KeyPair>, IssueError> {
    let key = KeyPair::from_pem(key_pem).map_err(IssueError::Root)?;
    Issuer::from_ca_cert_pem(certificate_pem, key).map_err(IssueError::Root)
}

/// The name and the key of the root `certificate` in a certificate that `cluster`'s root of now has
/// signed; an authority for nodes' certificates, and for no other authority's. Good as long as the new
/// root. Gives PEM. `rng` draws the serial number.
pub(super) fn cross_sign(
    cluster: &Cluster,
    certificate: &X509Certificate<'_>,
    now: Timestamp,
    rng: &mut impl Rng,
) -> Result<String, IssueError> {
    let public = SubjectPublicKeyInfo::from_der(certificate.public_key().raw);
    let public = public.map_err(|_| IssueError::Key)?;
    let mut params = CertificateParams::default();
    let life = Duration::ZERO;
    set_term(&mut params, Term { now, life })?;
    params.not_after = certificate.validity().not_after.to_datetime();
    params.serial_number = Some(serial_number(rng));
    params.distinguished_name = copied(certificate.subject())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    if let Some(id) = subject_key_id(certificate) {
        params.key_identifier_method = KeyIdMethod::PreSpecified(id.to_vec());
    }
    let issuer = issuer(&cluster.root_ca_pem, &cluster.root_key_pem)?;
    let signed = params.signed_by(&public, &issuer);
    let signed = signed.map_err(IssueError::Sign)?;
    // A chain is followed by names, byte for byte.
    let copy = parse(signed.der()).map_err(IssueError::RootCertificate)?;
    if copy.subject().as_raw() != certificate.subject().as_raw() {
        return Err(IssueError::RootName);
    }
    Ok(signed.pem())
}

/// `name`, to be written once more. Refused where it would come out otherwise.
pub(super) fn copied(name: &X509Name<'_>) -> Result<DistinguishedName, IssueError> {
    let mut copy = DistinguishedName::new();
    for part in name.iter() {
        let mut attributes = part.iter();
        let (Some(attribute), None) = (attributes.next(), attributes.next()) else {
            return Err(IssueError::RootName);
        };
        let kind: Option<Vec<u64>> = attribute.attr_type().iter().map(Iterator::collect);
        let kind = DnType::from_oid(&kind.ok_or(IssueError::RootName)?);
        let text = attribute.as_str().map_err(|_| IssueError::RootName)?;
        let value = match attribute.attr_value().tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            Tag::PrintableString => {
                DnValue::PrintableString(text.try_into().map_err(|_| IssueError::RootName)?)
            }
            Tag::Ia5String => {
                DnValue::Ia5String(text.try_into().map_err(|_| IssueError::RootName)?)
            }
            _ => return Err(IssueError::RootName),
        };
        copy.push(kind, value);
    }
    Ok(copy)
}

/// The key of a request whose signature proves that the sender has its private half; and the same in DER.
pub(super) fn request_key(csr: &[u8]) -> Result<(SubjectPublicKeyInfo, Vec<u8>), IssueError> {
    if csr.len() > MAX_CSR_BYTES {
        return Err(IssueError::TooLarge);
    }
    let (rest, request) =
        X509CertificationRequest::from_der(csr).map_err(|_| IssueError::Malformed)?;
    if !rest.is_empty() {
        return Err(IssueError::Malformed);
    }
    let der = request.certification_request_info.subject_pki.raw;
    let key = SubjectPublicKeyInfo::from_der(der).map_err(|_| IssueError::Key)?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT_BYTES {
        return Err(IssueError::Key);
    }
    request
        .verify_signature()
        .map_err(|_| IssueError::Signature)?;
    Ok((key, der.to_vec()))
}

/// The host names in the certificate of `subject`.
pub(super) fn names(subject: &Subject) -> Vec<String> {
    let unit = subject.role.organizational_unit();
    let mut names = vec![subject.node_id.to_string(), unit.to_owned()];
    if subject.role == Role::Manager {
        names.push(ROOT_NAME.to_owned());
        names.push(format!("{unit}.{}", subject.cluster_id));
    }
    names
}

/// Everything in a node's certificate but its key.
fn leaf(
    subject: &Subject,
    term: Term,
    rng: &mut impl Rng,
) -> Result<CertificateParams, IssueError> {
    let mut params = CertificateParams::default();
    set_term(&mut params, term)?;
    params.serial_number = Some(serial_number(rng));
    let unit = subject.role.organizational_unit();
    params.distinguished_name = DistinguishedName::new();
    for (kind, value) in [
        (DnType::CommonName, subject.node_id.as_str()),
        (DnType::OrganizationalUnitName, unit),
        (DnType::OrganizationName, subject.cluster_id.as_str()),
    ] {
        params.distinguished_name.push(kind, value);
    }
    for name in names(subject) {
        let name = name.try_into().map_err(IssueError::Sign)?;
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn serial_number(rng: &mut impl Rng) -> SerialNumber {
    let mut serial = [0; SERIAL_BYTES];
    rng.fill_bytes(&mut serial);
    // A positive integer: the sign bit stays clear, and it is never zero.
    serial[0] = serial[0] & 0x7f | 1;
    SerialNumber::from_slice(&serial)
}

fn set_term(params: &mut CertificateParams, term: Term) -> Result<(), IssueError> {
    let now = i64::try_from(term.now.0 / 1000)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(IssueError::Time)?;
    let span = |length: Duration| time::Duration::try_from(length).map_err(|_| IssueError::Time);
    params.not_before = now
        .checked_sub(span(CERTIFICATE_BACKDATE)?)
        .ok_or(IssueError::Time)?;
    params.not_after = now.checked_add(span(term.life)?).ok_or(IssueError::Time)?;
    Ok(())
}

#[cfg(test)]
mod tests;
