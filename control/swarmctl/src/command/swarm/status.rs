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
            v1::Role::Manager => Some(Standing::of(sockets).await),
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
                    "ManagerState": manager.map(Standing::word),
                    "Managers": found.managers,
                    "Connected": found.connected,
                    "Error": found.error,
                })
            ),
            Format::Table => print!("{}", table(&found, role, manager)),
        }
        Ok(())
    }
}

/// Line by line; `manager` is that of this host, where it has one.
fn table(found: &v1::GetStatusResponse, role: &str, manager: Option<Standing>) -> String {
    let mut lines = vec![format!("Swarm: {}", found.state)];
    if found.state == "active" {
        lines.push(format!("Node: {} ({role})", found.node_id));
        lines.push(format!("Cluster: {}", found.cluster_id));
        lines.push(format!("Managers: {}", found.managers.join(", ")));
        let connected = if found.connected { "yes" } else { "no" };
        lines.push(format!("Connected: {connected}"));
        lines.extend(manager.map(|manager| format!("Manager: {}", manager.text())));
        if !found.error.is_empty() {
            lines.push(format!("Problem: {}", found.error));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

/// How the manager on this host stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Running,
    Locked,
    Silent,
}

impl Standing {
    async fn of(sockets: &Sockets) -> Self {
        let Ok(mut manager) = sockets.local_control().await else {
            return Self::Silent;
        };
        let mut get = Request::new(v1::GetManagerStateRequest {});
        get.set_timeout(MANAGER_TIMEOUT);
        match manager.get_manager_state(get).await {
            Ok(state) if state.get_ref().locked => Self::Locked,
            Ok(_) => Self::Running,
            Err(_) => Self::Silent,
        }
    }

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
        assert_eq!(
            table(&found, "manager", Some(Standing::Locked)),
            "Swarm: active\n\
             Node: n (manager)\n\
             Cluster: c\n\
             Managers: 192.0.2.1:2377, 192.0.2.2:2377\n\
             Connected: yes\n\
             Manager: locked: autolock is on, and it was restarted; what runs on this node goes on; \
             unlock it with `swarmctl swarm unlock`\n"
        );
        let worker = table(&found, "worker", None);
        assert!(worker.ends_with("Connected: yes\n"), "{worker}");
        let inactive = v1::GetStatusResponse {
            state: "inactive".to_owned(),
            ..v1::GetStatusResponse::default()
        };
        assert_eq!(table(&inactive, "", None), "Swarm: inactive\n");
    }
}
