use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rcgen::{CertificateParams, KeyPair};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{ServerName, UnixTime};
use swarm_model::{ManagerStatus, NodeId, Role};

use super::super::subject::issuer_of;
use super::super::{Authority, Subject, Term, new_root};
use super::*;
use crate::store::{Change, testing};

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn rng() -> StdRng {
    StdRng::seed_from_u64(1)
}

fn cluster() -> Cluster {
    let root = new_root(NOW).unwrap();
    let mut cluster = testing::cluster(1);
    cluster.root_ca_pem = root.certificate_pem;
    cluster.root_key_pem = root.key_pem;
    cluster.worker_secret = "w".repeat(25).into();
    cluster.manager_secret = "m".repeat(25).into();
    cluster
}

fn rotated(cluster: &Cluster) -> Cluster {
    begin(cluster, new_root(NOW).unwrap(), NOW, &mut rng()).unwrap()
}

fn chain(cluster: &Cluster) -> String {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    let subject = Subject {
        node_id: NodeId::random(&mut rand::rng()),
        role: Role::Manager,
        cluster_id: cluster.id.clone(),
    };
    let term = Term {
        now: NOW,
        life: 90 * DAY,
    };
    let authority = Authority::new(cluster).unwrap();
    authority
        .issue(csr.der(), &subject, term, &mut rng())
        .unwrap()
}

/// Whether who trusts `roots` takes `chain` of a caller, and of a manager that is called.
fn verifies(roots: &str, chain: &str) -> bool {
    let provider = super::super::creds::provider();
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root.unwrap()).unwrap();
    }
    let store = Arc::new(store);
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .map(Result::unwrap)
        .collect();
    let now = UnixTime::since_unix_epoch(Duration::from_millis(NOW.0) + DAY);
    let of_caller = WebPkiClientVerifier::builder_with_provider(store.clone(), provider.clone())
        .build()
        .unwrap()
        .verify_client_cert(&chain[0], &chain[1..], now)
        .is_ok();
    let name = ServerName::try_from("swarm-manager").unwrap();
    let of_called = WebPkiServerVerifier::builder_with_provider(store, provider)
        .build()
        .unwrap()
        .verify_server_cert(&chain[0], &chain[1..], &name, &[], now)
        .is_ok();
    assert_eq!(of_caller, of_called);
    of_caller
}

fn leaf_issuer(chain: &str) -> String {
    issuer_of(&CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()).unwrap()
}

fn state(cluster: &Cluster, nodes: &[Node]) -> State {
    let mut state = State::default();
    let nodes = nodes.iter().cloned().map(Change::from);
    let all = std::iter::once(cluster.clone().into()).chain(nodes);
    state.apply(1, all.collect());
    state
}

fn node(number: u8, issuer: &str, manager: Option<&str>) -> Node {
    let mut node = testing::node(number);
    node.status.state = NodeState::Ready;
    node.status.certificate_issuer = issuer.to_owned();
    node.manager = manager.map(|issuer| ManagerStatus {
        raft_id: number.into(),
        address: ([192, 0, 2, number], 2377).into(),
        leader: false,
        certificate_issuer: issuer.to_owned(),
    });
    node
}

fn passed(state: &State) -> Option<Cluster> {
    let mut batch = Batch::new(NOW, 10);
    pass(state, &mut batch);
    match batch.into_parts().0.pop()? {
        Change::Put(crate::store::Object::Cluster(cluster)) => Some(cluster),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_table_of_states() {
    let rest = cluster();
    let old = issuer(&rest);
    assert_eq!(leaf_issuer(&chain(&rest)), old);
    assert_eq!(passed(&state(&rest, &[node(1, "", None)])), None, "at rest");

    let on_the_way = rotated(&rest);
    let new = issuer(&on_the_way);
    assert_ne!(new, old);
    assert_eq!(leaf_issuer(&chain(&on_the_way)), new);
    // Tokens are as before, and name the old root.
    assert_eq!(on_the_way.root_ca_pem, rest.root_ca_pem);
    assert_eq!(on_the_way.worker_secret, rest.worker_secret);

    let rotation = on_the_way.rotation.as_ref().unwrap();
    let after = passed(&state(
        &on_the_way,
        &[node(1, &new, Some(&new)), node(2, &new, None)],
    ));
    let after = after.expect("nobody is missing");
    assert_eq!(after.rotation, None);
    assert_eq!(after.root_ca_pem, rotation.root_ca_pem);
    assert_eq!(after.root_key_pem, rotation.root_key_pem);
    assert_eq!(trusted_roots(&after), rotation.root_ca_pem);
    assert_eq!(issuer(&after), new);
    for (secret, before) in [
        (&after.worker_secret, &rest.worker_secret),
        (&after.manager_secret, &rest.manager_secret),
    ] {
        assert!(secret.len() == JOIN_SECRET_LEN && secret != before);
    }

    // Another new root comes in the place of the first.
    let elsewhere = rotated(&on_the_way);
    let other = issuer(&elsewhere);
    assert_eq!(elsewhere.root_ca_pem, rest.root_ca_pem);
    let given_up = &elsewhere.rotation.as_ref().unwrap().given_up;
    assert_eq!(given_up, std::slice::from_ref(&new));
    assert_eq!(passed(&state(&elsewhere, &[node(1, &new, None)])), None);
    assert!(passed(&state(&elsewhere, &[node(1, &other, None)])).is_some());
}

#[test]
fn who_is_missing_is_named_with_what_it_lacks() {
    let cluster = rotated(&cluster());
    let new = issuer(&cluster);
    let with_state = |number, state| {
        let mut node = node(number, "0a", None);
        node.status.state = state;
        node
    };
    let nodes = [
        node(1, &new, None),
        node(2, "0a", None),
        node(3, "", None),
        node(4, &new, Some("0a")),
        node(5, "0a", Some(&new)),
        node(6, &new, Some(&new)),
        with_state(7, NodeState::Down),
        with_state(8, NodeState::Suspect),
        with_state(9, NodeState::Unknown),
    ];
    let mut state = state(&cluster, &nodes);
    let lacks: Vec<_> = missing(&state)
        .into_iter()
        .map(|(node, lack)| (node.id.clone(), lack))
        .collect();
    let expected = [
        (2, Lack::Agent),
        (3, Lack::Unknown),
        (4, Lack::Manager),
        (5, Lack::Agent),
        (7, Lack::Down),
        (8, Lack::Silent),
        (9, Lack::Silent),
    ];
    let expected = expected.map(|(number, lack)| (testing::node_id(number), lack));
    assert_eq!(lacks, expected);
    assert_eq!(passed(&state), None);
    // It ends without those that are removed.
    let gone = expected.map(|(id, _)| Change::remove(id));
    state.apply(2, gone.into());
    assert!(passed(&state).is_some());
}

#[test]
fn a_root_that_changes_nothing_or_comes_again_is_refused() {
    let rest = cluster();
    let root = |cluster: &Cluster| RootCa {
        certificate_pem: cluster.root_ca_pem.clone(),
        key_pem: cluster.root_key_pem.clone(),
    };
    let begin = |cluster: &Cluster, root| begin(cluster, root, NOW, &mut rng());
    assert!(matches!(
        begin(&rest, root(&rest)),
        Err(RootRefused::SameKey)
    ));
    let target = |cluster: &Cluster| {
        let rotation = cluster.rotation.clone().unwrap();
        RootCa {
            certificate_pem: rotation.root_ca_pem,
            key_pem: rotation.root_key_pem,
        }
    };
    let mut first = rotated(&rest);
    // Asked for twice.
    let again = begin(&first, target(&first)).unwrap();
    assert_eq!(issuer(&again), issuer(&first));
    assert_eq!(again.rotation.as_ref().unwrap().given_up, [""; 0]);
    let second = rotated(&first);
    assert!(matches!(
        begin(&second, target(&first)),
        Err(RootRefused::GivenUp)
    ));
    assert!(matches!(
        begin(&second, root(&rest)),
        Err(RootRefused::SameKey)
    ));
    for _ in 0..GIVEN_UP_MAX {
        first = rotated(&first);
    }
    let next = new_root(NOW).unwrap();
    assert!(matches!(begin(&first, next), Err(RootRefused::Restless)));
}

#[test]
fn roots_with_other_names_and_keys_are_cross_signed_too() {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let printable = |text: &str| rcgen::DnValue::PrintableString(text.try_into().unwrap());
    let name = &mut params.distinguished_name;
    name.push(rcgen::DnType::CountryName, printable("CH"));
    name.push(rcgen::DnType::OrganizationName, "Exämple");
    name.push(rcgen::DnType::CommonName, printable("Root"));
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(vec![1, 2, 3]);
    for kind in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(kind).unwrap();
        let root = RootCa {
            certificate_pem: params.self_signed(&key).unwrap().pem(),
            key_pem: key.serialize_pem().into(),
        };
        let before = cluster();
        let cluster = begin(&before, root, NOW, &mut rng()).unwrap();
        assert_eq!(issuer(&cluster), "010203");
        let chain = chain(&cluster);
        assert_eq!(leaf_issuer(&chain), "010203");
        let new = &cluster.rotation.as_ref().unwrap().root_ca_pem;
        for roots in [&before.root_ca_pem, new, &trusted_roots(&cluster)] {
            assert!(verifies(roots, &chain), "{kind:?}");
        }
        assert!(!verifies(&self::cluster().root_ca_pem, &chain));
        // The next one is signed by this one.
        let after = finish(&cluster, cluster.rotation.as_ref().unwrap());
        let next = rotated(&after);
        assert!(verifies(&after.root_ca_pem, &self::chain(&next)));
        assert!(!verifies(&before.root_ca_pem, &self::chain(&next)));
    }
}

/// What happens, to which node.
#[derive(Clone, Debug)]
enum Event {
    /// A rotation is begun, or given a new target.
    Begin,
    /// A node hears of the roots, as they were at some moment since it heard last.
    Hear(Index, Index),
    /// A node gets a certificate from who knows as much as it has heard.
    Renew(Index),
    /// What a node says of its certificate is written down.
    Report(Index),
    /// A host joins, with the token of now.
    Join,
    /// A node is removed.
    Remove(Index),
}

#[derive(Clone, Debug)]
struct Host {
    number: u8,
    /// The moment it knows of.
    heard: usize,
    roots: String,
    chain: String,
}

/// A swarm, and everything it has been.
struct World {
    history: Vec<Cluster>,
    state: State,
    hosts: Vec<Host>,
    seen: BTreeSet<(String, String)>,
}

impl World {
    fn new() -> Self {
        let cluster = cluster();
        let mut world = Self {
            state: state(&cluster, &[]),
            history: vec![cluster],
            hosts: Vec::new(),
            seen: BTreeSet::new(),
        };
        for _ in 0..3 {
            world.join();
        }
        world
    }

    fn put(&mut self, change: Change) {
        let index = self.state.index() + 1;
        self.state.apply(index, vec![change]);
    }

    fn now(&self) -> &Cluster {
        self.history.last().unwrap()
    }

    fn turn(&mut self, cluster: Cluster) {
        self.put(cluster.clone().into());
        self.history.push(cluster);
    }

    fn join(&mut self) {
        let number = u8::try_from(self.history.len() + self.hosts.len()).unwrap();
        let taken = self.hosts.iter().map(|host| host.number).max();
        let number = number.max(taken.map_or(0, |taken| taken + 1));
        let host = Host {
            number,
            heard: self.history.len() - 1,
            roots: trusted_roots(self.now()),
            chain: chain(self.now()),
        };
        self.put(node(number, "", None).into());
        self.hosts.push(host);
    }

    fn report(&mut self, host: &Host) {
        let issuer = leaf_issuer(&host.chain);
        self.put(node(host.number, &issuer, None).into());
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Begin => {
                let next = rotated(self.now());
                self.turn(next);
            }
            Event::Hear(host, moment) => {
                let index = host.index(self.hosts.len());
                let host = &mut self.hosts[index];
                let moments = self.history.len() - host.heard;
                host.heard += moment.index(moments);
                host.roots = trusted_roots(&self.history[host.heard]);
            }
            Event::Renew(host) => {
                let index = host.index(self.hosts.len());
                let host = &mut self.hosts[index];
                let cluster = &self.history[host.heard];
                (host.chain, host.roots) = (chain(cluster), trusted_roots(cluster));
            }
            Event::Report(host) => {
                let host = self.hosts[host.index(self.hosts.len())].clone();
                self.report(&host);
            }
            Event::Join => self.join(),
            Event::Remove(host) => {
                if self.hosts.len() > 1 {
                    let host = self.hosts.remove(host.index(self.hosts.len()));
                    self.put(Change::remove(testing::node_id(host.number)));
                }
            }
        }
        if let Some(next) = passed(&self.state) {
            self.turn(next);
        }
    }

    /// Any two verify each other.
    fn check(&mut self) -> Result<(), TestCaseError> {
        for one in &self.hosts {
            for other in &self.hosts {
                let pair = (one.roots.clone(), other.chain.clone());
                if self.seen.contains(&pair) {
                    continue;
                }
                prop_assert!(
                    verifies(&pair.0, &pair.1),
                    "{} does not take {}",
                    one.number,
                    other.number
                );
                self.seen.insert(pair);
            }
        }
        Ok(())
    }
}

fn event() -> impl Strategy<Value = Event> {
    let index = any::<Index>;
    prop_oneof![
        2 => Just(Event::Begin),
        6 => (index(), index()).prop_map(|(host, moment)| Event::Hear(host, moment)),
        6 => index().prop_map(Event::Renew),
        6 => index().prop_map(Event::Report),
        1 => Just(Event::Join),
        1 => index().prop_map(Event::Remove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn at_every_step_any_two_nodes_verify_each_other_and_it_ends(events in vec(event(), 1..60)) {
        let mut world = World::new();
        world.check()?;
        for event in &events {
            world.happen(event);
            world.check()?;
        }
        // Everybody hears, renews and says so: then it is over, and the roots before are forgotten.
        let last = world.history.len() - 1;
        for number in 0..world.hosts.len() {
            let cluster = world.history[last].clone();
            let host = &mut world.hosts[number];
            (host.heard, host.roots, host.chain) = (last, trusted_roots(&cluster), chain(&cluster));
            let host = host.clone();
            world.report(&host);
            world.check()?;
        }
        if let Some(next) = passed(&world.state) {
            world.turn(next);
        }
        prop_assert_eq!(&world.now().rotation, &None);
        for number in 0..world.hosts.len() {
            let roots = trusted_roots(world.now());
            prop_assert_eq!(&roots, &world.now().root_ca_pem);
            world.hosts[number].roots = roots;
            world.check()?;
        }
    }
}
