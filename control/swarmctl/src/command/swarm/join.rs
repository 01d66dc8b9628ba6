//! `swarmctl swarm join`.

use swarm_api::v1;

use crate::connect::{Sockets, answer, request};

/// Joins a swarm.
#[derive(Debug, clap::Args)]
pub(crate) struct Join {
    /// What `swarmctl swarm join-token` prints on a manager; it decides the role
    #[arg(long)]
    token: String,
    /// Address or interface of this host that the others dial (the one towards the manager by
    /// default)
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "",
        hide_default_value = true
    )]
    advertise_addr: String,
    /// Address of this host for the traffic between tasks (the advertised one by default)
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "",
        hide_default_value = true
    )]
    data_path_addr: String,
    /// A manager: `address[:2377]`
    #[arg(value_name = "MANAGER")]
    manager: String,
}

impl Join {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let message = v1::JoinRequest {
            remote_address: self.manager,
            token: self.token,
            advertise_address: self.advertise_addr,
            data_path_address: self.data_path_addr,
        };
        let joined = answer(sockets.agent().await?.join(request(message)).await)?;
        let role = match joined.role() {
            v1::Role::Manager => "manager",
            v1::Role::Worker | v1::Role::Unspecified => "worker",
        };
        println!("This node joined a swarm as a {role}.");
        Ok(())
    }
}
