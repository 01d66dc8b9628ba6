//! What the workspace hands to the lab: release builds, because emulation is slow enough.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process::logged;
use crate::progress::step;
use crate::workspace::Workspace;

/// Package and binary of what every host runs.
const PRODUCT: [&str; 3] = ["swarm-agent", "swarm-control", "swarmctl"];

/// Builds the lab's own program and, with `with_product`, the agent, the control process and the
/// CLI, and puts them into the shared directory. A lab that is up sees them at once.
///
/// # Errors
/// When the build fails; the message has the end of its log.
pub(crate) fn install(workspace: &Workspace, share: &Path, with_product: bool) -> Result<()> {
    let product: &[&str] = if with_product { &PRODUCT } else { &[] };
    let mut arguments = vec!["build", "--release", "-p", "swarm-lab"];
    arguments.extend(product.iter().flat_map(|package| ["-p", package]));
    let log = workspace.log("build");
    let title = if with_product {
        "building the swarm (release)"
    } else {
        "building the lab"
    };
    step(title, Some(&log), || {
        logged(&mut workspace.cargo(&arguments), &log)
    })?;
    let built = workspace.target_dir().join("release");
    for name in ["lab-guest"].iter().chain(product) {
        replace(&built.join(name), &share.join("bin").join(name))?;
    }
    Ok(())
}

/// Puts a copy of the file in place at once, so that a program running from there goes on with the
/// old one.
///
/// # Errors
/// When it cannot be read or written.
pub(crate) fn replace(from: &Path, to: &Path) -> Result<()> {
    let context = || format!("cannot copy {} to {}", from.display(), to.display());
    let partial: PathBuf = to.with_extension("partial");
    fs::create_dir_all(to.parent().unwrap_or(Path::new("."))).with_context(context)?;
    fs::copy(from, &partial).with_context(context)?;
    fs::rename(&partial, to).with_context(context)
}
