//! `swarmctl service ps`.

use std::collections::HashMap;
use std::time::SystemTime;

use swarm_api::v1;
use swarm_model::{Task, TaskState, Timestamp};

use crate::connect::{Sockets, answer, request};
use crate::table::{Format, ListOptions, Table, capitalised};
use crate::time::ago;

/// Lists the tasks of services.
#[derive(Debug, clap::Args)]
pub(crate) struct Ps {
    #[command(flatten)]
    list: ListOptions,
    /// Do not shorten ids and errors
    #[arg(long)]
    no_trunc: bool,
    /// Ids, names, or beginnings of ids that fit only one
    #[arg(value_name = "SERVICE", required = true)]
    services: Vec<String>,
}

/// Errors are cut here in tables, so that a row stays readable; `--no-trunc` shows all.
const ERROR_CHARS_MAX: usize = 100;

impl Ps {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let mut control = sockets.control().await?;
        let mut rows = Vec::new();
        let mut problems = Vec::new();
        for service_reference in &self.services {
            let message = v1::ListTasksRequest {
                service_reference: service_reference.clone(),
            };
            let found = answer(control.list_tasks(request(message)).await)?;
            problems.extend(found.problems);
            let mut tasks = found
                .tasks
                .into_iter()
                .map(Task::try_from)
                .collect::<Result<Vec<_>, _>>()?;
            // Slot by slot, the newest task of each first.
            tasks.sort_by(|a, b| {
                a.slot
                    .cmp(&b.slot)
                    .then_with(|| b.meta.created_at.cmp(&a.meta.created_at))
            });
            let now = now();
            let mut slot = None;
            for task in tasks {
                let older = slot == Some(task.slot);
                slot = Some(task.slot);
                rows.push(self.row(&task, older, &found.hostnames, now));
            }
        }
        let table = Table {
            columns: [
                ("ID", "ID"),
                ("NAME", "Name"),
                ("IMAGE", "Image"),
                ("NODE", "Node"),
                ("DESIRED STATE", "DesiredState"),
                ("CURRENT STATE", "CurrentState"),
                ("ERROR", "Error"),
            ],
            rows,
        };
        print!("{}", table.render(self.list));
        // Under the table for people; beside it for programs, which read rows.
        for problem in problems {
            if self.list.format == Format::Table && !self.list.quiet {
                println!("! {problem}");
            } else {
                eprintln!("! {problem}");
            }
        }
        Ok(())
    }

    fn row(
        &self,
        task: &Task,
        older: bool,
        hostnames: &HashMap<String, String>,
        now: Timestamp,
    ) -> [String; 7] {
        let whole = self.no_trunc || self.list.quiet || self.list.format == Format::Json;
        let for_people = self.list.format == Format::Table;
        // Docker's sign for an earlier task of the same slot.
        let mark = if older && for_people { " \\_ " } else { "" };
        let node = task.node_id.as_ref().map_or(String::new(), |id| {
            hostnames
                .get(id.as_str())
                .cloned()
                .unwrap_or_else(|| id.to_string())
        });
        let mut error = task.status.error.clone();
        if error.is_empty() && task.status.state == TaskState::Pending {
            error.clone_from(&task.status.message);
        }
        if !whole && error.chars().count() > ERROR_CHARS_MAX {
            error = error.chars().take(ERROR_CHARS_MAX).chain(['…']).collect();
        }
        [
            if whole {
                task.id.to_string()
            } else {
                task.id.short().to_owned()
            },
            format!("{mark}{}", task.name()),
            task.spec.container.image.clone(),
            node,
            capitalised(task.desired_state.as_str()),
            format!(
                "{} {}",
                capitalised(task.status.state.as_str()),
                ago(now.since(task.status.since))
            ),
            error,
        ]
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
