//! `swarmctl service update`.

use std::time::Duration;

use swarm_api::v1;
use swarm_model::{NetworkAttachmentSpec, ServiceMode, ServiceSpec};

use super::converge::Waiting;
use super::create::Order;
use crate::connect::{Control, Sockets, answer, request};
use crate::network::{Mode, parse_network};
use crate::port::{Ports, Removal, parse_ports, parse_removal, publish};
use crate::time::parse_duration;

/// Changes a service.
#[derive(Debug, clap::Args)]
pub(crate) struct Update {
    /// Image to run
    #[arg(long)]
    image: Option<String>,
    /// Number of tasks
    #[arg(long)]
    replicas: Option<u64>,
    /// Environment variable NAME=VALUE to set; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    env_add: Vec<String>,
    /// Environment variable to remove; may be given several times
    #[arg(long, value_name = "NAME")]
    env_rm: Vec<String>,
    /// Port to publish, as for create; one that is published already gets the options given here;
    /// may be given several times
    #[arg(long, value_parser = parse_ports, value_name = "PORT")]
    publish_add: Vec<Ports>,
    /// Target port to publish no more, as TARGET[/PROTOCOL]; may be given several times
    #[arg(long, value_parser = parse_removal, value_name = "TARGET")]
    publish_rm: Vec<Removal>,
    /// Constraint to add; may be given several times
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_add: Vec<String>,
    /// Constraint to remove; may be given several times
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_rm: Vec<String>,
    /// Network to attach the tasks to, as for create; may be given several times
    #[arg(long, value_parser = parse_network, value_name = "NETWORK")]
    network_add: Vec<NetworkAttachmentSpec>,
    /// Network to take the tasks off, by name or id; may be given several times
    #[arg(long, value_name = "NETWORK")]
    network_rm: Vec<String>,
    /// What the service's name stands for on its networks
    #[arg(long, value_enum)]
    endpoint_mode: Option<Mode>,
    /// Command and arguments in place of the image's
    #[arg(long, value_name = "COMMAND")]
    args: Option<String>,
    /// Tasks replaced at a time; 0 is all
    #[arg(long)]
    update_parallelism: Option<u64>,
    /// Wait between two batches
    #[arg(long, value_parser = parse_duration)]
    update_delay: Option<Duration>,
    /// Which of two tasks goes first
    #[arg(long, value_enum)]
    update_order: Option<Order>,
    /// Replace the tasks although nothing changed
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    waiting: Waiting,
    /// Id, name, or the beginning of an id that fits only one
    service: String,
}

impl Update {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let mut control = sockets.control().await?;
        let mut removed = Vec::with_capacity(self.network_rm.len());
        for reference in &self.network_rm {
            removed.push((
                reference.as_str(),
                network_id(&mut control, reference).await?,
            ));
        }
        let service = super::edit(&mut control, &self.service, |spec| {
            for (reference, id) in &removed {
                detach(spec, reference, id)?;
            }
            self.change(spec);
            Ok(())
        });
        let service = service.await?;
        println!("{}", self.service);
        self.waiting.wait(&mut control, &service.id).await
    }

    fn change(&self, spec: &mut ServiceSpec) {
        if let Some(replicas) = self.replicas {
            spec.mode = ServiceMode::Replicated { replicas };
        }
        let container = &mut spec.task.container;
        if let Some(image) = &self.image {
            container.image.clone_from(image);
        }
        if let Some(args) = &self.args {
            container.args = args.split_whitespace().map(str::to_owned).collect();
        }
        let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
        let replaced: Vec<_> = self.env_add.iter().map(|entry| name(entry)).collect();
        container.env.retain(|entry| {
            !self.env_rm.contains(&name(entry)) && !replaced.contains(&name(entry))
        });
        container.env.extend(self.env_add.iter().cloned());
        let constraints = &mut spec.task.placement.constraints;
        constraints.retain(|constraint| !self.constraint_rm.contains(constraint));
        constraints.extend(self.constraint_add.iter().cloned());
        let ports = &mut spec.endpoint.ports;
        ports.retain(|port| !self.publish_rm.iter().any(|removal| removal.removes(port)));
        let added = self.publish_add.iter().flat_map(|Ports(ports)| ports);
        publish(ports, added.cloned());
        // The swarm reads names; attached twice is refused there.
        let networks = &mut spec.task.networks;
        networks.extend(self.network_add.iter().cloned());
        if let Some(mode) = self.endpoint_mode {
            spec.endpoint.mode = mode.into();
        }
        if let Some(parallelism) = self.update_parallelism {
            spec.update.parallelism = parallelism;
        }
        if let Some(delay) = self.update_delay {
            spec.update.delay = delay;
        }
        if let Some(order) = self.update_order {
            spec.update.order = order.into();
        }
        if self.force {
            spec.task.force_update += 1;
        }
    }
}

/// The id of the network that `reference` means.
async fn network_id(control: &mut Control, reference: &str) -> anyhow::Result<String> {
    let message = v1::GetNetworkRequest {
        reference: reference.to_owned(),
        verbose: false,
    };
    let found = answer(control.get_network(request(message)).await)?;
    Ok(found.network.unwrap_or_default().id)
}

/// Takes network `id`, which is called `reference`, out of `spec`, which names networks by id.
fn detach(spec: &mut ServiceSpec, reference: &str, id: &str) -> anyhow::Result<()> {
    let networks = &mut spec.task.networks;
    let before = networks.len();
    networks.retain(|network| network.target != id);
    if networks.len() == before {
        anyhow::bail!("the service is not attached to network {reference}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use swarm_model::EndpointMode;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        update: Update,
    }

    #[test]
    fn networks_are_added_and_the_mode_is_kept_unless_named() {
        let mut spec = ServiceSpec::default();
        spec.endpoint.mode = EndpointMode::Dnsrr;
        for (line, targets, mode) in [
            (
                "--network-add front,alias=www web",
                &["front"][..],
                EndpointMode::Dnsrr,
            ),
            (
                "--network-add name=back web",
                &["front", "back"],
                EndpointMode::Dnsrr,
            ),
            (
                "--endpoint-mode vip web",
                &["front", "back"],
                EndpointMode::Vip,
            ),
        ] {
            let words = std::iter::once("update").chain(line.split_whitespace());
            let line = Line::try_parse_from(words).expect(line);
            line.update.change(&mut spec);
            let networks = spec.task.networks.iter();
            assert!(
                networks
                    .map(|network| &*network.target)
                    .eq(targets.iter().copied())
            );
            assert_eq!(spec.endpoint.mode, mode);
        }
        assert_eq!(spec.task.networks[0].aliases, ["www"]);
        detach(&mut spec, "front", "front").expect("it is attached");
        assert_eq!(spec.task.networks.len(), 1);
        let again = detach(&mut spec, "front", "front").expect_err("it is not any more");
        assert_eq!(
            again.to_string(),
            "the service is not attached to network front"
        );
    }
}
