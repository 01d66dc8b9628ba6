//! Waiting until a service is what was asked for.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use swarm_api::v1;
use swarm_model::{DesiredState, Service, ServiceId, Task, TaskState};

use crate::connect::{Control, answer_now, request};

/// How often it is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How long the tasks have to run before it is believed: a program that fails at once has been seen
/// running. Docker waits 5 s; what ends later than this is in `service ps`.
const STABLE_FOR: Duration = Duration::from_secs(2);

/// Failed attempts after which waiting is given up; the swarm itself goes on trying.
const FAILURES_MAX: usize = 3;

/// Options of every command that changes what runs.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Waiting {
    /// Return at once instead of waiting until the tasks run
    #[arg(short, long)]
    detach: bool,
    /// Most seconds to wait
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    wait_timeout: u64,
}

/// How a service stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// As asked for.
    Converged,
    /// On its way: this many of that many run.
    Underway { running: u64, wanted: u64 },
    /// It will not get there by waiting.
    Stuck(String),
}

impl Waiting {
    /// Waits, unless told not to, until the tasks of the service run as asked for.
    pub(super) async fn wait(self, control: &mut Control, id: &ServiceId) -> anyhow::Result<()> {
        if self.detach {
            return Ok(());
        }
        let mut already_failed: Option<BTreeSet<_>> = None;
        let show = std::io::stderr().is_terminal();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(self.wait_timeout);
        let mut converged_at = None;
        loop {
            let Some((service, tasks)) = look(control, id).await? else {
                if tokio::time::Instant::now() > deadline {
                    anyhow::bail!(
                        "no manager answers after {} s; the swarm goes on when they do",
                        self.wait_timeout
                    );
                }
                tokio::time::sleep(POLL_INTERVAL).await;
                continue;
            };
            let already_failed = already_failed.get_or_insert_with(|| failed(&tasks).collect());
            let standing = standing(&service, &tasks, already_failed);
            if standing != Standing::Converged {
                converged_at = None;
            }
            match standing {
                Standing::Converged => {
                    let now = tokio::time::Instant::now();
                    if now - *converged_at.get_or_insert(now) >= STABLE_FOR {
                        if show {
                            eprintln!("\rverify: Service converged          ");
                        }
                        return Ok(());
                    }
                }
                Standing::Stuck(reason) => {
                    anyhow::bail!(
                        "service {} does not get to run: {reason}; the swarm goes on trying: see \
                         `swarmctl service ps {}`",
                        service.spec.name,
                        service.spec.name
                    );
                }
                Standing::Underway { running, wanted } => {
                    if show {
                        eprint!("\roverall progress: {running} out of {wanted} tasks ");
                        let _ = std::io::stderr().flush();
                    }
                    if tokio::time::Instant::now() > deadline {
                        anyhow::bail!(
                            "only {running} of {wanted} tasks of service {} run after {} s; the \
                             swarm goes on: see `swarmctl service ps {}`",
                            service.spec.name,
                            self.wait_timeout,
                            service.spec.name
                        );
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                _ = tokio::signal::ctrl_c() => {
                    eprintln!("\nGoing on in the background.");
                    return Ok(());
                }
            }
        }
    }
}

/// The service and its tasks; none while nobody can tell, as between two leaders.
async fn look(
    control: &mut Control,
    id: &ServiceId,
) -> anyhow::Result<Option<(Service, Vec<Task>)>> {
    let message = v1::GetServiceRequest {
        reference: id.to_string(),
    };
    let Some(found) = answer_now(control.get_service(request(message)).await)? else {
        return Ok(None);
    };
    let message = v1::ListTasksRequest {
        service_reference: id.to_string(),
    };
    let Some(listed) = answer_now(control.list_tasks(request(message)).await)? else {
        return Ok(None);
    };
    let service = Service::try_from(found.service.unwrap_or_default())?;
    let tasks = listed.tasks.into_iter().map(Task::try_from);
    Ok(Some((service, tasks.collect::<Result<_, _>>()?)))
}

fn failed(tasks: &[Task]) -> impl Iterator<Item = swarm_model::TaskId> {
    tasks
        .iter()
        .filter(|task| matches!(task.status.state, TaskState::Failed | TaskState::Rejected))
        .map(|task| task.id.clone())
}

fn standing(
    service: &Service,
    tasks: &[Task],
    already_failed: &BTreeSet<swarm_model::TaskId>,
) -> Standing {
    if !service.endpoint.error.is_empty() {
        return Standing::Stuck(service.endpoint.error.clone());
    }
    let wanted = service.spec.mode.replicas();
    let up_to_date = |task: &&Task| {
        task.desired_state == DesiredState::Running
            && task.template_version == service.template_version
    };
    let count = |filter: &dyn Fn(&&Task) -> bool| tasks.iter().filter(filter).count() as u64;
    let running =
        count(&|task: &&Task| up_to_date(task) && task.status.state == TaskState::Running);
    // A task that ended well and is not restarted has done what was asked.
    let done = count(&|task: &&Task| up_to_date(task) && task.status.state == TaskState::Complete);
    let others = count(&|task: &&Task| !up_to_date(task) && !task.status.state.is_terminal());
    if running + done >= wanted && others == 0 {
        return Standing::Converged;
    }
    let failures: Vec<_> = tasks
        .iter()
        .filter(|task| task.template_version == service.template_version)
        .filter(|task| matches!(task.status.state, TaskState::Failed | TaskState::Rejected))
        .filter(|task| !already_failed.contains(&task.id))
        .collect();
    if failures.len() >= FAILURES_MAX
        && let Some(last) = failures.iter().max_by_key(|task| task.status.since)
    {
        return Standing::Stuck(last.status.error.clone());
    }
    Standing::Underway { running, wanted }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_model::{
        Endpoint, Meta, ServiceMode, ServiceSpec, TaskId, TaskSpec, TaskStatus, Timestamp,
    };

    fn service(replicas: u64) -> Service {
        Service {
            id: ServiceId::random(&mut rand::rng()),
            meta: Meta::default(),
            spec: ServiceSpec {
                mode: ServiceMode::Replicated { replicas },
                ..ServiceSpec::default()
            },
            previous_spec: None,
            template_version: 2,
            endpoint: Endpoint::default(),
            pending_delete: false,
        }
    }

    fn task(service: &Service, state: TaskState, template_version: u64) -> Task {
        Task {
            id: TaskId::random(&mut rand::rng()),
            meta: Meta::default(),
            service_id: service.id.clone(),
            service_name: "web".to_owned(),
            slot: 1,
            node_id: None,
            spec: TaskSpec::default(),
            template_version,
            desired_state: DesiredState::Running,
            desired_since: Timestamp(0),
            not_before: Timestamp(0),
            status: TaskStatus {
                state,
                error: "no such image".to_owned(),
                ..TaskStatus::default()
            },
            ingress_address: None,
            attachments: Vec::new(),
        }
    }

    #[test]
    fn converged_means_all_new_and_no_old() {
        let service = service(1);
        let none = BTreeSet::new();
        let old = task(&service, TaskState::Running, 1);
        let new = task(&service, TaskState::Running, 2);
        let underway = |running| Standing::Underway { running, wanted: 1 };
        assert_eq!(
            standing(&service, std::slice::from_ref(&old), &none),
            underway(0)
        );
        assert_eq!(standing(&service, &[old, new.clone()], &none), underway(1));
        assert_eq!(standing(&service, &[new], &none), Standing::Converged);
    }

    #[test]
    fn three_new_failures_are_enough() {
        let service = service(1);
        let failures: Vec<_> = (0..3)
            .map(|_| task(&service, TaskState::Rejected, 2))
            .collect();
        let stuck = Standing::Stuck("no such image".to_owned());
        assert_eq!(standing(&service, &failures, &BTreeSet::new()), stuck);
        let known: BTreeSet<_> = failed(&failures[..1]).collect();
        assert_ne!(standing(&service, &failures, &known), stuck);
    }
}
