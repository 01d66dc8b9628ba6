//! Namespaces for one test.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, id};
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::geteuid;

use crate::ebpf::Mesh;

/// What a test has to itself. The network namespace of the test's thread plays the host's.
pub(crate) struct Sandbox {
    directory: tempfile::TempDir,
}

/// Runs a test on a thread of its own in fresh namespaces, or skips it without root.
pub(crate) fn sandboxed(test: impl FnOnce(&Sandbox) + Send + 'static) {
    if !geteuid().is_root() {
        let required = std::env::var_os("SWARM_TEST_REQUIRE_KERNEL").is_some_and(|on| on == "1");
        assert!(!required, "needs root");
        eprintln!("SKIP: needs root");
        return;
    }
    let outcome = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let directory = tempfile::tempdir().unwrap();
        mount(
            Some("bpf"),
            directory.path(),
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        run("ip", "link set lo up");
        let sandbox = Sandbox { directory };
        test(&sandbox);
        nix::mount::umount(sandbox.directory.path()).unwrap();
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

impl Sandbox {
    /// Where this test's maps are pinned.
    pub(crate) fn bpffs_dir(&self) -> PathBuf {
        self.directory.path().join("node")
    }

    pub(super) fn pin(&self, map: &str) -> PathBuf {
        self.bpffs_dir().join("maps").join(map)
    }

    pub(crate) fn load(&self) -> Mesh {
        Mesh::load(&self.bpffs_dir()).unwrap_or_else(|error| {
            // The verifier's log is in the cause.
            panic!("{:#}", anyhow::Error::from(error))
        })
    }
}

/// Runs a command in the calling thread's namespaces and gives its standard output.
pub(super) fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Index of an interface in the calling thread's network namespace.
pub(super) fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// Sets a kernel parameter of the calling thread's network namespace.
pub(super) fn sysctl(name: &str, value: &str) {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    std::fs::write(&path, value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Another host, router or task: a network namespace beside the test's own.
pub(super) struct Netns {
    file: File,
}

impl Netns {
    pub(super) fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run("ip", "link set lo up");
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        Self {
            file: thread::spawn(make).join().unwrap(),
        }
    }

    /// As `ip link set ... netns` wants it.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", id(), self.file.as_raw_fd())
    }

    /// Runs a closure on a thread inside.
    pub(super) fn inside<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
                action()
            });
            entered
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `ip` inside.
    pub(super) fn ip(&self, arguments: &str) -> String {
        self.inside(|| run("ip", arguments))
    }
}

/// The MAC address that every interface on an overlay has: 02:42 and the four octets.
pub(super) fn overlay_mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

/// As `ip link` writes it.
pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}
