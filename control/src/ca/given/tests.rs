use rcgen::{
    BasicConstraints, CertificateParams, DnType, DnValue, IsCa, Issuer, KeyUsagePurpose,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm,
};
use time::OffsetDateTime;

use super::*;

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const DAY: i64 = 86_400;

/// A root that begins and ends so many days after now.
fn params(from: i64, to: i64) -> CertificateParams {
    let at = |days: i64| OffsetDateTime::from_unix_timestamp(1_800_000_000 + days * DAY).unwrap();
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = (at(from), at(to));
    params.distinguished_name.remove(DnType::CommonName);
    let name = DnValue::PrintableString("Example Root".try_into().unwrap());
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Example");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn key(kind: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(kind).unwrap()
}

fn read(certificate: &str, key: &str) -> Result<Option<GivenRoot>, RootRefused> {
    GivenRoot::read(certificate, key.to_owned().into(), false, NOW)
}

#[test]
fn a_root_is_kept_without_what_stands_around_it() {
    for kind in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &PKCS_ECDSA_P384_SHA384,
        &PKCS_ED25519,
    ] {
        let key = key(kind);
        let pem = params(-1, 400).self_signed(&key).unwrap().pem();
        let written = format!("Subject: CN=x\n{}\n trailing", pem.replace('\n', "\r\n"));
        let root = read(&written, &key.serialize_pem()).unwrap().unwrap();
        assert_eq!(root.into_inner().certificate_pem, pem);
    }
    assert!(read("", "").unwrap().is_none());
}

#[test]
fn what_is_no_root_is_refused_with_the_reason() {
    let own = key(&rcgen::PKCS_ECDSA_P256_SHA256);
    let other = key(&rcgen::PKCS_ECDSA_P256_SHA256);
    let key_pem = own.serialize_pem();
    let good = params(-1, 400).self_signed(&own).unwrap().pem();
    let with = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = params(-1, 400);
        change(&mut params);
        params.self_signed(&own).unwrap().pem()
    };
    let leaf = with(&|it| it.is_ca = IsCa::ExplicitNoCa);
    let signs_nothing = with(&|it| it.key_usages = vec![KeyUsagePurpose::CrlSign]);
    let issuer = Issuer::new(params(-1, 400), &other);
    let foreign = params(-1, 400).signed_by(&own, &issuer).unwrap().pem();
    let no_id = with(&|it| it.is_ca = IsCa::NoCa);
    let text = |certificate: &str, key: &str| match read(certificate, key) {
        Ok(_) => "taken".to_owned(),
        Err(error) => error.to_string(),
    };
    for (certificate, key, why) in [
        (good.as_str(), "", "a new root needs both"),
        ("", &key_pem, "a new root needs both"),
        ("x", &key_pem, "exactly one root certificate"),
        (&key_pem, &key_pem, "exactly one root certificate"),
        (
            &(good.clone() + &good),
            &key_pem,
            "exactly one root certificate",
        ),
        (
            &" ".repeat(PEM_MAX + 1),
            &key_pem,
            "the root certificate or its key is larger",
        ),
        (
            &leaf,
            &key_pem,
            "the root certificate is not one of an authority",
        ),
        (
            &no_id,
            &key_pem,
            "the root certificate is not one of an authority",
        ),
        (
            &signs_nothing,
            &key_pem,
            "the root certificate is not one of an authority",
        ),
        (
            &foreign,
            &key_pem,
            "the root certificate is not signed with its own key",
        ),
        (&good, "x", "cannot read the root's private key"),
        (
            &good,
            &other.serialize_pem(),
            "the private key is not the root certificate's",
        ),
    ] {
        let found = text(certificate, key);
        assert!(found.starts_with(why), "{found} instead of {why}");
    }
    for (from, to) in [(-1, 364), (1, 400), (-400, -1)] {
        let pem = params(from, to).self_signed(&own).unwrap().pem();
        let found = text(&pem, &key_pem);
        assert!(
            found.starts_with("the root certificate must be valid now"),
            "{found}"
        );
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_taken_or_refused(text in "(-----BEGIN CERTIFICATE-----)?[\\PC\n]{0,80}(-----END CERTIFICATE-----)?") {
        let _ = read(&text, "key");
    }

    #[test]
    fn any_bytes_in_pem_are_taken_or_refused(bytes: Vec<u8>, cut in 0..600_usize, at in 0..600_usize) {
        let key = key(&rcgen::PKCS_ECDSA_P256_SHA256);
        let mut der = params(-1, 400).self_signed(&key).unwrap().der().to_vec();
        let (cut, at) = (cut.min(der.len()), at.min(der.len()));
        der.truncate(cut);
        der.splice(at.min(cut).., bytes);
        let pem = pem(&der);
        let _ = read(&pem, &key.serialize_pem());
    }
}

/// `der` as the PEM of a certificate.
fn pem(der: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("{BEGIN}\n");
    for (number, part) in der.chunks(3).enumerate() {
        let bits = part
            .iter()
            .fold(0, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - part.len()));
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) as usize & 63;
            text.push(if digit > part.len() {
                '='
            } else {
                DIGITS[value].into()
            });
        }
        if number % 16 == 15 {
            text.push('\n');
        }
    }
    text + "\n" + END + "\n"
}
