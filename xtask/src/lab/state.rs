//! What a running lab leaves for the next call of xtask.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use swarm_lab::client::Endpoint;

use crate::process::Process;
use crate::workspace::Workspace;

/// What the lab's kernel runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Ground {
    /// A virtual machine on the processor's own virtualisation.
    Kvm,
    /// A virtual machine, emulated.
    Tcg,
    /// This machine's own kernel, in fresh namespaces.
    Native,
}

/// A lab: its processes and the way in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    /// What it runs on.
    pub(crate) ground: Ground,
    /// Everything to end at `down`; the last is the one without which there is no lab.
    pub(crate) processes: Vec<Process>,
    /// Where it takes commands.
    pub(crate) endpoint: Endpoint,
    /// What it wants to hear with each.
    pub(crate) token: String,
    /// Hosts besides the client.
    pub(crate) hosts: u8,
    /// Debian release that its kernel is of.
    pub(crate) kernel_of: String,
    /// Whether `up` has come to its end.
    pub(crate) is_complete: bool,
}

impl State {
    fn file(workspace: &Workspace) -> PathBuf {
        workspace.lab_dir().join("state.json")
    }

    /// The lab there is, or what is left of one.
    pub(crate) fn load(workspace: &Workspace) -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::file(workspace)).ok()?).ok()
    }

    /// Remembers the lab.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn save(&self, workspace: &Workspace) -> Result<()> {
        let file = Self::file(workspace);
        let partial = file.with_extension("partial");
        fs::write(&partial, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&partial, &file).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Whether the lab's kernel is still there.
    pub(crate) fn is_running(&self) -> bool {
        self.processes.last().is_some_and(Process::is_running)
    }

    /// Ends every process of the lab and forgets it.
    ///
    /// # Errors
    /// When a process does not end or the file cannot be removed.
    pub(crate) fn end(&self, workspace: &Workspace) -> Result<()> {
        for process in &self.processes {
            process.end()?;
        }
        if self.ground == Ground::Native {
            super::native::clean_up()?;
        }
        match fs::remove_file(Self::file(workspace)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}
