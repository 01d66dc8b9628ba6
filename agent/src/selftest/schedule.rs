//! Which ports to ask, and when. Pure: times are since any one moment.
//!
//! | state | answers | refuses or is silent | its tasks change, something was repaired |
//! |---|---|---|---|
//! | untested, answering | answering, asked again in 5 min | doubtful, again in 2 s | asked in 5 s |
//! | doubtful | answering | failing, again in 30 s | asked in 5 s, or sooner |
//! | failing (told) | answering | failing, again in 30 s | asked in 5 s, or sooner |
//!
//! A port that is no longer to answer is forgotten.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::network::{Answering, Entry, Outcome};

/// From a change to the question: tasks, tables and other nodes have come to rest by then.
const SETTLE: Duration = Duration::from_secs(5);
/// Between two questions to a port that answers.
const INTERVAL: Duration = Duration::from_secs(300);
/// From the first failure to the next question: one packet may get lost.
const DOUBT: Duration = Duration::from_secs(2);
/// Between two questions to a port that fails.
const RETRY: Duration = Duration::from_secs(30);
/// Between two batches.
const BATCH_SPACING: Duration = Duration::from_secs(1);
/// Ports asked at a time: 5,000 ports over two IP versions take the five minutes.
const BATCH: usize = 32;
/// Failures in a row from which a port counts as failing.
const FAILURES: u32 = 2;

/// How a port stands.
#[derive(Clone, Copy, Debug)]
struct Port {
    tasks: u64,
    due: Duration,
    failures: u32,
    last: Option<Outcome>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Schedule {
    ports: BTreeMap<Entry, Port>,
    repairs: u64,
    last_batch: Option<Duration>,
}

impl Schedule {
    /// Takes over which ports are to answer now.
    pub(super) fn follow(&mut self, now: Duration, answering: &Answering) {
        let soon = now + SETTLE;
        let repaired = std::mem::replace(&mut self.repairs, answering.repairs) != answering.repairs;
        self.ports
            .retain(|entry, _| answering.entries.contains_key(entry));
        for (entry, tasks) in answering.entries.iter() {
            let port = self.ports.entry(*entry).or_insert(Port {
                tasks: *tasks,
                due: soon,
                failures: 0,
                last: None,
            });
            if repaired || port.tasks != *tasks {
                port.tasks = *tasks;
                // A port that changes all the time is asked all the same.
                port.due = port.due.min(soon);
            }
        }
    }

    /// When [`next`](Self::next) has something to ask; nothing while there is no port.
    pub(super) fn wake(&self) -> Option<Duration> {
        let due = self.ports.values().map(|port| port.due).min()?;
        let spaced = self.last_batch.map(|last| last + BATCH_SPACING);
        Some(spaced.map_or(due, |spaced| spaced.max(due)))
    }

    /// What is to be asked now, those that wait longest first. Each is due again in a while, also
    /// when nobody [tells](Self::told) what became of it.
    pub(super) fn next(&mut self, now: Duration) -> Vec<Entry> {
        if self.wake().is_none_or(|wake| wake > now) {
            return Vec::new();
        }
        let due = self.ports.iter().filter(|(_, port)| port.due <= now);
        let mut due: Vec<_> = due.map(|(entry, port)| (port.due, *entry)).collect();
        due.sort_unstable();
        due.truncate(BATCH);
        for (_, entry) in &due {
            if let Some(port) = self.ports.get_mut(entry) {
                port.due = now + RETRY;
            }
        }
        self.last_batch = Some(now);
        due.into_iter().map(|(_, entry)| entry).collect()
    }

    /// Takes what became of a question. Of a port that was forgotten meanwhile nothing.
    pub(super) fn told(&mut self, now: Duration, entry: &Entry, outcome: Outcome) {
        let Some(port) = self.ports.get_mut(entry) else {
            return;
        };
        port.last = Some(outcome);
        let pause = match outcome {
            Outcome::Answers => {
                port.failures = 0;
                INTERVAL
            }
            Outcome::Refuses | Outcome::Silent => {
                port.failures = port.failures.saturating_add(1);
                if port.failures < FAILURES {
                    DOUBT
                } else {
                    RETRY
                }
            }
        };
        port.due = now + pause;
    }

    /// The ports that fail, and how they did the last time.
    pub(super) fn failing(&self) -> BTreeMap<Entry, Outcome> {
        let failing = self
            .ports
            .iter()
            .filter(|(_, port)| port.failures >= FAILURES);
        failing
            .filter_map(|(entry, port)| Some((*entry, port.last?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn entry(port: u16) -> Entry {
        Entry {
            service: u32::from(port),
            at: ([192, 0, 2, 1], port).into(),
        }
    }

    fn answering(ports: impl IntoIterator<Item = (u16, u64)>, repairs: u64) -> Answering {
        let entries = ports.into_iter();
        Answering {
            entries: Arc::new(entries.map(|(port, tasks)| (entry(port), tasks)).collect()),
            own: Vec::new(),
            repairs,
        }
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_port_is_asked_after_a_change_and_every_five_minutes() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.wake(), None);
        schedule.follow(s(10), &answering([(80, 1)], 0));
        assert_eq!(
            (schedule.wake(), schedule.next(s(14))),
            (Some(s(15)), vec![])
        );
        assert_eq!(schedule.next(s(15)), [entry(80)]);
        schedule.told(s(15), &entry(80), Outcome::Answers);
        assert_eq!(schedule.wake(), Some(s(315)));
        // Nothing new.
        schedule.follow(s(20), &answering([(80, 1)], 0));
        assert_eq!(schedule.wake(), Some(s(315)));
        // Other tasks; then the same again, which does not put it off.
        schedule.follow(s(30), &answering([(80, 2)], 0));
        schedule.follow(s(34), &answering([(80, 1)], 0));
        assert_eq!(schedule.next(s(35)), [entry(80)]);
        schedule.told(s(35), &entry(80), Outcome::Answers);
        // Something was repaired.
        schedule.follow(s(40), &answering([(80, 1)], 1));
        assert_eq!(schedule.wake(), Some(s(45)));
        schedule.follow(s(41), &answering([], 1));
        assert_eq!(schedule.wake(), None);
    }

    #[test]
    fn a_port_fails_when_it_has_failed_twice_until_it_answers() {
        let mut schedule = Schedule::default();
        schedule.follow(s(0), &answering([(80, 1)], 0));
        let mut ask = |at: u64, outcome: Outcome| {
            assert_eq!(schedule.next(s(at)), [entry(80)], "at {at}");
            schedule.told(s(at), &entry(80), outcome);
            let failing = schedule.failing().into_values().next();
            (failing, schedule.wake().unwrap())
        };
        assert_eq!(ask(5, Outcome::Silent), (None, s(7)));
        assert_eq!(ask(7, Outcome::Answers), (None, s(307)));
        assert_eq!(ask(307, Outcome::Refuses), (None, s(309)));
        assert_eq!(ask(309, Outcome::Silent), (Some(Outcome::Silent), s(339)));
        assert_eq!(ask(339, Outcome::Refuses), (Some(Outcome::Refuses), s(369)));
        assert_eq!(ask(369, Outcome::Answers), (None, s(669)));
        // One that could not be asked is asked again.
        assert_eq!(schedule.next(s(669)), [entry(80)]);
        assert_eq!(schedule.wake(), Some(s(699)));
        // A gone port's outcome is nobody's.
        schedule.follow(s(670), &answering([], 0));
        schedule.told(s(671), &entry(80), Outcome::Silent);
        assert_eq!(schedule.failing(), BTreeMap::new());
    }

    proptest! {
        #[test]
        fn nobody_is_asked_too_often_and_everybody_in_time(
            steps in prop::collection::vec((0..3_u64, 0..200_u16, any::<bool>(), 0..3_u8), 1..300),
        ) {
            let mut schedule = Schedule::default();
            let mut asked: BTreeMap<Entry, Duration> = BTreeMap::new();
            let (mut now, mut repairs, mut last) = (Duration::ZERO, 0, None);
            for (wait, ports, repair, outcome) in steps {
                now += Duration::from_secs(wait);
                repairs += u64::from(repair);
                let tasks = u64::from(outcome);
                schedule.follow(now, &answering((1..=ports).map(|port| (port, tasks)), repairs));
                asked.retain(|entry, _| entry.at.port() <= ports);
                let batch = schedule.next(now);
                prop_assert!(batch.len() <= BATCH);
                if !batch.is_empty() {
                    prop_assert!(last.is_none_or(|last| now >= last + BATCH_SPACING));
                    last = Some(now);
                }
                for entry in batch {
                    if let Some(before) = asked.insert(entry, now) {
                        prop_assert!(now >= before + DOUBT, "{entry:?} at {before:?}, {now:?}");
                    }
                    let outcome = [Outcome::Answers, Outcome::Refuses, Outcome::Silent]
                        [usize::from(outcome)];
                    schedule.told(now, &entry, outcome);
                }
                // Whatever there is has its turn.
                prop_assert_eq!(schedule.wake().is_some(), ports > 0);
                prop_assert!(schedule.wake().is_none_or(|wake| wake <= now + INTERVAL));
            }
        }
    }
}
