//! `swarmctl swarm status`.

use std::time::Duration;

use swarm_api::v1;
use tonic::Request;

use crate::connect::{Sockets, answer, request};
use crate::table::Format;

/// Time for the manager of this host to say how it stands: it does so from memory, and one that is stuck
/// must not keep the rest back.
const MANAGER_TIMEOUT: Duration = Duration::from_secs(2);

/// Shows how this host stands.
#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Status {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let found = answer(
            sockets
                .agent()
                .await?
                .get_status(request(v1::GetStatusRequest {}))
                .await,
        )?;
        let role = match found.role() {
            v1::Role::Worker => "worker",
            v1::Role::Manager => "manager",
            v1::Role::Unspecified => "",
        };
        let manager = match found.role() {
            v1::Role::Manager => Some(Manager::of(sockets).await),
            v1::Role::Worker | v1::Role::Unspecified => None,
        };
        match self.format {
            Format::Json => println!(
                "{}",
                serde_json::json!({
                    "State": found.state,
                    "NodeID": found.node_id,
                    "ClusterID": found.cluster_id,
                    "Role": role,
                    "ManagerState": manager.as_ref().map(|it| it.standing.word()),
                    "ExternalCAs": manager.as_ref().map(|it| &it.external_cas),
                    "ExternalCAProblem": manager.as_ref().map(|it| &it.external_ca_problem),
                    "Managers": found.managers,
                    "Connected": found.connected,
                    "Error": found.error,
                })
            ),
            Format::Table => print!("{}", table(&found, role, manager.as_ref())),
        }
        Ok(())
    }
}

/// Line by line; `manager` is that of this host, where it has one.
fn table(found: &v1::GetStatusResponse, role: &str, manager: Option<&Manager>) -> String {
    let mut lines = vec![format!("Swarm: {}", found.state)];
    if found.state == "active" {
        lines.push(format!("Node: {} ({role})", found.node_id));
        lines.push(format!("Cluster: {}", found.cluster_id));
        lines.push(format!("Managers: {}", found.managers.join(", ")));
        let connected = if found.connected { "yes" } else { "no" };
        lines.push(format!("Connected: {connected}"));
        if let Some(manager) = manager {
            lines.push(format!("Manager: {}", manager.standing.text()));
            if !manager.external_cas.is_empty() {
                lines.push(format!("External CA: {}", manager.external_cas.join(", ")));
            }
            if !manager.external_ca_problem.is_empty() {
                lines.push(format!("Problem: {}", manager.external_ca_problem));
            }
        }
        if !found.error.is_empty() {
            lines.push(format!("Problem: {}", found.error));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

/// What the manager on this host says.
struct Manager {
    standing: Standing,
    external_cas: Vec<String>,
    external_ca_problem: String,
}

impl Manager {
    async fn of(sockets: &Sockets) -> Self {
        let state = match sockets.local_control().await {
            Err(_) => None,
            Ok(mut manager) => {
                let mut get = Request::new(v1::GetManagerStateRequest {});
                get.set_timeout(MANAGER_TIMEOUT);
                manager.get_manager_state(get).await.ok()
            }
        };
        let standing = match &state {
            Some(state) if state.get_ref().locked => Standing::Locked,
            Some(_) => Standing::Running,
            None => Standing::Silent,
        };
        let state = state.map(tonic::Response::into_inner).unwrap_or_default();
        Self {
            standing,
            external_cas: state.external_cas,
            external_ca_problem: state.external_ca_problem,
        }
    }
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Running,
    Locked,
    Silent,
}

impl Standing {
    /// What a program is told.
    fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Locked => "locked",
            Self::Silent => "silent",
        }
    }

    /// What a person is told, with the remedy where one is needed.
    fn text(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Locked => {
                "locked: autolock is on, and it was restarted; what runs on this node goes on; unlock \
                 it with `swarmctl swarm unlock`"
            }
            Self::Silent => {
                "does not answer; swarm-agent starts it again by itself: look into the log of \
                 swarm-agent for the reason"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_manager_is_told_with_the_remedy() {
        let found = v1::GetStatusResponse {
            state: "active".to_owned(),
            node_id: "n".to_owned(),
            cluster_id: "c".to_owned(),
            managers: vec!["192.0.2.1:2377".to_owned(), "192.0.2.2:2377".to_owned()],
            connected: true,
            ..v1::GetStatusResponse::default()
        };
        let mut manager = Manager {
            standing: Standing::Locked,
            external_cas: Vec::new(),
            external_ca_problem: String::new(),
        };
        assert_eq!(
            table(&found, "manager", Some(&manager)),
            "Swarm: active\n\
             Node: n (manager)\n\
             Cluster: c\n\
             Managers: 192.0.2.1:2377, 192.0.2.2:2377\n\
             Connected: yes\n\
             Manager: locked: autolock is on, and it was restarted; what runs on this node goes on; \
             unlock it with `swarmctl swarm unlock`\n"
        );
        manager.standing = Standing::Running;
        manager.external_cas = vec!["https://a".to_owned(), "https://b".to_owned()];
        manager.external_ca_problem = "no external CA has signed".to_owned();
        let text = table(&found, "manager", Some(&manager));
        let end = "Manager: running\nExternal CA: https://a, https://b\n\
                   Problem: no external CA has signed\n";
        assert!(text.ends_with(end), "{text}");
        let worker = table(&found, "worker", None);
        assert!(worker.ends_with("Connected: yes\n"), "{worker}");
        let inactive = v1::GetStatusResponse {
            state: "inactive".to_owned(),
            ..v1::GetStatusResponse::default()
        };
        assert_eq!(table(&inactive, "", None), "Swarm: inactive\n");
    }
}
