//! `swarmctl swarm init`.

use swarm_api::v1;

use crate::connect::{Sockets, answer, request};

/// Makes a swarm.
#[derive(Debug, clap::Args)]
pub(crate) struct Init {
    /// What the others dial: `address[:port]` or interface of this host (its only address by default)
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "",
        hide_default_value = true
    )]
    advertise_addr: String,
    /// What to listen on [default: 0.0.0.0:2377]
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "",
        hide_default_value = true
    )]
    listen_addr: String,
    /// Address of this host for the traffic between tasks (the advertised one by default)
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "",
        hide_default_value = true
    )]
    data_path_addr: String,
}

impl Init {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let message = v1::InitRequest {
            advertise_address: self.advertise_addr,
            listen_address: self.listen_addr,
            data_path_address: self.data_path_addr,
        };
        let made = answer(sockets.agent().await?.init(request(message)).await)?;
        println!(
            "Swarm initialized: current node ({}) is now a manager.\n",
            made.node_id
        );
        println!("To add a worker to this swarm, run the following command:\n");
        println!(
            "    swarmctl swarm join --token {} {}",
            made.worker_token, made.manager_address
        );
        Ok(())
    }
}
