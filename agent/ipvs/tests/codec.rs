//! The codec takes back what it gives out, and takes anything without a panic.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;

use netlink_packet_core::{DefaultNla, Emitable, ParseableParametrized};
use netlink_packet_generic::GenlMessage;
use proptest::prelude::*;
use swarm_ipvs::codec::{
    Attr, Command, Counter, CounterValue, DestinationAttr, InfoAttr, IpvsMessage, ServiceAttr,
    StatsAttr,
};
use swarm_ipvs::{
    Destination, DestinationConfig, DestinationEntry, DestinationKey, Family, Forward, Info, Name,
    Netmask, Op, Protocol, Service, ServiceConfig, ServiceEntry, ServiceFlags, ServiceKey, Stats,
    Timeouts, Tunnel, TunnelKind,
};

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| Ipv4Addr::from(bits).into()),
        any::<u128>().prop_map(|bits| Ipv6Addr::from(bits).into()),
    ]
}

fn service_key() -> impl Strategy<Value = ServiceKey> {
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    prop_oneof![
        (any::<u16>(), address(), any::<u16>()).prop_map(|(number, address, port)| {
            ServiceKey::Address {
                protocol: Protocol::from_number(number),
                address,
                port,
            }
        }),
        (family, any::<NonZeroU32>())
            .prop_map(|(family, mark)| ServiceKey::Fwmark { family, mark }),
    ]
}

fn name() -> impl Strategy<Value = Name> {
    "[a-z0-9_-]{1,15}".prop_map(|text| Name::new(&text).unwrap())
}

fn service() -> impl Strategy<Value = Service> {
    let rest = (
        name(),
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
        1..=128_u8,
        proptest::option::of(name()),
    );
    (service_key(), rest).prop_map(
        |(key, (scheduler, flags, timeout_s, mask, length, persistence_engine))| {
            let netmask = match key.family() {
                Family::V4 => Netmask::V4(mask.into()),
                Family::V6 => Netmask::V6(length),
            };
            // HASHED is the kernel's own and does not travel.
            let flags = ServiceFlags::from_bits(flags).without(ServiceFlags::HASHED);
            let config = ServiceConfig {
                scheduler,
                flags,
                timeout_s,
                netmask,
                persistence_engine,
            };
            Service { key, config }
        },
    )
}

fn forward() -> impl Strategy<Value = Forward> {
    let kind = prop_oneof![
        Just(TunnelKind::Ipip),
        Just(TunnelKind::Gue),
        Just(TunnelKind::Gre)
    ];
    prop_oneof![
        Just(Forward::Masquerade),
        Just(Forward::Local),
        Just(Forward::Route),
        Just(Forward::Bypass),
        (kind, any::<u16>(), any::<u16>())
            .prop_map(|(kind, port, flags)| Forward::Tunnel(Tunnel { kind, port, flags })),
    ]
}

fn destination() -> impl Strategy<Value = Destination> {
    let key = (address(), any::<u16>());
    (key, forward(), any::<u32>(), any::<u32>(), any::<u32>()).prop_map(
        |((address, port), forward, weight, upper_threshold, lower_threshold)| Destination {
            key: DestinationKey { address, port },
            config: DestinationConfig {
                forward,
                weight,
                upper_threshold,
                lower_threshold,
            },
        },
    )
}

fn stats() -> impl Strategy<Value = Stats> {
    any::<[u64; 10]>().prop_map(|values| {
        let attrs: Vec<_> = Counter::ALL
            .into_iter()
            .zip(values)
            .map(|(counter, value)| StatsAttr::Counter(counter, CounterValue::U64(value)))
            .collect();
        Stats::from_attrs(&attrs)
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        service().prop_map(Op::AddService),
        service().prop_map(Op::UpdateService),
        service_key().prop_map(Op::DeleteService),
        (service_key(), destination()).prop_map(|(key, to)| Op::AddDestination(key, to)),
        (service_key(), destination()).prop_map(|(key, to)| Op::UpdateDestination(key, to)),
        (service_key(), destination()).prop_map(|(key, to)| Op::DeleteDestination(key, to.key)),
        Just(Op::Flush),
        any::<[u32; 3]>().prop_map(|[tcp_s, tcp_fin_s, udp_s]| Op::SetTimeouts(Timeouts {
            tcp_s,
            tcp_fin_s,
            udp_s,
        })),
    ]
}

/// An attribute this crate does not know, of any length and so with any padding.
fn unknown() -> impl Strategy<Value = DefaultNla> {
    (100..0x3fff_u16, prop::collection::vec(any::<u8>(), 0..9))
        .prop_map(|(kind, value)| DefaultNla::new(kind, value))
}

fn bytes(message: IpvsMessage) -> Vec<u8> {
    let message = GenlMessage::from_payload(message);
    let mut bytes = vec![0xee; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

fn parse(bytes: &[u8]) -> Result<IpvsMessage, netlink_packet_core::DecodeError> {
    GenlMessage::<IpvsMessage>::parse_with_param(bytes, 0_u16).map(|message| message.payload)
}

/// Reads everything that can be read of a message, for its panics.
fn read_all(message: &IpvsMessage) {
    let _ = Info::from_attrs(&message.attrs);
    if let Some(attrs) = message.service() {
        let _ = ServiceEntry::from_attrs(attrs);
    }
    if let Some(attrs) = message.destination() {
        let _ = DestinationEntry::from_attrs(attrs, Family::V4);
        let _ = DestinationEntry::from_attrs(attrs, Family::V6);
    }
}

proptest! {
    #[test]
    fn requests_survive_the_wire(op in op()) {
        let message = IpvsMessage::from(&op);
        prop_assert_eq!(parse(&bytes(message.clone())).unwrap(), message);
    }

    #[test]
    fn services_survive_the_wire(service in service(), stats in stats(), other in unknown()) {
        let mut attrs = service.attrs();
        attrs.insert(0, ServiceAttr::Other(other));
        attrs.push(ServiceAttr::Stats64(stats.attrs()));
        let message =
            IpvsMessage { command: Command::NEW_SERVICE, attrs: vec![Attr::Service(attrs)] };
        let parsed = parse(&bytes(message.clone())).unwrap();
        prop_assert_eq!(&parsed, &message);
        let entry = ServiceEntry::from_attrs(parsed.service().unwrap()).unwrap();
        prop_assert_eq!(entry, ServiceEntry { service, stats });
    }

    #[test]
    fn destinations_survive_the_wire(
        destination in destination(),
        counts in any::<[u32; 3]>(),
        stats in stats(),
        other in unknown(),
    ) {
        let [active_connections, inactive_connections, persistent_connections] = counts;
        let mut attrs = destination.attrs();
        attrs.insert(0, DestinationAttr::Other(other));
        attrs.push(DestinationAttr::ActiveConnections(active_connections));
        attrs.push(DestinationAttr::InactiveConnections(inactive_connections));
        attrs.push(DestinationAttr::PersistentConnections(persistent_connections));
        attrs.push(DestinationAttr::Stats(Stats::default().attrs()));
        attrs.push(DestinationAttr::Stats64(stats.attrs()));
        let message =
            IpvsMessage { command: Command::NEW_DEST, attrs: vec![Attr::Destination(attrs)] };
        let parsed = parse(&bytes(message.clone())).unwrap();
        prop_assert_eq!(&parsed, &message);
        let entry =
            DestinationEntry::from_attrs(parsed.destination().unwrap(), Family::V4).unwrap();
        let expected = DestinationEntry {
            destination,
            active_connections,
            inactive_connections,
            persistent_connections,
            stats,
        };
        prop_assert_eq!(entry, expected);
    }

    #[test]
    fn info_survives_the_wire(version in any::<u32>(), size in any::<u32>(), other in unknown()) {
        let attrs = vec![
            Attr::Info(InfoAttr::Other(other)),
            Attr::Info(InfoAttr::ConnectionTableSize(size)),
            Attr::Info(InfoAttr::Version(version)),
        ];
        let message = IpvsMessage { command: Command::SET_INFO, attrs };
        let parsed = parse(&bytes(message.clone())).unwrap();
        prop_assert_eq!(&parsed, &message);
        let info = Info::from_attrs(&parsed.attrs).unwrap();
        prop_assert_eq!(info.connection_table_size, size);
        prop_assert_eq!(info.version.patch, version as u8);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(message) = parse(&bytes) {
            read_all(&message);
        }
    }

    /// Nearly right messages get further into the reader than noise does.
    #[test]
    fn damaged_messages_are_read_without_a_panic(
        service in service(),
        destination in destination(),
        stats in stats(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        length in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut service = service.attrs();
        service.push(ServiceAttr::Stats(stats.attrs()));
        let mut destination = destination.attrs();
        destination.push(DestinationAttr::Stats64(stats.attrs()));
        let attrs = vec![Attr::Service(service), Attr::Destination(destination)];
        let mut bytes = bytes(IpvsMessage { command: Command::NEW_DEST, attrs });
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cut {
            bytes.truncate(length.index(bytes.len()));
        }
        if let Ok(message) = parse(&bytes) {
            read_all(&message);
        }
    }
}

#[test]
fn a_service_that_lacks_something_is_an_error_that_says_what() {
    let key = ServiceKey::Fwmark {
        family: Family::V4,
        mark: NonZeroU32::MIN,
    };
    let error = ServiceEntry::from_attrs(&key.attrs()).unwrap_err();
    assert_eq!(error.to_string(), "service without a scheduler");
}

#[test]
fn operations_name_action_and_object() {
    let v4 = ServiceKey::Address {
        protocol: Protocol::TCP,
        address: [10, 0, 0, 1].into(),
        port: 80,
    };
    let v6 = ServiceKey::Address {
        protocol: Protocol::SCTP,
        address: Ipv6Addr::LOCALHOST.into(),
        port: 81,
    };
    let mark = ServiceKey::Fwmark {
        family: Family::V6,
        mark: NonZeroU32::MIN,
    };
    let to = DestinationKey {
        address: [10, 1, 0, 2].into(),
        port: 8080,
    };
    let cases = [
        (
            Op::AddService(Service::new(v4, Name::RR)),
            "add service tcp 10.0.0.1:80",
        ),
        (Op::DeleteService(v6), "delete service sctp [::1]:81"),
        (
            Op::AddDestination(mark, Destination::new(to)),
            "add destination 10.1.0.2:8080 to service fwmark 1 ipv6",
        ),
        (
            Op::DeleteDestination(v4, to),
            "delete destination 10.1.0.2:8080 of service tcp 10.0.0.1:80",
        ),
    ];
    for (op, text) in cases {
        assert_eq!(op.to_string(), text);
    }
}
