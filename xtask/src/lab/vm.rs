//! The virtual machine: Debian's own kernel, a directory as its root, no initramfs, no disk.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::rootfs;
use super::state::Ground;
use crate::process::{Process, create_log};
use crate::progress::tail;
use crate::workspace::Workspace;

/// Programs of the lab's tree that run outside it.
const QEMU: &str = "usr/bin/qemu-system-x86_64";
const VIRTIOFSD: &str = "usr/libexec/virtiofsd";

/// Two, as the smallest machine that the lab is measured on has.
const CPUS: &str = "2";

/// Most memory the machine gets; it takes no more than it uses.
const MAX_MEMORY_MB: u64 = 6144;

/// Least memory that three hosts with containers fit into.
const MIN_MEMORY_MB: u64 = 2048;

/// Within this time a kernel on working virtualisation has written its first line (it takes half a
/// second); some machines offer /dev/kvm and then hang.
const FIRST_LINE_DEADLINE: Duration = Duration::from_secs(5);

/// From power to the open door takes 4 s emulated; a loaded machine takes several times that.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);

/// How long virtiofsd may take to listen.
const VIRTIOFSD_DEADLINE: Duration = Duration::from_secs(10);

/// Port of the door inside the machine.
pub(super) const DOOR_PORT: u16 = 7001;

/// Parts of a virtual machine.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// The checkout whose lab this is.
    pub(super) workspace: &'a Workspace,
    /// Its root file system.
    pub(super) tree: &'a Path,
    /// The directory shared with it.
    pub(super) share: &'a Path,
    /// Port on 127.0.0.1 that leads to the door.
    pub(super) port: u16,
}

/// A port on 127.0.0.1 that was free a moment ago.
///
/// # Errors
/// When there is none.
pub(super) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// Removes what the file servers of labs that are gone left behind.
pub(super) fn remove_sockets(workspace: &Workspace) {
    for entry in fs::read_dir(workspace.lab_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "sock")
        {
            fs::remove_file(entry.path()).ok();
        }
    }
}

impl Plan<'_> {
    /// Starts the machine and waits until its door is open. `on_started` is told of all processes
    /// whenever there is one more, so that none is forgotten whatever happens; the last of them is
    /// the machine.
    ///
    /// # Errors
    /// When it does not boot: the message names the log and has its end.
    pub(super) fn boot(
        &self,
        mut on_started: impl FnMut(Ground, &[Process]) -> Result<()>,
    ) -> Result<Ground> {
        for ground in self.grounds() {
            let (processes, mut machine) =
                self.start(ground, |processes| on_started(ground, processes))?;
            let result = self.wait_for("Linux version", FIRST_LINE_DEADLINE, &mut machine);
            match (ground, result) {
                (Ground::Kvm, Err(_)) => {
                    eprintln!("    /dev/kvm is there but does not work: emulating");
                    for process in &processes {
                        process.end()?;
                    }
                    machine.wait()?;
                }
                // Emulated on a loaded machine it may be late; the boot deadline decides.
                _ => {
                    let open = swarm_lab::server::READY;
                    self.wait_for(open, BOOT_DEADLINE, &mut machine)?;
                    self.remember(ground);
                    return Ok(ground);
                }
            }
        }
        bail!("neither KVM nor emulation is allowed by SWARM_LAB_ACCEL")
    }

    /// What to try, best first.
    fn grounds(&self) -> Vec<Ground> {
        match std::env::var("SWARM_LAB_ACCEL").as_deref() {
            Ok("kvm") => return vec![Ground::Kvm],
            Ok("tcg") => return vec![Ground::Tcg],
            _ => {}
        }
        let kvm = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm");
        let failed_before = fs::read_to_string(self.verdict_file())
            .is_ok_and(|verdict| verdict == self.verdict(Ground::Tcg));
        if kvm.is_ok() && !failed_before {
            vec![Ground::Kvm, Ground::Tcg]
        } else {
            vec![Ground::Tcg]
        }
    }

    fn verdict_file(&self) -> PathBuf {
        self.workspace.lab_dir().join("accelerator")
    }

    /// Holds for this kernel and this tree's QEMU only.
    fn verdict(&self, ground: Ground) -> String {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        format!("{ground:?} {} {}\n", kernel.trim(), self.tree.display())
    }

    /// Saves the next boot the wait for a KVM that does not work.
    fn remember(&self, ground: Ground) {
        fs::write(self.verdict_file(), self.verdict(ground)).ok();
    }

    fn console(&self) -> PathBuf {
        self.workspace.log("console")
    }

    /// Starts the file servers, then the machine.
    fn start(
        &self,
        ground: Ground,
        mut on_started: impl FnMut(&[Process]) -> Result<()>,
    ) -> Result<(Vec<Process>, Child)> {
        let directory = self.workspace.lab_dir();
        create_log(&self.console())?;
        let name = |kind: &str| format!("virtiofsd-{kind}-{}.sock", self.port);
        let mut processes = Vec::new();
        // The root never changes while it is served; the shared directory does.
        for (kind, source, cache) in [("root", self.tree, "always"), ("lab", self.share, "auto")] {
            let mut server = self.start_virtiofsd(&name(kind), source, cache)?;
            processes.push(tracked(&server)?);
            on_started(&processes)?;
            self.wait_served(&name(kind), &mut server)?;
        }
        let log = create_log(&self.workspace.log("qemu"))?;
        let (loader, loading) = rootfs::program(self.tree, QEMU);
        let mut command = Command::new(loader);
        command
            .args(loading)
            .args(self.machine_arguments(ground))
            .args(self.device_arguments(&name("root"), &name("lab")))
            .args(self.kernel_arguments()?)
            .current_dir(&directory)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let machine = command
            .spawn()
            .with_context(|| format!("cannot start the tree's {QEMU}"))?;
        processes.push(tracked(&machine)?);
        on_started(&processes)?;
        Ok((processes, machine))
    }

    fn start_virtiofsd(&self, socket: &str, source: &Path, cache: &str) -> Result<Child> {
        let (loader, loading) = rootfs::program(self.tree, VIRTIOFSD);
        let directory = self.workspace.lab_dir();
        fs::remove_file(directory.join(socket)).ok();
        let log = create_log(&self.server_log(socket))?;
        let mut command = rootfs::as_root(loader);
        command
            .args(loading)
            .arg(format!("--socket-path={socket}"))
            .arg("--shared-dir")
            .arg(source)
            .arg(format!("--cache={cache}"));
        command
            .current_dir(&directory)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        command.spawn().context("cannot start virtiofsd")
    }

    /// Waits until a file server listens.
    fn wait_served(&self, socket: &str, server: &mut Child) -> Result<()> {
        let path = self.workspace.lab_dir().join(socket);
        let started = Instant::now();
        while !path.exists() {
            if server.try_wait()?.is_some() || started.elapsed() > VIRTIOFSD_DEADLINE {
                let log = self.server_log(socket);
                bail!(
                    "virtiofsd does not serve; the end of its log {}:\n{}",
                    log.display(),
                    tail(&log, 10).join("\n")
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn server_log(&self, socket: &str) -> PathBuf {
        self.workspace.log(socket.trim_end_matches(".sock"))
    }

    fn machine_arguments(&self, ground: Ground) -> Vec<String> {
        let mut arguments = words("-nodefaults -no-reboot -display none -machine q35");
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            arguments.extend(["-L".into(), self.tree.join(firmware).display().to_string()]);
        }
        arguments.extend(words(match ground {
            Ground::Kvm => "-accel kvm -cpu host",
            // What is one instruction to a processor takes a lock to emulate; the kernel does without.
            _ => "-accel tcg,thread=multi -cpu max,-cx16",
        }));
        let memory_mb = memory_mb();
        arguments.extend([
            "-smp".into(),
            CPUS.into(),
            "-m".into(),
            format!("{memory_mb}M"),
        ]);
        // Shared, because the file servers write into the machine's memory.
        arguments.push("-object".into());
        arguments.push(format!(
            "memory-backend-memfd,id=mem,size={memory_mb}M,share=on"
        ));
        arguments.extend(words("-numa node,memdev=mem"));
        arguments
    }

    fn device_arguments(&self, root: &str, lab: &str) -> Vec<String> {
        let mut arguments = Vec::new();
        for (tag, socket) in [("root", root), ("lab", lab)] {
            arguments.extend(words(&format!(
                "-chardev socket,id={tag},path={socket} \
                 -device vhost-user-fs-pci,chardev={tag},tag={tag}"
            )));
        }
        arguments.extend(words(&format!(
            "-netdev user,id=door,restrict=on,hostfwd=tcp:127.0.0.1:{}-:{DOOR_PORT} \
             -device virtio-net-pci,netdev=door,romfile= -device virtio-rng-pci -serial",
            self.port
        )));
        arguments.push(format!("file:{}", self.console().display()));
        arguments
    }

    fn kernel_arguments(&self) -> Result<Vec<String>> {
        let kernel = rootfs::kernel(self.tree)?;
        let line = format!(
            "console=ttyS0 root=root rootfstype=virtiofs ro init={} panic=-1 net.ifnames=0",
            rootfs::INIT
        );
        let mut arguments = vec![
            "-kernel".into(),
            kernel.display().to_string(),
            "-append".into(),
            line,
        ];
        if let Some(initramfs) = rootfs::initramfs(self.tree) {
            arguments.extend(["-initrd".into(), initramfs.display().to_string()]);
        }
        Ok(arguments)
    }

    /// Waits until the console shows `text`.
    fn wait_for(&self, text: &str, deadline: Duration, machine: &mut Child) -> Result<()> {
        let started = Instant::now();
        loop {
            let console = fs::read(self.console()).unwrap_or_default();
            if String::from_utf8_lossy(&console).contains(text) {
                return Ok(());
            }
            let ended = machine.try_wait()?;
            if ended.is_none() && started.elapsed() < deadline {
                thread::sleep(Duration::from_millis(50));
                continue;
            }
            let what = match ended {
                Some(status) => format!("the virtual machine ended ({status})"),
                None => format!("no {text:?} from it in {} s", deadline.as_secs()),
            };
            let (console, log) = (self.console(), self.workspace.log("qemu"));
            bail!(
                "{what}; the ends of {} and {}:\n{}\n{}",
                console.display(),
                log.display(),
                tail(&console, 15).join("\n"),
                tail(&log, 10).join("\n")
            );
        }
    }
}

fn tracked(child: &Child) -> Result<Process> {
    Process::of(child.id()).context("a process ended as soon as it was started")
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_string).collect()
}

/// Half of this machine's memory, within bounds.
fn memory_mb() -> u64 {
    let total_kb = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    });
    (total_kb.unwrap_or(0) / 2048).clamp(MIN_MEMORY_MB, MAX_MEMORY_MB)
}
