//! What to do next with one task.
//!
//! | wanted | container | status | step |
//! |---|---|---|---|
//! | any | any | ended | clean up |
//! | run, drain | none | before running | wait for its time, then prepare |
//! | run, drain | none | running | finish: failed (the container is gone) |
//! | run, drain | created | | start |
//! | run, drain | running | before running, does not listen yet, for less than [`LISTEN_DEADLINE`] | wait until it listens |
//! | run, drain | running | before running, else | report running |
//! | run, drain | running | running | wait for its end |
//! | any | stopped | | finish: complete, failed or shutdown |
//! | any | lost | | finish: failed |
//! | stop | none, created | | finish: shutdown |
//! | stop | running | not asked yet, has connections, within grace | wait until they end |
//! | stop | running | not asked yet, else | ask it to stop |
//! | stop | running | asked, within grace | wait for its end |
//! | stop | running | asked, grace over | kill |

use std::time::Duration;

use swarm_model::{DesiredState, TaskState, Timestamp};

use crate::runtime::{ContainerState, ExitStatus};

/// How long a task that has been started may take until it listens on its published ports. After
/// that it counts as running all the same: it may never listen there. Clients are sent to it only
/// then, so that none is refused by a server that is still starting. Servers that need longer have
/// a health check.
pub(super) const LISTEN_DEADLINE: Duration = Duration::from_secs(10);

/// A task as the runner sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct TaskView {
    /// What the managers want.
    pub(super) desired: DesiredState,
    /// Not to be started before this.
    pub(super) not_before: Timestamp,
    /// What was last reported of it.
    pub(super) state: TaskState,
    /// Its container, if it has one.
    pub(super) container: Option<ContainerState>,
    /// When its container was first seen running.
    pub(super) started: Option<Timestamp>,
    /// Whether it was seen to listen on its published ports.
    pub(super) listens: bool,
    /// When it was first seen that it is to stop.
    pub(super) unwanted: Option<Timestamp>,
    /// Whether it may have connections from others.
    pub(super) connected: bool,
    /// When it was asked to stop.
    pub(super) asked_to_stop: Option<Timestamp>,
    /// How long its connections have to end, and how long it has from when it was asked on.
    pub(super) grace: Duration,
    /// Now.
    pub(super) now: Timestamp,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing before this moment.
    WaitUntil(Timestamp),
    /// Network, image, container.
    Prepare,
    /// Start the container.
    Start,
    /// Nothing until it listens, ends, or something else is wanted; at the latest until then.
    AwaitListening(Timestamp),
    /// Say that it runs.
    ReportRunning,
    /// Nothing until its connections have ended, or it has; at the latest until then.
    AwaitDisconnected(Timestamp),
    /// Nothing until the container ends or something else is wanted; at the latest until then.
    AwaitEnd(Option<Timestamp>),
    /// Ask the process to stop.
    AskToStop,
    /// End the process.
    Kill,
    /// It has ended, this way.
    Finish(End),
    /// Remove container and network.
    CleanUp,
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By itself, with exit code 0.
    Complete,
    /// By itself, with an error.
    Failed(ExitStatus),
    /// As wanted.
    Shutdown(Option<ExitStatus>),
    /// Container or process vanished.
    Lost,
}

/// The next step for `task`.
pub(super) fn next_step(task: &TaskView) -> Step {
    if task.state.is_terminal() {
        return Step::CleanUp;
    }
    match task.container {
        Some(ContainerState::Lost) => Step::Finish(End::Lost),
        Some(ContainerState::Stopped(exit)) => Step::Finish(end_of(task, exit)),
        _ if task.desired >= DesiredState::Shutdown => stop(task),
        Some(ContainerState::Running { .. }) if task.state < TaskState::Running => {
            let deadline = task.started.unwrap_or(task.now).after(LISTEN_DEADLINE);
            if task.listens || task.now >= deadline {
                Step::ReportRunning
            } else {
                Step::AwaitListening(deadline)
            }
        }
        Some(ContainerState::Running { .. }) => Step::AwaitEnd(None),
        Some(ContainerState::Created) => Step::Start,
        None if task.state >= TaskState::Running => Step::Finish(End::Lost),
        None if task.now < task.not_before => Step::WaitUntil(task.not_before),
        None => Step::Prepare,
    }
}

fn end_of(task: &TaskView, exit: ExitStatus) -> End {
    if task.desired >= DesiredState::Shutdown {
        End::Shutdown(Some(exit))
    } else if exit.code == 0 {
        End::Complete
    } else {
        End::Failed(exit)
    }
}

fn stop(task: &TaskView) -> Step {
    let Some(ContainerState::Running { .. }) = task.container else {
        return Step::Finish(End::Shutdown(None));
    };
    // Every node has stopped sending it new connections: those that it has run on until they end.
    let until = task.unwanted.unwrap_or(task.now).after(task.grace);
    match task.asked_to_stop {
        None if task.connected && task.now < until => Step::AwaitDisconnected(until),
        None => Step::AskToStop,
        Some(asked) if task.now < asked.after(task.grace) => {
            Step::AwaitEnd(Some(asked.after(task.grace)))
        }
        Some(_) => Step::Kill,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use DesiredState::{Draining, Remove, Running as Run, Shutdown};

    const RUNNING: Option<ContainerState> = Some(ContainerState::Running { pid: 1 });

    fn exit(code: u32) -> ExitStatus {
        ExitStatus {
            code,
            finished_at: SystemTime::UNIX_EPOCH,
            oom_killed: false,
        }
    }

    fn view(
        desired: DesiredState,
        container: Option<ContainerState>,
        state: TaskState,
    ) -> TaskView {
        TaskView {
            desired,
            not_before: Timestamp(0),
            state,
            container,
            started: Some(Timestamp(500)),
            listens: true,
            unwanted: Some(Timestamp(500)),
            connected: false,
            asked_to_stop: None,
            grace: Duration::from_secs(10),
            now: Timestamp(1_000),
        }
    }

    #[test]
    fn table() {
        use TaskState::{Accepted, Assigned, Failed, Running, Starting};
        let created = Some(ContainerState::Created);
        let lost = Some(ContainerState::Lost);
        let stopped = |code| Some(ContainerState::Stopped(exit(code)));
        for (desired, container, state, expected) in [
            (Run, None, Assigned, Step::Prepare),
            (Run, None, Accepted, Step::Prepare),
            (Draining, None, Accepted, Step::Prepare),
            (Run, None, Running, Step::Finish(End::Lost)),
            (Run, created, Starting, Step::Start),
            (Run, RUNNING, Starting, Step::ReportRunning),
            (Run, RUNNING, Running, Step::AwaitEnd(None)),
            (Draining, RUNNING, Running, Step::AwaitEnd(None)),
            (Run, stopped(0), Running, Step::Finish(End::Complete)),
            (
                Run,
                stopped(3),
                Starting,
                Step::Finish(End::Failed(exit(3))),
            ),
            (
                Shutdown,
                stopped(3),
                Running,
                Step::Finish(End::Shutdown(Some(exit(3)))),
            ),
            (Run, lost, Running, Step::Finish(End::Lost)),
            (Shutdown, lost, Running, Step::Finish(End::Lost)),
            (Shutdown, None, Accepted, Step::Finish(End::Shutdown(None))),
            (Remove, created, Starting, Step::Finish(End::Shutdown(None))),
            (Remove, RUNNING, Running, Step::AskToStop),
            (Run, None, Failed, Step::CleanUp),
            (Remove, RUNNING, Failed, Step::CleanUp),
        ] {
            let view = view(desired, container, state);
            assert_eq!(next_step(&view), expected, "{view:?}");
        }
    }

    #[test]
    fn stopping_takes_the_grace_period_and_no_longer() {
        let mut task = view(Shutdown, RUNNING, TaskState::Running);
        task.asked_to_stop = Some(Timestamp(500));
        assert_eq!(next_step(&task), Step::AwaitEnd(Some(Timestamp(10_500))));
        task.now = Timestamp(10_500);
        assert_eq!(next_step(&task), Step::Kill);
    }

    #[test]
    fn a_task_runs_once_it_listens_or_has_had_its_time() {
        let mut task = view(Run, RUNNING, TaskState::Starting);
        task.listens = false;
        assert_eq!(next_step(&task), Step::AwaitListening(Timestamp(10_500)));
        task.desired = Draining;
        assert_eq!(next_step(&task), Step::AwaitListening(Timestamp(10_500)));
        task.now = Timestamp(10_500);
        assert_eq!(next_step(&task), Step::ReportRunning);
        task.desired = Shutdown;
        assert_eq!(next_step(&task), Step::AskToStop);
    }

    #[test]
    fn connections_have_the_grace_period_to_end_before_anybody_is_asked_to() {
        let mut task = view(Shutdown, RUNNING, TaskState::Running);
        task.connected = true;
        assert_eq!(next_step(&task), Step::AwaitDisconnected(Timestamp(10_500)));
        task.now = Timestamp(10_500);
        assert_eq!(next_step(&task), Step::AskToStop);
        task.now = Timestamp(700);
        task.connected = false;
        assert_eq!(next_step(&task), Step::AskToStop);
        // Once asked, that is not taken back.
        task.connected = true;
        task.asked_to_stop = Some(Timestamp(600));
        assert_eq!(next_step(&task), Step::AwaitEnd(Some(Timestamp(10_600))));
        // Whoever is still drained goes on serving.
        task.desired = Draining;
        task.asked_to_stop = None;
        assert_eq!(next_step(&task), Step::AwaitEnd(None));
    }

    #[test]
    fn a_restart_waits_for_its_time() {
        let mut task = view(Run, None, TaskState::Assigned);
        task.not_before = Timestamp(5_000);
        assert_eq!(next_step(&task), Step::WaitUntil(Timestamp(5_000)));
        task.now = Timestamp(5_000);
        assert_eq!(next_step(&task), Step::Prepare);
    }
}
