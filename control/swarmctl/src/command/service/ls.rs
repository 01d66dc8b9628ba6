//! `swarmctl service ls`.

use swarm_api::v1;
use swarm_model::Endpoint;

use crate::connect::{Sockets, answer, request};
use crate::table::{ListOptions, Table};

/// Lists the services.
#[derive(Debug, clap::Args)]
pub(crate) struct Ls {
    #[command(flatten)]
    list: ListOptions,
}

impl Ls {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let message = v1::ListServicesRequest {};
        let found = answer(
            sockets
                .control()
                .await?
                .list_services(request(message))
                .await,
        )?;
        let mut rows = Vec::new();
        for summary in found.services {
            let v1::ServiceSummary {
                service,
                running_tasks,
                desired_tasks,
            } = summary;
            let service = service.unwrap_or_default();
            let spec = service.spec.unwrap_or_default();
            let endpoint = Endpoint::try_from(service.endpoint.unwrap_or_default())?;
            let ports: Vec<_> = endpoint.ports.iter().map(ToString::to_string).collect();
            let image = spec
                .task
                .and_then(|task| task.container)
                .unwrap_or_default()
                .image;
            rows.push([
                if self.list.quiet {
                    service.id
                } else {
                    service.id.chars().take(12).collect()
                },
                spec.name,
                "replicated".to_owned(),
                format!("{running_tasks}/{desired_tasks}"),
                image,
                ports.join(", "),
            ]);
        }
        let table = Table {
            columns: [
                ("ID", "ID"),
                ("NAME", "Name"),
                ("MODE", "Mode"),
                ("REPLICAS", "Replicas"),
                ("IMAGE", "Image"),
                ("PORTS", "Ports"),
            ],
            rows,
        };
        print!("{}", table.render(self.list));
        Ok(())
    }
}
