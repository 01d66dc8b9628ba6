//! Agents: they open sessions, do as they are told, and say what they observe.
//!
//! What an agent runs on its host outlives the agent, and ends with the host. Streams to managers
//! are reliable and in order until they break.

use std::collections::BTreeMap;

use rand::RngExt as _;
use rand_chacha::ChaCha12Rng;
use swarm_api::v1;
use swarm_api::v1::agent_message::Message;
use swarm_model::{DesiredState, NodeId, Task, TaskId, TaskState, TaskStatus};

use crate::check::Violation;
use crate::plan::MILLISECOND;

/// A task on a host.
#[derive(Debug)]
struct Local {
    state: TaskState,
    desired: DesiredState,
}

/// An agent and its host.
#[derive(Debug)]
pub(crate) struct Agent {
    /// Its node.
    pub(crate) node_id: NodeId,
    /// Whether it runs.
    pub(crate) is_up: bool,
    /// Whether its node is in the swarm.
    pub(crate) is_admitted: bool,
    /// The manager that it has a stream to, and the stream's number.
    pub(crate) stream: Option<(usize, u64)>,
    /// Counts streams, over all agents.
    generation: u64,
    tasks: BTreeMap<TaskId, Local>,
}

/// What an agent does next.
#[derive(Debug, Default)]
pub(crate) struct Reaction {
    /// Said at once.
    pub(crate) say: Vec<Message>,
    /// Said after some time, in microseconds.
    pub(crate) later: Vec<(u64, Message)>,
    /// Tasks that go on after some time, in microseconds.
    pub(crate) go_on: Vec<(u64, TaskId)>,
}

impl Agent {
    /// An agent that is not in the swarm yet.
    pub(crate) fn new(node_id: NodeId) -> Self {
        Self {
            node_id,
            is_up: true,
            is_admitted: false,
            stream: None,
            generation: 0,
            tasks: BTreeMap::new(),
        }
    }

    /// What it says first.
    pub(crate) fn hello(&self, number: usize) -> Message {
        let last = u8::try_from(number).unwrap_or(u8::MAX);
        Message::Hello(v1::Hello {
            description: Some(v1::NodeDescription {
                hostname: format!("h{number}"),
                os: "linux".to_owned(),
                architecture: "x86_64".to_owned(),
                nano_cpus: 4_000_000_000,
                memory_bytes: 1 << 32,
                data_path_address: format!("198.51.100.{last}"),
                ..v1::NodeDescription::default()
            }),
            ..v1::Hello::default()
        })
    }

    /// The host loses its power: what ran there has ended, and the next agent finds out.
    pub(crate) fn lose_power(&mut self) {
        self.stop();
        for task in self.tasks.values_mut() {
            if !task.state.is_terminal() {
                task.state = TaskState::Failed;
            }
        }
    }

    /// The agent ends; what runs goes on.
    pub(crate) fn stop(&mut self) {
        self.is_up = false;
        self.stream = None;
    }

    /// Takes a manager's message.
    pub(crate) fn hear(
        &mut self,
        message: v1::ManagerMessage,
        rng: &mut ChaCha12Rng,
    ) -> Result<Reaction, Violation> {
        let mut reaction = Reaction::default();
        let assignments = match message.message {
            Some(v1::manager_message::Message::Assignments(assignments)) => assignments,
            _ => return Ok(reaction),
        };
        let generation = assignments.generation;
        if assignments.complete {
            let named = |id: &TaskId| {
                let mut put = assignments.put.iter();
                put.any(|it| matches!(&it.item, Some(v1::assignment::Item::Task(task)) if task.id == id.as_str()))
            };
            self.tasks.retain(|id, _| named(id));
        } else if generation != self.generation + 1 {
            return Err(format!(
                "an agent was sent generation {generation} after {}",
                self.generation
            ));
        }
        self.generation = generation;
        for key in assignments.remove {
            if let Some(v1::assignment_key::Key::TaskId(id)) = key.key
                && let Ok(id) = id.parse::<TaskId>()
            {
                self.tasks.remove(&id);
            }
        }
        for assignment in assignments.put {
            let Some(v1::assignment::Item::Task(task)) = assignment.item else {
                continue;
            };
            let task = Task::try_from(*task).map_err(|error| format!("a task: {error}"))?;
            if task.node_id.as_ref() != Some(&self.node_id) {
                return Err(format!("task {} was sent to a node not its own", task.id));
            }
            let local = self.tasks.entry(task.id.clone()).or_insert(Local {
                state: task.status.state,
                desired: task.desired_state,
            });
            local.desired = local.desired.max(task.desired_state);
            let delay = rng.random_range(MILLISECOND..200 * MILLISECOND);
            reaction.go_on.push((delay, task.id));
        }
        let delay = rng.random_range(MILLISECOND..150 * MILLISECOND);
        let applied = Message::Applied(v1::Applied { generation });
        reaction.later.push((delay, applied));
        if assignments.complete {
            // A new session is told everything that is known here.
            let all: Vec<_> = self.tasks.keys().cloned().collect();
            reaction
                .say
                .extend(all.iter().filter_map(|id| self.status(id)));
        }
        Ok(reaction)
    }

    /// Lets a task go on by one step; `fails_percent` of those that could run fail.
    pub(crate) fn go_on(
        &mut self,
        id: &TaskId,
        fails_percent: u32,
        rng: &mut ChaCha12Rng,
    ) -> Reaction {
        let mut reaction = Reaction::default();
        let Some(task) = self.tasks.get_mut(id) else {
            return reaction;
        };
        if !self.is_up || task.state.is_terminal() {
            return reaction;
        }
        let fails = rng.random_ratio(fails_percent, 100);
        let next = if task.desired >= DesiredState::Shutdown {
            TaskState::Shutdown
        } else {
            match task.state {
                TaskState::Assigned => TaskState::Accepted,
                TaskState::Accepted => TaskState::Preparing,
                TaskState::Preparing if fails => TaskState::Rejected,
                TaskState::Preparing => TaskState::Starting,
                TaskState::Starting if fails => TaskState::Failed,
                TaskState::Starting => TaskState::Running,
                TaskState::Running if fails => TaskState::Failed,
                _ => return reaction,
            }
        };
        task.state = next;
        if !next.is_terminal() {
            let most = if next == TaskState::Running {
                20_000
            } else {
                300
            };
            let delay = rng.random_range(MILLISECOND..most * MILLISECOND);
            reaction.go_on.push((delay, id.clone()));
        }
        reaction.say.extend(self.status(id));
        reaction
    }

    fn status(&self, id: &TaskId) -> Option<Message> {
        let task = self.tasks.get(id)?;
        if task.state < TaskState::Accepted {
            return None;
        }
        let status = TaskStatus {
            state: task.state,
            ..TaskStatus::default()
        };
        Some(Message::Status(v1::TaskStatusUpdate {
            entries: vec![v1::TaskStatusEntry {
                task_id: id.to_string(),
                status: Some((&status).into()),
            }],
        }))
    }

    /// The tasks that have a container here.
    pub(crate) fn running(&self) -> impl Iterator<Item = &TaskId> {
        let has = |it: &Local| (TaskState::Starting..=TaskState::Running).contains(&it.state);
        let tasks = self.tasks.iter();
        tasks.filter(move |(_, task)| has(task)).map(|(id, _)| id)
    }

    /// The tasks that it is to go on with after a start.
    pub(crate) fn unfinished(&self) -> Vec<TaskId> {
        let tasks = self.tasks.iter();
        let unfinished = tasks.filter(|(_, task)| !task.state.is_terminal());
        unfinished.map(|(id, _)| id.clone()).collect()
    }
}
