//! `swarmctl network inspect`.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use swarm_api::v1;
use swarm_model::{Network, Service, Task};

use crate::connect::{Sockets, answer, request};

/// Shows everything about networks.
#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {
    /// Show the services and tasks on them as well
    #[arg(short, long)]
    verbose: bool,
    /// Ids, names, or beginnings of ids that fit only one
    #[arg(value_name = "NETWORK", required = true)]
    networks: Vec<String>,
}

impl Inspect {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let mut control = sockets.control().await?;
        let mut found = Vec::with_capacity(self.networks.len());
        for reference in self.networks {
            let message = v1::GetNetworkRequest {
                reference,
                verbose: self.verbose,
            };
            let response = answer(control.get_network(request(message)).await)?;
            found.push(shown(response, self.verbose)?);
        }
        println!("{}", serde_json::to_string_pretty(&found)?);
        Ok(())
    }
}

fn shown(response: v1::GetNetworkResponse, verbose: bool) -> anyhow::Result<Value> {
    let v1::GetNetworkResponse {
        network,
        services,
        tasks,
        hostnames,
    } = response;
    let network = Network::try_from(network.unwrap_or_default())?;
    let mut value = serde_json::to_value(&network)?;
    if let Some(object) = value.as_object_mut().filter(|_| verbose) {
        let services: Result<Vec<_>, _> = services.into_iter().map(Service::try_from).collect();
        let tasks: Result<Vec<_>, _> = tasks.into_iter().map(Task::try_from).collect();
        let members = members(&network, &services?, &tasks?, &hostnames);
        object.insert("services".to_owned(), members);
    }
    Ok(value)
}

/// What is on `network`, by the service's name.
fn members(
    network: &Network,
    services: &[Service],
    tasks: &[Task],
    hostnames: &HashMap<String, String>,
) -> Value {
    let mut members = Map::new();
    for service in services {
        let mut vips = service.endpoint.vips.iter();
        let mut asked = service.spec.task.networks.iter();
        let asked = asked.find(|asked| asked.target == network.id.as_str());
        let member = json!({
            "id": service.id,
            "vip": vips.find(|vip| vip.network == network.id).map(|vip| vip.address),
            "mode": service.spec.endpoint.mode,
            "aliases": asked.map(|asked| &asked.aliases),
            "tasks": [],
        });
        members.insert(service.spec.name.clone(), member);
    }
    for task in tasks {
        let mut attachments = task.attachments.iter();
        let node = task.node_id.as_ref().map(ToString::to_string);
        let member = json!({
            "name": task.name(),
            "id": task.id,
            "address": attachments
                .find(|attachment| attachment.network == network.id)
                .map(|attachment| attachment.address),
            "node": node.map(|id| hostnames.get(&id).cloned().unwrap_or(id)),
            "state": task.status.state.as_str(),
        });
        // A task may outlast its service's place on the network.
        let service = members
            .entry(task.service_name.clone())
            .or_insert_with(|| json!({ "id": task.service_id, "tasks": [] }));
        if let Some(tasks) = service["tasks"].as_array_mut() {
            tasks.push(member);
        }
    }
    Value::Object(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdefghijklmno";

    fn response() -> v1::GetNetworkResponse {
        let aliases = vec!["www".to_owned()];
        let task = |service_name: &str, node_id: &str| v1::Task {
            id: ID.to_owned(),
            service_id: ID.to_owned(),
            service_name: service_name.to_owned(),
            slot: 1,
            node_id: node_id.to_owned(),
            attachments: vec![v1::Attachment {
                network_id: ID.to_owned(),
                address: "10.0.0.3".to_owned(),
                aliases: Vec::new(),
            }],
            ..v1::Task::default()
        };
        v1::GetNetworkResponse {
            network: Some(v1::Network {
                id: ID.to_owned(),
                subnet: "10.0.0.0/24".to_owned(),
                vni: 4097,
                ..v1::Network::default()
            }),
            services: vec![v1::Service {
                id: ID.to_owned(),
                spec: Some(v1::ServiceSpec {
                    name: "web".to_owned(),
                    task: Some(v1::TaskSpec {
                        networks: vec![v1::NetworkAttachmentSpec {
                            target: ID.to_owned(),
                            aliases,
                        }],
                        ..v1::TaskSpec::default()
                    }),
                    ..v1::ServiceSpec::default()
                }),
                endpoint: Some(v1::Endpoint {
                    vips: vec![v1::Vip {
                        network_id: ID.to_owned(),
                        address: "10.0.0.2".to_owned(),
                    }],
                    ..v1::Endpoint::default()
                }),
                ..v1::Service::default()
            }],
            tasks: vec![task("web", ID), task("old", "")],
            hostnames: HashMap::from([(ID.to_owned(), "h1".to_owned())]),
        }
    }

    #[test]
    fn verbose_tells_who_is_there() {
        let value = shown(response(), true).expect("the response is valid");
        assert_eq!(value["subnet"], "10.0.0.0/24");
        let web = &value["services"]["web"];
        assert_eq!(web["vip"], "10.0.0.2");
        assert_eq!(web["mode"], "vip");
        assert_eq!(web["aliases"], json!(["www"]));
        assert_eq!(web["tasks"][0]["name"], "web.1");
        assert_eq!(web["tasks"][0]["address"], "10.0.0.3");
        assert_eq!(web["tasks"][0]["node"], "h1");
        assert_eq!(value["services"]["old"]["tasks"][0]["node"], Value::Null);
    }

    #[test]
    fn terse_does_not() {
        let value = shown(response(), false).expect("the response is valid");
        assert_eq!(value["services"], Value::Null);
    }
}
