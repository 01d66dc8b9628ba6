//! `swarmctl node update`.

use std::collections::BTreeMap;
use std::time::Duration;

use swarm_api::v1;
use tokio::time::Instant;

use super::role;
use crate::command::service::parse_label;
use crate::connect::{Control, Sockets, answer, answer_now, request};
use crate::shown::Shown;

/// How often the progress of a drain is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// How long every task that is left has to be held up until waiting is given up: longer than a
/// failed task waits to be tried again.
const STUCK_FOR: Duration = Duration::from_secs(10);

/// Changes a node.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("change").required(true).multiple(true)))]
pub(crate) struct Update {
    /// Whether tasks may run on it: active; pause (it keeps those it has, and gets no more); drain
    /// (they move to other nodes)
    #[arg(long, value_enum, group = "change")]
    availability: Option<Availability>,
    /// Label KEY=VALUE to set, for constraints such as node.labels.KEY==VALUE; may be given several
    /// times
    #[arg(long, value_parser = parse_label, value_name = "KEY=VALUE", group = "change")]
    label_add: Vec<(String, String)>,
    /// Key of a label to remove; may be given several times
    #[arg(long, value_name = "KEY", group = "change")]
    label_rm: Vec<String>,
    /// Manager or worker, as promote and demote make it
    #[arg(long, value_enum, group = "change")]
    role: Option<Role>,
    /// Return at once instead of waiting until a drained node is empty
    #[arg(short, long)]
    detach: bool,
    /// Most seconds to wait
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    wait_timeout: u64,
    /// `self`, id, name, or the beginning of an id that fits only one
    #[arg(value_name = "NODE")]
    node: String,
}

/// Whether tasks may run on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Availability {
    Active,
    Pause,
    Drain,
}

/// What a node does in the swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    Worker,
    Manager,
}

impl Update {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let mut control = sockets.control().await?;
        let labelled = !self.label_add.is_empty() || !self.label_rm.is_empty();
        let mut id = self.node.clone();
        if self.availability.is_some() || labelled {
            id = answer(control.update_node(request(self.change())).await)?.id;
        }
        if self.availability == Some(Availability::Drain) && !self.detach {
            let timeout = Duration::from_secs(self.wait_timeout);
            wait(&mut control, &id, &self.node, timeout).await?;
        }
        // Last, since this host's manager may end with its role.
        if let Some(role) = self.role {
            let role = match role {
                Role::Worker => v1::Role::Worker,
                Role::Manager => v1::Role::Manager,
            };
            role::set(sockets, &id, role).await?;
        }
        println!("{}", self.node);
        Ok(())
    }

    fn change(&self) -> v1::UpdateNodeRequest {
        let availability = self.availability.map(|availability| match availability {
            Availability::Active => v1::Availability::Active,
            Availability::Pause => v1::Availability::Pause,
            Availability::Drain => v1::Availability::Drain,
        });
        v1::UpdateNodeRequest {
            reference: self.node.clone(),
            availability: availability.map(Into::into),
            labels_add: self.label_add.iter().cloned().collect(),
            labels_rm: self.label_rm.clone(),
        }
    }
}

/// Waits until the node has no tasks any more; tells how many are left, and which cannot leave.
async fn wait(
    control: &mut Control,
    id: &str,
    name: &str,
    timeout: Duration,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut progress = Progress::default();
    let mut shown = Shown::new();
    loop {
        let message = v1::GetDrainRequest {
            reference: id.to_owned(),
        };
        let elapsed = begun.elapsed();
        match answer_now(control.get_drain(request(message)).await)? {
            Some(drain) => match progress.look(name, &drain, elapsed, timeout) {
                Standing::Empty => {
                    shown.tell(&format!("node {name} is drained"));
                    return Ok(());
                }
                Standing::UnderWay(line) => shown.tell(&line),
                Standing::GivenUp(reason) => anyhow::bail!(reason),
            },
            None if elapsed >= timeout => anyhow::bail!(
                "no manager answers after {} s; the drain of node {name} goes on when they do",
                elapsed.as_secs()
            ),
            None => {}
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

/// How a drain stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// Nothing is left.
    Empty,
    /// On its way, in words.
    UnderWay(String),
    /// It gets no further by waiting, or is not wanted any more.
    GivenUp(String),
}

/// What was seen of a drain.
#[derive(Debug, Default)]
struct Progress {
    /// Since when nothing that is left can leave.
    held_up_since: Option<Duration>,
}

impl Progress {
    /// How `drain` of the node stands, `elapsed` after the waiting began.
    fn look(
        &mut self,
        name: &str,
        drain: &v1::GetDrainResponse,
        elapsed: Duration,
        timeout: Duration,
    ) -> Standing {
        let left = drain.tasks.len();
        if drain.availability() != v1::Availability::Drain {
            return Standing::GivenUp(format!(
                "node {name} is not to be drained any more; {left} tasks are still there"
            ));
        }
        if left == 0 {
            return Standing::Empty;
        }
        let all_held_up = drain.tasks.iter().all(|task| !task.held_up.is_empty());
        let since = match self.held_up_since {
            Some(since) if all_held_up => since,
            _ => elapsed,
        };
        self.held_up_since = all_held_up.then_some(since);
        let tasks = if left == 1 { "task" } else { "tasks" };
        let is_stuck = all_held_up && elapsed - since >= STUCK_FOR;
        if is_stuck || elapsed >= timeout {
            let seconds = elapsed.as_secs();
            return Standing::GivenUp(format!(
                "{left} {tasks} still on node {name} after {seconds} s, and {} there until others \
                 run elsewhere; the swarm goes on trying{}",
                if left == 1 { "it serves" } else { "they serve" },
                reasons(&drain.tasks)
            ));
        }
        Standing::UnderWay(format!(
            "{left} {tasks} left on node {name}{}",
            reasons(&drain.tasks)
        ))
    }
}

/// A line for each of the tasks that cannot leave.
fn reasons(tasks: &[v1::LeavingTask]) -> String {
    let by_name: BTreeMap<_, _> = tasks
        .iter()
        .filter(|task| !task.held_up.is_empty())
        .map(|task| (&task.name, &task.held_up))
        .collect();
    let lines = by_name
        .iter()
        .map(|(name, held_up)| format!("\n  {name}: {held_up}"));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        update: Update,
    }

    fn read(line: &str) -> Result<Update, clap::Error> {
        let words = std::iter::once("update").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.update)
    }

    #[test]
    fn only_what_is_named_is_asked_for() {
        let update = read("--availability pause --label-add a=b --label-add c --label-rm d h1");
        let change = update.expect("it is well formed").change();
        assert_eq!(change.reference, "h1");
        assert_eq!(change.availability(), v1::Availability::Pause);
        let labels: BTreeMap<_, _> = change.labels_add.into_iter().collect();
        let expected = [("a", "b"), ("c", "")];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(labels, expected.into());
        assert_eq!(change.labels_rm, ["d"]);

        let change = read("--role manager self").expect("well formed").change();
        assert_eq!(change.availability, None);
    }

    #[test]
    fn mistakes_are_told() {
        for (line, text) in [
            ("h1", "--availability"),
            (
                "--availability off h1",
                "possible values: active, pause, drain",
            ),
            ("--role leader h1", "possible values: worker, manager"),
            ("--label-add =x h1", "has no key"),
            ("--availability drain", "NODE"),
        ] {
            let error = read(line).expect_err(line).to_string();
            assert!(error.contains(text), "{line}: {error}");
        }
    }

    fn drain(tasks: &[(&str, &str)]) -> v1::GetDrainResponse {
        let tasks = tasks.iter().map(|(name, held_up)| v1::LeavingTask {
            id: String::new(),
            name: (*name).to_owned(),
            held_up: (*held_up).to_owned(),
        });
        v1::GetDrainResponse {
            availability: v1::Availability::Drain.into(),
            tasks: tasks.collect(),
        }
    }

    #[test]
    fn waiting_ends_when_nothing_is_left_or_nothing_can_leave() {
        let second = Duration::from_secs;
        let mut progress = Progress::default();
        let mut look = |at, tasks: &[(&str, &str)]| {
            progress.look("h1", &drain(tasks), second(at), second(300))
        };
        let under_way = |text: &str| Standing::UnderWay(text.to_owned());
        let moving = &[("web.1", ""), ("web.2", "no place")][..];
        let stuck = &[("web.2", "no place")][..];
        assert_eq!(
            look(0, moving),
            under_way("2 tasks left on node h1\n  web.2: no place")
        );
        let told = under_way("1 task left on node h1\n  web.2: no place");
        assert_eq!(look(1, stuck), told);
        assert_eq!(look(10, stuck), told);
        // It moved on meanwhile: the time begins anew.
        look(11, moving);
        assert_eq!(look(12, stuck), told);
        assert_eq!(look(21, stuck), told);
        let Standing::GivenUp(reason) = look(22, stuck) else {
            panic!("it cannot leave");
        };
        assert_eq!(
            reason,
            "1 task still on node h1 after 22 s, and it serves there until others run elsewhere; \
             the swarm goes on trying\n  web.2: no place"
        );
        assert!(matches!(look(300, moving), Standing::GivenUp(_)));
        assert_eq!(look(300, &[]), Standing::Empty);
        let mut active = drain(moving);
        active.set_availability(v1::Availability::Active);
        let given_up = Progress::default().look("h1", &active, second(0), second(300));
        assert!(matches!(given_up, Standing::GivenUp(_)));
    }
}
