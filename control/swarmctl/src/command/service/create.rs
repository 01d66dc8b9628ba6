//! `swarmctl service create`.

use std::time::Duration;

use swarm_api::v1;
use swarm_model::{
    ContainerSpec, EndpointSpec, NetworkAttachmentSpec, Placement, Resources, RestartCondition,
    RestartPolicy, Service, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig, UpdateOrder,
};

use super::converge::Waiting;
use crate::connect::{Sockets, answer, request};
use crate::network::{Mode, parse_network};
use crate::port::{Ports, parse_ports};
use crate::time::parse_duration;

/// Creates a service.
#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Name, unique in the swarm; made up when not given
    #[arg(long)]
    name: Option<String>,
    /// Number of tasks
    #[arg(long, default_value_t = 1)]
    replicas: u64,
    /// Port to publish on the nodes: `[[IP:]PUBLISHED:]TARGET[/tcp|udp|sctp]`, ranges as FIRST-LAST,
    /// or `target=N[,published=N][,protocol=tcp|udp|sctp][,mode=ingress|host][,ip=ADDRESS]`
    /// `[,iface=NAME][,policy=cluster|local|prefer-local][,sched=rr|wrr|lc|sh|mh]`
    /// `[,affinity=DURATION][,source=CIDR][,snat=true]`; may be given several times
    #[arg(short, long = "publish", value_parser = parse_ports, value_name = "PORT")]
    publish: Vec<Ports>,
    /// Environment variable NAME=VALUE; may be given several times
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Label of the service KEY=VALUE; may be given several times
    #[arg(short, long, value_parser = parse_label, value_name = "KEY=VALUE")]
    label: Vec<(String, String)>,
    /// Label of the containers KEY=VALUE; may be given several times
    #[arg(long, value_parser = parse_label, value_name = "KEY=VALUE")]
    container_label: Vec<(String, String)>,
    /// Where tasks may run, such as node.role==worker; may be given several times
    #[arg(long, value_name = "CONSTRAINT")]
    constraint: Vec<String>,
    /// Network to attach the tasks to: `NAME[,alias=NAME]`, or `name=NAME,alias=NAME`; may be given
    /// several times
    #[arg(long, value_parser = parse_network, value_name = "NETWORK")]
    network: Vec<NetworkAttachmentSpec>,
    /// What the service's name stands for on its networks
    #[arg(long, value_enum, default_value_t)]
    endpoint_mode: Mode,
    /// Replaces the image's entry point
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Host name in the containers
    #[arg(long, default_value = "", hide_default_value = true)]
    hostname: String,
    /// Working directory in the containers
    #[arg(short, long, default_value = "", hide_default_value = true)]
    workdir: String,
    /// `user[:group]` in the containers
    #[arg(short, long, default_value = "", hide_default_value = true)]
    user: String,
    /// Most CPUs a task may use
    #[arg(long, value_parser = parse_cpus, default_value = "0", hide_default_value = true)]
    limit_cpu: u64,
    /// Most memory a task may use, such as 512m
    #[arg(long, value_parser = parse_bytes, default_value = "0", hide_default_value = true)]
    limit_memory: u64,
    /// CPUs set aside for a task
    #[arg(long, value_parser = parse_cpus, default_value = "0", hide_default_value = true)]
    reserve_cpu: u64,
    /// Memory set aside for a task, such as 512m
    #[arg(long, value_parser = parse_bytes, default_value = "0", hide_default_value = true)]
    reserve_memory: u64,
    /// Which ends of a task are followed by a new one
    #[arg(long, value_enum, default_value_t = Condition::Any)]
    restart_condition: Condition,
    /// Wait before that
    #[arg(long, value_parser = parse_duration, default_value = "5s")]
    restart_delay: Duration,
    /// Most new tasks of a slot within the window; 0 is no limit
    #[arg(long, default_value_t = 0)]
    restart_max_attempts: u64,
    /// Time over which they are counted; 0 is for ever
    #[arg(long, value_parser = parse_duration, default_value = "0")]
    restart_window: Duration,
    /// Time between asking a container to stop and ending it
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    stop_grace_period: Duration,
    /// Tasks replaced at a time by an update; 0 is all
    #[arg(long, default_value_t = 1)]
    update_parallelism: u64,
    /// Wait between two batches of an update
    #[arg(long, value_parser = parse_duration, default_value = "0")]
    update_delay: Duration,
    /// Which of two tasks goes first in an update
    #[arg(long, value_enum, default_value_t = Order::StopFirst)]
    update_order: Order,
    #[command(flatten)]
    waiting: Waiting,
    /// Image to run
    image: String,
    /// Command and arguments in place of the image's
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENT"
    )]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Condition {
    None,
    OnFailure,
    Any,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum Order {
    StopFirst,
    StartFirst,
}

impl From<Order> for UpdateOrder {
    fn from(order: Order) -> Self {
        match order {
            Order::StopFirst => Self::StopFirst,
            Order::StartFirst => Self::StartFirst,
        }
    }
}

impl Create {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let waiting = self.waiting;
        let spec = self.into_spec();
        let mut control = sockets.control().await?;
        let message = v1::CreateServiceRequest {
            spec: Some((&spec).into()),
        };
        let created = answer(control.create_service(request(message)).await)?;
        let service = Service::try_from(created.service.unwrap_or_default())?;
        println!("{}", service.id);
        waiting.wait(&mut control, &service.id).await
    }

    fn into_spec(self) -> ServiceSpec {
        ServiceSpec {
            name: self.name.unwrap_or_else(made_up_name),
            labels: self.label.into_iter().collect(),
            mode: ServiceMode::Replicated {
                replicas: self.replicas,
            },
            task: TaskSpec {
                container: ContainerSpec {
                    image: self.image,
                    command: self.entrypoint.map(|text| words(&text)).unwrap_or_default(),
                    args: self.arguments,
                    env: self.env,
                    labels: self.container_label.into_iter().collect(),
                    hostname: self.hostname,
                    dir: self.workdir,
                    user: self.user,
                    stop_grace_period: Some(self.stop_grace_period),
                },
                resources: Resources {
                    limit_nano_cpus: self.limit_cpu,
                    limit_memory_bytes: self.limit_memory,
                    reserve_nano_cpus: self.reserve_cpu,
                    reserve_memory_bytes: self.reserve_memory,
                },
                restart: RestartPolicy {
                    condition: match self.restart_condition {
                        Condition::None => RestartCondition::None,
                        Condition::OnFailure => RestartCondition::OnFailure,
                        Condition::Any => RestartCondition::Any,
                    },
                    delay: self.restart_delay,
                    max_attempts: self.restart_max_attempts,
                    window: self.restart_window,
                },
                placement: Placement {
                    constraints: self.constraint,
                },
                networks: self.network,
                force_update: 0,
            },
            endpoint: EndpointSpec {
                mode: self.endpoint_mode.into(),
                ports: self
                    .publish
                    .into_iter()
                    .flat_map(|Ports(ports)| ports)
                    .collect(),
            },
            update: UpdateConfig {
                parallelism: self.update_parallelism,
                delay: self.update_delay,
                order: self.update_order.into(),
            },
        }
    }
}

/// A name for a service without one; the swarm refuses it should it be taken.
fn made_up_name() -> String {
    format!(
        "service-{}",
        swarm_model::random_base36(&mut rand::rng(), 8)
    )
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

pub(crate) fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(("", _)) => Err(format!("{text:?} has no key: write KEY=VALUE")),
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Ok((text.to_owned(), String::new())),
    }
}

/// Reads a number of CPUs such as `0.5`; gives billionths.
fn parse_cpus(text: &str) -> Result<u64, String> {
    let invalid = || format!("{text:?} is not a number of CPUs: write for example 0.5 or 2");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 9 || whole.is_empty() {
        return Err(invalid());
    }
    let whole: u64 = whole.parse().map_err(|_| invalid())?;
    let fraction: u64 = format!("{fraction:0<9}").parse().map_err(|_| invalid())?;
    whole
        .checked_mul(1_000_000_000)
        .and_then(|nanos| nanos.checked_add(fraction))
        .ok_or_else(invalid)
}

/// Reads a size such as `512m` (units b, k, m, g of 1024, as Docker's).
fn parse_bytes(text: &str) -> Result<u64, String> {
    let invalid = || format!("{text:?} is not a size: write for example 512m or 2g");
    let lower = text.to_ascii_lowercase();
    let digits = lower.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = lower[..digits].parse().map_err(|_| invalid())?;
    let shift = match &lower[digits..] {
        "" | "b" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        _ => return Err(invalid()),
    };
    number.checked_mul(1 << shift).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use swarm_model::EndpointMode;

    use super::*;

    #[test]
    fn quantities_are_read() {
        assert_eq!(parse_cpus("0.5"), Ok(500_000_000));
        assert_eq!(parse_cpus("2"), Ok(2_000_000_000));
        assert!(parse_cpus("-1").is_err());
        assert!(parse_cpus(".5").is_err());
        assert!(parse_cpus("99999999999999").is_err());
        assert_eq!(parse_bytes("512m"), Ok(512 << 20));
        assert_eq!(parse_bytes("10"), Ok(10));
        assert!(parse_bytes("1x").is_err());
        assert!(parse_bytes("").is_err());
        assert!(parse_bytes("99999999999999999g").is_err());
    }

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }

    #[test]
    fn networks_and_mode_arrive() {
        let spec = |line: &str| {
            let words = std::iter::once("create").chain(line.split_whitespace());
            let line = Line::try_parse_from(words).expect(line);
            line.create.into_spec()
        };
        let plain = spec("nginx");
        assert_eq!(plain.task.networks, []);
        assert_eq!(plain.endpoint.mode, EndpointMode::Vip);
        let both =
            spec("--network front,alias=www --network name=back --endpoint-mode dnsrr nginx");
        let networks = both.task.networks.iter();
        let targets: Vec<_> = networks.map(|network| &network.target).collect();
        assert_eq!(targets, ["front", "back"]);
        assert_eq!(both.task.networks[0].aliases, ["www"]);
        assert_eq!(both.endpoint.mode, EndpointMode::Dnsrr);
    }

    #[test]
    fn made_up_names_are_valid() {
        let spec = ServiceSpec {
            name: made_up_name(),
            ..ServiceSpec::default()
        };
        assert_eq!(
            swarm_model::validate_service(&spec),
            Err(swarm_model::InvalidSpec::NoImage)
        );
    }
}
