//! The floor: the client routes to the task's own address through the first host, which forwards
//! into a VXLAN. Nothing balances, nothing tracks connections, every neighbour and forwarding
//! entry is static, and replies come back the same way.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{System, Target, exists, extra_host, on, remove_cgroup};
use crate::command::{DEFAULT_DEADLINE, must, run};
use crate::services::{REGISTRY_CERTIFICATE, registry};
use crate::topology::{CLIENT, Node, Topology};

/// Network namespace, container and containerd namespace of the task.
const TASK: &str = "bench-task";

const SUBNET: &str = "10.98.0.0/16";
const GATEWAY: &str = "10.98.0.1";
const TASK_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 2);
const GATEWAY_MAC: &str = "02:42:0a:62:00:01";
const TASK_MAC: &str = "02:42:0a:62:00:02";

/// That of the underlay less the 50 bytes of a VXLAN header, as the other two have it.
const MTU: u16 = 1450;

fn hosts() -> [Node; 2] {
    [extra_host("p1", 211), extra_host("p2", 212)]
}

/// Lays out both hosts and starts the task.
///
/// # Errors
/// When a tool refuses a step.
pub(super) fn set_up() -> Result<Target> {
    let [first, second] = hosts();
    for (own, other, mac) in [(&first, &second, TASK_MAC), (&second, &first, GATEWAY_MAC)] {
        own.create()?;
        on(own, "ip", &["-batch", "-"], &overlay_plan(own))?;
        on(own, "bridge", &["-batch", "-"], &fdb_plan(mac, other))?;
        // The filters of IP do not belong on a bridge that only forwards.
        on(
            own,
            "sysctl",
            &["-qw", "net.bridge.bridge-nf-call-iptables=0"],
            "",
        )?;
    }
    on(&first, "ip", &["-batch", "-"], &gateway_plan())?;
    on(&first, "sysctl", &["-qw", "net.ipv4.ip_forward=1"], "")?;
    must("ip", &["netns", "add", TASK])?;
    on(&second, "ip", &["-batch", "-"], &cable_plan())?;
    run(
        Command::new("ip").args(["-n", TASK, "-batch", "-"]),
        inside_plan().as_bytes(),
        DEFAULT_DEADLINE,
    )?
    .success()?;
    let fdb = format!("fdb add {TASK_MAC} dev t0 master static\n");
    on(&second, "bridge", &["-batch", "-"], &fdb)?;
    let client = Topology::load()?.host(CLIENT)?.clone();
    let via = first.address.to_string();
    on(
        &client,
        "ip",
        &["route", "replace", SUBNET, "via", &via],
        "",
    )?;
    start_task()?;
    Ok(Target {
        system: System::Plain,
        address: TASK_ADDRESS,
        web_port: 80,
        stream_port: 5201,
    })
}

/// Removes what [`set_up`] made, all or half of it.
///
/// # Errors
/// When something that is there cannot be removed.
pub(super) fn remove() -> Result<()> {
    let ctr = |words: &[&str]| must("ctr", &[&["--namespace", TASK], words].concat());
    if ctr(&["tasks", "list", "--quiet"])?.contains(TASK) {
        ctr(&["tasks", "delete", "--force", TASK])?;
    }
    if ctr(&["containers", "list", "--quiet"])?.contains(TASK) {
        ctr(&["containers", "delete", TASK])?;
    }
    if Path::new("/run/netns").join(TASK).exists() {
        must("ip", &["netns", "del", TASK])?;
    }
    let client = Topology::load()?.host(CLIENT)?.clone();
    if !on(&client, "ip", &["route", "show", SUBNET], "")?.is_empty() {
        on(&client, "ip", &["route", "del", SUBNET], "")?;
    }
    for host in hosts().iter().filter(|host| exists(host)) {
        host.delete()?;
    }
    // containerd puts its containers below a group of its namespace's name.
    remove_cgroup(TASK)
}

/// The same image as the other two run, in a container as bare as theirs.
fn start_task() -> Result<()> {
    let image = format!("{}/web:latest", registry());
    let ctr = |words: &[&str]| must("ctr", &[&["--namespace", TASK], words].concat());
    ctr(&[
        "images",
        "pull",
        "--tlscacert",
        REGISTRY_CERTIFICATE,
        &image,
    ])?;
    let network = format!("network:/run/netns/{TASK}");
    ctr(&[
        "run",
        "--detach",
        "--null-io",
        "--with-ns",
        &network,
        &image,
        TASK,
    ])
    .map(drop)
}

fn overlay_plan(own: &Node) -> String {
    let local = own.address;
    format!(
        "link add br0 mtu {MTU} type bridge\n\
         link add vx0 mtu {MTU} type vxlan id 4242 dstport 4789 local {local} nolearning noudpcsum\n\
         link set vx0 master br0\n\
         link set vx0 type bridge_slave learning off flood off\n\
         link set br0 up\n\
         link set vx0 up\n"
    )
}

fn fdb_plan(mac: &str, behind: &Node) -> String {
    let address = behind.address;
    format!(
        "fdb add {mac} dev vx0 self dst {address}\n\
         fdb add {mac} dev vx0 master static\n"
    )
}

fn gateway_plan() -> String {
    format!(
        "link set br0 address {GATEWAY_MAC}\n\
         addr add {GATEWAY}/16 dev br0\n\
         neigh add {TASK_ADDRESS} lladdr {TASK_MAC} dev br0 nud permanent\n"
    )
}

fn cable_plan() -> String {
    format!(
        "link add t0 mtu {MTU} type veth peer name eth0 address {TASK_MAC} mtu {MTU} netns {TASK}\n\
         link set t0 master br0\n\
         link set t0 type bridge_slave learning off flood off\n\
         link set t0 up\n"
    )
}

fn inside_plan() -> String {
    format!(
        "link set lo up\n\
         addr add {TASK_ADDRESS}/16 dev eth0\n\
         link set eth0 up\n\
         neigh add {GATEWAY} lladdr {GATEWAY_MAC} dev eth0 nud permanent\n\
         route add default via {GATEWAY}\n"
    )
}
