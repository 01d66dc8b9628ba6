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

/// One line of `swarmctl node ls --format json`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeRow {
    /// Node id, marked where it is the node that was asked.
    #[serde(rename = "ID")]
    pub id: String,
    /// Host name.
    pub hostname: String,
    /// `Ready` or what else.
    pub status: String,
    /// `Leader`, `Reachable`, `Unreachable`; empty of a worker.
    pub manager_status: String,
}

impl NodeRow {
    /// The id alone.
    #[must_use]
    pub fn node_id(&self) -> &str {
        self.id.trim_end_matches(" *")
    }
}

/// A lab whose hosts are one swarm, with a manager on `h1`.
#[derive(Debug)]
pub struct Swarm {
    /// The lab.
    pub lab: Lab,
}

impl Swarm {
    /// A new swarm of all hosts, all but the first workers.
    ///
    /// # Errors
    /// When a host cannot be set up, or is not ready in time.
    pub fn fresh() -> Result<Self> {
        Self::joined("worker")
    }

    /// A new swarm of all hosts, all of them managers.
    ///
    /// # Errors
    /// As [`Swarm::fresh`].
    pub fn of_managers() -> Result<Self> {
        let swarm = Self::joined("manager")?;
        swarm.wait_managers()?;
        Ok(swarm)
    }

    fn joined(role: &str) -> Result<Self> {
        let lab = Lab::fresh()?;
        lab.host(1).swarmctl(&["swarm", "init"])?.success()?;
        let swarm = Self { lab };
        for host in &swarm.lab.hosts()[1..] {
            swarm.join(host, role)?;
        }
        swarm.wait_ready()?;
        Ok(swarm)
    }

    /// Lets `host` join as `worker` or `manager`.
    ///
    /// # Errors
    /// When it cannot.
    pub fn join(&self, host: &Host, role: &str) -> Result<()> {
        let (token, manager) = (self.join_token(role)?, self.manager_address());
        let join = ["swarm", "join", "--token", &token, &manager];
        host.swarmctl(&join)?.success().map(drop)
    }

    /// The first host, with a manager.
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
        self.join_token("worker")
    }

    fn join_token(&self, role: &str) -> Result<String> {
        let text = self.swarmctl(&["swarm", "join-token", "-q", role])?;
        Ok(text.trim().to_owned())
    }

    /// Runs `swarmctl` on the manager; it has to succeed.
    ///
    /// # Errors
    /// When it does not: the message has what it printed.
    pub fn swarmctl(&self, arguments: &[&str]) -> Result<String> {
        self.manager().swarmctl(arguments)?.success()
    }

    /// The nodes, as the manager on `asked` lists them.
    ///
    /// # Errors
    /// When it does not.
    pub fn nodes(&self, asked: &Host) -> Result<Vec<NodeRow>> {
        let text = asked
            .swarmctl(&["node", "ls", "--format", "json"])?
            .success()?;
        text.lines()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    }

    /// Waits until every host is a manager, one of them the leader and the others reachable, whichever
    /// is asked; gives the leader.
    ///
    /// # Errors
    /// When they are not in time; the message has what one of them said.
    pub fn wait_managers(&self) -> Result<&Host> {
        wait_until(SETTLE_DEADLINE, "every host a manager", || {
            let mut leader = None;
            for asked in self.lab.hosts() {
                let nodes = self.nodes(asked)?;
                let having = |status: &str| {
                    let found = nodes.iter().filter(|it| it.manager_status == status);
                    found.map(|it| it.hostname.clone()).collect::<Vec<_>>()
                };
                let (leaders, others) = (having("Leader"), having("Reachable"));
                ensure!(
                    leaders.len() == 1 && others.len() + 1 == self.lab.hosts().len(),
                    "{} says {nodes:#?}",
                    asked.name()
                );
                leader = leaders.into_iter().next();
            }
            let is_it = |host: &&Host| Some(host.name()) == leader.as_deref();
            let leads = self.lab.hosts().iter().find(is_it);
            leads.with_context(|| format!("{leader:?} is no host"))
        })
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
