//! `cargo xtask dist`: release binaries and what systemd needs, in one archive.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::lab::replace;
use crate::process::{logged, shown};
use crate::progress::step;
use crate::setup::{self, Scope};
use crate::workspace::Workspace;

const BINARIES: [&str; 3] = ["swarm-agent", "swarm-control", "swarmctl"];

const AGENT_UNIT: &str = include_str!("../dist/swarm-agent.service");

const USERS: &str = include_str!("../dist/swarm.sysusers");

/// Runs `cargo xtask dist`. The archive unpacks at `/`.
///
/// # Errors
/// When the build fails or a file cannot be written.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    setup::ensure(Scope::BUILD)?;
    crate::product::build_ebpf(workspace, true)?;
    let log = workspace.log("dist");
    let mut arguments = vec!["build", "--release"];
    arguments.extend(BINARIES.iter().flat_map(|package| ["--package", package]));
    step("building the release", Some(&log), || {
        logged(&mut workspace.cargo(&arguments), &log)
    })?;
    let name = format!(
        "swarm-{}-{}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH
    );
    let directory = workspace.target_dir().join("dist");
    let tree = directory.join(&name);
    fs::remove_dir_all(&tree).ok();
    for binary in BINARIES {
        let built = workspace.target_dir().join("release").join(binary);
        replace(&built, &tree.join("usr/local/bin").join(binary))?;
    }
    write(
        &tree.join("etc/systemd/system/swarm-agent.service"),
        AGENT_UNIT,
    )?;
    write(&tree.join("etc/sysusers.d/swarm.conf"), USERS)?;
    let archive = directory.join(format!("{name}.tar.gz"));
    let mut command = Command::new("tar");
    command
        .args(["--create", "--gzip", "--owner=0", "--group=0", "--file"])
        .arg(&archive);
    shown(command.arg("--directory").arg(&tree).args(["usr", "etc"]))?;
    let digest = Sha256::digest(fs::read(&archive)?);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let sums = directory.join(format!("{name}.tar.gz.sha256"));
    write(&sums, &format!("{digest}  {name}.tar.gz\n"))?;
    println!("{}", archive.display());
    println!("On a host: tar -C / -xzf {name}.tar.gz && systemd-sysusers && \\");
    println!("  systemctl enable --now swarm-agent");
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(context)?;
    }
    fs::write(path, text).with_context(context)
}
