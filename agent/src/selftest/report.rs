//! What was found, in words. Pure.

use std::collections::BTreeMap;

use crate::network::{Entry, Outcome};
use crate::session::Assigned;

/// Most failing ports told one by one. More have one cause.
const LINES_MAX: usize = 100;

/// What the test has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Ports that do not answer, and how they did the last time.
    pub(crate) failing: BTreeMap<Entry, Outcome>,
    /// Questions that were answered since the agent's start.
    pub(crate) answered: u64,
    /// Those that were not.
    pub(crate) unanswered: u64,
}

impl Found {
    /// A line with the remedy for each failing port.
    pub(crate) fn texts(&self, assigned: &Assigned) -> Vec<String> {
        let failing = self.failing.iter().take(LINES_MAX);
        let mut texts: Vec<_> = failing
            .map(|(entry, outcome)| text(entry, *outcome, assigned))
            .collect();
        let left_out = self.failing.len() - texts.len();
        if left_out > 0 {
            texts.push(format!("{left_out} more published ports do not answer"));
        }
        texts
    }
}

/// What is wrong with one port, and what to do about it.
pub(super) fn text(entry: &Entry, outcome: Outcome, assigned: &Assigned) -> String {
    let mut services = assigned.services.values();
    let service = services.find(|service| service.index == entry.service);
    let service = service.map_or("?", |service| service.name.as_str());
    let port = entry.at.port();
    let address = entry.at.ip();
    let found =
        format!("port {port}/tcp, published by service {service}, at {address} of this node");
    match outcome {
        // Not told of by the callers.
        Outcome::Answers => format!("{found} answers"),
        Outcome::Refuses => format!(
            "{found} refuses connections: `swarmctl service ps {service}` shows its tasks; see \
             whether all of them listen on the port's target"
        ),
        Outcome::Silent => format!(
            "{found} does not answer: see whether UDP port 4789 is open between the data-path \
             addresses of all nodes, and what `swarmctl mesh check` says on those with a task of \
             {service}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_fails_is_told_with_the_remedy() {
        let entry = |port: u16| Entry {
            service: 1,
            at: ([192, 0, 2, 1], port).into(),
        };
        let mut found = Found {
            failing: BTreeMap::from([(entry(80), Outcome::Silent), (entry(81), Outcome::Refuses)]),
            ..Found::default()
        };
        let texts = found.texts(&Assigned::default());
        assert_eq!(texts.len(), 2);
        let told = "port 80/tcp, published by service ?, at 192.0.2.1 of this node does not answer";
        assert!(
            texts[0].starts_with(told) && texts[0].contains("4789"),
            "{texts:?}"
        );
        assert!(
            texts[1].contains("refuses") && texts[1].contains("service ps"),
            "{texts:?}"
        );
        found.failing = (1..=150)
            .map(|port| (entry(port), Outcome::Silent))
            .collect();
        let texts = found.texts(&Assigned::default());
        assert_eq!(texts.len(), LINES_MAX + 1);
        assert_eq!(texts[LINES_MAX], "50 more published ports do not answer");
    }
}
