//! Messages written byte by byte from include/uapi/linux/ip_vs.h, against the codec.
#![cfg(target_endian = "little")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::num::NonZeroU32;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_generic::GenlMessage;
use swarm_ipvs::codec::IpvsMessage;
use swarm_ipvs::{
    Destination, DestinationConfig, DestinationEntry, DestinationKey, Family, Forward, Info, Name,
    Netmask, Op, Protocol, Service, ServiceConfig, ServiceEntry, ServiceFlags, ServiceKey, Stats,
    Timeouts, Tunnel, TunnelKind, Version,
};

const FAMILY_ID: u16 = 0x1d;

fn encode(op: &Op) -> Vec<u8> {
    let mut request = GenlMessage::from_payload(IpvsMessage::from(op));
    request.set_resolved_family_id(FAMILY_ID);
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    message.header.sequence_number = 7;
    message.finalize();
    let mut bytes = vec![0xee; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn decode(bytes: &[u8]) -> IpvsMessage {
    let message = NetlinkMessage::<GenlMessage<IpvsMessage>>::deserialize(bytes).unwrap();
    match message.payload {
        NetlinkPayload::InnerMessage(message) => message.payload,
        other => panic!("{other:?}"),
    }
}

#[rustfmt::skip]
#[test]
fn add_service_v4() {
    let key = ServiceKey::Address {
        protocol: Protocol::TCP,
        address: [10, 0, 0, 1].into(),
        port: 80,
    };
    let expected = [
        0x68, 0, 0, 0,              // nlmsg_len 104
        0x1d, 0,                    // nlmsg_type
        0x05, 0,                    // NLM_F_REQUEST | NLM_F_ACK
        7, 0, 0, 0,                 // nlmsg_seq
        0, 0, 0, 0,                 // nlmsg_pid
        1, 1, 0, 0,                 // IPVS_CMD_NEW_SERVICE, version 1
        0x54, 0, 0x01, 0x80,        // IPVS_CMD_ATTR_SERVICE, nested, 84
        6, 0, 1, 0,  2, 0, 0, 0,    // AF: AF_INET
        6, 0, 2, 0,  6, 0, 0, 0,    // PROTOCOL: IPPROTO_TCP
        20, 0, 3, 0, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // ADDR
        6, 0, 4, 0,  0, 80, 0, 0,   // PORT, big-endian
        7, 0, 6, 0,  b'r', b'r', 0, 0, // SCHED_NAME, NUL and padding
        12, 0, 7, 0, 0, 0, 0, 0, 0xfd, 0xff, 0xff, 0xff, // FLAGS, mask without HASHED
        8, 0, 8, 0,  0, 0, 0, 0,    // TIMEOUT
        8, 0, 9, 0,  255, 255, 255, 255, // NETMASK
    ];
    assert_eq!(encode(&Op::AddService(Service::new(key, Name::RR))), expected);
}

#[rustfmt::skip]
#[test]
fn update_service_fwmark_v6() {
    let key = ServiceKey::Fwmark { family: Family::V6, mark: NonZeroU32::new(0x0102).unwrap() };
    let config = ServiceConfig {
        scheduler: Name::MH,
        flags: ServiceFlags::PERSISTENT | ServiceFlags::SCHED_2 | ServiceFlags::HASHED,
        timeout_s: 300,
        netmask: Netmask::V6(64),
        persistence_engine: Some(Name::new("sip").unwrap()),
    };
    let expected = [
        0x54, 0, 0, 0,              // nlmsg_len 84
        0x1d, 0, 0x05, 0, 7, 0, 0, 0, 0, 0, 0, 0,
        2, 1, 0, 0,                 // IPVS_CMD_SET_SERVICE
        0x40, 0, 0x01, 0x80,        // IPVS_CMD_ATTR_SERVICE, nested, 64
        6, 0, 1, 0,  10, 0, 0, 0,   // AF: AF_INET6
        8, 0, 5, 0,  2, 1, 0, 0,    // FWMARK
        7, 0, 6, 0,  b'm', b'h', 0, 0, // SCHED_NAME
        12, 0, 7, 0, 0x11, 0, 0, 0, 0xfd, 0xff, 0xff, 0xff, // FLAGS
        8, 0, 8, 0,  0x2c, 1, 0, 0, // TIMEOUT
        8, 0, 9, 0,  64, 0, 0, 0,   // NETMASK: a length in host order
        8, 0, 11, 0, b's', b'i', b'p', 0, // PE_NAME
    ];
    assert_eq!(encode(&Op::UpdateService(Service { key, config })), expected);
}

#[rustfmt::skip]
#[test]
fn add_destination_v6_tunnel() {
    let service = ServiceKey::Fwmark { family: Family::V4, mark: NonZeroU32::new(9).unwrap() };
    let key = DestinationKey { address: "2001:db8::7".parse().unwrap(), port: 8080 };
    let config = DestinationConfig {
        forward: Forward::Tunnel(Tunnel { kind: TunnelKind::Gue, port: 5555, flags: 1 }),
        weight: 3,
        upper_threshold: 100,
        lower_threshold: 50,
    };
    let expected = [
        0x88, 0, 0, 0,              // nlmsg_len 136
        0x1d, 0, 0x05, 0, 7, 0, 0, 0, 0, 0, 0, 0,
        5, 1, 0, 0,                 // IPVS_CMD_NEW_DEST
        0x14, 0, 0x01, 0x80,        // IPVS_CMD_ATTR_SERVICE, nested, 20
        6, 0, 1, 0,  2, 0, 0, 0,    // AF: AF_INET
        8, 0, 5, 0,  9, 0, 0, 0,    // FWMARK
        0x60, 0, 0x02, 0x80,        // IPVS_CMD_ATTR_DEST, nested, 96
        20, 0, 1, 0, 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, // ADDR
        6, 0, 2, 0,  0x1f, 0x90, 0, 0, // PORT, big-endian
        6, 0, 11, 0, 10, 0, 0, 0,   // ADDR_FAMILY: AF_INET6
        8, 0, 3, 0,  2, 0, 0, 0,    // FWD_METHOD: IP_VS_CONN_F_TUNNEL
        8, 0, 4, 0,  3, 0, 0, 0,    // WEIGHT
        8, 0, 5, 0,  100, 0, 0, 0,  // U_THRESH
        8, 0, 6, 0,  50, 0, 0, 0,   // L_THRESH
        5, 0, 13, 0, 1, 0, 0, 0,    // TUN_TYPE: GUE, one byte
        6, 0, 14, 0, 0x15, 0xb3, 0, 0, // TUN_PORT, big-endian
        6, 0, 15, 0, 1, 0, 0, 0,    // TUN_FLAGS
    ];
    assert_eq!(encode(&Op::AddDestination(service, Destination { key, config })), expected);
}

#[rustfmt::skip]
#[test]
fn delete_destination_v4() {
    let service = ServiceKey::Address {
        protocol: Protocol::UDP,
        address: [10, 0, 0, 1].into(),
        port: 53,
    };
    let key = DestinationKey { address: [10, 1, 0, 2].into(), port: 5353 };
    let expected = [
        0x6c, 0, 0, 0,              // nlmsg_len 108
        0x1d, 0, 0x05, 0, 7, 0, 0, 0, 0, 0, 0, 0,
        7, 1, 0, 0,                 // IPVS_CMD_DEL_DEST
        0x30, 0, 0x01, 0x80,        // IPVS_CMD_ATTR_SERVICE, nested, 48
        6, 0, 1, 0,  2, 0, 0, 0,    // AF
        6, 0, 2, 0,  17, 0, 0, 0,   // PROTOCOL: IPPROTO_UDP
        20, 0, 3, 0, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // ADDR
        6, 0, 4, 0,  0, 53, 0, 0,   // PORT
        0x28, 0, 0x02, 0x80,        // IPVS_CMD_ATTR_DEST, nested, 40
        20, 0, 1, 0, 10, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // ADDR
        6, 0, 2, 0,  0x14, 0xe9, 0, 0, // PORT
        6, 0, 11, 0, 2, 0, 0, 0,    // ADDR_FAMILY
    ];
    assert_eq!(encode(&Op::DeleteDestination(service, key)), expected);
}

#[test]
fn flush_is_a_bare_command() {
    let expected = [
        20, 0, 0, 0, 0x1d, 0, 0x05, 0, 7, 0, 0, 0, 0, 0, 0, 0, 17, 1, 0, 0,
    ];
    assert_eq!(encode(&Op::Flush), expected);
}

#[rustfmt::skip]
#[test]
fn timeouts_to_and_from_the_kernel() {
    let timeouts = Timeouts {
        tcp_s: 900,
        tcp_fin_s: 120,
        udp_s: 300,
    };
    let expected = [
        44, 0, 0, 0, 0x1d, 0, 0x05, 0, 7, 0, 0, 0, 0, 0, 0, 0,
        12, 1, 0, 0,                // IPVS_CMD_SET_CONFIG, version 1
        8, 0, 4, 0,  0x84, 3, 0, 0, // TIMEOUT_TCP
        8, 0, 5, 0,  120, 0, 0, 0,  // TIMEOUT_TCP_FIN
        8, 0, 6, 0,  0x2c, 1, 0, 0, // TIMEOUT_UDP
    ];
    assert_eq!(encode(&Op::SetTimeouts(timeouts)), expected);
    let message = decode(&expected);
    assert_eq!(Timeouts::from_attrs(&message.attrs).unwrap(), timeouts);
    assert!(Timeouts::from_attrs(&[]).is_err());
}

#[rustfmt::skip]
#[test]
fn service_from_the_kernel() {
    let bytes = [
        0xb4, 0, 0, 0,              // nlmsg_len 180
        0x1d, 0, 0x02, 0, 7, 0, 0, 0, 0x39, 0x30, 0, 0,
        1, 1, 0, 0,                 // IPVS_CMD_NEW_SERVICE
        0xa0, 0, 0x01, 0,           // IPVS_CMD_ATTR_SERVICE, 160, not marked as nested by the kernel
        6, 0, 1, 0,  2, 0, 0, 0,    // AF
        6, 0, 2, 0,  6, 0, 0, 0,    // PROTOCOL
        20, 0, 3, 0, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // ADDR
        6, 0, 4, 0,  0x1f, 0x90, 0, 0, // PORT
        8, 0, 6, 0,  b'w', b'r', b'r', 0, // SCHED_NAME
        12, 0, 7, 0, 3, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, // FLAGS: persistent, hashed
        8, 0, 8, 0,  0x68, 1, 0, 0, // TIMEOUT 360
        8, 0, 9, 0,  255, 255, 255, 0, // NETMASK
        0x18, 0, 10, 0,             // STATS, 24
            8, 0, 1, 0, 1, 0, 0, 0, // CONNS, 32 bits
            12, 0, 4, 0, 9, 0, 0, 0, 0, 0, 0, 0, // INBYTES, 64 bits
        0x2c, 0, 12, 0,             // STATS64, 44
            12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, // CONNS 2^32 + 1
            4, 0, 11, 0,            // PAD
            12, 0, 4, 0, 9, 0, 0, 0, 0, 0, 0, 0, // INBYTES
            12, 0, 10, 0, 5, 0, 0, 0, 0, 0, 0, 0, // OUTBPS
        8, 0, 99, 0, 1, 2, 3, 4,    // an attribute of a kernel to come
    ];
    let message = decode(&bytes);
    let entry = ServiceEntry::from_attrs(message.service().unwrap()).unwrap();
    let key = ServiceKey::Address {
        protocol: Protocol::TCP,
        address: [192, 0, 2, 1].into(),
        port: 8080,
    };
    let config = ServiceConfig {
        scheduler: Name::WRR,
        flags: ServiceFlags::PERSISTENT,
        timeout_s: 360,
        netmask: Netmask::V4([255, 255, 255, 0].into()),
        persistence_engine: None,
    };
    assert_eq!(entry.service, Service { key, config });
    let connections = (1 << 32) + 1;
    let stats = Stats { connections, in_bytes: 9, out_bytes_per_s: 5, ..Stats::default() };
    assert_eq!(entry.stats, stats);
}

#[rustfmt::skip]
#[test]
fn destination_from_the_kernel() {
    let bytes = [
        0x80, 0, 0, 0,              // nlmsg_len 128
        0x1d, 0, 0x02, 0, 7, 0, 0, 0, 0x39, 0x30, 0, 0,
        5, 1, 0, 0,                 // IPVS_CMD_NEW_DEST
        0x6c, 0, 0x02, 0x80,        // IPVS_CMD_ATTR_DEST, nested, 108
        20, 0, 1, 0, 10, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // ADDR
        6, 0, 2, 0,  0, 80, 0, 0,   // PORT
        8, 0, 3, 0,  3, 0, 0, 0,    // FWD_METHOD: IP_VS_CONN_F_DROUTE
        8, 0, 4, 0,  0, 0, 0, 0,    // WEIGHT
        5, 0, 13, 0, 0, 0, 0, 0,    // TUN_TYPE
        8, 0, 5, 0,  20, 0, 0, 0,   // U_THRESH
        8, 0, 6, 0,  10, 0, 0, 0,   // L_THRESH
        8, 0, 7, 0,  1, 0, 0, 0,    // ACTIVE_CONNS
        8, 0, 8, 0,  2, 0, 0, 0,    // INACT_CONNS
        8, 0, 9, 0,  3, 0, 0, 0,    // PERSIST_CONNS
        0x0c, 0, 10, 0,             // STATS alone, as before 4.1
            8, 0, 2, 0, 6, 0, 0, 0, // INPKTS
    ];
    let message = decode(&bytes);
    // Without ADDR_FAMILY, as before 3.18, the service's family holds.
    let entry =
        DestinationEntry::from_attrs(message.destination().unwrap(), Family::V4).unwrap();
    let expected = DestinationEntry {
        destination: Destination {
            key: DestinationKey { address: [10, 1, 0, 2].into(), port: 80 },
            config: DestinationConfig {
                forward: Forward::Route,
                weight: 0,
                upper_threshold: 20,
                lower_threshold: 10,
            },
        },
        active_connections: 1,
        inactive_connections: 2,
        persistent_connections: 3,
        stats: Stats { in_packets: 6, ..Stats::default() },
    };
    assert_eq!(entry, expected);
}

#[rustfmt::skip]
#[test]
fn info_from_the_kernel() {
    let bytes = [
        36, 0, 0, 0, 0x1d, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0,
        14, 1, 0, 0,                // IPVS_CMD_SET_INFO
        8, 0, 1, 0, 1, 2, 1, 0,     // VERSION 0x010201
        8, 0, 2, 0, 0, 0x10, 0, 0,  // CONN_TAB_SIZE 4096
    ];
    let info = Info::from_attrs(&decode(&bytes).attrs).unwrap();
    let version = Version { major: 1, minor: 2, patch: 1 };
    assert_eq!(info, Info { version, connection_table_size: 4096 });
    assert_eq!(info.version.to_string(), "1.2.1");
}
