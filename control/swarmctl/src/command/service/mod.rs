//! `swarmctl service`.

mod converge;
mod create;
mod inspect;
mod ls;
mod ps;
mod rm;
mod scale;
mod stats;
mod update;

pub(super) use create::parse_label;

use swarm_api::v1;
use swarm_model::{Service, ServiceSpec};
use tonic::Code;

use crate::connect::{Control, Sockets, answer, request};

/// Run services.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ServiceCommand {
    /// Create a service
    Create(Box<create::Create>),
    /// List the services
    Ls(ls::Ls),
    /// List the tasks of services
    Ps(ps::Ps),
    /// Show what this node has counted of services
    Stats(stats::Stats),
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
            Self::Stats(verb) => verb.run(sockets).await,
            Self::Inspect(verb) => verb.run(sockets).await,
            Self::Scale(verb) => verb.run(sockets).await,
            Self::Update(verb) => verb.run(sockets).await,
            Self::Rm(verb) => verb.run(sockets).await,
        }
    }
}

/// The service that `reference` names.
async fn find(control: &mut Control, reference: &str) -> anyhow::Result<Service> {
    let message = v1::GetServiceRequest {
        reference: reference.to_owned(),
    };
    let found = answer(control.get_service(request(message)).await)?;
    Ok(Service::try_from(found.service.unwrap_or_default())?)
}

/// How often a change is made anew before it is given up. The swarm changes a service itself when it
/// gives it an address or a port, a moment after it was made or updated.
const EDITS_MAX: usize = 5;

/// Makes `change` to the spec of the service that `reference` names; anew where the service was
/// changed since it was read.
async fn edit(
    control: &mut Control,
    reference: &str,
    change: impl Fn(&mut ServiceSpec) -> anyhow::Result<()>,
) -> anyhow::Result<Service> {
    let mut edits = 0;
    loop {
        edits += 1;
        let mut service = find(control, reference).await?;
        change(&mut service.spec)?;
        let message = v1::UpdateServiceRequest {
            id: service.id.to_string(),
            version: service.meta.version,
            spec: Some((&service.spec).into()),
        };
        match control.update_service(request(message)).await {
            Err(status) if status.code() == Code::Aborted && edits < EDITS_MAX => {}
            result => {
                answer(result)?;
                return Ok(service);
            }
        }
    }
}
