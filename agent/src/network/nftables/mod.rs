//! The part of nf_tables that this data plane needs, over netlink: reading a table whole, replacing
//! it at once, changing the elements of its sets.
//!
//! * [`attribute`] builds and takes apart netlink attributes, [`expression`] is what rules are made
//!   of, [`ruleset`] a table's content as data, [`message`] the kernel's messages for all of it.
//! * [`Nftables`] is the conversation with the kernel, in one network namespace.
//!
//! Source of every number: `include/uapi/linux/netfilter/nf_tables.h` and `nfnetlink.h`. Everything
//! that comes from the kernel is taken as possibly somebody else's table: what is not understood is
//! kept apart ([`Expression::Other`]), never guessed.
//!
//! Deliberately absent: intervals and maps, named counters, flow tables, anything that changes a
//! part of a chain. A table is replaced in one transaction, which no packet can see half of.

mod attribute;
mod expression;
mod handle;
mod message;
mod ruleset;

#[cfg(test)]
mod tests;

pub(super) use expression::{CtState, Expression, Header, MetaKey, Verdict};
pub(super) use handle::Nftables;
pub(super) use ruleset::{BaseChain, Chain, Family, Hook, HookPoint, Ruleset, Set};
