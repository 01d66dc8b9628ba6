//! `swarmctl swarm leave`.

use swarm_api::v1;

use crate::connect::{Sockets, answer, request};

/// Leaves the swarm.
#[derive(Debug, clap::Args)]
pub(crate) struct Leave {
    /// Leave although this node is a manager
    #[arg(short, long)]
    force: bool,
}

impl Leave {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let message = v1::LeaveRequest { force: self.force };
        answer(sockets.agent().await?.leave(request(message)).await)?;
        println!("Node left the swarm.");
        Ok(())
    }
}
