//! A swarm on every host of the lab, as a test needs it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::services::registry;
use crate::{Host, Lab, WebAnswer, wait_until};

/// For what takes seconds on real machines; emulation is several times slower.
pub const SETTLE_DEADLINE: Duration = Duration::from_secs(60);

/// The port of the manager's listener.
pub const MANAGER_PORT: u16 = 2377;

/// One line of `swarmctl service ps --format json`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TaskRow {
    /// Task id.
    #[serde(rename = "ID")]
    pub id: String,
    /// `service.slot`
    pub name: String,
    /// Host name of its node.
    pub node: String,
    /// `Running` or what else is wanted.
    pub desired_state: String,
    /// State and age.
    pub current_state: String,
    /// What went wrong.
    pub error: String,
}

impl TaskRow {
    /// Whether it runs and is meant to.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.desired_state == "Running" && self.current_state.starts_with("Running")
    }
}

/// A lab whose hosts are one swarm, with its manager on `h1`.
#[derive(Debug)]
pub struct Swarm {
    /// The lab.
    pub lab: Lab,
}

impl Swarm {
    /// A new swarm of all hosts.
    ///
    /// # Errors
    /// When a host cannot be set up, or is not ready in time.
    pub fn fresh() -> Result<Self> {
        let lab = Lab::fresh()?;
        lab.host(1).swarmctl(&["swarm", "init"])?.success()?;
        let swarm = Self { lab };
        let token = swarm.worker_token()?;
        for host in &swarm.lab.hosts()[1..] {
            let manager = swarm.manager_address();
            host.swarmctl(&["swarm", "join", "--token", &token, &manager])?
                .success()?;
        }
        swarm.wait_ready()?;
        Ok(swarm)
    }

    /// The host with the manager.
    #[must_use]
    pub fn manager(&self) -> &Host {
        self.lab.host(1)
    }

    /// What joiners dial.
    #[must_use]
    pub fn manager_address(&self) -> String {
        format!("{}:{MANAGER_PORT}", self.manager().address())
    }

    /// The worker join token.
    ///
    /// # Errors
    /// When the manager does not give it.
    pub fn worker_token(&self) -> Result<String> {
        let text = self.swarmctl(&["swarm", "join-token", "-q", "worker"])?;
        Ok(text.trim().to_owned())
    }

    /// Runs `swarmctl` on the manager; it has to succeed.
    ///
    /// # Errors
    /// When it does not: the message has what it printed.
    pub fn swarmctl(&self, arguments: &[&str]) -> Result<String> {
        self.manager().swarmctl(arguments)?.success()
    }

    /// Waits until every host counts as ready.
    ///
    /// # Errors
    /// When one does not in time.
    pub fn wait_ready(&self) -> Result<()> {
        wait_until(SETTLE_DEADLINE, "every node ready", || {
            let text = self.swarmctl(&["node", "ls", "--format", "json"])?;
            let ready = text
                .lines()
                .filter(|line| line.contains(r#""Status":"Ready""#))
                .count();
            ensure!(
                ready == self.lab.hosts().len(),
                "{ready} nodes are ready:\n{text}"
            );
            Ok(())
        })
    }

    /// Creates a service of the test image and waits until it runs.
    ///
    /// # Errors
    /// When it does not.
    pub fn create_web(&self, name: &str, replicas: u32, options: &[&str]) -> Result<()> {
        let (replicas, image) = (replicas.to_string(), format!("{}/web:latest", registry()));
        let mut arguments = vec!["service", "create", "--name", name, "--replicas", &replicas];
        arguments.extend(options);
        arguments.push(&image);
        self.swarmctl(&arguments).map(drop)
    }

    /// The tasks of a service, ended ones included.
    ///
    /// # Errors
    /// When the manager does not list them.
    pub fn tasks(&self, service: &str) -> Result<Vec<TaskRow>> {
        let text = self.swarmctl(&["service", "ps", "--format", "json", service])?;
        text.lines()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    }

    /// Waits until exactly that many tasks of the service run.
    ///
    /// # Errors
    /// When they do not in time; the message lists all tasks.
    pub fn wait_running(&self, service: &str, count: usize) -> Result<Vec<TaskRow>> {
        wait_until(SETTLE_DEADLINE, "the tasks run", || {
            let tasks = self.tasks(service)?;
            let running: Vec<_> = tasks
                .iter()
                .filter(|task| task.is_running())
                .cloned()
                .collect();
            ensure!(
                running.len() == count,
                "{} of {count} run: {tasks:#?}",
                running.len()
            );
            Ok(running)
        })
    }

    /// The names of the running tasks' hosts.
    ///
    /// # Errors
    /// As [`Swarm::tasks`].
    pub fn hosts_of(&self, service: &str) -> Result<BTreeSet<String>> {
        let tasks = self.tasks(service)?;
        Ok(tasks
            .into_iter()
            .filter(TaskRow::is_running)
            .map(|task| task.node)
            .collect())
    }

    /// Asks through `host` until `count` different tasks have answered; gives the last answer.
    ///
    /// # Errors
    /// When they do not in time.
    pub fn wait_answers(&self, host: &Host, port: u16, count: usize) -> Result<WebAnswer> {
        let mut seen = BTreeSet::new();
        wait_until(SETTLE_DEADLINE, "every task answers", || {
            let answer = self.lab.client().ask_web(host, port)?;
            seen.insert(answer.task.clone());
            ensure!(
                seen.len() >= count,
                "{} of {count} tasks answered",
                seen.len()
            );
            Ok(answer)
        })
        .with_context(|| format!("through {}", host.name()))
    }

    /// Removes a service and waits until its tasks are gone.
    ///
    /// # Errors
    /// When they are not in time.
    pub fn remove(&self, service: &str) -> Result<()> {
        self.swarmctl(&["service", "rm", service])?;
        wait_until(SETTLE_DEADLINE, "the service is gone", || {
            let text = self.swarmctl(&["service", "ls", "--format", "json"])?;
            ensure!(!text.contains(&format!(r#""Name":"{service}""#)), "{text}");
            Ok(())
        })
    }
}
