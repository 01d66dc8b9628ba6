//! On which nodes a task may run, and why not on the others.

use std::collections::BTreeMap;
use std::fmt;

use swarm_model::{Availability, Constraint, NodeState, NodeView, Protocol, Task};

use super::Candidate;

/// Why a task cannot run on a node. The order is that in which filters are asked (swarmkit
/// `scheduler/pipeline.go`): a node counts for the first that refuses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    Down,
    Suspect,
    Unknown,
    Paused,
    Drained,
    NoAddress,
    Cpu { needed_nano_cpus: u64 },
    Memory { needed_bytes: u64 },
    Constraint(String),
    HostPort { published: u16, protocol: Protocol },
}

/// A constraint and its text. One that cannot be read, which the API refuses already, is satisfied
/// by no node.
#[derive(Debug)]
pub(super) struct Rule<'a> {
    pub(super) text: &'a str,
    pub(super) constraint: Option<Constraint>,
}

/// The first filter that refuses `candidate` to `task`.
pub(super) fn refusal(
    candidate: &Candidate<'_>,
    task: &Task,
    rules: &[Rule<'_>],
) -> Option<Refusal> {
    let node = candidate.node;
    match node.status.state {
        NodeState::Ready => {}
        NodeState::Down => return Some(Refusal::Down),
        NodeState::Suspect => return Some(Refusal::Suspect),
        NodeState::Unknown => return Some(Refusal::Unknown),
    }
    match node.spec.availability {
        Availability::Active => {}
        Availability::Pause => return Some(Refusal::Paused),
        Availability::Drain => return Some(Refusal::Drained),
    }
    if task.ingress_address.is_some() && node.ingress_address.is_none() {
        return Some(Refusal::NoAddress);
    }
    if let Some(refusal) = lacks(candidate, task) {
        return Some(refusal);
    }
    let description = &node.description;
    let view = NodeView {
        id: node.id.as_str(),
        hostname: &description.hostname,
        address: node.status.address,
        role: node.role.as_str(),
        os: &description.platform.os,
        architecture: &description.platform.architecture,
        labels: &node.spec.labels,
        engine_labels: &description.engine_labels,
    };
    let satisfied = |rule: &Rule<'_>| {
        let constraint = rule.constraint.as_ref();
        constraint.is_some_and(|constraint| constraint.matches(&view))
    };
    if let Some(failed) = rules.iter().find(|rule| !satisfied(rule)) {
        return Some(Refusal::Constraint(failed.text.to_owned()));
    }
    has_no_port(candidate, task)
}

/// Whether `candidate` has become too full for `task` within a pass: all else that it may be refused
/// for stays as it is.
pub(super) fn is_full(candidate: &Candidate<'_>, task: &Task) -> bool {
    lacks(candidate, task)
        .or_else(|| has_no_port(candidate, task))
        .is_some()
}

fn lacks(candidate: &Candidate<'_>, task: &Task) -> Option<Refusal> {
    let description = &candidate.node.description;
    let needed = &task.spec.resources;
    let exceeds = |needed: u64, reserved: u64, total: u64| {
        needed > 0 && needed > total.saturating_sub(reserved)
    };
    if exceeds(
        needed.reserve_nano_cpus,
        candidate.reserved_nano_cpus,
        description.nano_cpus,
    ) {
        return Some(Refusal::Cpu {
            needed_nano_cpus: needed.reserve_nano_cpus,
        });
    }
    if exceeds(
        needed.reserve_memory_bytes,
        candidate.reserved_memory_bytes,
        description.memory_bytes,
    ) {
        return Some(Refusal::Memory {
            needed_bytes: needed.reserve_memory_bytes,
        });
    }
    None
}

fn has_no_port(candidate: &Candidate<'_>, task: &Task) -> Option<Refusal> {
    let (protocol, published) = candidate.host_port_in_use(task)?;
    Some(Refusal::HostPort {
        published,
        protocol,
    })
}

/// How many nodes were refused for which reason. Its text names what is missing, the most frequent
/// reason first.
#[derive(Debug, Default)]
pub(super) struct Refusals(BTreeMap<Refusal, usize>);

impl Refusals {
    pub(super) fn add(&mut self, refusal: Refusal) {
        *self.0.entry(refusal).or_default() += 1;
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no suitable node: ")?;
        if self.0.is_empty() {
            return f.write_str("the swarm has no nodes");
        }
        let mut reasons: Vec<_> = self.0.iter().collect();
        reasons.sort_by_key(|(refusal, count)| (std::cmp::Reverse(**count), *refusal));
        for (index, (refusal, count)) in reasons.into_iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            write_reason(f, refusal, *count)?;
        }
        Ok(())
    }
}

fn write_reason(f: &mut fmt::Formatter<'_>, refusal: &Refusal, count: usize) -> fmt::Result {
    let one = count == 1;
    let nodes = if one { "node" } else { "nodes" };
    let are = if one { "is" } else { "are" };
    let have = if one { "has" } else { "have" };
    let doing = if one { "does" } else { "do" };
    write!(f, "{count} {nodes} ")?;
    match refusal {
        Refusal::Down => write!(f, "{are} down"),
        Refusal::Suspect => write!(f, "{doing} not answer"),
        Refusal::Unknown => write!(f, "{have} not been heard by the new leader yet"),
        Refusal::Paused => write!(f, "{are} paused"),
        Refusal::Drained => write!(f, "{are} drained"),
        Refusal::NoAddress => write!(f, "{have} no address on the ingress network"),
        Refusal::Cpu { needed_nano_cpus } => {
            let cpus = *needed_nano_cpus as f64 / 1e9;
            write!(f, "{have} less than the reserved {cpus} CPUs free")
        }
        Refusal::Memory { needed_bytes } => {
            let mebibytes = needed_bytes.div_ceil(1 << 20);
            write!(
                f,
                "{have} less than the reserved {mebibytes} MiB of memory free"
            )
        }
        Refusal::Constraint(constraint) => write!(f, "{doing} not satisfy {constraint}"),
        Refusal::HostPort {
            published,
            protocol,
        } => {
            let protocol = protocol.as_str();
            write!(
                f,
                "{have} host-mode port {published}/{protocol} in use already"
            )
        }
    }
}
