//! What bytes from outside meet first, as functions of bytes, and tests that feed them. A fuzzer that
//! follows the branches taken calls them from `tests/fuzz` (`cargo xtask fuzz`).
//!
//! Each takes any bytes, and panics only when a promise is broken: nothing that is read panics, and
//! what was read is the same once it is written and read again.
//!
//! Deliberately absent: DNS, whose properties have tests in `swarm-agent`; TLS and HTTP/2, which are not
//! ours.

use std::fmt::Debug;
use std::sync::OnceLock;
use std::time::Duration;

use prost::Message;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng as _;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use swarm_api::v1;
use swarm_model as model;
use swarm_model::{Cluster, ClusterId, JoinToken, NodeId, Role, Timestamp, UnlockKey};

use crate::ca::external::Wanted;
use crate::ca::{Authority, Subject, Term, admit, new_root};
use crate::raft;
use crate::store::{State, decode_batch, decode_snapshot, encode_batch, encode_snapshot};

/// The text of a join token or an unlock key.
pub fn join_token(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(token) = text.parse::<JoinToken>() {
        assert_eq!(token.to_string(), text, "a token has one text");
    }
    if let Ok(key) = text.parse::<UnlockKey>() {
        assert_eq!(key.to_text(), text, "an unlock key has one text");
    }
    assert!(
        admit(&authority().1, text).is_err(),
        "nobody guesses a secret"
    );
}

/// A request to certify a key, PKCS#10 in DER.
pub fn certificate_request(bytes: &[u8]) {
    let (authority, cluster) = authority();
    let mut rng = ChaCha12Rng::seed_from_u64(1);
    let subject = worker(cluster, &mut rng);
    let term = Term {
        now: NOW,
        life: Duration::from_secs(3600),
    };
    if let Ok(chain) = authority.issue(bytes, &subject, term, &mut rng) {
        assert_eq!(whose(&chain), subject, "names are the manager's to write");
    }
}

/// What an external authority answers that was asked for a node's certificate.
pub fn external_ca_answer(bytes: &[u8]) {
    let (wanted, subject, _) = asked();
    if let Ok((pem, life)) = wanted.read(200, bytes, NOW) {
        assert_eq!(&whose(&pem), subject, "names are the manager's to choose");
        assert!(!life.is_zero(), "it is good now");
    }
}

/// A worker of `cluster`.
fn worker(cluster: &Cluster, rng: &mut ChaCha12Rng) -> Subject {
    Subject {
        node_id: NodeId::random(rng),
        role: Role::Worker,
        cluster_id: cluster.id.clone(),
    }
}

/// Whose the first certificate in `pem` is.
fn whose(pem: &str) -> Subject {
    let leaf = CertificateDer::from_pem_slice(pem.as_bytes()).expect("it is PEM");
    Subject::from_der(&leaf).expect("a node's certificate can be read")
}

/// A certificate that is asked for, whose it is to be, and one that the swarm's root has signed for it.
fn asked() -> &'static (Wanted, Subject, String) {
    static ASKED: OnceLock<(Wanted, Subject, String)> = OnceLock::new();
    ASKED.get_or_init(|| {
        let (authority, cluster) = authority();
        let mut rng = ChaCha12Rng::seed_from_u64(1);
        let subject = worker(cluster, &mut rng);
        let key = rcgen::KeyPair::generate().expect("a key can be made");
        let request = rcgen::CertificateParams::default().serialize_request(&key);
        let request = request.expect("it can be asked for");
        let term = Term {
            now: NOW,
            life: Duration::from_secs(24 * 3600),
        };
        let chain = authority.issue(request.der(), &subject, term, &mut rng);
        let chain = chain.expect("it can be signed");
        let wanted = Wanted::node(cluster, request.der(), &subject).expect("it can be wanted");
        let root = chain.len() - cluster.root_ca_pem.len();
        (wanted, subject, chain[..root].to_owned())
    })
}

/// What an API request or an agent's message holds: the first byte says which.
pub fn api(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    match which {
        0 => {
            if let Some(spec) = converted::<v1::ServiceSpec, model::ServiceSpec>(bytes) {
                let _ = model::validate_service(&spec);
            }
        }
        1 => {
            if let Some(spec) = converted::<v1::NetworkSpec, model::NetworkSpec>(bytes) {
                let _ = model::validate_network(&spec);
            }
        }
        2 => {
            if let Some(spec) = converted::<v1::ClusterSpec, model::ClusterSpec>(bytes) {
                let _ = model::validate_cluster(&spec);
            }
        }
        3 => {
            if let Some(spec) = converted::<v1::NodeSpec, model::NodeSpec>(bytes) {
                let _ = model::validate_node(&spec);
            }
        }
        4 => drop(converted::<v1::NodeDescription, model::NodeDescription>(
            bytes,
        )),
        5 => drop(converted::<v1::TaskStatus, model::TaskStatus>(bytes)),
        6 => drop(converted::<v1::NodeProblem, model::NodeProblem>(bytes)),
        7 => drop(converted::<v1::Task, model::Task>(bytes)),
        8 => drop(v1::AgentMessage::decode(bytes)),
        _ => {
            if let Ok(text) = std::str::from_utf8(bytes) {
                let _ = model::Constraint::parse(text);
            }
        }
    }
}

/// A message and the model's value of it, which is the same once it has been a message again.
fn converted<W, M>(bytes: &[u8]) -> Option<M>
where
    W: Message + Default + for<'a> From<&'a M>,
    M: TryFrom<W> + PartialEq + Debug,
    M::Error: Debug,
{
    let value = M::try_from(W::decode(bytes).ok()?).ok()?;
    let again = W::from(&value).encode_to_vec();
    let again = W::decode(&again[..]).expect("what was encoded is decoded");
    assert_eq!(M::try_from(again).expect("and converted"), value);
    Some(value)
}

/// A record of the log as it lies on the disk, and what is in it once its seal is open.
pub fn log_record(bytes: &[u8]) {
    raft::any_record(bytes);
    if let Ok(changes) = decode_batch(bytes) {
        if let Ok((_again, read)) = encode_batch(&changes) {
            assert_eq!(read, changes);
        }
        let mut state = State::default();
        state.apply(1, changes);
        same_snapshot(&state);
    }
}

/// A whole state, as another manager or the disk gives it.
pub fn snapshot(bytes: &[u8]) {
    if let Ok(state) = decode_snapshot(7, bytes) {
        same_snapshot(&state);
    }
}

fn same_snapshot(state: &State) {
    let bytes = encode_snapshot(state);
    let again = decode_snapshot(state.index(), &bytes);
    assert_eq!(again.as_ref(), Ok(state), "a snapshot is the state");
}

/// A message of another manager.
pub fn raft_message(bytes: &[u8]) {
    if let Ok(message) = v1::RaftMessage::decode(bytes) {
        raft::any_message(message);
    }
}

/// The moment at which certificates are asked for: in 2026.
const NOW: Timestamp = Timestamp(1_790_000_000_000);

/// A swarm's root.
fn authority() -> &'static (Authority, Cluster) {
    static AUTHORITY: OnceLock<(Authority, Cluster)> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        let mut rng = rand::rng();
        let root = new_root(NOW).expect("a root can be made");
        let cluster = v1::Cluster {
            id: ClusterId::random(&mut rng).to_string(),
            root_ca_pem: root.certificate_pem,
            root_key_pem: root.key_pem.to_string(),
            worker_secret: model::random_base36(&mut rng, 25),
            manager_secret: model::random_base36(&mut rng, 25),
            ..v1::Cluster::default()
        };
        let cluster = Cluster::try_from(cluster).expect("it is one");
        let authority = Authority::new(&cluster).expect("it can sign");
        (authority, cluster)
    })
}

#[cfg(test)]
mod tests;
