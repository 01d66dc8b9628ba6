//! The lab as a test sees it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use std::os::unix::process::CommandExt;

use crate::agent::Agent;
use crate::command::{DEFAULT_DEADLINE, Output, run};
use crate::image::WebAnswer;
use crate::swarm::TaskRow;
use crate::topology::{CLIENT, Node, Topology};

/// How long one request from a test may take.
const REQUEST_DEADLINE_S: &str = "5";

/// The lab that this process runs in.
#[derive(Debug)]
pub struct Lab {
    hosts: Vec<Host>,
    client: Host,
}

/// One host of the lab, or the client.
#[derive(Debug, Clone)]
pub struct Host {
    node: Node,
}

/// A command left running on a host; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Lab {
    /// The lab that is up here, as it is.
    ///
    /// # Errors
    /// When none is up.
    pub fn attach() -> Result<Self> {
        let topology = Topology::load()?;
        let client = Host {
            node: topology.host(CLIENT)?.clone(),
        };
        let hosts = topology
            .agents()
            .map(|node| Host { node: node.clone() })
            .collect();
        Ok(Self { hosts, client })
    }

    /// The lab that is up here, every host made anew, every agent freshly started and in no swarm.
    ///
    /// # Errors
    /// When none is up, or something of the last swarm cannot be removed.
    pub fn fresh() -> Result<Self> {
        let lab = Self::attach()?;
        for host in &lab.hosts {
            host.replace()?;
        }
        for host in &lab.hosts {
            host.agent().start()?;
        }
        Ok(lab)
    }

    /// The hosts with agents, `h1` first.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Host `h<number>`.
    ///
    /// # Panics
    /// When the lab has fewer hosts.
    #[must_use]
    pub fn host(&self, number: usize) -> &Host {
        &self.hosts[number - 1]
    }

    /// The client: on the underlay, in no swarm.
    #[must_use]
    pub fn client(&self) -> &Host {
        &self.client
    }
}

impl Host {
    /// `h1` .. `hN` or `client`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.node.name
    }

    /// Where it is in the lab.
    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    /// Its address on the underlay.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.node.address
    }

    /// Its IPv6 address on the underlay.
    #[must_use]
    pub fn address6(&self) -> std::net::Ipv6Addr {
        self.node.address6
    }

    /// Both.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.address().into(), self.address6().into()]
    }

    /// Its agent (of a host, not of the client).
    #[must_use]
    pub fn agent(&self) -> Agent {
        Agent::of(&self.node)
    }

    /// Makes it another machine of the same name and address: nothing of its agent is left, and none
    /// runs.
    ///
    /// # Errors
    /// When something of what it was cannot be removed.
    pub fn replace(&self) -> Result<()> {
        self.agent().erase()?;
        self.node.delete()?;
        self.node.create()
    }

    /// Runs a command on it to the end, for a minute at most.
    ///
    /// # Errors
    /// When it cannot be started or does not end in time. Its exit code is for the caller.
    pub fn exec(&self, argv: &[&str]) -> Result<Output> {
        self.exec_within(DEFAULT_DEADLINE, argv)
    }

    /// Runs a command on it to the end, for that long at most.
    ///
    /// # Errors
    /// As [`Host::exec`].
    pub fn exec_within(&self, deadline: Duration, argv: &[&str]) -> Result<Output> {
        run(&mut self.command(argv)?, b"", deadline)
    }

    /// Starts a command on it and leaves it running, its output dropped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, argv: &[&str]) -> Result<Running> {
        let mut command = self.command(argv)?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.process_group(0).spawn();
        Ok(Running {
            child: child.with_context(|| format!("cannot run {argv:?}"))?,
        })
    }

    /// A command in its namespaces.
    ///
    /// # Errors
    /// When `argv` is empty.
    pub(crate) fn command(&self, argv: &[&str]) -> Result<Command> {
        let (program, arguments) = argv.split_first().context("nothing to run")?;
        let mut command = self.node.command(program);
        command.args(arguments);
        Ok(command)
    }

    /// Runs `swarmctl` against its agent.
    ///
    /// # Errors
    /// As [`Host::exec`].
    pub fn swarmctl(&self, arguments: &[&str]) -> Result<Output> {
        self.exec(&[&["swarmctl"], arguments].concat())
    }

    /// Names of its agent's network namespaces that begin so.
    #[must_use]
    pub fn namespaces(&self, prefix: &str) -> Vec<String> {
        let entries = fs::read_dir(self.agent().run_dir().join("netns"));
        let names = entries
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.starts_with(prefix)).collect()
    }

    /// Runs a command in the network namespace of a task that runs on it.
    ///
    /// # Errors
    /// When the task has no namespace here, or the command fails or does not end in time.
    pub fn exec_in_task(&self, task: &TaskRow, argv: &[&str]) -> Result<String> {
        let names = self.namespaces(&format!("task-{}", task.id));
        let name = names.first().context("the task has no namespace here")?;
        let netns = self.agent().run_dir().join("netns").join(name);
        let enter = format!("--net={}", netns.display());
        self.exec(&[&["nsenter", &enter], argv].concat())?.success()
    }

    /// A task's IPv4 address on an interface, where it runs.
    ///
    /// # Errors
    /// As [`Host::exec_in_task`], and when it has none there.
    pub fn address_in_task(&self, task: &TaskRow, interface: &str) -> Result<Ipv4Addr> {
        let show = ["ip", "-4", "-o", "addr", "show", interface];
        let text = self.exec_in_task(task, &show)?;
        let mut words = text.split_whitespace().skip_while(|word| *word != "inet");
        let net = words.nth(1).context("no address")?;
        let address = net.split('/').next().unwrap_or(net);
        address.parse().with_context(|| text.clone())
    }

    /// Asks `http://<target>:<port>/` on a connection of its own.
    ///
    /// # Errors
    /// When no answer of a `web` task comes within 5 s.
    pub fn ask_web(&self, target: &Host, port: u16) -> Result<WebAnswer> {
        self.ask_web_at((target.address(), port).into())
    }

    /// Asks `http://<at>/` on a connection of its own.
    ///
    /// # Errors
    /// As [`Host::ask_web`].
    pub fn ask_web_at(&self, at: SocketAddr) -> Result<WebAnswer> {
        let url = format!("http://{at}/");
        let curl = ["curl", "-sSf", "--max-time", REQUEST_DEADLINE_S, &url];
        self.exec(&curl)?.success()?.parse()
    }

    /// Sends a datagram to `<target>:<port>` and reads the answer.
    ///
    /// # Errors
    /// When no answer of a `web` task comes within 5 s.
    pub fn ask_udp(&self, target: &Host, port: u16) -> Result<WebAnswer> {
        self.ask_udp_at((target.address(), port).into(), 2)
    }

    /// Sends a datagram of `length` bytes and reads an answer of the same length, or of a line's.
    ///
    /// # Errors
    /// As [`Host::ask_udp`].
    pub fn ask_udp_at(&self, at: SocketAddr, length: usize) -> Result<WebAnswer> {
        let version = if at.is_ipv4() { 4 } else { 6 };
        let script = format!(
            "head -c {length} /dev/zero \
             | socat -b 65536 -t {REQUEST_DEADLINE_S} - udp{version}:{at},shut-none | head -1"
        );
        self.exec(&["sh", "-c", &script])?.success()?.parse()
    }

    /// Pulls its cable (`false`) or plugs it in again.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn set_link(&self, is_up: bool) -> Result<()> {
        self.node.set_link(is_up)
    }
}

impl Running {
    /// Whether it has not ended yet.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::killpg(group, Signal::SIGKILL).ok();
        self.child.wait().ok();
    }
}
