//! The namespaces of tasks, for who has something to open in one.

use std::path::Path;

use swarm_model::TaskId;

use super::names::{NETNS_DIR, TASK_NETNS_PREFIX};
use super::netns::{Netns, NetnsDir, NetnsError};

/// The network namespace of a task of this node, when there is one under `run_dir`.
pub(crate) fn task_netns(run_dir: &Path, task: &TaskId) -> Result<Option<Netns>, NetnsError> {
    NetnsDir::new(run_dir.join(NETNS_DIR)).open(&format!("{TASK_NETNS_PREFIX}{task}"))
}
