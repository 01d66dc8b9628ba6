//! What has to be there before the product can be compiled.

use anyhow::Result;

use crate::workspace::Workspace;

/// Builds the eBPF object that the agent embeds, when the agent is going to be built.
///
/// # Errors
/// When it does not compile.
pub(crate) fn build_ebpf(workspace: &Workspace, is_needed: bool) -> Result<()> {
    if is_needed {
        crate::ebpf::build(workspace.root())?;
    }
    Ok(())
}
