use proptest::collection::vec;
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, SanType, SubjectPublicKeyInfo,
};
use serde_json::json;
use swarm_model::{ClusterId, NodeId, Role};
use time::OffsetDateTime;

use super::super::new_root;
use super::*;
use crate::store::testing;

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const HOUR: i64 = 3600;
const URL: &str = "https://ca.example.com:8888/api/v1/cfssl/sign";

/// A swarm whose root's key is its external authority's, and that root.
fn swarm() -> (Cluster, RootCa) {
    let root = new_root(NOW).unwrap();
    let mut cluster = testing::cluster(1);
    cluster.root_ca_pem = root.certificate_pem.clone();
    cluster.root_key_pem = String::new().into();
    cluster.spec.external_cas = vec![ca(URL, &root.certificate_pem)];
    (cluster, root)
}

fn ca(url: &str, root: &str) -> ExternalCa {
    ExternalCa {
        url: url.to_owned(),
        root_ca_pem: root.to_owned(),
    }
}

fn subject(cluster: &Cluster, role: Role) -> Subject {
    Subject {
        node_id: NodeId::random(&mut StdRng::seed_from_u64(1)),
        role,
        cluster_id: cluster.id.clone(),
    }
}

fn csr() -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::default().serialize_request(&key);
    request.unwrap().der().to_vec()
}

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000 + seconds).unwrap()
}

/// What an authority signs that does as it is asked.
fn asked_for(wanted: &Wanted) -> CertificateParams {
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = (at(-300), at(90 * 24 * HOUR));
    params.use_authority_key_identifier_extension = true;
    match &wanted.whose {
        Whose::Node(subject, names) => {
            params.distinguished_name = name(
                subject.node_id.as_str(),
                subject.role.organizational_unit(),
                subject.cluster_id.as_str(),
            );
            params.subject_alt_names = names.iter().map(|name| dns(name)).collect();
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ];
        }
        Whose::Root(..) => {
            params.distinguished_name = DistinguishedName::new();
            let name = rcgen::DnValue::PrintableString("swarm-ca".try_into().unwrap());
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        }
    }
    params
}

/// In the order in which Go writes them.
fn name(node: &str, unit: &str, cluster: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, cluster);
    name.push(DnType::OrganizationalUnitName, unit);
    name.push(DnType::CommonName, node);
    name
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

/// `params` with the key in DER `key`, signed with `root`: PEM.
fn signed(params: &CertificateParams, key: &[u8], root: &RootCa) -> String {
    let signer = KeyPair::from_pem(&root.key_pem).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&root.certificate_pem, signer).unwrap();
    let key = SubjectPublicKeyInfo::from_der(key).unwrap();
    params.signed_by(&key, &issuer).unwrap().pem()
}

/// A root that says that it is `root`, and has another key.
fn forged(root: &RootCa) -> RootCa {
    let der = CertificateDer::from_pem_slice(root.certificate_pem.as_bytes()).unwrap();
    let id = super::super::subject::subject_key_id(&parse(&der).unwrap())
        .unwrap()
        .to_vec();
    let mut params = CertificateParams::default();
    params.distinguished_name = copied(parse(&der).unwrap().subject()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(id);
    let key = KeyPair::generate().unwrap();
    RootCa {
        certificate_pem: params.self_signed(&key).unwrap().pem(),
        key_pem: key.serialize_pem().into(),
    }
}

fn answer(certificate: &str) -> Vec<u8> {
    let answer = json!({
        "success": true,
        "result": {"certificate": certificate},
        "errors": [],
        "messages": [],
    });
    answer.to_string().into_bytes()
}

#[test]
fn a_request_is_what_cfssl_reads() {
    let (cluster, _) = swarm();
    let subject = subject(&cluster, Role::Manager);
    let csr = csr();
    let wanted = Wanted::node(&cluster, &csr, &subject).unwrap();
    let request: serde_json::Value = serde_json::from_str(&wanted.request()).unwrap();
    let node = subject.node_id.as_str();
    let names = json!([{"OU": "swarm-manager", "O": cluster.id.as_str()}]);
    let manager = format!("swarm-manager.{}", cluster.id);
    let mut expected = json!({
        "certificate_request": request["certificate_request"],
        "subject": {"CN": node, "names": names},
        "hosts": [node, "swarm-manager", "swarm-ca", manager],
    });
    assert_eq!(request, expected);
    let pem = request["certificate_request"].as_str().unwrap();
    assert!(pem.lines().all(|line| line.len() <= 64), "{pem}");
    let der = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(pem.as_bytes());
    assert_eq!(&*der.unwrap(), &csr[..]);

    let root = new_root(NOW).unwrap();
    let wanted = Wanted::root(&cluster, &root, NOW, &mut rand::rng()).unwrap();
    let request: serde_json::Value = serde_json::from_str(&wanted.request()).unwrap();
    expected = json!({
        "certificate_request": request["certificate_request"],
        "profile": "CA",
    });
    assert_eq!(request, expected);
}

#[test]
fn a_certificate_that_was_asked_for_is_taken() {
    let (cluster, root) = swarm();
    for role in [Role::Worker, Role::Manager] {
        let wanted = Wanted::node(&cluster, &csr(), &subject(&cluster, role)).unwrap();
        let pem = signed(&asked_for(&wanted), &wanted.key, &root);
        let taken = wanted.read(200, &answer(&pem), NOW).unwrap();
        let life = Duration::from_secs(90 * 24 * 3600);
        assert_eq!(taken, (pem, life));
    }
}

/// Why `body` is not taken; `taken` if it is.
fn why(wanted: &Wanted, status: u16, body: &[u8]) -> String {
    match wanted.read(status, body, NOW) {
        Ok(_) => "taken".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_no_answer_of_cfssls_is_refused_in_words() {
    let (cluster, root) = swarm();
    let wanted = Wanted::node(&cluster, &csr(), &subject(&cluster, Role::Worker)).unwrap();
    let pem = signed(&asked_for(&wanted), &wanted.key, &root);
    let good = answer(&pem);
    let protocol = |status: u16| {
        format!(
            "its answer, HTTP status {status}, is not CFSSL's: the URL of a CFSSL server ends in \
             /api/v1/cfssl/sign"
        )
    };
    let refusal = json!({
        "success": false,
        "result": null,
        "errors": [{"code": 5200, "message": format!("no\n\u{1b}[31m{}", "x".repeat(999))}],
    });
    let refused = format!(
        "it refuses to sign: \"no  [31m{}\" (code 5200)",
        "x".repeat(192)
    );
    let count = "its answer does not hold exactly one certificate";
    let large = [&good[..], &vec![b' '; MAX_ANSWER_BYTES]].concat();
    for (status, body, expected) in [
        (
            200,
            large,
            "its answer is larger than 262144 bytes".to_owned(),
        ),
        (
            404,
            b"<html><body>404</body></html>".to_vec(),
            protocol(404),
        ),
        (200, good[..good.len() - 1].to_vec(), protocol(200)),
        (200, Vec::new(), protocol(200)),
        (200, b"{}".to_vec(), protocol(200)),
        (200, "[".repeat(10_000).into_bytes(), protocol(200)),
        (400, refusal.to_string().into_bytes(), refused),
        (
            400,
            br#"{"success":false,"result":null,"errors":null}"#.to_vec(),
            "it refuses to sign: it does not say why".to_owned(),
        ),
        (
            200,
            br#"{"success":true,"result":null}"#.to_vec(),
            count.to_owned(),
        ),
        (200, answer(""), count.to_owned()),
        (200, answer(&(pem.clone() + &pem)), count.to_owned()),
        (
            200,
            answer("-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n"),
            "its certificate is not PEM".to_owned(),
        ),
        (
            200,
            answer("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            "its certificate cannot be a node's".to_owned(),
        ),
    ] {
        let found = why(&wanted, status, &body);
        assert_eq!(found, expected);
    }
}

#[test]
fn a_certificate_that_was_not_asked_for_is_refused_in_words() {
    let (cluster, root) = swarm();
    let subject = subject(&cluster, Role::Worker);
    let wanted = Wanted::node(&cluster, &csr(), &subject).unwrap();
    let (node, cluster_id) = (subject.node_id.as_str(), cluster.id.as_str());
    let other_id = NodeId::random(&mut StdRng::seed_from_u64(2));
    let other_cluster = ClusterId::random(&mut StdRng::seed_from_u64(2));
    let other_root = new_root(NOW).unwrap();
    let other_key = Wanted::node(&cluster, &csr(), &subject).unwrap().key;
    type Change<'a> = &'a dyn Fn(&mut CertificateParams);
    let changed = |change: Change<'_>| {
        let mut params = asked_for(&wanted);
        change(&mut params);
        answer(&signed(&params, &wanted.key, &root))
    };
    let lasting =
        |from: i64, to: i64| changed(&move |it| (it.not_before, it.not_after) = (at(from), at(to)));
    let good = asked_for(&wanted);
    let subject_of_other = "its certificate has another subject than was asked for";
    let names = "its certificate has other subject alternative names";
    let usage = "its certificate lacks a usage";
    let validity = "its certificate must be valid now, and for 90 to 5256000 minutes more";
    for (number, (body, expected)) in [
        (
            answer(&signed(&good, &other_key, &root)),
            "its certificate has another key",
        ),
        (
            answer(&signed(&good, &wanted.key, &forged(&root))),
            "its certificate would be refused by other nodes",
        ),
        (
            answer(&signed(&good, &wanted.key, &other_root)),
            "its certificate is not signed by",
        ),
        (
            changed(&|it| {
                it.distinguished_name = name(other_id.as_str(), "swarm-worker", cluster_id)
            }),
            subject_of_other,
        ),
        (
            changed(&|it| it.distinguished_name = name(node, "swarm-manager", cluster_id)),
            subject_of_other,
        ),
        (
            changed(&|it| {
                it.distinguished_name = name(node, "swarm-worker", other_cluster.as_str());
            }),
            subject_of_other,
        ),
        (
            changed(&|it| it.distinguished_name = DistinguishedName::new()),
            "its certificate cannot be a node's",
        ),
        (
            changed(&|it| it.subject_alt_names.push(dns("swarm-manager"))),
            names,
        ),
        (changed(&|it| drop(it.subject_alt_names.pop())), names),
        (changed(&|it| it.subject_alt_names.clear()), names),
        (
            changed(&|it| {
                it.subject_alt_names
                    .push(SanType::IpAddress([10, 0, 0, 1].into()))
            }),
            names,
        ),
        (
            changed(&|it| it.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            "its certificate is one of an authority",
        ),
        (changed(&|it| drop(it.extended_key_usages.pop())), usage),
        (
            changed(&|it| it.key_usages = vec![KeyUsagePurpose::KeyAgreement]),
            usage,
        ),
        (
            changed(&|it| it.use_authority_key_identifier_extension = false),
            "its certificate is not signed by",
        ),
        (lasting(-HOUR, -1), validity),
        (lasting(60, 90 * 24 * HOUR), validity),
        (lasting(-300, 90 * 60 - 1), validity),
        (lasting(-300, 3651 * 24 * HOUR), validity),
        (
            changed(&|it| {
                let mut critical = rcgen::CustomExtension::from_oid_content(&[1, 2, 3], vec![5, 0]);
                critical.set_criticality(true);
                it.custom_extensions.push(critical);
            }),
            "its certificate would be refused by other nodes",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let found = why(&wanted, 200, &body);
        assert!(
            found.starts_with(expected),
            "{number}: {found} instead of {expected}"
        );
    }
    assert_eq!(why(&wanted, 200, &lasting(-300, 90 * 60)), "taken");
}

#[test]
fn another_root_is_cross_signed_as_it_is_or_not_at_all() {
    let (cluster, root) = swarm();
    let next = new_root(NOW).unwrap();
    let wanted = Wanted::root(&cluster, &next, NOW, &mut rand::rng()).unwrap();
    let pem = signed(&asked_for(&wanted), &wanted.key, &root);
    let (taken, _) = wanted.read(200, &answer(&pem), NOW).unwrap();
    let new = rotation::NewRoot {
        root: next,
        external_cas: Vec::new(),
        cross_signed_pem: Some(taken.clone()),
    };
    let rotated = rotation::begin(&cluster, new, NOW, &mut rand::rng()).unwrap();
    // A certificate of the new root is one for who trusts the old one alone.
    let subject = subject(&cluster, Role::Worker);
    let term = super::super::Term {
        now: NOW,
        life: Duration::from_secs(3600),
    };
    let authority = super::super::Authority::new(&rotated).unwrap();
    let chain = authority
        .issue(&csr(), &subject, term, &mut rand::rng())
        .unwrap();
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .unwrap();
    verify(&chain[0], &chain[1..], &cluster.root_ca_pem, NOW).unwrap();
    assert!(verify(&chain[0], &[], &cluster.root_ca_pem, NOW).is_err());

    let changed = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = asked_for(&wanted);
        change(&mut params);
        why(&wanted, 200, &answer(&signed(&params, &wanted.key, &root)))
    };
    let of_forger = signed(&asked_for(&wanted), &wanted.key, &forged(&root));
    let other = signed(&asked_for(&wanted), &wanted.key, &new_root(NOW).unwrap());
    for (found, expected) in [
        (
            why(&wanted, 200, &answer(&of_forger)),
            "its certificate would be refused by other nodes",
        ),
        (
            why(&wanted, 200, &answer(&other)),
            "its certificate is not signed by",
        ),
        (
            // The same name in another form: a chain is followed byte for byte.
            changed(&|it| it.distinguished_name.push(DnType::CommonName, "swarm-ca")),
            "its certificate has another subject",
        ),
        (
            changed(&|it| it.is_ca = IsCa::ExplicitNoCa),
            "its certificate is not one of an authority",
        ),
        (
            changed(&|it| it.key_usages = vec![KeyUsagePurpose::CrlSign]),
            "its certificate is not one of an authority",
        ),
        (
            changed(&|it| it.not_after = at(29 * 24 * HOUR)),
            "its certificate must be valid now",
        ),
        (
            changed(&|it| {
                it.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
            }),
            "its certificate would be refused by other nodes",
        ),
    ] {
        assert!(found.starts_with(expected), "{found} instead of {expected}");
    }
}

#[test]
fn who_signs_is_told_by_root_and_key() {
    let (mut cluster, root) = swarm();
    let own = new_root(NOW).unwrap();
    let urls = |cluster: &Cluster| {
        let asked = asked(cluster).map_err(|error| error.to_string());
        asked.map(|asked| asked.map(|cas| cas.into_iter().map(|ca| ca.url).collect::<Vec<_>>()))
    };
    let url = |text: &str| Ok(Some(vec![text.to_owned()]));
    assert_eq!(urls(&cluster), url(URL));
    // Before a key that is there.
    cluster.root_key_pem = root.key_pem.clone();
    assert_eq!(urls(&cluster), url(URL));
    // One of another root does not count.
    cluster.spec.external_cas = vec![ca("https://other", &own.certificate_pem)];
    assert_eq!(urls(&cluster), Ok(None));
    assert!(is_signed_for(&cluster));
    cluster.root_key_pem = String::new().into();
    assert!(
        urls(&cluster)
            .unwrap_err()
            .starts_with("the swarm has no key of its root")
    );
    assert!(!is_signed_for(&cluster));

    // To a root outside of the swarm, and the one that signed before is kept until the end.
    cluster.root_ca_pem = own.certificate_pem;
    cluster.root_key_pem = own.key_pem;
    cluster.spec.external_cas = vec![ca("https://first", &cluster.root_ca_pem)];
    let new = |external_cas| rotation::NewRoot {
        root: RootCa {
            certificate_pem: root.certificate_pem.clone(),
            key_pem: String::new().into(),
        },
        external_cas,
        cross_signed_pem: None,
    };
    let begin = |external_cas| {
        let begun = rotation::begin(&cluster, new(external_cas), NOW, &mut rand::rng());
        begun.map_err(|error| error.to_string())
    };
    let rotated = begin(vec![ca(URL, "")]).unwrap();
    assert_eq!(urls(&rotated), url(URL));
    assert_eq!(rotated.spec.external_cas.len(), 2);
    assert!(is_signed_for(&rotated));
    assert!(
        begin(Vec::new())
            .unwrap_err()
            .starts_with("a new root needs both")
    );
    let of_other = begin(vec![ca(URL, &cluster.root_ca_pem)]).unwrap_err();
    assert!(
        of_other.starts_with("the external CA https://ca.example.com"),
        "{of_other}"
    );

    let outside = |key: &str| RootCa {
        certificate_pem: String::new(),
        key_pem: key.to_owned().into(),
    };
    let (keyless, _) = swarm();
    assert!(!rotation::is_signed_outside(&cluster, &outside("")).unwrap());
    assert!(rotation::is_signed_outside(&keyless, &outside("key")).unwrap());
    assert!(rotation::is_signed_outside(&keyless, &outside("")).is_err());
}

#[test]
fn an_authority_is_kept_with_a_root_of_the_swarms() {
    let (cluster, root) = swarm();
    let pem = &root.certificate_pem;
    let other = new_root(NOW).unwrap().certificate_pem;
    let named = |root: &str| named(vec![ca(URL, root)], pem, &[pem.as_str()]);
    let expected = cluster.spec.external_cas;
    assert_eq!(named("").unwrap(), expected);
    let written = format!("Subject: x\n{}", pem.replace('\n', "\r\n"));
    assert_eq!(named(&written).unwrap(), expected);
    assert!(matches!(
        named(&other),
        Err(RootRefused::ExternalCaOfOther(_))
    ));
    assert!(matches!(named("x"), Err(RootRefused::Count)));
}

proptest! {
    #[test]
    fn any_bytes_are_refused_without_a_panic(status: u16, body in vec(any::<u8>(), 0..300)) {
        let (cluster, _) = swarm();
        let wanted = Wanted::node(&cluster, &csr(), &subject(&cluster, Role::Worker)).unwrap();
        prop_assert!(wanted.read(status, &body, NOW).is_err());
        let text = String::from_utf8_lossy(&body);
        prop_assert!(wanted.read(status, &answer(&text), NOW).is_err());
    }

    /// What is signed cannot be changed; all else is only the form in which it comes.
    #[test]
    fn a_changed_certificate_is_refused_without_a_panic(at: usize, with in 1..=255_u8) {
        let (cluster, root) = swarm();
        let wanted = Wanted::node(&cluster, &csr(), &subject(&cluster, Role::Worker)).unwrap();
        let pem = signed(&asked_for(&wanted), &wanted.key, &root);
        let mut der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        let at = at % der.len();
        der[at] ^= with;
        let text = STANDARD.encode(&der);
        let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        prop_assert!(wanted.read(200, &answer(&pem), NOW).is_err());
    }
}
