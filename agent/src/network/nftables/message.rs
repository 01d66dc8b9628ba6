//! The messages of nf_tables: one struct for all of them, made and read by the functions here.
//!
//! Bounds: an attribute holds at most 64 KiB. The longest here is a list of set elements, of which
//! [`MAX_ELEMENTS`] are put into one message.

use std::convert::Infallible;

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};

use super::attribute::{Attributes, attributes, find, find_number, find_text};
use super::expression::{Expression, Verdict};
use super::ruleset::{BaseChain, Chain, Family, Hook, HookPoint, Set};

/// Elements in one message: each takes at most 28 bytes.
pub(super) const MAX_ELEMENTS: usize = 1024;

/// `NFNL_SUBSYS_NFTABLES`: the upper byte of a message's type, and whom a batch is for.
const SUBSYSTEM: u16 = 10;
/// Bytes of `nfgenmsg`: family, version (0) and a number in network byte order.
const GENERIC_HEADER_BYTES: usize = 4;

/// `NFTA_LIST_ELEM`.
const LIST_ELEM: u16 = 1;
/// `NFTA_TABLE_*`.
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
/// `NFTA_CHAIN_*`.
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
/// `NFTA_HOOK_*`.
const HOOK_HOOKNUM: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
/// `NFTA_RULE_*`.
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
/// `NFTA_SET_*`.
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_ID: u16 = 10;
/// `NFTA_SET_ELEM_LIST_*`.
const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;
/// `NFTA_SET_ELEM_KEY`, `NFTA_DATA_VALUE`.
const ELEMENT_KEY: u16 = 1;
const DATA_VALUE: u16 = 1;
/// `NFTA_GEN_ID`.
const GENERATION_ID: u16 = 1;

/// How `nft` shows a set's values (its own numbers for the types, which the kernel only keeps).
const TYPE_IPV4_ADDRESS: u32 = 7;
const TYPE_IPV6_ADDRESS: u32 = 8;

/// What a message asks for or tells: `NFT_MSG_*`, or the marks around a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind(u16);

impl Kind {
    /// `NFNL_MSG_BATCH_BEGIN`.
    const BATCH_BEGIN: Self = Self(16);
    /// `NFNL_MSG_BATCH_END`.
    const BATCH_END: Self = Self(17);
    const NEW_TABLE: Self = Self::of(0);
    const GET_TABLE: Self = Self::of(1);
    const DELETE_TABLE: Self = Self::of(2);
    const NEW_CHAIN: Self = Self::of(3);
    const GET_CHAIN: Self = Self::of(4);
    const NEW_RULE: Self = Self::of(6);
    const GET_RULE: Self = Self::of(7);
    const NEW_SET: Self = Self::of(9);
    const GET_SET: Self = Self::of(10);
    const NEW_ELEMENTS: Self = Self::of(12);
    const GET_ELEMENTS: Self = Self::of(13);
    const DELETE_ELEMENTS: Self = Self::of(14);
    const GET_GENERATION: Self = Self::of(16);

    const fn of(message: u16) -> Self {
        Self(SUBSYSTEM << 8 | message)
    }
}

/// A message to or from nf_tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    kind: Kind,
    family: Family,
    /// `res_id`.
    resource: u16,
    /// Attributes.
    pub(super) content: Vec<u8>,
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind.0
    }

    fn buffer_len(&self) -> usize {
        GENERIC_HEADER_BYTES + self.content.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (header, content) = buffer.split_at_mut(GENERIC_HEADER_BYTES);
        let [high, low] = self.resource.to_be_bytes();
        header.copy_from_slice(&[self.family.0, 0, high, low]);
        content[..self.content.len()].copy_from_slice(&self.content);
    }
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        let byte = |position: usize| payload.get(position).copied().unwrap_or_default();
        Ok(Self {
            kind: Kind(header.message_type),
            family: Family(byte(0)),
            resource: u16::from_be_bytes([byte(2), byte(3)]),
            content: payload
                .get(GENERIC_HEADER_BYTES..)
                .unwrap_or_default()
                .to_vec(),
        })
    }
}

impl Message {
    fn new(kind: Kind, family: Family, content: Attributes) -> Self {
        Self {
            kind,
            family,
            resource: 0,
            content: content.into_bytes(),
        }
    }

    fn mark(kind: Kind) -> Self {
        Self {
            resource: SUBSYSTEM,
            ..Self::new(kind, Family::UNSPECIFIED, Attributes::new())
        }
    }

    /// What begins a batch.
    pub(super) fn begin() -> Self {
        Self::mark(Kind::BATCH_BEGIN)
    }

    /// What ends a batch.
    pub(super) fn end() -> Self {
        Self::mark(Kind::BATCH_END)
    }

    /// Makes a table; without effect on one that is there.
    pub(super) fn new_table(family: Family, table: &str) -> Self {
        let content = Attributes::new().text(TABLE_NAME, table);
        Self::new(Kind::NEW_TABLE, family, content.number(TABLE_FLAGS, 0))
    }

    /// Asks for one table.
    pub(super) fn get_table(family: Family, table: &str) -> Self {
        let content = Attributes::new().text(TABLE_NAME, table);
        Self::new(Kind::GET_TABLE, family, content)
    }

    /// Deletes a table with all that is in it.
    pub(super) fn delete_table(family: Family, table: &str) -> Self {
        let content = Attributes::new().text(TABLE_NAME, table);
        Self::new(Kind::DELETE_TABLE, family, content)
    }

    /// Makes a chain, yet without rules.
    pub(super) fn new_chain(family: Family, table: &str, name: &str, chain: &Chain) -> Self {
        let content = Attributes::new()
            .text(CHAIN_TABLE, table)
            .text(CHAIN_NAME, name);
        let content = match &chain.hook {
            None => content,
            Some(hook) => {
                let place = Attributes::new()
                    .number(HOOK_HOOKNUM, hook.point as u32)
                    .bytes(HOOK_PRIORITY, &hook.priority.to_be_bytes());
                content
                    .nested(CHAIN_HOOK, &place)
                    .number(CHAIN_POLICY, hook.policy as u32)
                    .text(CHAIN_TYPE, &hook.kind)
            }
        };
        Self::new(Kind::NEW_CHAIN, family, content)
    }

    /// Asks for all chains.
    pub(super) fn get_chains(family: Family) -> Self {
        Self::new(Kind::GET_CHAIN, family, Attributes::new())
    }

    /// Adds a rule to the end of a chain.
    pub(super) fn new_rule(
        family: Family,
        table: &str,
        chain: &str,
        expressions: &[Expression],
    ) -> Self {
        let list = expressions
            .iter()
            .fold(Attributes::new(), |list, expression| {
                list.nested(LIST_ELEM, &expression.encode())
            });
        let content = Attributes::new()
            .text(RULE_TABLE, table)
            .text(RULE_CHAIN, chain)
            .nested(RULE_EXPRESSIONS, &list);
        Self::new(Kind::NEW_RULE, family, content)
    }

    /// Asks for all rules of a table.
    pub(super) fn get_rules(family: Family, table: &str) -> Self {
        let content = Attributes::new().text(RULE_TABLE, table);
        Self::new(Kind::GET_RULE, family, content)
    }

    /// Makes a set, yet empty. `id` tells the sets of one batch apart.
    pub(super) fn new_set(family: Family, table: &str, name: &str, id: u32, set: &Set) -> Self {
        let shown_as = match set.value_bytes {
            16 => TYPE_IPV6_ADDRESS,
            _ => TYPE_IPV4_ADDRESS,
        };
        let content = Attributes::new()
            .text(SET_TABLE, table)
            .text(SET_NAME, name)
            .number(SET_FLAGS, set.flags)
            .number(SET_KEY_TYPE, shown_as)
            .number(SET_KEY_LEN, set.value_bytes)
            .number(SET_ID, id);
        Self::new(Kind::NEW_SET, family, content)
    }

    /// Asks for all sets of a table.
    pub(super) fn get_sets(family: Family, table: &str) -> Self {
        let content = Attributes::new().text(SET_TABLE, table);
        Self::new(Kind::GET_SET, family, content)
    }

    /// Adds values to a set; without effect for those in it. At most [`MAX_ELEMENTS`].
    pub(super) fn new_elements(family: Family, table: &str, set: &str, values: &[Vec<u8>]) -> Self {
        Self::new(Kind::NEW_ELEMENTS, family, elements_of(table, set, values))
    }

    /// Takes values out of a set; refused when one is not in it. At most [`MAX_ELEMENTS`].
    pub(super) fn delete_elements(
        family: Family,
        table: &str,
        set: &str,
        values: &[Vec<u8>],
    ) -> Self {
        Self::new(
            Kind::DELETE_ELEMENTS,
            family,
            elements_of(table, set, values),
        )
    }

    /// Asks for all values of a set.
    pub(super) fn get_elements(family: Family, table: &str, set: &str) -> Self {
        let content = Attributes::new()
            .text(ELEMENTS_TABLE, table)
            .text(ELEMENTS_SET, set);
        Self::new(Kind::GET_ELEMENTS, family, content)
    }

    /// Asks for the number that changes with every change of any table.
    pub(super) fn get_generation() -> Self {
        Self::new(Kind::GET_GENERATION, Family::UNSPECIFIED, Attributes::new())
    }

    /// That number.
    pub(super) fn generation(&self) -> Option<u32> {
        find_number(&self.content, GENERATION_ID)
    }

    /// A table's flags.
    pub(super) fn table_flags(&self) -> u32 {
        find_number(&self.content, TABLE_FLAGS).unwrap_or_default()
    }

    /// Family, table and name of a chain, and its hook where it has one that we know.
    pub(super) fn chain(&self) -> Option<(Family, String, String, Option<Hook>)> {
        let table = find_text(&self.content, CHAIN_TABLE)?;
        let name = find_text(&self.content, CHAIN_NAME)?;
        Some((self.family, table, name, self.hook()))
    }

    fn hook(&self) -> Option<Hook> {
        let place = find(&self.content, CHAIN_HOOK)?;
        let number = find_number(place, HOOK_HOOKNUM)?;
        let priority = find(place, HOOK_PRIORITY)?.try_into().ok()?;
        let drops = find_number(&self.content, CHAIN_POLICY) == Some(Verdict::Drop as u32);
        Some(Hook {
            kind: find_text(&self.content, CHAIN_TYPE)?,
            point: HookPoint::ALL
                .into_iter()
                .find(|known| *known as u32 == number)?,
            priority: i32::from_be_bytes(priority),
            policy: if drops {
                Verdict::Drop
            } else {
                Verdict::Accept
            },
        })
    }

    /// The chain as one that the kernel asks.
    pub(super) fn base_chain(&self) -> Option<BaseChain> {
        let (family, table, name, hook) = self.chain()?;
        let hook = hook?;
        Some(BaseChain {
            family,
            table,
            name,
            hook,
        })
    }

    /// Table and chain of a rule, and the rule.
    pub(super) fn rule(&self) -> Option<(String, String, Vec<Expression>)> {
        let table = find_text(&self.content, RULE_TABLE)?;
        let chain = find_text(&self.content, RULE_CHAIN)?;
        let list = find(&self.content, RULE_EXPRESSIONS).unwrap_or_default();
        let rule = attributes(list)
            .map(|(_, element)| Expression::decode(element))
            .collect();
        Some((table, chain, rule))
    }

    /// Table and name of a set, and the set, yet without its values.
    pub(super) fn set(&self) -> Option<(String, String, Set)> {
        let table = find_text(&self.content, SET_TABLE)?;
        let name = find_text(&self.content, SET_NAME)?;
        let set = Set {
            value_bytes: find_number(&self.content, SET_KEY_LEN)?,
            flags: find_number(&self.content, SET_FLAGS).unwrap_or_default(),
            ..Set::default()
        };
        Some((table, name, set))
    }

    /// Values of a set.
    pub(super) fn elements(&self) -> Vec<Vec<u8>> {
        let list = find(&self.content, ELEMENTS_LIST).unwrap_or_default();
        attributes(list)
            .filter_map(|(_, element)| find(find(element, ELEMENT_KEY)?, DATA_VALUE))
            .map(<[u8]>::to_vec)
            .collect()
    }
}

fn elements_of(table: &str, set: &str, values: &[Vec<u8>]) -> Attributes {
    debug_assert!(values.len() <= MAX_ELEMENTS, "{} elements", values.len());
    let list = values.iter().fold(Attributes::new(), |list, value| {
        let key = Attributes::new().bytes(DATA_VALUE, value);
        list.nested(LIST_ELEM, &Attributes::new().nested(ELEMENT_KEY, &key))
    });
    Attributes::new()
        .text(ELEMENTS_TABLE, table)
        .text(ELEMENTS_SET, set)
        .nested(ELEMENTS_LIST, &list)
}
