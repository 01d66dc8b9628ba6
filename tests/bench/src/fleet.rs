//! What all simulated agents saw.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use swarm_api::v1;

/// Reasons of ended sessions that are told apart; more are counted as others.
const REASONS_MAX: usize = 16;

/// When a task was given to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Assigned {
    /// By the manager's clock: when it was placed.
    pub(crate) placed_ms: u64,
    /// When the agent heard of it.
    pub(crate) heard_ms: u64,
}

/// What the agents saw, together.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// By service, then by task.
    assigned: Mutex<HashMap<String, HashMap<String, Assigned>>>,
    open: AtomicUsize,
    ends: Mutex<BTreeMap<String, usize>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seen {
    pub(crate) fn opened(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn closed(&self, reason: &anyhow::Error) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        let mut ends = lock(&self.ends);
        let reason = match reason.downcast_ref::<tonic::Status>() {
            Some(status) => status.message().to_owned(),
            None => reason.to_string(),
        };
        if ends.len() < REASONS_MAX || ends.contains_key(&reason) {
            *ends.entry(reason).or_default() += 1;
        } else {
            *ends.entry("others".to_owned()).or_default() += 1;
        }
    }

    /// Notes a task the first time that its node hears of it.
    pub(crate) fn assigned(&self, task: &v1::Task, heard_ms: u64) {
        let placed_ms = task.status.as_ref().map_or(0, |status| status.since_ms);
        let assigned = Assigned {
            placed_ms,
            heard_ms,
        };
        let mut services = lock(&self.assigned);
        let service = services.entry(task.service_id.clone()).or_default();
        service.entry(task.id.clone()).or_insert(assigned);
    }

    /// Sessions that are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Tasks of `service` that agents have heard of so far.
    pub(crate) fn count(&self, service: &str) -> usize {
        lock(&self.assigned).get(service).map_or(0, HashMap::len)
    }

    /// Tasks of all services that agents have heard of so far.
    pub(crate) fn count_all(&self) -> usize {
        lock(&self.assigned).values().map(HashMap::len).sum()
    }

    /// When the last task of `service` was placed, and when the last was heard of.
    pub(crate) fn last(&self, service: &str) -> Option<Assigned> {
        let services = lock(&self.assigned);
        let tasks = services.get(service)?.values();
        tasks.copied().reduce(|a, b| Assigned {
            placed_ms: a.placed_ms.max(b.placed_ms),
            heard_ms: a.heard_ms.max(b.heard_ms),
        })
    }

    /// How many sessions ended for which reason since the last call.
    pub(crate) fn take_ends(&self) -> BTreeMap<String, usize> {
        std::mem::take(&mut *lock(&self.ends))
    }
}
