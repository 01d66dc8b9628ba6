//! Our table of the host's nf_tables: `inet swarm`.
//!
//! ```text
//! set egress, egress6              addresses of the tasks here that may reach the outside
//! chain prerouting, output (raw)   VXLAN is not tracked: no connection tracking on the mesh
//! chain forward    VXLAN from sw-e1h: dropped, lest a task gets into networks not its own
//!                  from sw-e1h, not in the set: dropped
//!                  to sw-e1h, no answer to something from inside: dropped
//!                  IPv4 from a guarded uplink, not to sw-e1h: dropped
//!                  IPv6 neither from nor to sw-e1h, while guarded: dropped
//! chain input      not from sw-e1h: accepted
//!                  VXLAN: dropped, as above
//!                  not in the set, no answer to the host: dropped
//! chain postrouting (nat)          from the set, not to sw-e1h: masqueraded
//! ```
//!
//! A *guarded* uplink is one that forwards for our tasks' sake alone: the host was no router, and is
//! none for anybody else. Over IPv6 links have no say in it, and the guard is one rule for all of
//! them. Replies of the mesh never come here: `mesh_out` redirects them before.
//!
//! The table is a function of [`Firewall`]; what was read is a [`Firewall`] only when it is exactly
//! that function's value.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::model::{Firewall, FirewallState, Obstacle};
use super::names::{FIREWALL_TABLE, HOST_VETH, VXLAN_PORT};
use super::netlink::NetlinkError;
use super::nftables::{
    BaseChain, Chain, CtState, Expression, Family, Header, Hook, HookPoint, MetaKey, Nftables,
    Ruleset, Set, Verdict,
};

/// Sets of addresses, by family.
const EGRESS: &str = "egress";
const EGRESS6: &str = "egress6";
const FORWARD: &str = "forward";

/// Before connection tracking (`NF_IP_PRI_RAW`).
const PRIORITY_RAW: i32 = -300;
/// `NF_IP_PRI_FILTER`.
const PRIORITY_FILTER: i32 = 0;
/// `NF_IP_PRI_NAT_SRC`.
const PRIORITY_SOURCE_NAT: i32 = 100;

/// Times the tables are read again that changed meanwhile. Beyond, the next pass sees what the last
/// one missed.
const MAX_READ_ATTEMPTS: usize = 4;

/// An address family in the words of a rule.
struct Side {
    family: Family,
    set: &'static str,
    /// Of the source address in the IP header.
    offset: u32,
    /// Of an address.
    bytes: u32,
}

const SIDES: [Side; 2] = [
    Side {
        family: Family::IPV4,
        set: EGRESS,
        offset: 12,
        bytes: 4,
    },
    Side {
        family: Family::IPV6,
        set: EGRESS6,
        offset: 8,
        bytes: 16,
    },
];

type Rule = Vec<Expression>;

fn rule(parts: impl IntoIterator<Item = Vec<Expression>>) -> Rule {
    parts.into_iter().flatten().collect()
}

fn input(name: &str, equal: bool) -> Rule {
    Expression::interface(MetaKey::InputName, name, equal).to_vec()
}

fn output(name: &str, equal: bool) -> Rule {
    Expression::interface(MetaKey::OutputName, name, equal).to_vec()
}

fn drop_it() -> Rule {
    vec![Expression::Verdict(Verdict::Drop)]
}

/// Goes on where it is of this family.
fn of_family(family: Family) -> Rule {
    vec![
        Expression::Meta(MetaKey::NetworkProtocol),
        Expression::Compare {
            equal: true,
            with: vec![family.0],
        },
    ]
}

/// Goes on where the source is, or is not, allowed out.
fn source(side: &Side, contained: bool) -> Rule {
    let mut rule = of_family(side.family);
    rule.extend([
        Expression::Payload {
            header: Header::Network,
            offset: side.offset,
            length: side.bytes,
        },
        Expression::Lookup {
            set: side.set.to_owned(),
            contained,
        },
    ]);
    rule
}

/// Goes on where it is no answer and belongs to nothing known.
fn unasked() -> Rule {
    vec![
        Expression::ConnectionState,
        Expression::Mask(CtState::ESTABLISHED_OR_RELATED.0.to_ne_bytes().to_vec()),
        Expression::Compare {
            equal: true,
            with: vec![0; 4],
        },
    ]
}

/// Goes on where it is VXLAN.
fn vxlan() -> Rule {
    vec![
        Expression::Meta(MetaKey::TransportProtocol),
        Expression::Compare {
            equal: true,
            // IPPROTO_UDP.
            with: vec![17],
        },
        Expression::Payload {
            header: Header::Transport,
            offset: 2,
            length: 2,
        },
        Expression::Compare {
            equal: true,
            with: VXLAN_PORT.to_be_bytes().to_vec(),
        },
    ]
}

/// Drops what comes in by a guarded uplink over IPv4 and does not go to our tasks.
fn guard(uplink: &str) -> Rule {
    rule([
        of_family(Family::IPV4),
        input(uplink, true),
        output(HOST_VETH, false),
        drop_it(),
    ])
}

/// Drops what is neither from our tasks nor for them, over IPv6.
fn guard6() -> Rule {
    rule([
        of_family(Family::IPV6),
        input(HOST_VETH, false),
        output(HOST_VETH, false),
        drop_it(),
    ])
}

/// The uplink that a rule guards.
fn guarded_by(found: &Rule) -> Option<String> {
    let Expression::Compare { with, .. } = found.get(3)? else {
        return None;
    };
    let end = with.iter().position(|byte| *byte == 0)?;
    let name = String::from_utf8(with.get(..end)?.to_vec()).ok()?;
    (*found == guard(&name)).then_some(name)
}

fn chain(kind: &str, point: HookPoint, priority: i32, rules: Vec<Rule>) -> Chain {
    let hook = Hook {
        kind: kind.to_owned(),
        point,
        priority,
        policy: Verdict::Accept,
    };
    Chain {
        hook: Some(hook),
        rules,
    }
}

/// The table that a firewall is.
fn ruleset(firewall: &Firewall) -> Ruleset {
    let from_tasks = |end: Rule| {
        let mut rules = vec![rule([input(HOST_VETH, true), vxlan(), drop_it()])];
        let others = |side| rule([input(HOST_VETH, true), source(&side, false), end.clone()]);
        rules.extend(SIDES.map(others));
        rules
    };
    let mut forward = from_tasks(drop_it());
    forward.push(rule([output(HOST_VETH, true), unasked(), drop_it()]));
    forward.extend(firewall.guarded.iter().map(|uplink| guard(uplink)));
    forward.extend(firewall.guarded6.then(guard6));
    // Most of what comes in is the tunnel's: one comparison is enough for it.
    let accept = vec![Expression::Verdict(Verdict::Accept)];
    let mut to_host = vec![rule([input(HOST_VETH, false), accept])];
    to_host.extend(from_tasks(rule([unasked(), drop_it()])));
    let masquerade = SIDES.map(|side| {
        let leaves = output(HOST_VETH, false);
        rule([source(&side, true), leaves, vec![Expression::Masquerade]])
    });
    let filter = |point, rules| chain("filter", point, PRIORITY_FILTER, rules);
    let raw = |point| {
        chain(
            "filter",
            point,
            PRIORITY_RAW,
            vec![rule([vxlan(), vec![Expression::NoTrack]])],
        )
    };
    let chains = [
        ("prerouting", raw(HookPoint::Prerouting)),
        ("output", raw(HookPoint::Output)),
        (FORWARD, filter(HookPoint::Forward, forward)),
        ("input", filter(HookPoint::Input, to_host)),
        (
            "postrouting",
            chain(
                "nat",
                HookPoint::Postrouting,
                PRIORITY_SOURCE_NAT,
                masquerade.to_vec(),
            ),
        ),
    ];
    let sets = SIDES.map(|side| {
        let values = values(&firewall.egress, side.bytes).collect();
        let set = Set {
            value_bytes: side.bytes,
            flags: 0,
            values,
        };
        (side.set.to_owned(), set)
    });
    Ruleset {
        flags: 0,
        chains: chains.map(|(name, chain)| (name.to_owned(), chain)).into(),
        sets: sets.into(),
    }
}

/// The addresses of one length, as values of a set.
fn values(addresses: &BTreeSet<IpAddr>, bytes: u32) -> impl Iterator<Item = Vec<u8>> {
    addresses
        .iter()
        .map(|address| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        })
        .filter(move |value| u32::try_from(value.len()) == Ok(bytes))
}

/// The address that a set's value is.
fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The firewall that a table is, where it is one.
fn read(found: &Ruleset) -> Option<Firewall> {
    let rules = found.chains.get(FORWARD)?.rules.iter();
    let guarded6 = rules.clone().any(|rule| *rule == guard6());
    let values = found.sets.values().flat_map(|set| &set.values);
    let firewall = Firewall {
        egress: values.filter_map(|value| address(value)).collect(),
        guarded: rules.filter_map(guarded_by).collect(),
        guarded6,
    };
    (ruleset(&firewall) == *found).then_some(firewall)
}

/// The host's nf_tables, as far as it concerns us.
#[derive(Debug)]
pub(super) struct FirewallHandle {
    nftables: Nftables,
    /// What this process has read or said last: it knows that also when the table is lost.
    guarded: Option<BTreeSet<String>>,
    /// What was read, and the generation it was of.
    last: Option<(u32, FirewallState)>,
}

impl FirewallHandle {
    /// Of the calling thread's namespace.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            nftables: Nftables::open()?,
            guarded: None,
            last: None,
        })
    }

    /// What there is now. Cheap while nobody changes anything.
    pub(super) fn read(&mut self) -> Result<FirewallState, NetlinkError> {
        let mut generation = self.nftables.generation()?;
        for _ in 0..MAX_READ_ATTEMPTS {
            if let Some((of, state)) = &self.last
                && *of == generation
            {
                return Ok(state.clone());
            }
            let state = self.read_all()?;
            self.last = Some((generation, state));
            generation = self.nftables.generation()?;
        }
        Ok(self
            .last
            .clone()
            .map(|(_, state)| state)
            .unwrap_or_default())
    }

    fn read_all(&mut self) -> Result<FirewallState, NetlinkError> {
        let found = self.nftables.table(Family::INET, FIREWALL_TABLE)?;
        let table = found.as_ref().and_then(read);
        if let Some(table) = &table {
            self.guarded = Some(table.guarded.clone());
        }
        let mut obstacles = Vec::new();
        for chain in self
            .nftables
            .base_chains()?
            .into_iter()
            .filter(lets_nothing_through)
        {
            // Rules that name our link were made for us.
            let known = self
                .nftables
                .mentions(chain.family, &chain.table, HOST_VETH)?;
            if !known {
                obstacles.push(Obstacle {
                    ipv6: chain.family == Family::IPV6,
                    table: format!("{} {}", chain.family, chain.table),
                    chain: chain.name,
                });
            }
        }
        Ok(FirewallState {
            table,
            guarded: self.guarded.clone(),
            obstacles,
        })
    }

    /// Makes our table, in the place of what is there.
    pub(super) fn set(&mut self, firewall: &Firewall) -> Result<(), NetlinkError> {
        self.last = None;
        self.nftables
            .replace_table(Family::INET, FIREWALL_TABLE, &ruleset(firewall))?;
        self.guarded = Some(firewall.guarded.clone());
        Ok(())
    }

    /// Lets addresses out, and others no more.
    pub(super) fn change_egress(
        &mut self,
        add: &BTreeSet<IpAddr>,
        remove: &BTreeSet<IpAddr>,
    ) -> Result<(), NetlinkError> {
        self.last = None;
        for side in SIDES {
            let add: Vec<_> = values(add, side.bytes).collect();
            let remove: Vec<_> = values(remove, side.bytes).collect();
            self.nftables
                .change_elements(Family::INET, FIREWALL_TABLE, side.set, &add, &remove)?;
        }
        Ok(())
    }

    /// Removes our table.
    pub(super) fn remove(&mut self) -> Result<(), NetlinkError> {
        self.last = None;
        self.nftables.delete_table(Family::INET, FIREWALL_TABLE)?;
        self.guarded = None;
        Ok(())
    }
}

/// Whether a chain of somebody else's drops packets on their way through, but for exceptions.
fn lets_nothing_through(chain: &BaseChain) -> bool {
    let family = [Family::INET, Family::IPV4, Family::IPV6].contains(&chain.family);
    let hook = &chain.hook;
    family && hook.point == HookPoint::Forward && hook.policy == Verdict::Drop
}

#[cfg(test)]
mod tests;
