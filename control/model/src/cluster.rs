//! Which settings of a whole swarm are valid.

use std::time::Duration;

use crate::{ClusterSpec, ExternalCa, MAX_CERTIFICATE_EXPIRY, MIN_CERTIFICATE_EXPIRY};

/// Most ended tasks kept per slot: each is an object in every manager's memory.
const MAX_TASK_HISTORY: u64 = 100;

/// Most external authorities: a certificate that is asked for in vain asks them all.
const MAX_EXTERNAL_CAS: usize = 8;

/// Longest URL of one, in bytes.
const MAX_URL_BYTES: usize = 512;

/// Longest root certificate of one, in bytes of PEM.
const MAX_ROOT_BYTES: usize = 16 * 1024;

/// What every URL of one begins with.
const SCHEME: &str = "https://";

/// What is wrong with a swarm's settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCluster {
    /// Certificates that end too soon or too late.
    #[error(
        "certificates can be given a life from {} minutes to {} days, not {:?}",
        MIN_CERTIFICATE_EXPIRY.as_secs() / 60, MAX_CERTIFICATE_EXPIRY.as_secs() / 86_400, .0
    )]
    CertificateExpiry(Duration),
    /// Too many ended tasks to keep.
    #[error("{0} ended tasks are more than the {MAX_TASK_HISTORY} that can be kept of a slot")]
    TaskHistory(u64),
    /// Too many external authorities.
    #[error("{0} external CAs are more than the {MAX_EXTERNAL_CAS} that there can be")]
    ExternalCas(usize),
    /// A URL that requests cannot be sent to.
    #[error(
        "an external CA's URL must be https://HOST[:PORT]/PATH, without spaces or user name, of at most \
         {MAX_URL_BYTES} bytes; a CFSSL server's is https://HOST:8888/api/v1/cfssl/sign"
    )]
    ExternalCaUrl,
    /// A root certificate that is none.
    #[error("an external CA needs its root certificate, of at most {MAX_ROOT_BYTES} bytes of PEM")]
    ExternalCaRoot,
}

/// Whether `spec` can be a swarm's.
pub fn validate_cluster(spec: &ClusterSpec) -> Result<(), InvalidCluster> {
    if !(MIN_CERTIFICATE_EXPIRY..=MAX_CERTIFICATE_EXPIRY).contains(&spec.certificate_expiry) {
        return Err(InvalidCluster::CertificateExpiry(spec.certificate_expiry));
    }
    if spec.task_history_limit > MAX_TASK_HISTORY {
        return Err(InvalidCluster::TaskHistory(spec.task_history_limit));
    }
    if spec.external_cas.len() > MAX_EXTERNAL_CAS {
        return Err(InvalidCluster::ExternalCas(spec.external_cas.len()));
    }
    spec.external_cas.iter().try_for_each(validate_external_ca)
}

fn validate_external_ca(ca: &ExternalCa) -> Result<(), InvalidCluster> {
    let ExternalCa { url, root_ca_pem } = ca;
    let authority = url
        .strip_prefix(SCHEME)
        .and_then(|rest| rest.split(['/', '?', '#']).next());
    let is_plain = url.len() <= MAX_URL_BYTES && url.bytes().all(|byte| byte.is_ascii_graphic());
    let names_host = authority.is_some_and(|it| {
        !it.is_empty() && !it.starts_with(':') && !it.contains('@') && !it.contains('\\')
    });
    if !is_plain || !names_host {
        return Err(InvalidCluster::ExternalCaUrl);
    }
    if root_ca_pem.is_empty() || root_ca_pem.len() > MAX_ROOT_BYTES {
        return Err(InvalidCluster::ExternalCaRoot);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_live_from_thirty_minutes_to_ten_years() {
        let spec = |certificate_expiry| ClusterSpec {
            certificate_expiry,
            ..ClusterSpec::default()
        };
        let (minute, day) = (Duration::from_secs(60), Duration::from_secs(86_400));
        assert_eq!(validate_cluster(&ClusterSpec::default()), Ok(()));
        for good in [30 * minute, 60 * minute, 90 * day, 3650 * day] {
            assert_eq!(validate_cluster(&spec(good)), Ok(()), "{good:?}");
        }
        for bad in [
            Duration::ZERO,
            30 * minute - Duration::from_millis(1),
            3651 * day,
        ] {
            let error = InvalidCluster::CertificateExpiry(bad);
            assert_eq!(validate_cluster(&spec(bad)), Err(error), "{bad:?}");
        }
        let error = validate_cluster(&spec(minute)).map_err(|error| error.to_string());
        let text = "certificates can be given a life from 30 minutes to 3650 days, not 60s";
        assert_eq!(error, Err(text.to_owned()));
    }

    #[test]
    fn external_authorities_are_few_and_have_urls_and_roots() {
        let ca = |url: &str, root: &str| ExternalCa {
            url: url.to_owned(),
            root_ca_pem: root.to_owned(),
        };
        let valid = |external_cas| {
            validate_cluster(&ClusterSpec {
                external_cas,
                ..ClusterSpec::default()
            })
        };
        let good = ca("https://ca.example.com:8888/api/v1/cfssl/sign", "root");
        assert_eq!(valid(vec![good.clone(); 8]), Ok(()));
        assert_eq!(
            valid(vec![ca("https://[2001:db8::1]:8888/", "root")]),
            Ok(())
        );
        let error = InvalidCluster::ExternalCas(9);
        assert_eq!(valid(vec![good.clone(); 9]), Err(error));
        for url in [
            "",
            "http://ca/sign",
            "https://",
            "https:///sign",
            "https://:8888/sign",
            "https://user:word@ca/sign",
            "https://ca/a b",
            "https://ca/\u{e4}",
            "https://a\\b/",
            &format!("https://{}", "a".repeat(505)),
        ] {
            let found = valid(vec![good.clone(), ca(url, "root")]);
            assert_eq!(found, Err(InvalidCluster::ExternalCaUrl), "{url}");
        }
        for root in ["", &"a".repeat(MAX_ROOT_BYTES + 1)] {
            let found = valid(vec![ca(&good.url, root)]);
            assert_eq!(found, Err(InvalidCluster::ExternalCaRoot));
        }
    }

    #[test]
    fn the_history_of_a_slot_is_bounded() {
        let spec = |task_history_limit| ClusterSpec {
            task_history_limit,
            ..ClusterSpec::default()
        };
        assert_eq!(validate_cluster(&spec(0)), Ok(()));
        assert_eq!(validate_cluster(&spec(100)), Ok(()));
        assert_eq!(
            validate_cluster(&spec(101)),
            Err(InvalidCluster::TaskHistory(101))
        );
    }
}
