//! Reports of agents that wait to be written down.
//!
//! Of each task only the newest waits: how it came there is no news any more once it is further. So
//! what waits is bounded by the tasks that there are, and nobody has to be kept waiting: an agent whose
//! messages were not read would count as silent.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use swarm_model::TaskId;
use tokio::sync::Notify;

use super::observe::Report;

/// What waits, by task.
#[derive(Debug, Default)]
pub(super) struct Reports {
    waiting: Mutex<BTreeMap<TaskId, Report>>,
    news: Notify,
}

impl Reports {
    /// Adds reports about tasks that the store has on the nodes that report. Of two about one task the
    /// later counts, unless it is a step back.
    pub(super) fn add(&self, reports: impl IntoIterator<Item = Report>) {
        let mut waiting = self.waiting();
        for report in reports {
            let earlier = waiting.get(&report.task);
            if earlier.is_none_or(|earlier| earlier.status.state <= report.status.state) {
                waiting.insert(report.task.clone(), report);
            }
        }
        if !waiting.is_empty() {
            self.news.notify_one();
        }
    }

    /// Waits until something waits; takes none of it.
    pub(super) async fn wait(&self) {
        while self.waiting().is_empty() {
            self.news.notified().await;
        }
    }

    /// Takes all that waits.
    pub(super) fn take(&self) -> Vec<Report> {
        std::mem::take(&mut *self.waiting()).into_values().collect()
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<TaskId, Report>> {
        // Whole between any two statements that could panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use swarm_model::{NodeId, TaskState, TaskStatus};

    use super::*;
    use crate::store::testing::{node_id, task_id};

    fn report(node: &NodeId, task: u8, state: TaskState) -> Report {
        Report {
            node: node.clone(),
            task: task_id(task),
            status: TaskStatus {
                state,
                ..TaskStatus::default()
            },
        }
    }

    #[tokio::test]
    async fn of_each_task_the_furthest_report_waits() {
        let node = node_id(1);
        let reports = Reports::default();
        reports.add([
            report(&node, 1, TaskState::Preparing),
            report(&node, 2, TaskState::Failed),
        ]);
        reports.add([
            report(&node, 1, TaskState::Running),
            report(&node, 2, TaskState::Running),
        ]);
        reports.wait().await;
        let taken: Vec<_> = (reports.take().into_iter())
            .map(|report| (report.task, report.status.state))
            .collect();
        assert_eq!(
            taken,
            [
                (task_id(1), TaskState::Running),
                (task_id(2), TaskState::Failed)
            ]
        );
        assert!(reports.take().is_empty());
    }
}
