//! `swarmctl service`.

mod converge;
mod create;
mod inspect;
mod ls;
mod ps;
mod rm;
mod scale;
mod update;

pub(super) use create::parse_label;

use swarm_api::v1;
use swarm_api::v1::control_client::ControlClient;
use swarm_model::Service;
use tonic::transport::Channel;

use crate::connect::{Sockets, answer, request};

/// Run services.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ServiceCommand {
    /// Create a service
    Create(Box<create::Create>),
    /// List the services
    Ls(ls::Ls),
    /// List the tasks of services
    Ps(ps::Ps),
    /// Show everything about services, as JSON
    Inspect(inspect::Inspect),
    /// Set the number of tasks of services
    Scale(scale::Scale),
    /// Change a service
    Update(Box<update::Update>),
    /// Remove services
    Rm(rm::Rm),
}

impl ServiceCommand {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        match self {
            Self::Create(verb) => verb.run(sockets).await,
            Self::Ls(verb) => verb.run(sockets).await,
            Self::Ps(verb) => verb.run(sockets).await,
            Self::Inspect(verb) => verb.run(sockets).await,
            Self::Scale(verb) => verb.run(sockets).await,
            Self::Update(verb) => verb.run(sockets).await,
            Self::Rm(verb) => verb.run(sockets).await,
        }
    }
}

/// The service that `reference` names.
async fn find(control: &mut ControlClient<Channel>, reference: &str) -> anyhow::Result<Service> {
    let message = v1::GetServiceRequest {
        reference: reference.to_owned(),
    };
    let found = answer(control.get_service(request(message)).await)?;
    Ok(Service::try_from(found.service.unwrap_or_default())?)
}

/// Replaces the spec of `service`, unless somebody else did so since it was read.
async fn replace_spec(
    control: &mut ControlClient<Channel>,
    service: &Service,
) -> anyhow::Result<()> {
    let message = v1::UpdateServiceRequest {
        id: service.id.to_string(),
        version: service.meta.version,
        spec: Some((&service.spec).into()),
    };
    answer(control.update_service(request(message)).await)?;
    Ok(())
}
