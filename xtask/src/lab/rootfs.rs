//! The lab's Debian root file system: built once per recipe, never written to afterwards.

use std::collections::BTreeSet;
use std::ffi::OsStr;
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
pub(crate) const SUITE: &str = "trixie";

/// The kernel, whatever its version.
const KERNEL: &str = "linux-image-cloud-amd64";

/// What the lab runs besides: the container side, Docker to measure against, and tools; and what it is
/// run on, so that it does not matter which QEMU this machine has, if any. (Debian 12's corrupts memory
/// when it emulates two processors: `cmpxchg16b` at least.)
const PACKAGES: &str = "qemu-system-x86 virtiofsd containerd runc docker.io docker-cli \
    docker-registry skopeo umoci ipvsadm nftables iproute2 iperf3 wrk nginx-light conntrack \
    tcpdump bpftool curl python3-minimal busybox-static ethtool procps netcat-openbsd socat kmod \
    openssl psmisc";

/// Run on the finished tree, `$1` being its top: the first program, the mount point of the shared
/// directory, the user that the control process runs as. A kernel that has the root's file system as a
/// module (6.1) gets an initramfs of those modules.
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
version=$(ls "$1/lib/modules")
if ! grep -q '^CONFIG_VIRTIO_FS=y' "$1/boot/config-$version"; then
    first="$1/boot/first"
    mkdir -p "$first/bin" "$first/dev" "$first/proc" "$first/root"
    cp "$1/bin/busybox" "$first/bin/busybox"
    {
        echo '#!/bin/busybox sh'
        echo 'busybox mount -t devtmpfs none /dev'
        for module in virtio_pci virtiofs; do
            chroot "$1" modprobe -S "$version" --show-depends "$module"
        done | while read -r _ file _; do
            cp "$1$file" "$first/"
            echo "busybox insmod /${file##*/}"
        done
        echo 'busybox mount -t virtiofs -o ro root /root'
        echo 'exec busybox switch_root /root /usr/local/sbin/lab-init'
    } > "$first/init"
    chmod 755 "$first/init"
    chroot "$1" sh -c 'cd /boot/first && find . | busybox cpio -o -H newc > /boot/lab-initramfs'
    rm -rf "$first"
fi
"#;

/// The kernel's first program inside the root file system.
pub(crate) const INIT: &str = "/usr/local/sbin/lab-init";

/// Runs a program as root, or as what looks like root to it: with this user's subordinate ids
/// (newuidmap(1)), so that a tree of files with several owners can be made and removed.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Command {
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
    // Root writes to /run: virtiofsd keeps its pid file there.
    command
        .arg(r#"mount -t tmpfs tmpfs /run && exec "$0" "$@""#)
        .arg(program);
    command
}

/// The tree's path; builds it when this recipe was not built before. The kernel is that of the
/// release `kernel_of`. `mirror` is the Debian mirror to use instead of the one in this machine's
/// apt sources.
///
/// # Errors
/// When mmdebstrap fails: the message has the end of its log, and nothing half-built stays.
pub(crate) fn ensure_built(
    workspace: &Workspace,
    kernel_of: &str,
    mirror: Option<&str>,
) -> Result<PathBuf> {
    let prefix = format!("rootfs-{kernel_of}-");
    let tree = workspace
        .lab_dir()
        .join(format!("{prefix}{}", recipe_key(kernel_of)));
    if tree.is_dir() {
        return Ok(tree);
    }
    let partial = tree.with_extension(format!("partial-{}", std::process::id()));
    let log = workspace.log("rootfs");
    let title = "building the lab's root file system (Debian, about a minute, once)";
    step(title, Some(&log), || {
        let result = build(&partial, &log, kernel_of, mirror);
        if result.is_err() {
            remove(&partial).ok();
        }
        result?;
        fs::rename(&partial, &tree)?;
        Ok(())
    })?;
    remove_others(workspace, &prefix, &tree);
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

/// A program of the tree to be run on this machine, by the tree's own loader and libraries: the loader,
/// and its arguments up to the program's own.
pub(crate) fn program(tree: &Path, path: &str) -> (PathBuf, Vec<PathBuf>) {
    let libraries = tree.join("usr/lib/x86_64-linux-gnu");
    let loader = libraries.join("ld-linux-x86-64.so.2");
    let arguments = vec!["--library-path".into(), libraries, tree.join(path)];
    (loader, arguments)
}

/// The initramfs in the tree, where its kernel needs one.
pub(crate) fn initramfs(tree: &Path) -> Option<PathBuf> {
    let path = tree.join("boot/lab-initramfs");
    path.exists().then_some(path)
}

fn recipe_key(kernel_of: &str) -> String {
    let digest = Sha256::digest([SUITE, kernel_of, KERNEL, PACKAGES, FURNISH].join("\n"));
    digest
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn build(tree: &Path, log: &Path, kernel_of: &str, mirror: Option<&str>) -> Result<()> {
    let log_file = create_log(log)?;
    let kernel = format!("{KERNEL}/{kernel_of}");
    let packages = std::iter::once(kernel.as_str()).chain(PACKAGES.split_whitespace());
    let packages = packages.collect::<Vec<_>>().join(",");
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
    match mirror.map(str::to_string).or_else(mirror::of_this_machine) {
        Some(mirror) => {
            let suites = BTreeSet::from([SUITE, kernel_of]);
            command.args(
                suites
                    .iter()
                    .map(|suite| format!("deb {mirror} {suite} main")),
            );
        }
        // mmdebstrap chooses by itself, for one release.
        None => ensure!(
            kernel_of == SUITE,
            "a kernel of {kernel_of} needs a Debian mirror: --mirror"
        ),
    }
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

/// Trees of other recipes for the same kernel, and what a killed build left: 600 MB each.
fn remove_others(workspace: &Workspace, prefix: &str, current: &Path) {
    for entry in fs::read_dir(workspace.lab_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with(prefix) && path != current {
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
