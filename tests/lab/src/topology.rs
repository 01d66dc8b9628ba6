//! Hosts and a client on one bridge, each a network namespace (and a host name) of one kernel.
//!
//! ```text
//!   underlay 10.99.0.254/24, fd00:99::fe/64   (the lab's first namespace: registry, containerd)
//!      |u-h1        |u-h2       ...      |u-client
//!   h1 eth0      h2 eth0              client eth0
//!   10.99.0.1    10.99.0.2            10.99.0.100
//! ```

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::RUN_DIR;
use crate::command::{DEFAULT_DEADLINE, must, run};

/// Most hosts of one lab: their addresses stay below the client's.
pub const MAX_HOSTS: u8 = 50;

/// Name of the host that has no agent and only asks.
pub const CLIENT: &str = "client";

/// Address of the lab's first namespace on the underlay: default route of all, and the registry.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 254);

const BRIDGE: &str = "underlay";
const GATEWAY_OCTET: u8 = 254;
const CLIENT_OCTET: u8 = 100;

/// Which hosts exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// `h1` .. `hN`, then the client.
    pub hosts: Vec<Node>,
}

/// One network namespace with an address on the underlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `h1` .. `hN` or `client`.
    pub name: String,
    /// Address of its `eth0`, in 10.99.0.0/24.
    pub address: Ipv4Addr,
    /// Address of its `eth0`, in fd00:99::/64.
    pub address6: Ipv6Addr,
}

impl Topology {
    /// A client and that many hosts.
    ///
    /// # Errors
    /// When the number is 0 or above [`MAX_HOSTS`].
    pub fn of(hosts: u8) -> Result<Self> {
        ensure!(
            (1..=MAX_HOSTS).contains(&hosts),
            "a lab has 1 to {MAX_HOSTS} hosts, not {hosts}"
        );
        let mut nodes: Vec<Node> = (1..=hosts)
            .map(|number| Node::at(format!("h{number}"), number))
            .collect();
        nodes.push(Node::at(CLIENT.into(), CLIENT_OCTET));
        Ok(Self { hosts: nodes })
    }

    fn file() -> PathBuf {
        Path::new(RUN_DIR).join("topology.json")
    }

    /// The topology of the lab this runs in.
    ///
    /// # Errors
    /// When this is no lab, or it is not up yet.
    pub fn load() -> Result<Self> {
        let bytes = fs::read(Self::file()).context("no lab is up here (`cargo xtask lab up`)")?;
        serde_json::from_slice(&bytes).context("cannot read the lab's topology")
    }

    /// The host of that name.
    ///
    /// # Errors
    /// When there is none; the message lists those there are.
    pub fn host(&self, name: &str) -> Result<&Node> {
        self.hosts
            .iter()
            .find(|node| node.name == name)
            .with_context(|| {
                let names: Vec<&str> = self.hosts.iter().map(|node| node.name.as_str()).collect();
                format!("the lab has no host {name}, only {}", names.join(", "))
            })
    }

    /// The hosts that run an agent: all but the client.
    pub fn agents(&self) -> impl Iterator<Item = &Node> {
        self.hosts.iter().filter(|node| node.name != CLIENT)
    }

    /// Lays out the bridge and every host, and remembers that they exist.
    ///
    /// # Errors
    /// When `ip` refuses a step; the message is its own.
    pub fn create(&self) -> Result<()> {
        ip_batch(&[], &bridge_plan())?;
        sysctl(
            None,
            &[
                ("net.ipv4.ip_forward", "1"),
                ("net.ipv6.conf.all.forwarding", "1"),
            ],
        )?;
        for node in &self.hosts {
            node.create()?;
        }
        fs::create_dir_all(RUN_DIR)?;
        fs::write(Self::file(), serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }
}

impl Node {
    fn at(name: String, octet: u8) -> Self {
        let segments = [0xfd00, 0x99, 0, 0, 0, 0, 0, u16::from(octet)];
        Self {
            name,
            address: Ipv4Addr::new(10, 99, 0, octet),
            address6: Ipv6Addr::from(segments),
        }
    }

    /// Name of the bridge's side of its cable.
    fn cable(&self) -> String {
        format!("u-{}", self.name)
    }

    fn host_name_file(&self) -> String {
        format!("/run/utsns/{}", self.name)
    }

    /// The words that put a command into this host's namespaces. Not `ip netns exec`: that mounts
    /// another /sys, without cgroups.
    #[must_use]
    pub fn enter(&self) -> Vec<String> {
        vec![
            "nsenter".into(),
            format!("--net=/run/netns/{}", self.name),
            format!("--uts={}", self.host_name_file()),
            "--".into(),
        ]
    }

    /// A command in this host's namespaces, with what the search path and the swarm tools need.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let words = self.enter();
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .arg(program)
            .env("PATH", crate::SEARCH_PATH)
            .env("SWARM_RUN_DIR", format!("/run/swarm/{}", self.name));
        command
    }

    /// Makes its namespaces, its cable to the bridge, addresses and routes.
    ///
    /// # Errors
    /// When a tool refuses a step.
    pub fn create(&self) -> Result<()> {
        ip_batch(&[], &self.cable_plan())?;
        ip_batch(&["-n", &self.name], &self.inside_plan())?;
        fs::create_dir_all("/run/utsns")?;
        let file = self.host_name_file();
        if !Path::new(&file).exists() {
            fs::write(&file, "")?;
            must(
                "unshare",
                &[&format!("--uts={file}"), "hostname", &self.name],
            )?;
        }
        // A new namespace takes its value from the first one, where containers' hosts need 1. A
        // real host starts with 0, and what needs more has to say so.
        sysctl(
            Some(self),
            &[
                ("net.ipv4.ip_forward", "0"),
                ("net.ipv6.conf.all.forwarding", "0"),
            ],
        )?;
        Ok(())
    }

    /// Removes its network namespace with everything in it.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn delete(&self) -> Result<()> {
        // The cable first: a process left in the namespace keeps that, and with it the name, alive.
        must("ip", &["link", "del", &self.cable()]).ok();
        must("ip", &["netns", "del", &self.name]).map(drop)
    }

    /// Plugs or pulls its cable: with `false` nothing reaches the host or leaves it.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn set_link(&self, is_up: bool) -> Result<()> {
        let state = if is_up { "up" } else { "down" };
        must("ip", &["link", "set", &self.cable(), state]).map(drop)
    }

    fn cable_plan(&self) -> String {
        let (name, cable) = (&self.name, self.cable());
        format!(
            "netns add {name}\n\
             link add {cable} type veth peer name eth0 netns {name}\n\
             link set {cable} master {BRIDGE}\n\
             link set {cable} up\n"
        )
    }

    fn inside_plan(&self) -> String {
        let Self {
            address, address6, ..
        } = self;
        let gateway6 = gateway6();
        format!(
            "link set lo up\n\
             addr add {address}/24 dev eth0\n\
             addr add {address6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {GATEWAY}\n\
             route add ::/0 via {gateway6}\n"
        )
    }
}

fn gateway6() -> Ipv6Addr {
    Node::at(String::new(), GATEWAY_OCTET).address6
}

fn bridge_plan() -> String {
    let gateway6 = gateway6();
    format!(
        "link add {BRIDGE} type bridge\n\
         addr add {GATEWAY}/24 dev {BRIDGE}\n\
         addr add {gateway6}/64 dev {BRIDGE} nodad\n\
         link set {BRIDGE} up\n"
    )
}

fn ip_batch(options: &[&str], plan: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(options).args(["-batch", "-"]);
    run(&mut command, plan.as_bytes(), DEFAULT_DEADLINE)?
        .success()
        .map(drop)
}

fn sysctl(node: Option<&Node>, values: &[(&str, &str)]) -> Result<()> {
    let mut command = match node {
        Some(node) => node.command("sysctl"),
        None => Command::new("sysctl"),
    };
    command
        .arg("-qw")
        .args(values.iter().map(|(name, value)| format!("{name}={value}")));
    run(&mut command, b"", DEFAULT_DEADLINE)?
        .success()
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_count_up_and_the_client_comes_last() {
        let topology = Topology::of(3).unwrap();
        let names: Vec<&str> = topology
            .hosts
            .iter()
            .map(|node| node.name.as_str())
            .collect();
        assert_eq!(names, ["h1", "h2", "h3", "client"]);
        assert_eq!(
            topology.host("h2").unwrap().address,
            Ipv4Addr::new(10, 99, 0, 2)
        );
        assert_eq!(
            topology.host("client").unwrap().address6.to_string(),
            "fd00:99::64"
        );
        assert_eq!(topology.agents().count(), 3);
        let error = topology.host("h4").unwrap_err().to_string();
        assert!(error.contains("h1, h2, h3, client"), "{error}");
    }

    #[test]
    fn too_few_and_too_many_hosts_are_refused() {
        assert!(Topology::of(0).is_err());
        assert!(Topology::of(MAX_HOSTS).is_ok());
        assert!(Topology::of(MAX_HOSTS + 1).is_err());
    }

    #[test]
    fn no_two_nodes_share_an_address() {
        let topology = Topology::of(MAX_HOSTS).unwrap();
        let mut addresses: Vec<Ipv4Addr> = topology.hosts.iter().map(|node| node.address).collect();
        addresses.push(GATEWAY);
        let count = addresses.len();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), count);
    }
}
