use rcgen::{PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use swarm_model::{ClusterId, ClusterSpec, Meta, NodeId};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::super::subject::validity;
use super::*;

const NOW: Timestamp = Timestamp(1_800_000_000_123);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn cluster() -> Cluster {
    let root = new_root(NOW).unwrap();
    Cluster {
        id: ClusterId::random(&mut rand::rng()),
        meta: Meta::default(),
        spec: ClusterSpec::default(),
        root_ca_pem: root.certificate_pem,
        root_key_pem: root.key_pem,
        worker_secret: String::new().into(),
        manager_secret: String::new().into(),
        networks_made: swarm_model::NetworkCursor::default(),
        epoch: 0,
        lock: swarm_model::ManagerLock::default(),
        rotation: None,
    }
}

fn subject(cluster: &Cluster, role: Role) -> Subject {
    Subject {
        node_id: NodeId::random(&mut rand::rng()),
        role,
        cluster_id: cluster.id.clone(),
    }
}

/// A request that asks for everything it must not get.
fn greedy_request(key: &KeyPair) -> Vec<u8> {
    let mut params =
        CertificateParams::new(vec!["swarm-ca".to_owned(), "evil".to_owned()]).unwrap();
    params.distinguished_name = DistinguishedName::new();
    for (kind, value) in [
        (DnType::CommonName, "another-node"),
        (DnType::OrganizationalUnitName, "swarm-manager"),
        (DnType::OrganizationName, "another-cluster"),
    ] {
        params.distinguished_name.push(kind, value);
    }
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    params.serialize_request(key).unwrap().der().to_vec()
}

fn issue(cluster: &Cluster, csr: &[u8], subject: &Subject) -> Result<String, IssueError> {
    let term = Term {
        now: NOW,
        life: 90 * DAY,
    };
    Authority::new(cluster)
        .unwrap()
        .issue(csr, subject, term, &mut rand::rng())
}

fn leaf_der(chain: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    names
        .value
        .general_names
        .iter()
        .map(|name| match name {
            GeneralName::DNSName(name) => (*name).to_owned(),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_certificate_says_what_the_swarm_decided_and_nothing_else() {
    let cluster = cluster();
    let subject = subject(&cluster, Role::Worker);
    let key = KeyPair::generate().unwrap();
    let chain = issue(&cluster, &greedy_request(&key), &subject).unwrap();

    let der = leaf_der(&chain);
    assert_eq!(Subject::from_der(&der), Ok(subject.clone()));
    let (_, leaf) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(
        leaf.public_key().subject_public_key.data,
        key.public_key_raw()
    );
    assert_eq!(leaf.subject().iter().count(), 3);
    assert_eq!(dns_names(&leaf), [subject.node_id.as_str(), "swarm-worker"]);
    assert!(!leaf.is_ca());
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert_eq!(usage.flags, 1, "digitalSignature and nothing else");
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth);
    assert!(!extended.code_signing && !extended.any && extended.other.is_empty());
}

#[test]
fn a_managers_certificate_has_the_names_that_managers_are_dialled_by() {
    let cluster = cluster();
    let subject = subject(&cluster, Role::Manager);
    let request = greedy_request(&KeyPair::generate().unwrap());
    let der = leaf_der(&issue(&cluster, &request, &subject).unwrap());
    let (_, leaf) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(
        dns_names(&leaf),
        [
            subject.node_id.to_string(),
            "swarm-manager".to_owned(),
            "swarm-ca".to_owned(),
            format!("swarm-manager.{}", cluster.id),
        ]
    );
}

#[test]
fn validity_is_backdated_and_the_chain_ends_in_the_root() {
    let cluster = cluster();
    let subject = subject(&cluster, Role::Worker);
    let request = greedy_request(&KeyPair::generate().unwrap());
    let chain = issue(&cluster, &request, &subject).unwrap();
    assert!(chain.ends_with(&cluster.root_ca_pem));

    let der = leaf_der(&chain);
    let (_, leaf) = X509Certificate::from_der(&der).unwrap();
    let seconds = i64::try_from(NOW.0 / 1000).unwrap();
    assert_eq!(leaf.validity().not_before.timestamp(), seconds - 3600);
    assert_eq!(
        leaf.validity().not_after.timestamp(),
        seconds + 90 * 24 * 3600
    );
    let root = leaf_der(&cluster.root_ca_pem);
    let (_, root) = X509Certificate::from_der(&root).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
    assert_eq!(root.subject().to_string(), "CN=swarm-ca");
    assert!(root.is_ca());

    let validity = validity(&der).unwrap();
    // Certificates name whole seconds.
    let issued = Timestamp(NOW.0 / 1000 * 1000);
    assert_eq!(validity.issued_at(), issued);
    assert_eq!(validity.left(issued), 90 * DAY);
}

#[test]
fn serial_numbers_differ_and_are_positive() {
    let cluster = cluster();
    let subject = subject(&cluster, Role::Worker);
    let request = greedy_request(&KeyPair::generate().unwrap());
    let serials = [(); 2].map(|()| {
        let der = leaf_der(&issue(&cluster, &request, &subject).unwrap());
        let (_, leaf) = X509Certificate::from_der(&der).unwrap();
        let serial = leaf.raw_serial().to_vec();
        assert!(serial.len() <= SERIAL_BYTES && serial[0] & 0x80 == 0);
        serial
    });
    assert_ne!(serials[0], serials[1]);
}

#[test]
fn other_keys_and_broken_requests_are_refused() {
    let cluster = cluster();
    let subject = subject(&cluster, Role::Worker);
    for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let request = greedy_request(&KeyPair::generate_for(algorithm).unwrap());
        assert!(matches!(
            issue(&cluster, &request, &subject),
            Err(IssueError::Key)
        ));
    }
    let good = greedy_request(&KeyPair::generate().unwrap());
    let mut forged = good.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert!(matches!(
        issue(&cluster, &forged, &subject),
        Err(IssueError::Signature)
    ));
    let mut longer = good.clone();
    longer.push(0);
    for request in [&[][..], b"garbage", &good[..good.len() / 2], &longer] {
        assert!(matches!(
            issue(&cluster, request, &subject),
            Err(IssueError::Malformed)
        ));
    }
    assert!(matches!(
        issue(&cluster, &vec![0x30; MAX_CSR_BYTES + 1], &subject),
        Err(IssueError::TooLarge)
    ));
}

#[test]
fn a_certificate_of_no_swarm_is_no_subject() {
    let root = new_root(NOW).unwrap();
    let root = leaf_der(&root.certificate_pem);
    assert!(Subject::from_der(&root).is_err());
    assert!(Subject::from_der(b"garbage").is_err());
}
