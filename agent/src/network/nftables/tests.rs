//! The codec against itself and against bytes that nobody meant.

use netlink_packet_core::{NetlinkDeserializable as _, NetlinkHeader, NetlinkSerializable as _};
use proptest::collection::vec;
use proptest::prelude::*;

use super::expression::{CtState, Expression, Header, MetaKey, Verdict};
use super::message::Message;
use super::ruleset::{Chain, Family, Hook, HookPoint, Set};

fn names() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9-]{0,14}"
}

fn expressions() -> impl Strategy<Value = Expression> {
    let metas = [
        MetaKey::InputName,
        MetaKey::OutputName,
        MetaKey::NetworkProtocol,
        MetaKey::TransportProtocol,
    ];
    prop_oneof![
        prop::sample::select(metas.to_vec()).prop_map(Expression::Meta),
        (any::<bool>(), 0..64_u32, 1..=16_u32).prop_map(|(network, offset, length)| {
            let header = if network {
                Header::Network
            } else {
                Header::Transport
            };
            Expression::Payload {
                header,
                offset,
                length,
            }
        }),
        Just(Expression::ConnectionState),
        Just(Expression::Mask(
            CtState::ESTABLISHED_OR_RELATED.0.to_ne_bytes().to_vec()
        )),
        (any::<bool>(), vec(any::<u8>(), 1..=16))
            .prop_map(|(equal, with)| Expression::Compare { equal, with }),
        (names(), any::<bool>()).prop_map(|(set, contained)| Expression::Lookup { set, contained }),
        Just(Expression::Verdict(Verdict::Drop)),
        Just(Expression::Verdict(Verdict::Accept)),
        Just(Expression::Masquerade),
        Just(Expression::NoTrack),
    ]
}

/// The message as the kernel would send it.
fn echoed(message: &Message) -> Message {
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let mut header = NetlinkHeader::default();
    header.message_type = message.message_type();
    Message::deserialize(&header, &bytes).unwrap()
}

/// As `nft --debug=netlink list ruleset` shows `udp dport 4789 notrack` and as strace shows it
/// on the wire: attributes with their lengths, numbers in network byte order.
#[test]
fn a_rule_is_the_bytes_that_nft_sends() {
    let rule = [
        Expression::Meta(MetaKey::TransportProtocol),
        Expression::Compare {
            equal: true,
            with: vec![17],
        },
    ];
    let message = Message::new_rule(Family::INET, "t", "c", &rule);
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let expected = [
        &[1, 0, 0, 0][..],            // nfgenmsg: inet, version 0
        &[6, 0, 1, 0, b't', 0, 0, 0], // NFTA_RULE_TABLE
        &[6, 0, 2, 0, b'c', 0, 0, 0], // NFTA_RULE_CHAIN
        &[100, 0, 4, 0x80],           // NFTA_RULE_EXPRESSIONS
        &[36, 0, 1, 0x80],            // NFTA_LIST_ELEM
        &[9, 0, 1, 0, b'm', b'e', b't', b'a', 0, 0, 0, 0],
        &[20, 0, 2, 0x80],          // NFTA_EXPR_DATA
        &[8, 0, 2, 0, 0, 0, 0, 16], // NFTA_META_KEY: l4proto
        &[8, 0, 1, 0, 0, 0, 0, 1],  // NFTA_META_DREG
        &[60, 0, 1, 0x80],          // NFTA_LIST_ELEM
        &[8, 0, 1, 0, b'c', b'm', b'p', 0],
        &[48, 0, 2, 0x80], // NFTA_EXPR_DATA
    ]
    .concat();
    let (head, tail) = bytes.split_at(expected.len());
    assert_eq!(head[..20], expected[..20]);
    assert_eq!(head[24..56], expected[24..56]);
    let compare = [
        &[8, 0, 1, 0, 0, 0, 0, 1][..], // NFTA_CMP_SREG
        &[8, 0, 2, 0, 0, 0, 0, 0],     // NFTA_CMP_OP
        &[12, 0, 3, 0x80],             // NFTA_CMP_DATA
        &[5, 0, 1, 0, 17, 0, 0, 0],    // NFTA_DATA_VALUE
    ]
    .concat();
    assert_eq!(tail, compare);
}

proptest! {
    #[test]
    fn a_rule_comes_back_as_it_was(table in names(), chain in names(), rule in vec(expressions(), 0..9)) {
        let message = Message::new_rule(Family::INET, &table, &chain, &rule);
        prop_assert_eq!(echoed(&message).rule(), Some((table, chain, rule)));
    }

    #[test]
    fn a_chain_comes_back_as_it_was(
        table in names(),
        name in names(),
        kind in names(),
        point in prop::sample::select(HookPoint::ALL.to_vec()),
        priority in any::<i32>(),
        drops in any::<bool>(),
    ) {
        let policy = if drops { Verdict::Drop } else { Verdict::Accept };
        let hook = Some(Hook { kind, point, priority, policy });
        let chain = Chain { hook: hook.clone(), rules: Vec::new() };
        let message = Message::new_chain(Family::INET, &table, &name, &chain);
        prop_assert_eq!(echoed(&message).chain(), Some((Family::INET, table, name, hook)));
    }

    #[test]
    fn a_set_and_its_values_come_back_as_they_were(
        table in names(),
        name in names(),
        values in prop::collection::btree_set(vec(any::<u8>(), 4), 0..40),
    ) {
        let set = Set { value_bytes: 4, flags: 0, ..Set::default() };
        let message = Message::new_set(Family::INET, &table, &name, 1, &set);
        prop_assert_eq!(echoed(&message).set(), Some((table.clone(), name.clone(), set)));
        let values: Vec<_> = values.into_iter().collect();
        let message = Message::new_elements(Family::INET, &table, &name, &values);
        prop_assert_eq!(echoed(&message).elements(), values);
    }

    /// Whatever somebody's table holds is read without a panic, and never as a rule of ours that it
    /// is not: what is read is sent again as the same bytes, or named as something else.
    #[test]
    fn any_bytes_are_read(content in vec(any::<u8>(), 0..200), cut in any::<prop::sample::Index>()) {
        let mut message = Message::get_generation();
        message.content = content;
        let _ = (message.rule(), message.chain(), message.set(), message.elements());
        let _ = (message.generation(), message.table_flags(), message.base_chain());
        let rule = [Expression::Meta(MetaKey::InputName), Expression::Masquerade];
        let mut message = Message::new_rule(Family::INET, "t", "c", &rule);
        message.content.truncate(cut.index(message.content.len()));
        if let Some((_, _, found)) = message.rule() {
            prop_assert!(found.len() <= rule.len());
        }
    }
}
