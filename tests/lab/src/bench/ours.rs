//! Ours: the lab's agents in a swarm, the service published through the mesh on every host and its
//! task on the second.

use anyhow::{Result, ensure};

use super::{System, Target};
use crate::{Lab, Swarm};

/// The service's name.
pub(super) const SERVICE: &str = "bench";

/// Makes a swarm of the lab's hosts, as they are after `lab up`, and creates the service.
///
/// # Errors
/// When the swarm or the service does not come up.
pub(super) fn set_up() -> Result<Target> {
    let swarm = Swarm::fresh()?;
    let (first, second) = (swarm.lab.host(1), swarm.lab.host(2));
    let constraint = format!("node.hostname=={}", second.name());
    let options = [
        "-p",
        "8080:80",
        "-p",
        "5201:5201",
        "--constraint",
        &constraint,
    ];
    swarm.create_web(SERVICE, 1, &options)?;
    swarm.wait_running(SERVICE, 1)?;
    let hosts = swarm.hosts_of(SERVICE)?;
    ensure!(
        hosts.iter().eq([second.name()]),
        "the task runs on {hosts:?} and not on {}",
        second.name()
    );
    Ok(Target {
        system: System::Ours,
        address: first.address(),
        web_port: 8080,
        stream_port: 5201,
    })
}

/// Leaves the hosts as `lab up` does: agents running, in no swarm. Nothing to do in a lab without
/// agents.
///
/// # Errors
/// When something of the swarm cannot be removed.
pub(super) fn remove() -> Result<()> {
    let has_agents = |lab: &Lab| lab.hosts().iter().any(|host| host.agent().pid().is_some());
    if has_agents(&Lab::attach()?) {
        Lab::fresh()?;
    }
    Ok(())
}
