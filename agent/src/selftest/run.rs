//! The shell: waits, asks, tells.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::report::{Found, text};
use super::schedule::Schedule;
use crate::network::{Answering, Entry, Outcome, probe};
use crate::session::Assigned;

/// What the test needs.
pub(crate) struct SelfTest {
    /// Where the ingress namespace is mounted.
    pub(crate) run_dir: PathBuf,
    /// Which ports are to answer.
    pub(crate) answering: watch::Receiver<Answering>,
    /// Who they are, for the words.
    pub(crate) assigned: watch::Receiver<Arc<Assigned>>,
    /// What was found.
    pub(crate) found: watch::Sender<Found>,
}

impl SelfTest {
    /// Until nobody says any more which ports are to answer.
    pub(crate) async fn run(mut self) {
        let began = Instant::now();
        let mut schedule = Schedule::default();
        self.answering.mark_changed();
        loop {
            let wake = schedule.wake().map(|wake| began + wake);
            tokio::select! {
                changed = self.answering.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    schedule.follow(began.elapsed(), &self.answering.borrow_and_update());
                }
                () = until(wake) => {
                    let asked = schedule.next(began.elapsed());
                    let outcomes = self.ask(&asked).await;
                    for (entry, outcome) in asked.iter().zip(outcomes) {
                        if let Some(outcome) = outcome {
                            schedule.told(began.elapsed(), entry, outcome);
                            self.count(outcome);
                        }
                    }
                }
            }
            self.tell(&schedule);
        }
    }

    /// What became of each; nothing of those that could not be asked.
    async fn ask(&self, asked: &[Entry]) -> Vec<Option<Outcome>> {
        let targets: Vec<SocketAddr> = asked.iter().map(|entry| entry.at).collect();
        let own = self.answering.borrow().own.clone();
        let run_dir = self.run_dir.clone();
        let probed = tokio::task::spawn_blocking(move || probe(&run_dir, &own, &targets)).await;
        match probed {
            Ok(Ok(outcomes)) => outcomes,
            Ok(Err(error)) => {
                let error = crate::error_text(&error);
                tracing::debug!(error, "the published ports cannot be tested");
                Vec::new()
            }
            Err(error) => {
                tracing::warn!(%error, "the test of the published ports failed");
                Vec::new()
            }
        }
    }

    fn count(&self, outcome: Outcome) {
        self.found.send_modify(|found| match outcome {
            Outcome::Answers => found.answered += 1,
            Outcome::Refuses | Outcome::Silent => found.unanswered += 1,
        });
    }

    /// Logs what is new, and says what there is.
    fn tell(&self, schedule: &Schedule) {
        let failing = schedule.failing();
        let before = self.found.borrow().failing.clone();
        if failing == before {
            return;
        }
        let assigned = self.assigned.borrow().clone();
        for (entry, outcome) in &failing {
            if !before.contains_key(entry) {
                tracing::warn!("self-test: {}", text(entry, *outcome, &assigned));
            }
        }
        for entry in before.keys().filter(|entry| !failing.contains_key(entry)) {
            tracing::info!(at = %entry.at, "self-test: the published port no longer fails");
        }
        self.found.send_modify(|found| found.failing = failing);
    }
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}
