//! The lab on this machine's own kernel: the same root file system, in fresh namespaces.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use swarm_lab::init::NATIVE_CGROUP;

use super::state::Ground;
use crate::process::{Process, create_log, output_of};
use crate::progress::tail;
use crate::workspace::Workspace;

/// The door is open half a second after the start.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// How long the kernel may take to be rid of the lab's last processes.
const REMOVE_DEADLINE: Duration = Duration::from_secs(10);

/// What the hosts need of this kernel; inside a namespace nothing loads by itself.
const MODULES: [&str; 17] = [
    "overlay",
    "bridge",
    "veth",
    "vxlan",
    "ip_vs",
    "ip_vs_rr",
    "ip_vs_wrr",
    "ip_vs_lc",
    "ip_vs_sh",
    "ip_vs_mh",
    "sctp",
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
    "nf_conntrack",
    "sch_ingress",
    "cls_bpf",
];

/// Says why this machine's own kernel cannot carry the lab.
///
/// # Errors
/// When we are not root or the kernel has no IPVS.
pub(super) fn check() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "--native needs root");
    for module in MODULES {
        // Built in, loaded already, or not there: what is missing shows below.
        output_of("modprobe", &["-q", module]);
    }
    ensure!(
        Path::new("/proc/net/ip_vs").exists(),
        "this kernel has no IPVS (modprobe ip_vs): run the lab without --native, in a machine of \
         its own"
    );
    Ok(())
}

/// Starts the lab's first process in fresh namespaces and waits until its door is open.
///
/// # Errors
/// When it ends early: the message names its log.
pub(super) fn start(
    workspace: &Workspace,
    tree: &Path,
    share: &Path,
    on_started: impl FnOnce(Ground, &[Process]) -> Result<()>,
) -> Result<()> {
    let console = workspace.log("console");
    let log = create_log(&console)?;
    let mut command = Command::new("unshare");
    command
        .args([
            "--pid",
            "--fork",
            "--kill-child",
            "--mount",
            "--net",
            "--uts",
            "--ipc",
            "--",
        ])
        .arg(share.join("bin/lab-guest"))
        .args(["init", "--root"])
        .arg(tree)
        .arg("--share")
        .arg(share)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let mut child = command.spawn().context("cannot run unshare")?;
    let process = Process::of(child.id()).context("unshare ended at once")?;
    on_started(Ground::Native, &[process])?;
    let started = Instant::now();
    loop {
        let text = fs::read_to_string(&console).unwrap_or_default();
        if text.contains(swarm_lab::server::READY) {
            return Ok(());
        }
        if child.try_wait()?.is_some() || started.elapsed() > START_DEADLINE {
            bail!(
                "the lab does not start; the end of its log {}:\n{}",
                console.display(),
                tail(&console, 15).join("\n")
            );
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Removes the lab's cgroups, with whatever still runs in them.
///
/// # Errors
/// When they cannot be removed.
pub(super) fn clean_up() -> Result<()> {
    let own = PathBuf::from(NATIVE_CGROUP);
    if !own.exists() {
        return Ok(());
    }
    fs::write(own.join("cgroup.kill"), "1").ok();
    let started = Instant::now();
    while let Err(error) = remove_cgroups(&own) {
        if started.elapsed() > REMOVE_DEADLINE {
            return Err(error).with_context(|| format!("cannot remove {}", own.display()));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn remove_cgroups(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroups(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}
