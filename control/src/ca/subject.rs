//! Reading back what a certificate says. Whether it is to be believed is decided by the TLS
//! handshake, before any of this.

use swarm_model::{ClusterId, NodeId, Role, Timestamp, Validity};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::AttributeTypeAndValue;

/// Whom a certificate speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    /// CN.
    pub(crate) node_id: NodeId,
    /// OU.
    pub(crate) role: Role,
    /// O.
    pub(crate) cluster_id: ClusterId,
}

/// A certificate that names no node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SubjectError {
    /// Not X.509.
    #[error("cannot read the certificate")]
    Malformed,
    /// A name is missing, given twice, or not one of a swarm's.
    #[error("the certificate's {0} is not one that a swarm writes")]
    Name(&'static str),
}

impl Subject {
    /// Reads it from a certificate in DER.
    pub(crate) fn from_der(certificate: &[u8]) -> Result<Self, SubjectError> {
        let certificate = parse(certificate)?;
        let name = certificate.subject();
        Ok(Self {
            node_id: only(name.iter_common_name())
                .and_then(|text| text.parse().ok())
                .ok_or(SubjectError::Name("common name"))?,
            role: only(name.iter_organizational_unit())
                .and_then(Role::from_organizational_unit)
                .ok_or(SubjectError::Name("organizational unit"))?,
            cluster_id: only(name.iter_organization())
                .and_then(|text| text.parse().ok())
                .ok_or(SubjectError::Name("organization"))?,
        })
    }
}

/// When the certificate in DER is good.
pub(crate) fn validity(certificate: &[u8]) -> Result<Validity, SubjectError> {
    let certificate = parse(certificate)?;
    let validity = certificate.validity();
    let moment = |seconds: i64| {
        let seconds = u64::try_from(seconds).map_err(|_| SubjectError::Malformed)?;
        Ok(Timestamp(seconds.saturating_mul(1000)))
    };
    Ok(Validity {
        not_before: moment(validity.not_before.timestamp())?,
        not_after: moment(validity.not_after.timestamp())?,
    })
}

/// Who has signed the certificate in DER: the key identifier of that authority, in hexadecimal digits, as
/// it stands in the certificate; empty where it does not.
pub(crate) fn issuer_of(certificate: &[u8]) -> Result<String, SubjectError> {
    let certificate = parse(certificate)?;
    let mut extensions = certificate.extensions().iter();
    let id = extensions.find_map(|it| match it.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref(),
        _ => None,
    });
    Ok(id.map(|id| hexadecimal(id.0)).unwrap_or_default())
}

/// The key identifier of the authority whose certificate in DER this is, in hexadecimal digits: what the
/// certificates that it signs say of their issuer. Empty where it has none.
pub(crate) fn key_id(certificate: &[u8]) -> Result<String, SubjectError> {
    let certificate = parse(certificate)?;
    Ok(subject_key_id(&certificate)
        .map(hexadecimal)
        .unwrap_or_default())
}

/// The subject key identifier of `certificate`, where it has one.
pub(super) fn subject_key_id<'a>(certificate: &X509Certificate<'a>) -> Option<&'a [u8]> {
    let mut extensions = certificate.extensions().iter();
    extensions.find_map(|it| match it.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    })
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn parse(certificate: &[u8]) -> Result<X509Certificate<'_>, SubjectError> {
    let (rest, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| SubjectError::Malformed)?;
    if rest.is_empty() {
        Ok(certificate)
    } else {
        Err(SubjectError::Malformed)
    }
}

/// The text of an attribute that occurs exactly once.
fn only<'a>(mut values: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>) -> Option<&'a str> {
    let first = values.next()?;
    match values.next() {
        None => first.as_str().ok(),
        Some(_) => None,
    }
}
