//! `swarmctl mesh`: a look into the data plane of this host. By the agent's socket, on every node.

mod check;
mod trace;

use std::process::ExitCode;

use crate::connect::Sockets;

/// Look into the data plane of this host.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum MeshCommand {
    /// Compare what the networks of this host are to be with its kernel
    Check(check::Check),
    /// Show packets of a published port, and what each step on this host does with them
    ///
    /// A line for each step, with what becomes of the packet there. A node shows its own part: the one
    /// that the client asks balances, the task's hands over and answers. Not shown are connections that
    /// this node or its tasks make to the port themselves: they are balanced when they connect.
    Trace(trace::Trace),
}

impl MeshCommand {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<ExitCode> {
        match self {
            Self::Check(verb) => verb.run(sockets).await,
            Self::Trace(verb) => verb.run(sockets).await,
        }
    }
}
