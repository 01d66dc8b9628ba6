//! What a reference means: `self`, a full id, a name, then a unique beginning of an id.

use std::sync::Arc;

use swarm_model::{Network, Node, NodeId, Service};

use super::refusal::Refusal;
use crate::store::State;

/// How the node that answers may be called.
const SELF: &str = "self";

/// Candidates that an error names; more would not be read.
const MAX_CANDIDATES: usize = 5;

/// Longest reference that an error repeats: the longest name there is.
const MAX_SHOWN: usize = 64;

/// What can be looked for.
trait Referable {
    const KIND: &'static str;
    fn id(&self) -> &str;
    fn name(&self) -> &str;
}

impl Referable for Node {
    const KIND: &'static str = "node";
    fn id(&self) -> &str {
        self.id.as_str()
    }
    fn name(&self) -> &str {
        &self.description.hostname
    }
}

impl Referable for Service {
    const KIND: &'static str = "service";
    fn id(&self) -> &str {
        self.id.as_str()
    }
    fn name(&self) -> &str {
        &self.spec.name
    }
}

impl Referable for Network {
    const KIND: &'static str = "network";
    fn id(&self) -> &str {
        self.id.as_str()
    }
    fn name(&self) -> &str {
        &self.spec.name
    }
}

/// The network that `reference` means.
pub(super) fn network<'a>(state: &'a State, reference: &str) -> Result<&'a Arc<Network>, Refusal> {
    find(reference, || state.networks())
}

/// The service that `reference` means.
pub(super) fn service<'a>(state: &'a State, reference: &str) -> Result<&'a Arc<Service>, Refusal> {
    find(reference, || state.services())
}

/// The node that `reference` means; `self` is `self_id`.
pub(super) fn node<'a>(
    state: &'a State,
    reference: &str,
    self_id: &NodeId,
) -> Result<&'a Arc<Node>, Refusal> {
    let reference = match reference {
        SELF => self_id.as_str(),
        other => other,
    };
    find(reference, || state.nodes())
}

/// The name a person knows a node by: its host name, or its id before it has said one.
pub(super) fn display_name(node: &Node) -> &str {
    if node.description.hostname.is_empty() {
        node.id.as_str()
    } else {
        &node.description.hostname
    }
}

fn find<'a, T, I>(reference: &str, all: impl Fn() -> I) -> Result<&'a Arc<T>, Refusal>
where
    T: Referable + 'a,
    I: Iterator<Item = &'a Arc<T>>,
{
    if reference.is_empty() {
        return Err(Refusal::EmptyReference(T::KIND));
    }
    let rules: [fn(&T, &str) -> bool; 3] = [
        |object, reference| object.id() == reference,
        |object, reference| object.name() == reference,
        |object, reference| object.id().starts_with(reference),
    ];
    for rule in rules {
        let found: Vec<_> = all().filter(|object| rule(object, reference)).collect();
        match found[..] {
            [] => {}
            [one] => return Ok(one),
            [..] => {
                return Err(Refusal::Ambiguous {
                    kind: T::KIND,
                    reference: shown(reference),
                    candidates: candidates(&found),
                });
            }
        }
    }
    Err(Refusal::NotFound {
        kind: T::KIND,
        reference: shown(reference),
    })
}

fn candidates<T: Referable>(found: &[&Arc<T>]) -> String {
    let mut named: Vec<_> = found
        .iter()
        .take(MAX_CANDIDATES)
        .map(|object| format!("{} ({})", object.id(), object.name()))
        .collect();
    if found.len() > MAX_CANDIDATES {
        named.push(format!("{} more", found.len() - MAX_CANDIDATES));
    }
    named.join(", ")
}

fn shown(reference: &str) -> String {
    reference.chars().take(MAX_SHOWN).collect()
}
