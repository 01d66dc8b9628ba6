//! The targets on their seeds, and on what a few bytes changed make of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand::RngExt as _;

use super::*;
use crate::store::Change;
use crate::store::testing::{cluster, network, node, service, task};

/// What takes bytes, and its name.
type Target = (&'static str, fn(&[u8]));

/// Every target.
const TARGETS: [Target; 7] = [
    ("join_token", join_token),
    ("certificate_request", certificate_request),
    ("external_ca_answer", external_ca_answer),
    ("api", api),
    ("log_record", log_record),
    ("snapshot", snapshot),
    ("raft_message", raft_message),
];

/// Changed seeds that each target is fed: a second or two in all.
const ROUNDS: u64 = 2000;

fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/fuzz/seeds")
        .join(target)
}

/// What the targets begin with, by target and name.
fn seeds() -> BTreeMap<(&'static str, &'static str), Vec<u8>> {
    let (_, own) = authority();
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    let token = JoinToken::new(&own.root_ca_pem, &"0".repeat(25));
    let api = |which: u8, message: Vec<u8>| [vec![which], message].concat();
    let web = service(1, "web");
    let placed = task(1, 1, Some(1));
    let changes: Vec<Change> = vec![
        cluster(1).into(),
        node(1).into(),
        web.clone().into(),
        placed.clone().into(),
        network(1, true).into(),
    ];
    let mut state = State::default();
    state.apply(1, changes.clone());
    let port = v1::PortConfig {
        protocol: v1::Protocol::Tcp.into(),
        target: 80,
        published: 8080,
        mode: v1::PublishMode::Ingress.into(),
        policy: v1::RoutingPolicy::Cluster.into(),
        scheduler: v1::Scheduler::Rr.into(),
        sources: vec!["10.0.0.0/8".to_owned()],
        ..v1::PortConfig::default()
    };
    let mut spec = v1::ServiceSpec::from(&web.spec);
    spec.endpoint = Some(v1::EndpointSpec {
        ports: vec![port],
        mode: v1::EndpointMode::Vip.into(),
    });
    let entry = v1::RaftEntry {
        kind: v1::RaftEntryKind::Normal.into(),
        term: 2,
        index: 6,
        ..v1::RaftEntry::default()
    };
    let message = v1::RaftMessage {
        kind: v1::RaftMessageKind::Append.into(),
        to: 1,
        from: 2,
        term: 2,
        log_term: 1,
        index: 5,
        entries: vec![entry],
        commit: 5,
        ..v1::RaftMessage::default()
    };
    let (batch, _) = encode_batch(&changes).unwrap();
    let answer = |what: &str| {
        let answer = match what {
            "certificate" => serde_json::json!({
                "success": true,
                "result": {"certificate": asked().2},
                "errors": [],
                "messages": [],
            }),
            _ => serde_json::json!({
                "success": false,
                "result": null,
                "errors": [{"code": 5200, "message": "no"}],
                "messages": [],
            }),
        };
        answer.to_string().into_bytes()
    };
    [
        (("join_token", "token"), token.to_string().into_bytes()),
        (
            ("join_token", "unlock_key"),
            UnlockKey::new([7; 32]).to_text().into_bytes(),
        ),
        (("certificate_request", "p256"), request.der().to_vec()),
        (("external_ca_answer", "certificate"), answer("certificate")),
        (("external_ca_answer", "refusal"), answer("refusal")),
        (("api", "service"), api(0, spec.encode_to_vec())),
        (
            ("api", "network"),
            api(
                1,
                v1::NetworkSpec::from(&network(1, false).spec).encode_to_vec(),
            ),
        ),
        (
            ("api", "cluster"),
            api(2, v1::ClusterSpec::from(&own.spec).encode_to_vec()),
        ),
        (
            ("api", "node"),
            api(
                4,
                v1::NodeDescription::from(&node(1).description).encode_to_vec(),
            ),
        ),
        (
            ("api", "task"),
            api(7, v1::Task::from(&placed).encode_to_vec()),
        ),
        (
            ("api", "constraint"),
            api(9, b"node.labels.zone == a".to_vec()),
        ),
        (("log_record", "batch"), batch),
        (("snapshot", "state"), encode_snapshot(&state)),
        (("raft_message", "append"), message.encode_to_vec()),
    ]
    .into()
}

/// `cargo test -p swarm-control -- --ignored seeds_are_written` writes them anew.
#[test]
#[ignore = "writes into the checkout"]
fn seeds_are_written() {
    for ((target, name), bytes) in seeds() {
        std::fs::create_dir_all(directory(target)).unwrap();
        std::fs::write(directory(target).join(name), bytes).unwrap();
    }
}

#[test]
fn no_bytes_near_the_seeds_break_a_promise() {
    let mut rng = ChaCha12Rng::seed_from_u64(1);
    for (name, target) in TARGETS {
        let mut known: Vec<Vec<u8>> = (seeds().into_iter())
            .filter(|((of, _), _)| *of == name)
            .map(|(_, bytes)| bytes)
            .collect();
        assert!(!known.is_empty(), "{name} has no seed");
        // Among them is what was found once.
        for file in std::fs::read_dir(directory(name)).unwrap() {
            known.push(std::fs::read(file.unwrap().path()).unwrap());
        }
        for bytes in &known {
            target(bytes);
        }
        for _ in 0..ROUNDS {
            let mut bytes = known[rng.random_range(0..known.len())].clone();
            for _ in 0..rng.random_range(1..8) {
                let at = rng.random_range(0..=bytes.len());
                match rng.random_range(0..4) {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at, rng.random()),
                    2 if at < bytes.len() => drop(bytes.remove(at)),
                    _ if at < bytes.len() => bytes[at] ^= rng.random_range(1..=255u8),
                    _ => {}
                }
            }
            target(&bytes);
        }
    }
}

/// The seeds of a target that reads something are read, not refused for a reason that none can pass.
#[test]
fn the_seeds_are_what_their_targets_read() {
    let seeds = seeds();
    let read = |target, name: &'static str| &seeds[&(target, name)];
    assert!(decode_batch(read("log_record", "batch")).is_ok());
    assert!(decode_snapshot(7, read("snapshot", "state")).is_ok());
    let answer = read("external_ca_answer", "certificate");
    assert!(asked().0.read(200, answer, NOW).is_ok());
    let spec = &read("api", "service")[1..];
    assert!(converted::<v1::ServiceSpec, model::ServiceSpec>(spec).is_some());
    let task = &read("api", "task")[1..];
    assert!(converted::<v1::Task, model::Task>(task).is_some());
}
