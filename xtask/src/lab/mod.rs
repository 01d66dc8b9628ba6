//! The lab from the outside: up, commands in it, down.
//!
//! A lab outlives the xtask that started it; [`State`] is how the next one finds it.

mod binaries;
mod cli;
mod native;
mod rootfs;
mod shell;
mod state;
mod vm;

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use swarm_lab::Output;
use swarm_lab::client::{Endpoint, Session};
use swarm_lab::wire::{BOOT_FILE, Boot, Frame, Request, SOCKET_FILE};

use crate::interrupt::{self, Verdict};
use crate::process::Process;
use crate::progress::{step, tail};
use crate::setup;
use crate::workspace::Workspace;
pub(crate) use binaries::replace;
pub(crate) use cli::{LabCommand, run, run_shell};
use state::{Ground, State};

/// How long after the lab's last word its machine may take to be gone.
const END_OF_MACHINE: Duration = Duration::from_secs(2);

/// Lines of the console that are shown of a machine that ended by itself: a panic has about sixty.
const SHOWN_CONSOLE_LINES: usize = 100;

/// And of QEMU's own words.
const SHOWN_QEMU_LINES: usize = 10;

/// How a lab is to be.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct UpOptions {
    /// How many hosts besides the client.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=50))]
    pub(crate) hosts: u8,
    /// Use this machine's own kernel (root, and IPVS in it) instead of a virtual machine.
    #[arg(long)]
    pub(crate) native: bool,
    /// Debian mirror for the root file system, instead of the one in this machine's apt sources.
    #[arg(long, env = "SWARM_DEBIAN_MIRROR")]
    pub(crate) mirror: Option<String>,
    /// Debian release to take the kernel from: `bookworm` has the oldest that is supported, 6.1.
    #[arg(long, default_value = rootfs::SUITE, value_parser = ["bookworm", rootfs::SUITE])]
    pub(crate) kernel_of: String,
    /// Neither build nor start the agents: hosts, containerd and registry only.
    #[arg(long)]
    pub(crate) no_agents: bool,
}

impl Default for UpOptions {
    fn default() -> Self {
        Self {
            hosts: 3,
            native: false,
            mirror: None,
            kernel_of: rootfs::SUITE.to_owned(),
            no_agents: false,
        }
    }
}

/// A lab that is up.
#[derive(Debug)]
pub(crate) struct Lab {
    workspace: Workspace,
    state: State,
    was_started_here: bool,
}

/// What a command in the lab gets besides its words.
#[derive(Debug, Clone, Default)]
pub(crate) struct ExecOptions {
    /// Environment on top of the lab's own.
    pub(crate) env: Vec<(String, String)>,
    /// Bytes for its standard input.
    pub(crate) stdin: Vec<u8>,
    /// Working directory; `/root` when absent.
    pub(crate) directory: Option<String>,
}

/// Takes a lab down when dropped, unless told to keep it or it was up before.
#[derive(Debug)]
pub(crate) struct Borrowed {
    lab: Lab,
    keep: bool,
    _on_signal: interrupt::Registration,
}

impl Lab {
    /// Brings a lab up: builds what is missing, starts it, sets up hosts and agents. One that is up
    /// already gets the newly built binaries; its agents are not restarted.
    ///
    /// # Errors
    /// When a step fails: the message names its log. A lab started here is taken down again then,
    /// as it is on Ctrl-C.
    pub(crate) fn up(workspace: &Workspace, options: &UpOptions) -> Result<Self> {
        let share = share_dir(workspace);
        setup::ensure(setup::Scope::lab(!options.no_agents))?;
        if options.native {
            native::check()?;
        }
        // Under the lock nobody else is at it: a lab that is not complete was left half done.
        let _lock = lock(workspace)?;
        let running =
            State::load(workspace).filter(|state| state.is_running() && state.is_complete);
        if let Some(state) = &running {
            let hosts = state.hosts;
            ensure!(
                hosts == options.hosts,
                "a lab with {hosts} hosts is up: `cargo xtask lab down` first"
            );
            let kernel_of = &state.kernel_of;
            ensure!(
                *kernel_of == options.kernel_of,
                "a lab with the kernel of {kernel_of} is up: `cargo xtask lab down` first"
            );
        }
        crate::product::build_ebpf(workspace, !options.no_agents)?;
        binaries::install(workspace, &share, !options.no_agents)?;
        let mut lab = match running {
            Some(state) => Self {
                workspace: workspace.clone(),
                state,
                was_started_here: false,
            },
            None => Self::start(workspace, options)?,
        };
        let result = lab.set_up(options);
        if result.is_err() && lab.was_started_here {
            lab.end().ok();
        }
        result?;
        Ok(lab)
    }

    /// The lab that is up.
    ///
    /// # Errors
    /// When none is.
    pub(crate) fn attach(workspace: &Workspace) -> Result<Self> {
        let state = State::load(workspace).filter(State::is_running);
        let state = state.context("no lab is up (`cargo xtask lab up`)")?;
        Ok(Self {
            workspace: workspace.clone(),
            state,
            was_started_here: false,
        })
    }

    /// Like [`Lab::up`], but taken down at the end, and on Ctrl-C, unless `keep` says otherwise or
    /// it was up before.
    ///
    /// # Errors
    /// Those of [`Lab::up`].
    pub(crate) fn borrow(
        workspace: &Workspace,
        options: &UpOptions,
        keep: bool,
    ) -> Result<Borrowed> {
        let lab = Self::up(workspace, options)?;
        let is_ours = lab.was_started_here && !keep;
        let (state, workspace) = (lab.state.clone(), workspace.clone());
        let on_signal = interrupt::on_signal(move |_| {
            if is_ours {
                state.end(&workspace).ok();
            }
            Verdict::End
        });
        Ok(Borrowed {
            lab,
            keep,
            _on_signal: on_signal,
        })
    }

    fn start(workspace: &Workspace, options: &UpOptions) -> Result<Self> {
        if let Some(left) = State::load(workspace) {
            left.end(workspace)
                .context("cannot clean up after the last lab")?;
        }
        let tree = rootfs::ensure_built(workspace, &options.kernel_of, options.mirror.as_deref())?;
        let share = share_dir(workspace);
        let log = share.join("log");
        fs::remove_dir_all(&log).ok();
        fs::create_dir_all(&log)?;
        vm::remove_sockets(workspace);
        let port = vm::free_port()?;
        let token = token()?;
        let door = (!options.native).then_some(vm::DOOR_PORT);
        write_private(
            &share.join(BOOT_FILE),
            &serde_json::to_vec(&Boot {
                token: token.clone(),
                port: door,
            })?,
        )?;
        let mut state = State {
            ground: Ground::Native,
            processes: Vec::new(),
            endpoint: match door {
                Some(_) => Endpoint::Port(port),
                None => Endpoint::Socket(share.join(SOCKET_FILE)),
            },
            token,
            hosts: options.hosts,
            kernel_of: options.kernel_of.clone(),
            is_complete: false,
        };
        let _on_signal = down_on_signal(workspace);
        let started = |ground, processes: &[Process]| {
            (state.ground, state.processes) = (ground, processes.to_vec());
            state.save(workspace)
        };
        let result = if options.native {
            step("starting the lab on this kernel", None, || {
                native::start(workspace, &tree, &share, started)
            })
        } else {
            let console = workspace.log("console");
            step("booting the lab", Some(&console), || {
                let plan = vm::Plan {
                    workspace,
                    tree: &tree,
                    share: &share,
                    port,
                };
                let ground = plan.boot(started)?;
                eprintln!("    on {ground:?}");
                Ok(())
            })
        };
        if result.is_err()
            && let Some(left) = State::load(workspace)
        {
            left.end(workspace).ok();
        }
        result?;
        Ok(Self {
            workspace: workspace.clone(),
            state,
            was_started_here: true,
        })
    }

    fn set_up(&mut self, options: &UpOptions) -> Result<()> {
        let _on_signal = self
            .was_started_here
            .then(|| down_on_signal(&self.workspace));
        let hosts = self.state.hosts.to_string();
        let mut argv = vec!["lab-guest", "up", "--hosts", &hosts];
        if options.no_agents {
            argv.push("--no-agents");
        }
        step("setting up hosts, containerd and registry", None, || {
            let code = self.stream(None, &argv, ExecOptions::default(), |is_error, bytes| {
                let text = String::from_utf8_lossy(bytes);
                let mark = if is_error { "!" } else { " " };
                text.lines().for_each(|line| eprintln!("   {mark}{line}"));
            })?;
            ensure!(
                code == 0,
                "the hosts could not be set up; logs are in {}",
                share_dir(&self.workspace).join("log").display()
            );
            Ok(())
        })?;
        self.state.is_complete = true;
        self.state.save(&self.workspace)
    }

    /// Takes the lab down: nothing of it is left running.
    ///
    /// # Errors
    /// When a process does not end.
    pub(crate) fn end(&self) -> Result<()> {
        self.state.end(&self.workspace)
    }

    /// Directory with the logs of everything in the lab, as this machine sees it.
    pub(crate) fn log_dir(&self) -> PathBuf {
        share_dir(&self.workspace).join("log")
    }

    /// Hosts besides the client.
    pub(crate) fn hosts(&self) -> u8 {
        self.state.hosts
    }

    /// What the lab runs on, for people.
    pub(crate) fn ground(&self) -> &'static str {
        match self.state.ground {
            Ground::Kvm => "a virtual machine (KVM)",
            Ground::Tcg => "a virtual machine (emulated)",
            Ground::Native => "this machine's own kernel",
        }
    }

    fn request(&self, host: Option<&str>, argv: &[&str], options: &ExecOptions) -> Request {
        Request {
            token: self.state.token.clone(),
            argv: argv.iter().map(ToString::to_string).collect(),
            host: host.map(str::to_string),
            env: options.env.clone(),
            directory: options.directory.clone(),
            terminal: None,
        }
    }

    /// Runs a command on a host (`h1` .., `client`; `None` for the lab's first namespace) to its
    /// end, with its output captured.
    ///
    /// # Errors
    /// When the lab refuses it or goes away. Its exit code is for the caller, see
    /// [`Output::success`].
    pub(crate) fn exec(
        &self,
        host: Option<&str>,
        argv: &[&str],
        options: ExecOptions,
    ) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let code = self.stream(host, argv, options, |is_error, bytes| {
            if is_error { &mut stderr } else { &mut stdout }.extend_from_slice(bytes);
        })?;
        Ok(Output {
            command: argv.join(" "),
            code,
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        })
    }

    /// Runs a command as [`Lab::exec`] does, and hands on its output as it comes: `true` marks
    /// standard error. Returns its exit code.
    ///
    /// # Errors
    /// When the lab refuses it or goes away.
    pub(crate) fn stream(
        &self,
        host: Option<&str>,
        argv: &[&str],
        options: ExecOptions,
        on_output: impl FnMut(bool, &[u8]),
    ) -> Result<i32> {
        let session = Session::start(&self.state.endpoint, self.request(host, argv, &options))?;
        let mut sender = session.sender()?;
        thread::spawn(move || {
            // A command that ends before it has read everything closes the way.
            for piece in options.stdin.chunks(swarm_lab::wire::MAX_DATA_BYTES) {
                if sender.send(&Frame::Stdin(piece.to_vec())).is_err() {
                    return;
                }
            }
            sender.send(&Frame::StdinEnd).ok();
        });
        session.follow(on_output).map_err(|error| self.lost(error))
    }

    /// Whether this was a virtual machine that has ended.
    pub(crate) fn is_gone(&self) -> bool {
        self.state.ground != Ground::Native && !self.state.is_running()
    }

    /// Adds the end of the console to an error, where the virtual machine is no more: a panic of its
    /// kernel is told nowhere else, and the next boot begins another console.
    fn lost(&self, error: anyhow::Error) -> anyhow::Error {
        let started = Instant::now();
        while !self.is_gone() && started.elapsed() < END_OF_MACHINE {
            thread::sleep(Duration::from_millis(20));
        }
        if !self.is_gone() {
            return error;
        }
        let kept = self.workspace.log("console-of-the-last-lost-lab");
        let (console, qemu) = (self.workspace.log("console"), self.workspace.log("qemu"));
        fs::copy(&console, &kept).ok();
        error.context(format!(
            "the lab's virtual machine is gone; the ends of {} and {}:\n{}\n{}",
            kept.display(),
            qemu.display(),
            tail(&console, SHOWN_CONSOLE_LINES).join("\n"),
            tail(&qemu, SHOWN_QEMU_LINES).join("\n"),
        ))
    }
}

impl std::ops::Deref for Borrowed {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if self.lab.was_started_here && !self.keep {
            let down = || self.lab.end();
            if let Err(error) = step("taking the lab down", None, down) {
                eprintln!("{error:#}");
            }
        }
    }
}

/// The directory that both sides see.
fn share_dir(workspace: &Workspace) -> PathBuf {
    workspace.lab_dir().join("share")
}

/// Keeps any other xtask from bringing up a lab of this checkout, until dropped.
fn lock(workspace: &Workspace) -> Result<fs::File> {
    fs::create_dir_all(workspace.lab_dir())?;
    let file = fs::File::create(workspace.lab_dir().join("lock"))?;
    if file.try_lock().is_err() {
        eprintln!("another xtask is bringing up the lab of this checkout: waiting for it");
        file.lock()?;
    }
    Ok(file)
}

/// Until dropped, a signal takes down the lab that is just being set up.
fn down_on_signal(workspace: &Workspace) -> interrupt::Registration {
    let workspace = workspace.clone();
    interrupt::on_signal(move |_| {
        if let Some(state) = State::load(&workspace) {
            state.end(&workspace).ok();
        }
        Verdict::End
    })
}

/// 128 random bits, in hexadecimal.
fn token() -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A file that only its owner can read.
fn write_private(path: &std::path::Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    fs::remove_file(path).ok();
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match file.and_then(|mut file| file.write_all(bytes)) {
        Ok(()) => Ok(()),
        Err(error) => bail!("cannot write {}: {error}", path.display()),
    }
}
