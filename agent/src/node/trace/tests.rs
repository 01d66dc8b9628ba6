//! What is asked of the programs, and what their answers mean.

use std::net::{IpAddr, Ipv4Addr};

use swarm_model::{PortConfig, ServiceId, TaskId};

use super::*;
use crate::ebpf::tests::frame::Frame;
use crate::ebpf::tests::sandbox::sandboxed;
use crate::ebpf::tests::verdicts::run_on;
use crate::ebpf::{Program, TraceEvent, TraceStep};
use crate::session::{Balanced, Endpoint, Peer, PublishedService};

const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OWN: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 3);
const HERE: Ipv4Addr = Ipv4Addr::new(10, 255, 1, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 255, 1, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 255, 1, 3);

const NEXT: i32 = -1;
const DROPPED: i32 = 2;
const REDIRECTED: i32 = 7;

fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(first: char) -> T {
    format!("{first}{}", "0".repeat(24)).parse().unwrap()
}

fn own() -> NodeId {
    id('a')
}

fn endpoint(service: ServiceId, node: NodeId, address: Ipv4Addr) -> Endpoint {
    Endpoint {
        service_id: service,
        node_id: node,
        address,
        balanced: Balanced::Yes,
    }
}

fn service(name: &str, published: u16) -> PublishedService {
    PublishedService {
        name: name.to_owned(),
        index: 1,
        ports: vec![PortConfig {
            published,
            target: 80,
            ..PortConfig::default()
        }],
    }
}

/// Service `web` on port 8080, with a task here and one on another node; and another service with the
/// same target port.
fn assigned() -> Assigned {
    let other: NodeId = id('b');
    let (web, db) = (id::<ServiceId>('s'), id::<ServiceId>('d'));
    let peer = |ingress_address| Peer {
        ingress_address,
        data_path_address: IpAddr::V4(ADDRESS),
    };
    Assigned {
        peers: [(own(), peer(OWN)), (other.clone(), peer(OTHER))].into(),
        services: [
            (web.clone(), service("web", 8080)),
            (db.clone(), service("db", 5432)),
        ]
        .into(),
        endpoints: [
            (id::<TaskId>('h'), endpoint(web.clone(), own(), HERE)),
            (id::<TaskId>('t'), endpoint(web, other.clone(), THERE)),
            (id::<TaskId>('u'), endpoint(db, other, STRANGER)),
        ]
        .into(),
        ..Assigned::default()
    }
}

fn asked(port: u32) -> v1::TraceMeshRequest {
    v1::TraceMeshRequest {
        port,
        ..v1::TraceMeshRequest::default()
    }
}

fn subject() -> Subject {
    Subject::new(&asked(8080)).unwrap()
}

fn place() -> Place {
    Place::of(&subject(), &assigned(), &own()).unwrap()
}

fn event(
    source: (Ipv4Addr, u16),
    destination: (Ipv4Addr, u16),
    step: TraceStep,
    verdict: i32,
) -> TraceEvent {
    TraceEvent {
        time_ns: 7,
        source: source.0.into(),
        destination: destination.0.into(),
        source_port_be: source.1.to_be(),
        destination_port_be: destination.1.to_be(),
        seen_port_be: 0,
        protocol: 6,
        tcp_flags: 0x12,
        seen: Ipv4Addr::UNSPECIFIED.into(),
        len: 74,
        verdict,
        source_mac: [0; 6],
        destination_mac: [0; 6],
        step: step as u8,
        reason: 0,
        zero: 0,
    }
}

fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

#[test]
fn a_request_is_read_and_names_what_the_programs_look_for() {
    let subject = Subject::new(&asked(8080)).unwrap();
    assert_eq!(subject.duration, subject::DURATION_DEFAULT);
    let asked = v1::TraceMeshRequest {
        client: format!("::ffff:{CLIENT}"),
        duration_ms: 1_500,
        one_in: 4,
        ..asked(8080)
    };
    let subject = Subject::new(&asked).unwrap();
    assert_eq!(subject.duration, Duration::from_millis(1_500));
    let place = Place::of(&subject, &assigned(), &own()).unwrap();
    let request = request(&subject, &place);
    assert_eq!(request.ports, [8080, 80, 0, 0, 0, 0, 0, 0]);
    assert_eq!(request.client, Some(CLIENT.into()));
    assert_eq!(request.one_in, 4);
}

#[test]
fn what_cannot_be_traced_is_refused_in_words() {
    let refusal = |asked: &v1::TraceMeshRequest| {
        let refused = match Subject::new(asked) {
            Ok(subject) => Place::of(&subject, &assigned(), &own()).map(drop),
            Err(error) => Err(error),
        };
        refused.unwrap_err().to_string()
    };
    let unknown = refusal(&asked(8081));
    assert!(
        unknown.contains("no service publishes port 8081"),
        "{unknown}"
    );
    assert!(unknown.contains("swarmctl service ls"), "{unknown}");
    assert!(refusal(&asked(0)).contains("no port"));
    assert!(refusal(&asked(80_000)).contains("80000 is no port"));
    let request = |client: &str, duration_ms, one_in| v1::TraceMeshRequest {
        client: client.to_owned(),
        duration_ms,
        one_in,
        ..asked(8080)
    };
    assert!(refusal(&request("web", 0, 0)).contains("no IP address"));
    assert!(refusal(&request(&"9".repeat(10_000), 0, 0)).len() < 200);
    assert!(refusal(&request("", 600_001, 0)).contains("at most 600 s"));
    assert!(refusal(&request("", 0, 32_769)).contains("one flow in 32768"));
    assert!(refusal(&request("", 0, u32::MAX)).contains("one flow in 32768"));
}

#[test]
fn a_port_with_too_many_targets_is_refused() {
    let mut assigned = assigned();
    let many = (0..8).map(|target| PortConfig {
        published: 8080,
        target,
        ..PortConfig::default()
    });
    for service in assigned.services.values_mut() {
        service.ports = many.clone().collect();
    }
    let refused = Place::of(&subject(), &assigned, &own()).unwrap_err();
    assert!(matches!(refused, TraceError::TooManyTargets(8080)));
}

#[test]
fn each_step_is_told_in_words() {
    use TraceStep::{FromTask, Out, ShortcutIn, ShortcutOut, ToTask, Tunnel, Uplink};
    let (client, port) = ((CLIENT, 4444), (ADDRESS, 8080));
    let (here, there) = ((HERE, 80), (THERE, 80));
    let (web_here, web_there) = ("web.h00000000000", "web.t00000000000 on node b00000000000");
    for (from, to, step, verdict, name, words) in [
        (
            client,
            port,
            Uplink,
            REDIRECTED,
            "uplink",
            "taken into the mesh".to_owned(),
        ),
        (
            client,
            port,
            Uplink,
            NEXT,
            "uplink",
            "left to the host: not published at this address".to_owned(),
        ),
        (
            client,
            port,
            Uplink,
            DROPPED,
            "uplink",
            "dropped".to_owned(),
        ),
        (
            client,
            here,
            Uplink,
            REDIRECTED,
            "uplink",
            "unpacked from the tunnel".to_owned(),
        ),
        (
            there,
            client,
            Uplink,
            REDIRECTED,
            "uplink",
            "unpacked from the tunnel".to_owned(),
        ),
        (
            client,
            port,
            ShortcutIn,
            NEXT,
            "ingress",
            "to IPVS, which chooses the task or remembers it".to_owned(),
        ),
        (
            client,
            there,
            ShortcutIn,
            REDIRECTED,
            "ingress",
            format!("straight to {web_there}"),
        ),
        (
            client,
            here,
            ShortcutIn,
            REDIRECTED,
            "ingress",
            format!("straight to {web_here} on this node"),
        ),
        (
            port,
            client,
            ShortcutIn,
            REDIRECTED,
            "ingress",
            "straight out, from the published address again".to_owned(),
        ),
        (
            client,
            there,
            Tunnel,
            NEXT,
            "tunnel-out",
            format!("balanced to {web_there}"),
        ),
        (
            there,
            client,
            ShortcutOut,
            NEXT,
            "tunnel-in",
            "to IPVS, which restores the published address".to_owned(),
        ),
        (
            port,
            client,
            ShortcutOut,
            REDIRECTED,
            "tunnel-in",
            "straight out, from the published address again".to_owned(),
        ),
        (
            client,
            here,
            ShortcutOut,
            REDIRECTED,
            "tunnel-in",
            format!("handed to {web_here}"),
        ),
        (
            client,
            here,
            ToTask,
            NEXT,
            "to-task",
            format!("handed to {web_here}"),
        ),
        (
            here,
            client,
            FromTask,
            NEXT,
            "from-task",
            "to this node's ingress namespace: IPVS, or the ordinary way out".to_owned(),
        ),
        (
            here,
            there,
            FromTask,
            NEXT,
            "from-task",
            format!("asks {web_there}"),
        ),
        (
            port,
            client,
            Out,
            REDIRECTED,
            "out",
            "sent to the client".to_owned(),
        ),
        (
            port,
            client,
            Out,
            NEXT,
            "out",
            "left to the host: not from an address of this node".to_owned(),
        ),
    ] {
        let told = packet(&event(from, to, step, verdict), &place()).unwrap();
        assert_eq!((told.step.as_str(), &told.verdict), (name, &words));
        assert_eq!(
            (told.tcp_flags.as_str(), told.protocol.as_str()),
            ("S.", "tcp")
        );
        assert_eq!(told.dropped, verdict == DROPPED);
    }
    let told = packet(&event(client, port, Uplink, REDIRECTED), &place()).unwrap();
    assert_eq!(told.source, "203.0.113.9:4444");
    assert_eq!(told.destination, "192.0.2.1:8080");
}

#[test]
fn nodes_and_translations_are_told_of() {
    let (client, here) = ((CLIENT, 4444), (HERE, 80));
    let verdict = |event: TraceEvent| packet(&event, &place()).unwrap().verdict;
    let handed = TraceEvent {
        source_mac: mac(OTHER),
        seen: OTHER.into(),
        seen_port_be: 40_000_u16.to_be(),
        ..event(client, here, TraceStep::ToTask, NEXT)
    };
    assert_eq!(
        verdict(handed),
        "handed to web.h00000000000, by way of node b00000000000, which sees 10.255.0.3:40000 for \
         the client"
    );
    let unpacked = TraceEvent {
        source_mac: mac(OTHER),
        ..event(client, here, TraceStep::ShortcutIn, REDIRECTED)
    };
    assert_eq!(
        verdict(unpacked),
        "handed to web.h00000000000, by way of node b00000000000"
    );
    let balanced = TraceEvent {
        source_mac: mac(OWN),
        ..event(client, here, TraceStep::ShortcutIn, REDIRECTED)
    };
    assert_eq!(
        verdict(balanced),
        "straight to web.h00000000000 on this node"
    );
    let asked = event((THERE, 4444), here, TraceStep::ToTask, NEXT);
    assert_eq!(verdict(asked), "handed to web.h00000000000");
    let answer = TraceEvent {
        destination_mac: mac(OTHER),
        ..event(here, client, TraceStep::FromTask, REDIRECTED)
    };
    assert_eq!(verdict(answer), "returned to node b00000000000");
    let back = TraceEvent {
        destination_mac: mac(OTHER),
        ..event(here, client, TraceStep::Tunnel, NEXT)
    };
    assert_eq!(verdict(back), "back to node b00000000000");
}

#[test]
fn a_drop_is_told_with_its_reason() {
    let refused = TraceEvent {
        reason: crate::ebpf::Counter::SourceRefused as u8 + 1,
        ..event((CLIENT, 4444), (ADDRESS, 8080), TraceStep::Uplink, DROPPED)
    };
    let told = packet(&refused, &place()).unwrap();
    assert!(told.dropped);
    assert!(
        told.verdict
            .starts_with("dropped (source_refused): the client"),
        "{told:?}"
    );
}

#[test]
fn packets_that_only_share_a_port_number_are_not_told_of() {
    let (client, place) = ((CLIENT, 4444), place());
    let stranger = (STRANGER, 80);
    for (from, to, step) in [
        (client, stranger, TraceStep::ToTask),
        (stranger, client, TraceStep::FromTask),
        // A server outside, asked by the host or by a task.
        ((CLIENT, 8080), (ADDRESS, 4444), TraceStep::Uplink),
        ((HERE, 4444), (CLIENT, 8080), TraceStep::FromTask),
        ((HERE, 4444), (CLIENT, 8080), TraceStep::Out),
    ] {
        assert_eq!(
            packet(&event(from, to, step, NEXT), &place),
            None,
            "{step:?} {from:?} {to:?}"
        );
    }
    let other_protocol = TraceEvent {
        protocol: 17,
        ..event(client, (ADDRESS, 8080), TraceStep::Uplink, NEXT)
    };
    assert_eq!(packet(&other_protocol, &place), None);
    let unknown_step = TraceEvent {
        step: 99,
        ..event(client, (ADDRESS, 8080), TraceStep::Uplink, NEXT)
    };
    assert_eq!(packet(&unknown_step, &place), None);
}

const DEADLINE: Duration = Duration::from_secs(5);

/// Until a trace can be started, which is when the one before has ended.
async fn started(traces: &Traces, scene: impl Fn() -> Scene) -> mpsc::Receiver<Told> {
    let start = async {
        loop {
            match traces.start(subject(), scene()) {
                Ok(told) => return told,
                Err(TraceError::Busy) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(DEADLINE, start)
        .await
        .expect("the one before ends")
}

async fn ends(mut told: mpsc::Receiver<Told>) {
    let end = async { while told.recv().await.is_some() {} };
    tokio::time::timeout(DEADLINE, end)
        .await
        .expect("the trace ends");
}

#[test]
fn a_trace_ends_with_its_listener_its_membership_and_its_agent_and_there_is_one_at_a_time() {
    sandboxed(|sandbox| {
        let mesh = sandbox.load();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let stop = CancellationToken::new();
            let traces = Traces::new(stop.clone());
            let sender = watch::Sender::new(Arc::new(assigned()));
            let scene = || Scene {
                bpffs_dir: sandbox.bpffs_dir(),
                node_id: own(),
                assigned: sender.subscribe(),
            };
            let mut told = traces.start(subject(), scene()).unwrap();
            let another = traces.start(subject(), scene());
            assert!(matches!(another, Err(TraceError::Busy)));
            let request = Frame::tcp((CLIENT, 4444), (ADDRESS, 8080)).bytes();
            run_on(&mesh, Program::MeshUplink, &request, 1);
            let look = tokio::time::timeout(DEADLINE, told.recv()).await.unwrap();
            let look = look.unwrap().unwrap();
            assert_eq!(look.packets.len(), 1);
            assert_eq!(look.packets[0].source, "203.0.113.9:4444");

            drop(told);
            let mut told = started(&traces, scene).await;
            // The service leads to another port now.
            let mut changed = assigned();
            for service in changed.services.values_mut() {
                service.ports[0].target = 81;
            }
            sender.send_replace(Arc::new(changed));
            let request = Frame::tcp((CLIENT, 4444), (HERE, 81)).bytes();
            let look = async {
                loop {
                    run_on(&mesh, Program::ShortcutLearn, &request, 1);
                    tokio::task::yield_now().await;
                    if let Ok(look) = told.try_recv() {
                        return look.unwrap();
                    }
                }
            };
            let look = tokio::time::timeout(DEADLINE, look).await.unwrap();
            assert_eq!(look.packets[0].destination, "10.255.1.1:81");

            drop(sender);
            ends(told).await;
            let sender = watch::Sender::new(Arc::new(assigned()));
            let scene = || Scene {
                bpffs_dir: sandbox.bpffs_dir(),
                node_id: own(),
                assigned: sender.subscribe(),
            };
            let told = started(&traces, scene).await;
            stop.cancel();
            ends(told).await;
        });
    });
}

#[test]
fn without_the_programs_a_trace_is_refused_with_the_remedy() {
    let nowhere = tempfile::tempdir().unwrap();
    let sender = watch::Sender::new(Arc::new(assigned()));
    let scene = Scene {
        bpffs_dir: nowhere.path().to_owned(),
        node_id: own(),
        assigned: sender.subscribe(),
    };
    let refused = Traces::new(CancellationToken::new()).start(subject(), scene);
    let status = Status::from(refused.unwrap_err());
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert!(status.message().contains("swarmctl mesh check"), "{status}");
}
