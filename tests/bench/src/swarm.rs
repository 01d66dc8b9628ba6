//! Managers and simulated agents, and what a person asks of them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use swarm_api::v1;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::node_ca_client::NodeCaClient;
use swarm_model::{JoinToken, NodeId};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::agent::Agent;
use crate::client::{Credentials, KeyRequest, dial, local, tls};
use crate::fleet::Seen;
use crate::host::{Host, certificate_path};

/// Longest that a manager may take to be there.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Pause between two looks at what is waited for.
pub(crate) const LOOK: Duration = Duration::from_millis(20);

/// Pause before another try to join: managers admit ten a second, after a burst.
const JOIN_PAUSE: Duration = Duration::from_millis(100);

/// Joins under way at a time.
const JOINS: usize = 8;

/// Lists of a large swarm, as the command line takes them.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A running swarm. All of it ends when it is dropped.
pub(crate) struct Swarm {
    /// Its managers, the first one first.
    pub(crate) managers: Vec<Host>,
    /// What its agents saw.
    pub(crate) seen: Arc<Seen>,
    agents: JoinSet<()>,
    directory: TempDir,
}

impl Swarm {
    /// A swarm of `managers` managers that all vote.
    pub(crate) async fn new(managers: usize) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("swarm-bench").tempdir()?;
        let id = NodeId::random(&mut rand::rng()).to_string();
        let first = Host::start(&directory.path().join("0"), &id, &["--bootstrap"])?;
        let mut swarm = Self {
            managers: vec![first],
            seen: Arc::default(),
            agents: JoinSet::new(),
            directory,
        };
        swarm.until_managers(1).await?;
        for count in 1..managers {
            swarm.add_manager(count).await?;
            swarm.until_managers(count + 1).await?;
        }
        Ok(swarm)
    }

    async fn add_manager(&mut self, number: usize) -> Result<()> {
        let request = KeyRequest::new()?;
        let first = &self.managers[0];
        let joined = join(&self.joining(v1::Role::Manager).await?, first, &request).await?;
        let directory = self.directory.path().join(number.to_string());
        let path = certificate_path(&directory);
        std::fs::create_dir_all(path.parent().context("no directory")?)?;
        std::fs::write(path, request.key_pem + &joined.certificate_chain_pem)?;
        let address = first.address.to_string();
        self.managers.push(Host::start(
            &directory,
            &joined.node_id,
            &["--join", &address],
        )?);
        Ok(())
    }

    /// Waits until as many managers as this hold the log and are heard.
    async fn until_managers(&mut self, count: usize) -> Result<()> {
        let begun = Instant::now();
        loop {
            for manager in &mut self.managers {
                if let Some(why) = manager.has_ended() {
                    bail!("{why}");
                }
            }
            let nodes = control(&self.managers[0])
                .list_nodes(v1::ListNodesRequest {})
                .await;
            match nodes.map(tonic::Response::into_inner) {
                Ok(nodes) if nodes.reachable_managers.len() == count => {
                    let members = nodes.nodes.iter().filter(|node| node.manager.is_some());
                    if members.count() == count {
                        return Ok(());
                    }
                }
                Ok(_) => {}
                Err(status) if begun.elapsed() > START_DEADLINE => {
                    return Err(status).context("a manager does not answer");
                }
                Err(_) => {}
            }
            ensure!(
                begun.elapsed() < START_DEADLINE,
                "{count} managers do not get together"
            );
            sleep(LOOK).await;
        }
    }

    async fn joining(&self, role: v1::Role) -> Result<Joining> {
        let mut control = control(&self.managers[0]);
        let root_pem = control
            .get_cluster(v1::GetClusterRequest {})
            .await?
            .into_inner()
            .root_ca_pem;
        let get = v1::GetJoinTokenRequest {
            role: role.into(),
            rotate: false,
        };
        let token = control.get_join_token(get).await?.into_inner().token;
        ensure!(
            token.parse::<JoinToken>()?.matches_root(&root_pem),
            "the root's digest is not the token's"
        );
        Ok(Joining { root_pem, token })
    }

    /// Lets `count` agents join, one after another as fast as they are admitted, each with its own
    /// connection, key and certificate; each then holds a session.
    pub(crate) async fn add_agents(&mut self, count: usize, deadline: Duration) -> Result<()> {
        let begun = Instant::now();
        let joining = Arc::new(self.joining(v1::Role::Worker).await?);
        let leader = self.managers[0].address;
        let mut joins = JoinSet::new();
        let mut admitted = 0;
        for number in 0..count {
            if joins.len() == JOINS {
                self.admit(&joining, joins.join_next().await)?;
                admitted += 1;
            }
            ensure!(
                begun.elapsed() < deadline,
                "only {admitted} agents were admitted in time"
            );
            let joining = Arc::clone(&joining);
            joins.spawn(async move {
                let request = KeyRequest::new()?;
                let joined = join_at(&joining, leader, &request).await?;
                let chain_pem = joined.certificate_chain_pem;
                let key_pem = request.key_pem;
                anyhow::Ok((number, Credentials { chain_pem, key_pem }))
            });
        }
        while let Some(joined) = joins.join_next().await {
            self.admit(&joining, Some(joined))?;
        }
        until(
            deadline.saturating_sub(begun.elapsed()),
            "the agents' sessions",
            || self.seen.open() == count,
        )
        .await
    }

    fn admit(
        &mut self,
        joining: &Joining,
        joined: Option<Result<Result<(usize, Credentials)>, tokio::task::JoinError>>,
    ) -> Result<()> {
        let (number, own) = joined.context("nobody joins")???;
        let agent = Agent::new(
            format!("h{number}"),
            self.managers
                .iter()
                .map(|manager| manager.address)
                .collect(),
            tls(&joining.root_pem, Some(&own))?,
            Arc::clone(&self.seen),
        );
        self.agents.spawn(agent.run());
        Ok(())
    }

    /// The manager that leads, by its place among [`Self::managers`].
    pub(crate) async fn leader(&self) -> Result<usize> {
        let list = v1::ListNodesRequest {};
        let nodes = control(&self.managers[0])
            .list_nodes(list)
            .await?
            .into_inner()
            .nodes;
        let leads = |node: &&v1::Node| node.manager.as_ref().is_some_and(|it| it.leader);
        let leader = nodes.iter().find(leads).context("no manager leads")?;
        let mut managers = self.managers.iter();
        managers
            .position(|it| it.node_id == leader.id)
            .context("somebody else leads")
    }

    /// Ends managers and agents in order.
    pub(crate) async fn end(mut self) {
        self.agents.shutdown().await;
        for manager in self.managers.drain(..).rev() {
            manager.end().await;
        }
    }
}

/// What joining takes.
struct Joining {
    root_pem: String,
    token: String,
}

async fn join(
    joining: &Joining,
    manager: &Host,
    request: &KeyRequest,
) -> Result<v1::IssueNodeCertificateResponse> {
    join_at(joining, manager.address, request).await
}

/// Asks for admission until it is given: managers bound how many join at a time.
async fn join_at(
    joining: &Joining,
    address: std::net::SocketAddr,
    request: &KeyRequest,
) -> Result<v1::IssueNodeCertificateResponse> {
    let stranger = tls(&joining.root_pem, None)?;
    let begun = Instant::now();
    loop {
        let ask = v1::IssueNodeCertificateRequest {
            token: joining.token.clone(),
            csr: request.csr_der.clone(),
        };
        let channel = dial(address, &stranger).await?;
        match NodeCaClient::new(channel).issue_node_certificate(ask).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) if is_passing(&status) && begun.elapsed() < START_DEADLINE => {
                sleep(JOIN_PAUSE).await;
            }
            Err(status) => return Err(status).context("an agent was not admitted"),
        }
    }
}

fn is_passing(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::ResourceExhausted)
}

/// What people ask at `manager`.
pub(crate) fn control(manager: &Host) -> ControlClient<Channel> {
    ControlClient::new(local(manager.socket())).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// A service of `replicas` tasks.
pub(crate) fn service(name: &str, replicas: usize) -> v1::ServiceSpec {
    let container = v1::ContainerSpec {
        image: "registry.example.com/web:latest".to_owned(),
        env: vec!["MODE=production".to_owned()],
        ..v1::ContainerSpec::default()
    };
    v1::ServiceSpec {
        name: name.to_owned(),
        mode: Some(v1::service_spec::Mode::Replicated(v1::Replicated {
            replicas: replicas as u64,
        })),
        task: Some(v1::TaskSpec {
            container: Some(container),
            placement: Some(v1::Placement {
                constraints: vec!["node.platform.os == linux".to_owned()],
            }),
            ..v1::TaskSpec::default()
        }),
        ..v1::ServiceSpec::default()
    }
}

/// Creates a service; gives it as it is then.
pub(crate) async fn create(
    control: &mut ControlClient<Channel>,
    spec: v1::ServiceSpec,
) -> Result<v1::Service, Status> {
    let create = v1::CreateServiceRequest { spec: Some(spec) };
    let created = control.create_service(create).await?.into_inner();
    created
        .service
        .ok_or_else(|| Status::internal("no service in the answer"))
}

/// Waits until `is_so`.
pub(crate) async fn until(
    deadline: Duration,
    what: &str,
    mut is_so: impl FnMut() -> bool,
) -> Result<()> {
    let begun = Instant::now();
    while !is_so() {
        ensure!(
            begun.elapsed() < deadline,
            "{what}: not within {deadline:?}"
        );
        sleep(LOOK).await;
    }
    Ok(())
}
