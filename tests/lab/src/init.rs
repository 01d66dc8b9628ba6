//! The lab's first process: makes a root that forgets, mounts what programs expect, starts the
//! server, reaps what is left behind.
//!
//! Runs in two places: as the first process of the virtual machine, where the root is the
//! read-only directory from outside and the share is mounted already; and as the first process of
//! fresh namespaces on this machine's own kernel ([`Place::Native`]).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{chdir, getpid, pivot_root, sethostname};

use crate::command::{DEFAULT_DEADLINE, must, run};
use crate::{LOG_DIR, SEARCH_PATH, SHARE_DIR};

/// Where the lab starts from.
#[derive(Debug, Clone)]
pub enum Place {
    /// A virtual machine of its own.
    Machine,
    /// Fresh namespaces on this machine's kernel.
    Native {
        /// The Debian root file system, read only.
        root: PathBuf,
        /// The directory shared with the outside.
        share: PathBuf,
    },
}

/// Address of the virtual machine's card that only carries commands; QEMU's user network forwards
/// to it.
const DOOR_ADDRESS: &str = "10.0.2.15/24";

/// State that must start empty and cannot lie on an overlay (containerd lays overlays on it).
const MEMORY_DIRS: [&str; 4] = [
    "/var/lib/containerd",
    "/var/lib/docker",
    "/var/lib/docker-registry",
    "/var/lib/swarm",
];

/// What the swarm, Docker and the tools use; the kernel would load most by itself, but inside a
/// namespace it may not, and first use then fails.
const MODULES: [&str; 30] = [
    "virtio_net",
    "bridge",
    "br_netfilter",
    "veth",
    "vxlan",
    "dummy",
    "ip_vs",
    "ip_vs_rr",
    "ip_vs_wrr",
    "ip_vs_mh",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "nft_ct",
    "nft_masq",
    "nft_nat",
    "xt_nat",
    "xt_MASQUERADE",
    "xt_addrtype",
    "xt_conntrack",
    "xt_ipvs",
    "xt_mark",
    "ip_tables",
    "iptable_nat",
    "sch_ingress",
    "cls_bpf",
    "inet_diag",
];

/// Open files a process may have: two thousand connections and their logs, with room.
const MAX_OPEN_FILES: u64 = 1 << 20;

/// Runs as the first process until the server ends, then switches the machine off.
///
/// # Errors
/// When this is not the first process, or a mount that everything depends on fails.
pub fn init(place: &Place) -> Result<()> {
    ensure!(
        getpid().as_raw() == 1,
        "init is for the first process of a lab"
    );
    let result = prepare(place).and_then(|()| serve());
    if let Err(error) = &result {
        eprintln!("lab: {error:#}");
    }
    match place {
        Place::Machine => {
            nix::unistd::sync();
            reboot(RebootMode::RB_POWER_OFF)
                .map(|never| match never {})
                .context("power off")
        }
        Place::Native { .. } => result,
    }
}

fn prepare(place: &Place) -> Result<()> {
    if let Place::Native { .. } = place {
        enter_cgroup().context("cannot make a cgroup for the lab")?;
    }
    forgetful_root(place).context("cannot make the lab's root")?;
    mount_system().context("cannot mount the lab's file systems")?;
    delegate_cgroup_controllers()?;
    if let Place::Machine = place {
        // All are tried; a kernel built otherwise may have some built in, and more may be missing.
        let mut command = Command::new("modprobe");
        let output = run(command.arg("-a").args(MODULES), b"", DEFAULT_DEADLINE)?;
        eprint!("{}", output.stderr);
    }
    sethostname("lab").context("cannot set the host name")?;
    raise_limit(Resource::RLIMIT_NOFILE, MAX_OPEN_FILES)?;
    raise_limit(Resource::RLIMIT_MEMLOCK, u64::MAX)?;
    must("ip", &["link", "set", "lo", "up"])?;
    if let Place::Machine = place {
        must("ip", &["link", "set", "eth0", "name", "door"])?;
        must("ip", &["addr", "add", DOOR_ADDRESS, "dev", "door"])?;
        must("ip", &["link", "set", "door", "up"])?;
    }
    Ok(())
}

/// Raises a limit, or as far as this machine lets us.
fn raise_limit(resource: Resource, wanted: u64) -> Result<()> {
    if setrlimit(resource, wanted, wanted).is_err() {
        let (_, hard) = getrlimit(resource)?;
        setrlimit(resource, hard, hard).with_context(|| format!("cannot raise {resource:?}"))?;
    }
    Ok(())
}

/// Runs the server as a child and reaps everything that ends, until the server does.
fn serve() -> Result<()> {
    let server = Command::new("/proc/self/exe")
        .arg("serve")
        .env("PATH", SEARCH_PATH)
        .spawn()
        .context("cannot start the server")?;
    let server = server.id().cast_signed();
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == server => {
                ensure!(code == 0, "the server ended with code {code}");
                return Ok(());
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == server => {
                anyhow::bail!("the server was ended by {signal}");
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("nothing left to wait for"),
        }
    }
}

/// Puts an overlay in memory over the root directory and makes it the root.
fn forgetful_root(place: &Place) -> Result<()> {
    let (lower, share) = match place {
        Place::Machine => {
            // Not before the root is there to load it from: this runs on the read-only one.
            mount_at("proc", "/proc", "proc", MsFlags::empty(), "")?;
            must("modprobe", &["overlay"])?;
            (PathBuf::from("/"), PathBuf::from(SHARE_DIR))
        }
        Place::Native { root, share } => {
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
            (root.canonicalize()?, share.canonicalize()?)
        }
    };
    let scratch = lower.join("mnt");
    mount_at("lab", &scratch, "tmpfs", MsFlags::empty(), "mode=755")?;
    let (upper, work, root) = (
        scratch.join("upper"),
        scratch.join("work"),
        scratch.join("root"),
    );
    for directory in [&upper, &work, &root] {
        fs::create_dir(directory)?;
    }
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    mount_at("lab", &root, "overlay", MsFlags::empty(), &layers)?;
    let shared = root.join(&SHARE_DIR[1..]);
    mount(
        Some(&share),
        &shared,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    chdir(&root)?;
    pivot_root(".", ".").context("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    Ok(())
}

fn mount_system() -> Result<()> {
    let none = MsFlags::empty();
    let guarded = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_at("proc", "/proc", "proc", guarded, "")?;
    mount_at("sysfs", "/sys", "sysfs", guarded, "")?;
    mount_at("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "")?;
    fs::create_dir_all("/dev/pts")?;
    fs::create_dir_all("/dev/shm")?;
    mount_at(
        "devpts",
        "/dev/pts",
        "devpts",
        none,
        "newinstance,ptmxmode=0666,mode=0620,gid=5",
    )?;
    mount_at("tmpfs", "/dev/shm", "tmpfs", guarded, "")?;
    mount_at("tmpfs", "/run", "tmpfs", guarded, "mode=755")?;
    mount_at("tmpfs", "/tmp", "tmpfs", guarded, "mode=1777")?;
    mount_at(
        "cgroup2",
        "/sys/fs/cgroup",
        "cgroup2",
        guarded,
        "nsdelegate",
    )?;
    mount_at("bpf", "/sys/fs/bpf", "bpf", none, "mode=700")?;
    // Debugging only, and not every kernel has it.
    mount_at("tracefs", "/sys/kernel/tracing", "tracefs", none, "").ok();
    for directory in MEMORY_DIRS {
        fs::create_dir_all(directory)?;
        mount_at("tmpfs", directory, "tmpfs", none, "mode=755")?;
    }
    fs::create_dir_all("/run/lock")?;
    let log = Path::new(SHARE_DIR).join("log");
    fs::create_dir_all(&log)?;
    fs::create_dir_all(LOG_DIR)?;
    mount(
        Some(&log),
        LOG_DIR,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    Ok(())
}

fn mount_at(
    source: &str,
    target: impl AsRef<Path>,
    kind: &str,
    flags: MsFlags,
    data: &str,
) -> Result<()> {
    let target = target.as_ref();
    mount(Some(source), target, Some(kind), flags, Some(data))
        .with_context(|| format!("cannot mount {kind} at {}", target.display()))
}

/// Without a machine of our own, containers' cgroups must lie below one that `down` can remove.
fn enter_cgroup() -> Result<()> {
    let own = Path::new(NATIVE_CGROUP);
    fs::create_dir_all(own)?;
    fs::write(own.join("cgroup.procs"), "0")?;
    unshare(CloneFlags::CLONE_NEWCGROUP)?;
    Ok(())
}

/// The cgroup of a lab without a virtual machine; `down` kills and removes it.
pub const NATIVE_CGROUP: &str = "/sys/fs/cgroup/swarm-lab";

/// Lets cgroups below the root have limits. A group with limits for its children may have no
/// process of its own, so this one moves aside first.
fn delegate_cgroup_controllers() -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    fs::create_dir_all(root.join("init"))?;
    fs::write(root.join("init/cgroup.procs"), "0")?;
    let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
    for controller in controllers.split_whitespace() {
        fs::write(
            root.join("cgroup.subtree_control"),
            format!("+{controller}"),
        )
        .ok();
    }
    Ok(())
}
