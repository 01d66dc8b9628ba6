//! `swarmctl swarm init`.

use std::time::Duration;

use swarm_api::v1;

use super::unlock_key::how_to_unlock;
use crate::connect::{Sockets, answer, request};
use crate::time::{milliseconds, parse_duration};

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
    /// Life of nodes' certificates, such as 2160h; at least 30m [default: 2160h0m0s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    cert_expiry: Option<Duration>,
    /// Go on with this manager alone, and everything the swarm has, after its other managers were lost
    #[arg(long, conflicts_with = "cert_expiry")]
    force_new_cluster: bool,
    /// Let managers that are restarted wait for an unlock key, which is printed
    #[arg(long, conflicts_with = "force_new_cluster")]
    autolock: bool,
}

impl Init {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let message = v1::InitRequest {
            advertise_address: self.advertise_addr,
            listen_address: self.listen_addr,
            data_path_address: self.data_path_addr,
            certificate_expiry_ms: certificate_expiry_ms(self.cert_expiry),
            force_new_cluster: self.force_new_cluster,
            autolock: self.autolock,
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
        if self.autolock {
            println!("\n{}", how_to_unlock(&made.unlock_key));
        }
        Ok(())
    }
}

/// What was asked for, on the wire, where 0 means that nothing was.
fn certificate_expiry_ms(asked: Option<Duration>) -> u64 {
    asked.map_or(0, |expiry| milliseconds(expiry).max(1))
}
