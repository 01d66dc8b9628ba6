//! The namespaces of tasks, for who has something to open in one, or asks what its servers do.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use swarm_model::{Protocol, TaskId};

use super::listeners::{connections, listeners};
use super::names::{NETNS_DIR, TASK_NETNS_PREFIX};
use super::netns::{Netns, NetnsDir, NetnsError};

/// The network namespace of a task of this node, when there is one under `run_dir`.
pub(crate) fn task_netns(run_dir: &Path, task: &TaskId) -> Result<Option<Netns>, NetnsError> {
    NetnsDir::new(run_dir.join(NETNS_DIR)).open(&format!("{TASK_NETNS_PREFIX}{task}"))
}

/// Whether a task's servers listen on all of `ports` for what comes to `address`. A task without a
/// namespace has nothing to wait for.
///
/// # Errors
/// When the namespace or the kernel's tables of sockets cannot be read. Blocks for as long as that
/// takes.
pub(crate) fn task_listens(
    run_dir: &Path,
    task: &TaskId,
    address: IpAddr,
    ports: &BTreeSet<(Protocol, u16)>,
) -> io::Result<bool> {
    let Some(netns) = task_netns(run_dir, task).map_err(io::Error::other)? else {
        return Ok(true);
    };
    let all = netns.run(listeners).map_err(io::Error::other)??;
    Ok(ports.iter().all(|(protocol, port)| {
        all.iter().any(|listener| {
            listener.protocol == *protocol && listener.port == *port && listener.takes(address)
        })
    }))
}

/// How many connections others have to the servers of a task; none to one without a namespace.
///
/// # Errors
/// As [`task_listens`].
pub(crate) fn task_connections(run_dir: &Path, task: &TaskId) -> io::Result<usize> {
    match task_netns(run_dir, task).map_err(io::Error::other)? {
        Some(netns) => netns.run(connections).map_err(io::Error::other)?,
        None => Ok(0),
    }
}
