//! The lab's Debian root file system: built once per recipe, never written to afterwards.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};

use crate::interrupt::{self, Verdict};
use crate::mirror;
use crate::process::{create_log, logged};
use crate::progress::{step, tail};
use crate::workspace::Workspace;

/// The lab's Debian release; its kernel has everything the data plane needs as modules.
const SUITE: &str = "trixie";

/// What the lab runs: the kernel, the container side, Docker to measure against, and tools.
const PACKAGES: &str = "linux-image-cloud-amd64 containerd runc docker.io docker-cli \
    docker-registry skopeo umoci ipvsadm nftables iproute2 iperf3 wrk nginx-light conntrack \
    tcpdump bpftool curl python3-minimal busybox-static ethtool procps netcat-openbsd socat kmod \
    openssl psmisc";

/// Run on the finished tree, `$1` being its top: the first program, the mount point of the shared
/// directory, the user that the control process runs as.
const FURNISH: &str = r#"set -e
mkdir -p "$1/lab"
cat > "$1/usr/local/sbin/lab-init" <<'END'
#!/bin/sh
export PATH=/usr/sbin:/usr/bin
mount -t virtiofs lab /lab && exec /lab/bin/lab-guest init
END
chmod 755 "$1/usr/local/sbin/lab-init"
chroot "$1" useradd --system --no-create-home --shell /usr/sbin/nologin swarm
rm -f "$1"/boot/initrd.img-*
"#;

/// The kernel's first program inside the root file system.
pub(crate) const INIT: &str = "/usr/local/sbin/lab-init";

/// Runs a program as root, or as what looks like root to it: with this user's subordinate ids
/// (newuidmap(1)), so that a tree of files with several owners can be made and removed.
pub(crate) fn as_root(program: &str) -> Command {
    if nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("unshare");
    command.args([
        "--user",
        "--map-root-user",
        "--map-auto",
        "--mount",
        "--",
        "sh",
        "-c",
    ]);
    // Root writes to /run: QEMU's virtiofsd keeps its pid file there.
    command.args([r#"mount -t tmpfs tmpfs /run && exec "$0" "$@""#, program]);
    command
}

/// The tree's path; builds it when this recipe was not built before. `mirror` is the Debian mirror
/// to use instead of the one in this machine's apt sources.
///
/// # Errors
/// When mmdebstrap fails: the message has the end of its log, and nothing half-built stays.
pub(crate) fn ensure_built(workspace: &Workspace, mirror: Option<&str>) -> Result<PathBuf> {
    let tree = workspace.lab_dir().join(format!("rootfs-{}", recipe_key()));
    if tree.is_dir() {
        return Ok(tree);
    }
    let partial = tree.with_extension(format!("partial-{}", std::process::id()));
    let log = workspace.log("rootfs");
    let title = "building the lab's root file system (Debian, about a minute, once)";
    step(title, Some(&log), || {
        let result = build(&partial, &log, mirror);
        if result.is_err() {
            remove(&partial).ok();
        }
        result?;
        fs::rename(&partial, &tree)?;
        Ok(())
    })?;
    remove_others(workspace, &tree);
    Ok(tree)
}

/// The kernel image in the tree.
///
/// # Errors
/// When there is none.
pub(crate) fn kernel(tree: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(tree.join("boot"))?
        .flatten()
        .map(|entry| entry.path());
    entries
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        })
        .max()
        .with_context(|| format!("no kernel in {}", tree.display()))
}

fn recipe_key() -> String {
    let digest = Sha256::digest([SUITE, PACKAGES, FURNISH].join("\n"));
    digest
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn build(tree: &Path, log: &Path, mirror: Option<&str>) -> Result<()> {
    let log_file = create_log(log)?;
    let packages = PACKAGES.split_whitespace().collect::<Vec<_>>().join(",");
    let furnish = log.with_file_name("rootfs-furnish.sh");
    fs::write(&furnish, FURNISH)?;
    fs::set_permissions(&furnish, fs::Permissions::from_mode(0o755))?;
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--variant=apt", &format!("--include={packages}")])
        .args([
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
        ])
        .args(["--dpkgopt=path-exclude=/usr/share/locale/*", "--format=tar"])
        .arg(format!("--customize-hook=sh {} \"$1\"", furnish.display()))
        .args([SUITE, "-"])
        // The lab boots without an initramfs; making one would take ten seconds.
        .env("INITRD", "No");
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    if Path::new(keyring).exists() {
        command.arg(format!("--keyring={keyring}"));
    }
    // Without one mmdebstrap chooses by itself.
    command.args(mirror.map(str::to_string).or_else(mirror::of_this_machine));
    let mut debstrap = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file.try_clone()?)
        .process_group(0)
        .spawn()
        .context("cannot run mmdebstrap (`cargo xtask setup` installs it)")?;
    // It cleans up after itself when asked to end, and tar ends with its input.
    let group = Pid::from_raw(debstrap.id().cast_signed());
    let _on_signal = interrupt::on_signal(move |_| {
        killpg(group, Signal::SIGINT).ok();
        Verdict::End
    });
    let archive = debstrap
        .stdout
        .take()
        .context("mmdebstrap without output")?;
    fs::create_dir_all(tree)?;
    let extracted = as_root("tar")
        .args([
            "--extract",
            "--numeric-owner",
            "--exclude=./dev/*",
            "--directory",
        ])
        .arg(tree)
        .stdin(archive)
        .stdout(Stdio::null())
        .stderr(log_file)
        .status()
        .context("cannot run tar")?;
    let is_built = debstrap.wait()?.success() && extracted.success();
    ensure!(
        is_built,
        "mmdebstrap failed; the end of its log {}:\n{}",
        log.display(),
        tail(log, 15).join("\n")
    );
    Ok(())
}

fn remove(tree: &Path) -> Result<()> {
    let log = tree.with_extension("remove.log");
    logged(as_root("rm").arg("-rf").arg(tree), &log)?;
    Ok(fs::remove_file(log)?)
}

/// Trees of other recipes, and what a killed build left: 600 MB each.
fn remove_others(workspace: &Workspace, current: &Path) {
    for entry in fs::read_dir(workspace.lab_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with("rootfs-") && path != current {
            remove(&path).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_found() {
        let tree = tempfile::tempdir().unwrap();
        assert!(kernel(tree.path()).is_err());
        fs::create_dir(tree.path().join("boot")).unwrap();
        for name in ["config-6.12", "vmlinuz-6.1", "vmlinuz-6.12"] {
            fs::write(tree.path().join("boot").join(name), "").unwrap();
        }
        assert!(kernel(tree.path()).unwrap().ends_with("vmlinuz-6.12"));
    }
}
