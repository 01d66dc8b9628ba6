//! What comes in from an open port.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use swarm_api::v1;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::node_ca_client::NodeCaClient;
use swarm_model::Role;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;

use super::harness::{HOUR, Manager, PATIENCE, client_config, dial};
use crate::ca::{CredentialsFile, OwnCertificate};
use crate::clock;

/// Reads until the other side closes.
pub(super) async fn closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let mut rest = Vec::new();
    // How it is closed, in order or by a reset, is the server's affair.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .expect("the server closes the connection");
}

async fn still_answers(manager: &Manager) {
    let mut client = NodeCaClient::new(manager.channel(None));
    let answer = client
        .get_root_certificate(v1::GetRootCertificateRequest {})
        .await
        .unwrap();
    assert_eq!(
        answer.into_inner().certificate_pem,
        manager.cluster.root_ca_pem
    );
}

#[tokio::test]
async fn garbage_closes_its_own_connection_and_no_other() {
    let manager = Manager::start().await;
    let mut garbage: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\nHost: swarm\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        vec![0; 4096],
        vec![0xff; 70_000],
        // A TLS record that promises a hello and breaks off.
        vec![0x16, 0x03, 0x01, 0x00, 0x05, 0x01, 0x00, 0x00, 0x01, 0x00],
    ];
    garbage.push((0..20_000_u32).map(|n| ((n * 7919) >> 5) as u8).collect());
    for bytes in garbage {
        let mut stream = TcpStream::connect(manager.address).await.unwrap();
        // The server may already have had enough of it.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        closed(&mut stream).await;
    }
    let tls = client_config(&manager.cluster.root_ca_pem, None);
    let mut stream = dial(manager.address, tls).await.unwrap();
    stream.write_all(&[0xff; 1024]).await.unwrap();
    closed(&mut stream).await;
    still_answers(&manager).await;
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_dropped() {
    let manager = Manager::start().await;
    let mut stream = TcpStream::connect(manager.address).await.unwrap();
    // The clock moves on by itself while everybody waits.
    let before = tokio::time::Instant::now();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(before.elapsed() < std::time::Duration::from_secs(11));
}

#[tokio::test]
async fn messages_beyond_their_bounds_are_refused() {
    let manager = Manager::start().await;
    let request = v1::IssueNodeCertificateRequest {
        token: "x".repeat(100_000),
        csr: Vec::new(),
    };
    let error = NodeCaClient::new(manager.channel(None))
        .issue_node_certificate(request)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange, "{error}");

    let mut spec = v1::ServiceSpec::default();
    spec.labels.insert("a".to_owned(), "x".repeat(5 << 20));
    let error = ControlClient::new(manager.local())
        .create_service(v1::CreateServiceRequest { spec: Some(spec) })
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange, "{error}");
    still_answers(&manager).await;
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    let manager = Manager::start().await;
    let id = manager.add_node(Role::Worker, "h2").await;
    let left = std::time::Duration::from_secs(3);
    let credentials = manager.credentials(&id, Role::Worker, HOUR + left);
    let tls = client_config(&manager.cluster.root_ca_pem, Some(&credentials));
    let mut stream = dial(manager.address, tls).await.unwrap();
    let before = std::time::Instant::now();
    closed(&mut stream).await;
    // Well before the server would have missed an answer to a ping.
    assert!(before.elapsed() < 2 * left, "{:?}", before.elapsed());
}

#[tokio::test]
async fn a_new_certificate_is_served_without_a_restart() {
    let manager = Manager::start().await;
    let served = async || {
        let tls = client_config(&manager.cluster.root_ca_pem, None);
        let stream = dial(manager.address, tls).await.unwrap();
        let chain = stream.get_ref().1.peer_certificates().unwrap();
        let leaf: CertificateDer<'static> = chain[0].clone().into_owned();
        leaf
    };
    let open = manager.channel(None);
    NodeCaClient::new(open.clone())
        .get_root_certificate(v1::GetRootCertificateRequest {})
        .await
        .unwrap();
    let first = served().await;
    assert_eq!(first, served().await);
    let renewed = OwnCertificate::load_or_issue(
        &CredentialsFile::new(manager.directory.path().join("tls/other.pem"), None, false),
        &manager.cluster,
        &manager.self_id,
        clock::now(),
        &mut rand::rng(),
    )
    .unwrap();
    manager.tls.send_replace(Arc::new(renewed.server));
    assert_ne!(first, served().await);
    // What was open stays open.
    NodeCaClient::new(open)
        .get_root_certificate(v1::GetRootCertificateRequest {})
        .await
        .unwrap();
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let manager = Manager::start().await;
    let mut stream = TcpStream::connect(manager.address).await.unwrap();
    // A hello of RFC 5246 with what was best then: ECDHE with AES-GCM, P-256, ECDSA with SHA-256.
    let mut hello = vec![0x03, 0x03];
    hello.extend([7; 32]);
    hello.push(0);
    hello.extend([0, 4, 0xc0, 0x2b, 0xc0, 0x2f]);
    hello.extend([1, 0]);
    let extensions = [
        0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0, 0, 13, 0, 6, 0, 4, 4, 3, 4, 1,
    ];
    hello.extend([0, extensions.len() as u8]);
    hello.extend(extensions);
    let mut record = vec![
        0x16,
        0x03,
        0x01,
        0,
        hello.len() as u8 + 4,
        1,
        0,
        0,
        hello.len() as u8,
    ];
    record.extend(hello);
    stream.write_all(&record).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("the server closes the connection")
        .unwrap();
    // A fatal alert, protocol_version (RFC 8446, 6.2).
    assert_eq!(answer, [0x15, 0x03, 0x03, 0, 2, 2, 70]);
    still_answers(&manager).await;
}
