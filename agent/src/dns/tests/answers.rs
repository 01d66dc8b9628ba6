use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, RecordType};
use proptest::prelude::*;

use super::super::answer::{QUERY_BYTES_MAX, Transport, Verdict, answer};
use super::super::forward::Incoming;
use super::super::records::Asker;
use super::{World, on, query, world};

const UDP: Transport = Transport::Udp;
const TCP: Transport = Transport::Tcp;

/// What the answer says, when there is one.
fn reply(verdict: Verdict) -> Message {
    let Verdict::Reply(bytes) = verdict else {
        panic!("no reply but {verdict:?}");
    };
    let message = Message::from_vec(&bytes).unwrap();
    assert_eq!(message.metadata.message_type, MessageType::Response);
    message
}

fn ask(world: &World, asker: &Asker, query: &Message, transport: Transport) -> Verdict {
    let query = query.to_vec().unwrap();
    answer(&query, transport, asker, &world.records, 0)
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    let addresses = message.answers.iter().map(|record| record.data.ip_addr());
    addresses.collect::<Option<_>>().unwrap()
}

/// Addresses, or the reason for there being none.
fn told(world: &World, asker: &Asker, name: &str, kind: RecordType) -> Result<Vec<String>, String> {
    match ask(world, asker, &query(name, kind, None), UDP) {
        Verdict::Forward(_) => Err("forwarded".to_owned()),
        other => {
            let message = reply(other);
            match message.metadata.response_code {
                ResponseCode::NoError => Ok(message
                    .answers
                    .iter()
                    .map(|record| record.data.to_string())
                    .collect()),
                code => Err(format!("{code:?}")),
            }
        }
    }
}

#[test]
fn an_answer_is_these_bytes() {
    let world = world();
    let question = b"\x03wEb\x00\x00\x01\x00\x01";
    let mut bytes = b"\xab\xcd\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    bytes.extend(question);
    let verdict = answer(&bytes, UDP, &on(&[&world.back]), &world.records, 9);
    // QR AA RD, RA; one question, one answer.
    let mut expected = b"\xab\xcd\x85\x80\x00\x01\x00\x01\x00\x00\x00\x00".to_vec();
    expected.extend(question);
    // The name is the question's; A, IN, 5 s, 4 bytes.
    expected.extend(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x05\x00\x04\x0a\x01\x00\x02");
    assert_eq!(verdict, Verdict::Reply(expected));
}

#[test]
fn names_are_told() {
    let world = world();
    let asker = on(&[&world.back]);
    let no_data = || Ok(Vec::new());
    let some = |addresses: &[&str]| Ok(addresses.iter().map(ToString::to_string).collect());
    let away = || Err("forwarded".to_owned());
    let nobody = || Err("NXDomain".to_owned());
    use RecordType::{A, AAAA, MX, PTR, TXT};
    let table = [
        ("web", A, some(&["10.1.0.2"])),
        ("WEB", A, some(&["10.1.0.2"])),
        ("web", AAAA, some(&["fd00:1::a01:2"])),
        ("web", MX, no_data()),
        ("www", A, some(&["10.1.0.2"])),
        ("web.back", A, some(&["10.1.0.2"])),
        ("web.BACK", A, some(&["10.1.0.2"])),
        ("tasks.web", A, some(&["10.1.0.11", "10.1.0.12"])),
        ("tasks.www", A, some(&["10.1.0.11", "10.1.0.12"])),
        ("tasks.web.back", A, some(&["10.1.0.11", "10.1.0.12"])),
        ("tasks.web", AAAA, some(&["fd00:1::a01:b", "fd00:1::a01:c"])),
        ("db", A, some(&["10.1.0.13", "10.1.0.14"])),
        ("idle", A, some(&["10.1.0.3"])),
        ("tasks.idle", A, no_data()),
        ("web.1.task1", A, some(&["10.1.0.11"])),
        ("web.1.task1.back", A, some(&["10.1.0.11"])),
        ("hostone", A, some(&["10.1.0.11"])),
        ("11.0.1.10.in-addr.arpa", PTR, some(&["web.1.task1.back."])),
        ("11.0.1.10.IN-ADDR.ARPA", PTR, some(&["web.1.task1.back."])),
        ("11.0.1.10.in-addr.arpa", TXT, no_data()),
        ("2.0.1.10.in-addr.arpa", PTR, some(&["web.back."])),
        ("99.0.1.10.in-addr.arpa", PTR, nobody()),
        ("9.0.255.10.in-addr.arpa", PTR, nobody()),
        ("1.0.2.10.in-addr.arpa", PTR, away()),
        ("0.1.10.in-addr.arpa", PTR, away()),
        (
            "b.0.0.0.1.0.a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa",
            PTR,
            some(&["web.1.task1.back."]),
        ),
        ("", A, away()),
        ("back", A, away()),
        ("tasks", A, away()),
        ("other", A, away()),
        ("tasks.other", A, away()),
        ("under.web", A, away()),
        ("web.front", A, away()),
        ("www.example", A, away()),
        ("web.", A, some(&["10.1.0.2"])),
        ("w\u{e9}b", A, away()),
    ];
    for (name, kind, expected) in table {
        assert_eq!(told(&world, &asker, name, kind), expected, "{name} {kind}");
    }
}

#[test]
fn a_name_is_known_only_on_the_askers_networks() {
    let world = world();
    let web = |networks: &[_]| told(&world, &on(networks), "web", RecordType::A);
    assert_eq!(web(&[&world.front]), Ok(vec!["10.2.0.2".to_owned()]));
    assert_eq!(
        web(&[&world.front, &world.back]),
        Ok(vec!["10.2.0.2".to_owned()])
    );
    assert_eq!(
        web(&[&world.back, &world.front]),
        Ok(vec!["10.1.0.2".to_owned()])
    );
    assert_eq!(web(&[]), Err("forwarded".to_owned()));
    assert_eq!(web(&[&world.inside]), Err("Refused".to_owned()));
    let both = on(&[&world.inside, &world.front]);
    assert_eq!(
        told(&world, &both, "www.example", RecordType::A),
        Err("forwarded".to_owned())
    );
}

#[test]
fn every_task_comes_first_once() {
    let world = world();
    let asker = on(&[&world.back]);
    let query = query("big", RecordType::A, None).to_vec().unwrap();
    let mut first = BTreeSet::new();
    for turn in 0..300 {
        let message = reply(answer(&query, TCP, &asker, &world.records, u64::MAX - turn));
        let addresses = addresses(&message);
        assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), 300);
        first.insert(addresses[0]);
    }
    assert_eq!(first.len(), 300);
}

#[test]
fn an_answer_is_cut_to_what_the_asker_takes() {
    let world = world();
    let asker = on(&[&world.back]);
    for (edns, limit) in [
        (None, 512),
        (Some(100), 512),
        (Some(800), 800),
        (Some(4096), 1232),
    ] {
        for (kind, bytes) in [
            (RecordType::A, 16),
            (RecordType::AAAA, 28),
            (RecordType::ANY, 28),
        ] {
            let verdict = ask(&world, &asker, &query("big", kind, edns), UDP);
            let Verdict::Reply(reply) = &verdict else {
                panic!("{verdict:?}");
            };
            assert!(reply.len() <= limit, "{} > {limit}", reply.len());
            if kind != RecordType::ANY {
                assert!(reply.len() > limit - bytes, "{} of {limit}", reply.len());
            }
            let message = self::reply(verdict);
            assert!(message.metadata.truncation);
            assert_eq!(message.edns.is_some(), edns.is_some());
        }
    }
    let message = reply(ask(
        &world,
        &asker,
        &query("big", RecordType::ANY, None),
        TCP,
    ));
    assert!(!message.metadata.truncation);
    assert_eq!(message.answers.len(), 600);
}

#[test]
fn what_is_not_for_us_is_refused() {
    let world = world();
    let asker = on(&[&world.back]);
    let code = |message: &Message| {
        reply(ask(&world, &asker, message, UDP))
            .metadata
            .response_code
    };
    let mut other = query("web", RecordType::A, None);
    other.queries[0].query_class = DNSClass::CH;
    assert_eq!(code(&other), ResponseCode::Refused);
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(code(&query("web", kind, None)), ResponseCode::Refused);
    }
    let mut other = query("web", RecordType::A, Some(1232));
    other.edns.as_mut().unwrap().set_version(1);
    // Of two names for 16 the decoder gives the other one.
    assert_eq!(u16::from(code(&other)), u16::from(ResponseCode::BADVERS));
    let mut other = query("web", RecordType::A, None);
    other.metadata.op_code = OpCode::Update;
    assert_eq!(code(&other), ResponseCode::NotImp);
    let mut other = query("web", RecordType::A, None);
    other.queries.push(other.queries[0].clone());
    assert_eq!(code(&other), ResponseCode::FormErr);
    other.queries.clear();
    assert_eq!(code(&other), ResponseCode::FormErr);
    let mut other = query("web", RecordType::A, None);
    other.metadata.message_type = MessageType::Response;
    assert_eq!(ask(&world, &asker, &other, UDP), Verdict::Ignore);
    let long = vec![0; QUERY_BYTES_MAX + 1];
    let long = [
        &query("web", RecordType::A, None).to_vec().unwrap()[..],
        &long,
    ]
    .concat();
    let message = reply(answer(&long, TCP, &asker, &world.records, 0));
    assert_eq!(message.metadata.response_code, ResponseCode::FormErr);
}

#[test]
fn only_the_question_is_forwarded() {
    let world = world();
    let mut message = query("Www.Example", RecordType::MX, Some(4096));
    message.metadata.checking_disabled = true;
    message.edns.as_mut().unwrap().set_dnssec_ok(true);
    let cookie = (
        hickory_proto::rr::rdata::opt::EdnsCode::Cookie,
        &b"12345678"[..],
    );
    message
        .edns
        .as_mut()
        .unwrap()
        .options_mut()
        .insert(cookie.try_into().unwrap());
    message.add_additional(hickory_proto::rr::Record::from_rdata(
        message.queries[0].name.clone(),
        0,
        RData::A(Ipv4Addr::new(192, 0, 2, 1).into()),
    ));
    let verdict = ask(&world, &on(&[]), &message, UDP);
    let Verdict::Forward(forward) = verdict else {
        panic!("{verdict:?}");
    };
    let sent = Message::from_vec(&forward.query(99)).unwrap();
    let mut expected = query("Www.Example", RecordType::MX, Some(1232));
    expected.metadata.id = 99;
    expected.metadata.checking_disabled = true;
    expected.edns.as_mut().unwrap().set_dnssec_ok(true);
    assert_eq!(sent, expected);
    assert!(sent.queries[0].name.eq_case(&message.queries[0].name));
    let failure = Message::from_vec(&forward.failure()).unwrap();
    assert_eq!(failure.metadata.id, 7);
    assert_eq!(failure.metadata.response_code, ResponseCode::ServFail);
}

/// A query, and what a random hand made of it.
fn damaged_query() -> impl Strategy<Value = Vec<u8>> {
    let names = ["web", "tasks.big", "www.example", "11.0.1.10.in-addr.arpa"];
    let kinds = [
        RecordType::A,
        RecordType::AAAA,
        RecordType::PTR,
        RecordType::ANY,
    ];
    let whole = (
        proptest::sample::select(names.to_vec()),
        proptest::sample::select(kinds.to_vec()),
        proptest::option::of(any::<u16>()),
    );
    let damage = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (whole, damage, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |((name, kind, edns), damage, end, cut)| {
            let mut bytes = query(name, kind, edns).to_vec().unwrap();
            for (place, byte) in damage {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            if cut {
                bytes.truncate(end.index(bytes.len() + 1));
            }
            bytes
        },
    )
}

proptest! {
    #[test]
    fn any_bytes_get_at_most_one_bounded_answer(
        bytes in prop_oneof![
            damaged_query(),
            proptest::collection::vec(any::<u8>(), 0..2000),
        ],
        turn in any::<u64>(),
    ) {
        let world = world();
        for (transport, limit) in [(UDP, 1232), (TCP, 65_535)] {
            for asker in [on(&[&world.back, &world.front]), on(&[])] {
                match answer(&bytes, transport, &asker, &world.records, turn) {
                    Verdict::Ignore => prop_assert!(bytes.len() < 12 || bytes[2] & 0x80 != 0),
                    Verdict::Reply(reply) => {
                        prop_assert!(reply.len() <= limit);
                        prop_assert_eq!(&reply[..2], &bytes[..2]);
                        prop_assert!(reply[2] & 0x80 != 0);
                        prop_assert!(Message::from_vec(&reply).is_ok());
                    }
                    Verdict::Forward(forward) => {
                        prop_assert!(forward.query(1).len() <= 512);
                        prop_assert_eq!(&forward.failure()[..2], &bytes[..2]);
                    }
                }
            }
        }
    }

    #[test]
    fn any_bytes_from_upstream_are_a_stray_or_bounded(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..3000),
        header in proptest::option::of(any::<[u8; 2]>()),
        question in any::<bool>(),
        edns in proptest::option::of(any::<u16>()),
    ) {
        let message = query("www.example", RecordType::A, edns);
        let verdict = ask(&world(), &on(&[]), &message, UDP);
        let Verdict::Forward(forward) = verdict else {
            return Err(TestCaseError::fail("not forwarded"));
        };
        let ours = forward.query(0x1234);
        let question_end = 12 + 13 + 4;
        if let Some([flags, code]) = header && bytes.len() >= question_end {
            bytes[..2].copy_from_slice(&ours[..2]);
            bytes[2..4].copy_from_slice(&[0x80 | flags & 0x07, code]);
            bytes[4..6].copy_from_slice(&[0, 1]);
            if question {
                bytes[12..question_end].copy_from_slice(&ours[12..question_end]);
            }
        }
        let limit = usize::from(edns.unwrap_or(512)).clamp(512, 1232);
        match forward.incoming(0x1234, bytes.clone()) {
            Incoming::Stray => {}
            Incoming::Answer(answer) | Incoming::Truncated(answer) => {
                prop_assert!(question && answer.len() <= limit && answer[..2] == [0, 7]);
            }
            Incoming::Failure(answer) => {
                prop_assert!(answer.len() <= limit && answer[..2] == [0, 7]);
            }
        }
    }
}
