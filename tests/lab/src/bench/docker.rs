//! The peer: two Docker Engines as two hosts, a swarm of both, the service published through the
//! routing mesh and its task on the second.
//!
//! Each engine has its own network, mount and process namespaces, so that two of them fit under
//! one kernel and all that one started ends with it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::{System, Target, exists, extra_host, remove_cgroup};
use crate::command::run;
use crate::daemon::Daemon;
use crate::services::registry;
use crate::topology::Node;
use crate::{RUN_DIR, wait_until};

/// An engine is there within ten seconds; emulation on a loaded machine takes ten times that.
const START_DEADLINE: Duration = Duration::from_secs(180);

/// Pulling the image and starting the task takes twenty; as generous.
const SERVICE_DEADLINE: Duration = Duration::from_secs(300);

/// How long the namespaces of an engine may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// The service's name.
const SERVICE: &str = "bench";

/// Cgroup below which both engines keep their containers.
const CGROUP: &str = "docker";

/// Runs as the first process of the engine's namespaces, `$1` being its socket, `$2` the registry.
/// No system call filter: neither of the other two has one, and it is not what is measured.
const START: &str = r#"set -e
mkdir -p /run/containerd /run/docker
for directory in /var/lib/docker /var/lib/containerd /run/containerd /run/docker; do
    mount -t tmpfs docker $directory
done
dockerd --host "unix://$1" --pidfile /run/docker/dockerd.pid --log-level warn \
    --storage-driver overlay2 --seccomp-profile unconfined --insecure-registry "$2"
"#;

fn hosts() -> [Node; 2] {
    [extra_host("d1", 201), extra_host("d2", 202)]
}

fn daemon(node: &Node) -> Daemon {
    Daemon::named(format!("docker-{}", node.name))
}

fn socket(node: &Node) -> String {
    format!("{RUN_DIR}/docker-{}.sock", node.name)
}

/// Starts both engines, makes a swarm of them and creates the service.
///
/// # Errors
/// When a step fails: the message has the end of the engine's log, or what the command printed.
pub(super) fn set_up() -> Result<Target> {
    let [first, second] = start()?;
    let constraint = format!("node.hostname=={}", second.name);
    let options = [
        "--constraint",
        &constraint,
        "--publish",
        "8080:80",
        "--publish",
        "5201:5201",
    ];
    create(&first, &options, "web:latest")?;
    Ok(Target {
        system: System::Docker,
        address: first.address,
        web_port: 8080,
        stream_port: 5201,
    })
}

/// Starts both engines and makes a swarm of them; gives its hosts, the manager's first.
///
/// # Errors
/// As [`set_up`].
pub(super) fn start() -> Result<[Node; 2]> {
    let [first, second] = hosts();
    for node in [&first, &second] {
        node.create()?;
        let mut command = node.command("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["sh", "-c", START, "sh", &socket(node), &registry()]);
        daemon(node).start(&mut command)?;
    }
    for node in [&first, &second] {
        daemon(node).wait_ready(START_DEADLINE, || docker(node, &["version"]).map(drop))?;
    }
    let address = first.address.to_string();
    docker(&first, &["swarm", "init", "--advertise-addr", &address])?;
    let token = docker(&first, &["swarm", "join-token", "--quiet", "worker"])?;
    let own = second.address.to_string();
    let manager = format!("{address}:2377");
    docker(
        &second,
        &[
            "swarm",
            "join",
            "--advertise-addr",
            &own,
            "--token",
            token.trim(),
            &manager,
        ],
    )?;
    Ok([first, second])
}

/// Creates the service of an image of the lab's registry and waits until it runs.
///
/// # Errors
/// When it does not: the message says where the engine's log is.
pub(super) fn create(manager: &Node, options: &[&str], image: &str) -> Result<()> {
    let image = format!("{}/{image}", registry());
    let mut arguments = vec!["service", "create", "--quiet", "--name", SERVICE];
    arguments.extend(options);
    arguments.push(&image);
    docker(manager, &arguments)
        .with_context(|| format!("logs: {} and its like", daemon(manager).log().display()))?;
    Ok(())
}

/// Replaces the service's tasks by those of another image, one by one, and waits for the last.
///
/// # Errors
/// When it does not come to that: the message has the state of the update and the tasks.
pub(super) fn update(manager: &Node, image: &str) -> Result<()> {
    let image = format!("{}/{image}", registry());
    let arguments = ["service", "update", "--detach", "--image", &image, SERVICE];
    docker(manager, &arguments)?;
    wait_until(SERVICE_DEADLINE, "the update is complete", || {
        let inspect = ["service", "inspect", "--format", "{{json .}}", SERVICE];
        let service = docker(manager, &inspect)?;
        let service: serde_json::Value = serde_json::from_str(&service)?;
        let is_new = service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
            .as_str()
            .is_some_and(|of| of.starts_with(&image));
        let status = &service["UpdateStatus"];
        if !is_new || status["State"] != "completed" {
            let tasks = docker(manager, &["service", "ps", "--no-trunc", SERVICE])?;
            bail!("{status}\n{tasks}");
        }
        Ok(())
    })
}

/// Ends both engines with everything in them.
///
/// # Errors
/// When an engine does not end or its host cannot be removed.
pub(super) fn remove() -> Result<()> {
    for node in hosts() {
        // Its end takes the process namespace and so every container with it.
        daemon(&node).end(Signal::SIGKILL, STOP_DEADLINE)?;
        fs::remove_file(socket(&node)).ok();
        if exists(&node) {
            node.delete()?;
        }
    }
    remove_cgroup(CGROUP)
}

fn docker(node: &Node, arguments: &[&str]) -> Result<String> {
    let mut command = node.command("docker");
    command.args(["--host", &format!("unix://{}", socket(node))]);
    run(command.args(arguments), b"", SERVICE_DEADLINE)?.success()
}
