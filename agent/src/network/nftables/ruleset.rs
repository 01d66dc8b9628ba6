//! A table's content as data.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::expression::{Expression, Verdict};

/// Which packets a table is about (`NFPROTO_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct Family(pub(in super::super) u8);

impl Family {
    /// All of them; only in questions.
    pub(in super::super) const UNSPECIFIED: Self = Self(0);
    /// IPv4 and IPv6.
    pub(in super::super) const INET: Self = Self(1);
    /// IPv4; also what [`MetaKey::NetworkProtocol`](super::MetaKey::NetworkProtocol) says of it.
    pub(in super::super) const IPV4: Self = Self(2);
    /// IPv6; likewise.
    pub(in super::super) const IPV6: Self = Self(10);
}

/// As `nft` names it.
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::INET => f.write_str("inet"),
            Self::IPV4 => f.write_str("ip"),
            Self::IPV6 => f.write_str("ip6"),
            Self(number) => write!(f, "family {number}"),
        }
    }
}

/// Where on a packet's way a chain is (`NF_INET_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(in super::super) enum HookPoint {
    /// As it comes in.
    Prerouting = 0,
    /// On its way to a process here.
    Input = 1,
    /// On its way through.
    Forward = 2,
    /// As it leaves a process here.
    Output = 3,
    /// As it goes out.
    Postrouting = 4,
}

impl HookPoint {
    pub(super) const ALL: [Self; 5] = [
        Self::Prerouting,
        Self::Input,
        Self::Forward,
        Self::Output,
        Self::Postrouting,
    ];
}

/// What makes the kernel ask a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Hook {
    /// `filter` or `nat`.
    pub(in super::super) kind: String,
    /// Where.
    pub(in super::super) point: HookPoint,
    /// Chains of a lower one are asked before.
    pub(in super::super) priority: i32,
    /// What becomes of a packet that no rule decides on.
    pub(in super::super) policy: Verdict,
}

/// A chain of rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Chain {
    /// Nothing where the kernel does not ask it by itself, or at a place not listed here.
    pub(in super::super) hook: Option<Hook>,
    /// The rules in order.
    pub(in super::super) rules: Vec<Vec<Expression>>,
}

/// A set of values that rules look things up in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Set {
    /// Length of a value in bytes: 4 for IPv4, 16 for IPv6 addresses.
    pub(in super::super) value_bytes: u32,
    /// `NFT_SET_*`; 0 for all of ours.
    pub(in super::super) flags: u32,
    /// The values.
    pub(in super::super) values: BTreeSet<Vec<u8>>,
}

/// What is in a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Ruleset {
    /// `NFT_TABLE_F_*`; 0 for ours.
    pub(in super::super) flags: u32,
    /// Chains by name.
    pub(in super::super) chains: BTreeMap<String, Chain>,
    /// Sets by name.
    pub(in super::super) sets: BTreeMap<String, Set>,
}

/// A chain that the kernel asks, of any table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct BaseChain {
    /// Its table's family.
    pub(in super::super) family: Family,
    /// Its table.
    pub(in super::super) table: String,
    /// Its name.
    pub(in super::super) name: String,
    /// Where and how.
    pub(in super::super) hook: Hook,
}
