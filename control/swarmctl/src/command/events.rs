//! `swarmctl events`.

use std::fmt::Write as _;
use std::str::FromStr;

use serde_json::json;
use swarm_api::v1;
use swarm_api::v1::watch_event::Object;
use swarm_model::{Node, Task};
use tonic::{Code, Request};

use crate::connect::{Sockets, answer};
use crate::table::Format;

/// Shows what changes in the swarm, as it does, until Ctrl-C.
#[derive(Debug, clap::Args)]
pub(crate) struct Events {
    /// Show what changed after this version as well, as far as the manager keeps it
    #[arg(long, value_name = "VERSION")]
    since: Option<u64>,
    /// Show only what fits, such as `type=service` or `event=create`; may be given more than once
    #[arg(short, long = "filter", value_name = "FILTER")]
    filters: Vec<Filter>,
    /// How to print events
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// The kinds of objects, in words.
const KINDS: [(&str, v1::ObjectKind); 5] = [
    ("swarm", v1::ObjectKind::Cluster),
    ("node", v1::ObjectKind::Node),
    ("service", v1::ObjectKind::Service),
    ("task", v1::ObjectKind::Task),
    ("network", v1::ObjectKind::Network),
];

/// What becomes of them, in words.
const ACTIONS: [(&str, v1::WatchAction); 3] = [
    ("create", v1::WatchAction::Create),
    ("update", v1::WatchAction::Update),
    ("remove", v1::WatchAction::Remove),
];

/// A condition on events. Of several with one key one must hold, and one of each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filter {
    Type(v1::ObjectKind),
    Event(v1::WatchAction),
}

impl Filter {
    fn all() -> impl Iterator<Item = (String, Self)> {
        let types = KINDS.map(|(name, kind)| (format!("type={name}"), Self::Type(kind)));
        let events = ACTIONS.map(|(name, action)| (format!("event={name}"), Self::Event(action)));
        types.into_iter().chain(events)
    }
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::all().find(|(known, _)| known == text);
        found.map(|(_, filter)| filter).ok_or_else(|| {
            let known: Vec<_> = Self::all().map(|(known, _)| known).collect();
            format!("known are {}", known.join(", "))
        })
    }
}

impl Events {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let kinds = self.filters.iter().filter_map(|filter| match filter {
            Filter::Type(kind) => Some((*kind).into()),
            Filter::Event(_) => None,
        });
        let message = v1::WatchRequest {
            resume_from: self.since,
            kinds: kinds.collect(),
        };
        let mut control = sockets.control().await?;
        // No deadline: it may be long until something changes.
        let mut watched = answer(control.watch(Request::new(message)).await)?;
        let mut version = self.since;
        loop {
            match watched.message().await {
                Ok(Some(message)) => {
                    for event in &message.events {
                        if let Some(line) = self.line(message.version, event)? {
                            println!("{line}");
                        }
                    }
                    version = Some(message.version);
                }
                Ok(None) => anyhow::bail!("the manager ended the watch{}", go_on(version)),
                Err(status) if status.code() == Code::OutOfRange => {
                    anyhow::bail!("{}", status.message())
                }
                Err(status) => anyhow::bail!("{}{}", status.message(), go_on(version)),
            }
        }
    }

    /// What is printed of `event`; none when it is not to be shown.
    fn line(&self, version: u64, event: &v1::WatchEvent) -> anyhow::Result<Option<String>> {
        let action = event.action();
        let mut wanted = self.filters.iter().filter_map(|filter| match filter {
            Filter::Event(action) => Some(*action),
            Filter::Type(_) => None,
        });
        let mut any = wanted.clone();
        if any.next().is_some() && !wanted.any(|it| it == action) {
            return Ok(None);
        }
        let action = ACTIONS.iter().find(|(_, it)| *it == action);
        let action = action.map_or("unknown", |(name, _)| *name);
        // A kind that a newer manager knows.
        let Some(object) = &event.object else {
            return Ok(None);
        };
        let Shown {
            kind,
            id,
            attributes,
        } = shown(object)?;
        Ok(Some(match self.format {
            Format::Json => {
                let attributes: serde_json::Map<_, _> = (attributes.into_iter())
                    .map(|(key, value)| (key.to_owned(), value.into()))
                    .collect();
                json!({
                    "Version": version,
                    "Type": kind,
                    "Action": action,
                    "Actor": { "ID": id, "Attributes": attributes },
                })
                .to_string()
            }
            Format::Table => {
                let mut line = format!("{version} {kind} {action} {id}");
                let mut separator = " (";
                for (key, value) in attributes {
                    write!(line, "{separator}{key}={value}")?;
                    separator = ", ";
                }
                if separator == ", " {
                    line.push(')');
                }
                line
            }
        }))
    }
}

/// How to go on after `version`.
fn go_on(version: Option<u64>) -> String {
    version.map_or_else(String::new, |version| {
        format!("; go on with `swarmctl events --since {version}`")
    })
}

/// What tells an object from others, and what people look for in it.
struct Shown {
    kind: &'static str,
    id: String,
    attributes: Vec<(&'static str, String)>,
}

fn shown(object: &Object) -> anyhow::Result<Shown> {
    let (kind, id, attributes) = match object {
        Object::Cluster(cluster) => ("swarm", cluster.id.clone(), Vec::new()),
        Object::Node(node) => {
            let node = Node::try_from(node.clone())?;
            let attributes = vec![
                ("name", node.description.hostname.clone()),
                ("role", node.role.as_str().to_owned()),
                ("availability", node.spec.availability.as_str().to_owned()),
                ("state", node.status.state.as_str().to_owned()),
            ];
            ("node", node.id.to_string(), attributes)
        }
        Object::Service(service) => {
            let name = service.spec.clone().unwrap_or_default().name;
            ("service", service.id.clone(), vec![("name", name)])
        }
        Object::Task(task) => {
            let task = Task::try_from(task.clone())?;
            let mut attributes = vec![
                ("name", format!("{}.{}", task.service_name, task.slot)),
                ("desired", task.desired_state.as_str().to_owned()),
                ("state", task.status.state.as_str().to_owned()),
            ];
            attributes.extend(task.node_id.map(|id| ("node", id.to_string())));
            ("task", task.id.to_string(), attributes)
        }
        Object::Network(network) => {
            let name = network.spec.clone().unwrap_or_default().name;
            ("network", network.id.clone(), vec![("name", name)])
        }
    };
    Ok(Shown {
        kind,
        id,
        attributes,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        events: Events,
    }

    fn events(words: &[&str]) -> Result<Events, String> {
        let words = std::iter::once("events").chain(words.iter().copied());
        let read = Line::try_parse_from(words).map_err(|error| error.to_string());
        read.map(|line| line.events)
    }

    fn created() -> v1::WatchEvent {
        let spec = v1::ServiceSpec {
            name: "web".to_owned(),
            ..v1::ServiceSpec::default()
        };
        v1::WatchEvent {
            action: v1::WatchAction::Create.into(),
            object: Some(Object::Service(v1::Service {
                id: "0123".to_owned(),
                spec: Some(spec),
                ..v1::Service::default()
            })),
        }
    }

    #[test]
    fn events_are_lines_for_people_and_objects_for_programs() {
        let line = |words: &[&str]| events(words).unwrap().line(7, &created()).unwrap();
        assert_eq!(
            line(&[]).as_deref(),
            Some("7 service create 0123 (name=web)")
        );
        assert_eq!(
            line(&["--format", "json"]).as_deref(),
            Some(
                r#"{"Action":"create","Actor":{"Attributes":{"name":"web"},"ID":"0123"},"Type":"service","Version":7}"#
            )
        );
        let swarm = v1::WatchEvent {
            action: v1::WatchAction::Update.into(),
            object: Some(Object::Cluster(v1::GetClusterResponse {
                id: "4567".to_owned(),
                ..v1::GetClusterResponse::default()
            })),
        };
        let line = events(&[]).unwrap().line(8, &swarm).unwrap();
        assert_eq!(line.as_deref(), Some("8 swarm update 4567"));
    }

    #[test]
    fn filters_are_dockers_words_and_others_are_refused() {
        let asked = events(&["--filter", "event=remove", "-f", "type=task"]).unwrap();
        assert_eq!(asked.line(7, &created()).unwrap(), None);
        let asked = events(&["--filter", "event=remove", "--filter", "event=create"]).unwrap();
        assert!(asked.line(7, &created()).unwrap().is_some());
        let refused = events(&["--filter", "type=secret"]).unwrap_err();
        assert!(refused.contains("type=service"), "{refused}");
    }
}
