//! The pure parts on bytes, the forwarder against servers that misbehave, and whole name servers in
//! namespaces, asked by the C library.

mod answers;
mod namespaces;
mod upstreams;

use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use swarm_model::NetworkId;

use super::records::{Asker, Mode, Records, ServiceRecord, Subnets, Zone};

/// Three networks: `back` (IPv6 too) with services `web` (virtual address, alias `WWW`), `db`
/// (tasks), `idle` (no task) and `big` (300 tasks), `front` (IPv4) with another `web`, and `inside`,
/// which is internal.
pub(super) struct World {
    pub(super) records: Records,
    pub(super) back: NetworkId,
    pub(super) front: NetworkId,
    pub(super) inside: NetworkId,
}

pub(super) fn world() -> World {
    let mut rng = rand::rng();
    let [back, front, inside] = [(); 3].map(|()| NetworkId::random(&mut rng));
    let address = |last| Ipv4Addr::new(10, 1, 0, last);
    let subnets = |v4: &str, v6: Option<&str>| Subnets {
        v4: v4.parse().unwrap(),
        v6: v6.map(|v6| v6.parse().unwrap()),
    };
    let mut records = Records::default();

    let mut zone = Zone::new("Back", subnets("10.1.0.0/16", Some("fd00:1::/64")), false);
    let services: [(&str, &[String], Mode, &[Ipv4Addr]); 3] = [
        (
            "web",
            &["WWW".to_owned()],
            Mode::Vip(Some(address(2))),
            &[address(11), address(12)],
        ),
        ("db", &[], Mode::Tasks, &[address(13), address(14)]),
        ("idle", &[], Mode::Vip(Some(address(3))), &[]),
    ];
    for (name, aliases, mode, ready) in services {
        zone.add_service(&ServiceRecord {
            name,
            aliases,
            mode,
            ready,
        });
    }
    let many: Vec<_> = (0..300)
        .map(|index| Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 4, 0).to_bits() + index))
        .collect();
    zone.add_service(&ServiceRecord {
        name: "big",
        aliases: &[],
        mode: Mode::Tasks,
        ready: &many,
    });
    zone.add_task("web.1.task1", "HostOne", address(11));
    records.zones.insert(back.clone(), Arc::new(zone));

    let mut zone = Zone::new("front", subnets("10.2.0.0/24", None), false);
    zone.add_service(&ServiceRecord {
        name: "web",
        aliases: &[],
        mode: Mode::Vip(Some(Ipv4Addr::new(10, 2, 0, 2))),
        ready: &[],
    });
    records.zones.insert(front.clone(), Arc::new(zone));

    let zone = Zone::new("inside", subnets("10.3.0.0/24", None), true);
    records.zones.insert(inside.clone(), Arc::new(zone));
    records.nameless.push(subnets("10.255.0.0/16", None));
    World {
        records,
        back,
        front,
        inside,
    }
}

pub(super) fn on(networks: &[&NetworkId]) -> Asker {
    Asker {
        networks: networks.iter().copied().cloned().collect(),
    }
}

/// A query with id 7 that wants recursion; with EDNS of this size, where one is given.
pub(super) fn query(name: &str, kind: RecordType, edns: Option<u16>) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let labels = name.split('.').filter(|label| !label.is_empty());
    let name = Name::from_labels(labels.map(str::as_bytes)).unwrap();
    message.add_query(Query::query(name, kind));
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.edns = Some(edns);
    }
    message
}
