//! Names as tasks see them. One swarm for all tests here; they run one after another.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use swarm_lab::{Host, Output, Swarm, wait_until};

/// For what follows a change within seconds on real machines.
const DEADLINE: Duration = Duration::from_secs(60);

/// The swarm with networks `back` and `front`, service `web` with three tasks on `back`, and a task
/// of `asker` on both, of `stranger` on `front`.
fn swarm() -> MutexGuard<'static, Swarm> {
    static SWARM: OnceLock<Mutex<Swarm>> = OnceLock::new();
    let swarm = SWARM.get_or_init(|| {
        let swarm = Swarm::fresh().expect("a swarm");
        for network in ["back", "front"] {
            swarm
                .swarmctl(&["network", "create", network])
                .expect("a network");
        }
        for (service, replicas, networks) in [
            ("web", 3, &["--network", "name=back,alias=www"][..]),
            // Not beside the manager, which one test stops.
            (
                "asker",
                1,
                &[
                    "--network",
                    "front",
                    "--network",
                    "back",
                    "--constraint",
                    "node.role==worker",
                ],
            ),
            ("stranger", 1, &["--network", "front"]),
        ] {
            swarm
                .create_web(service, replicas, networks)
                .expect("a service");
        }
        Mutex::new(swarm)
    });
    let swarm = swarm.lock().unwrap_or_else(PoisonError::into_inner);
    swarm.wait_ready().expect("every node ready");
    for (service, count) in [("web", 3), ("asker", 1), ("stranger", 1)] {
        swarm.wait_running(service, count).expect("running tasks");
    }
    swarm
}

/// A task's inside.
struct Inside<'a> {
    host: &'a Host,
    task: String,
}

impl<'a> Inside<'a> {
    /// The one task of a service.
    fn of(swarm: &'a Swarm, service: &str) -> Result<Self> {
        let task = swarm.wait_running(service, 1)?.remove(0);
        let mut hosts = swarm.lab.hosts().iter();
        let host = hosts.find(|host| host.name() == task.node);
        Ok(Self {
            host: host.with_context(|| format!("no host {}", task.node))?,
            task: task.id,
        })
    }

    /// Runs a command in the task's container.
    fn exec(&self, argv: &[&str]) -> Result<Output> {
        let namespace = self.host.agent().containerd_namespace();
        let list = ["ctr", "--namespace", &namespace, "task", "ls"];
        let list = self.host.exec(&list)?.success()?;
        let line = list.lines().find(|line| line.starts_with(&self.task));
        let pid = line.and_then(|line| line.split_whitespace().nth(1));
        let pid = pid.with_context(|| format!("no task {} in {list}", self.task))?;
        let enter = ["nsenter", "-t", pid, "-m", "-n", "-u", "--"];
        self.host.exec(&[&enter, argv].concat())
    }

    /// The addresses of a name, as the task's own tools find them.
    fn addresses(&self, name: &str) -> Result<BTreeSet<Ipv4Addr>> {
        let output = self.exec(&["nslookup", "-type=a", name])?.success()?;
        let answer = output.split("Name:").skip(1);
        let addresses = answer.flat_map(str::lines);
        Ok(addresses
            .filter_map(|line| line.strip_prefix("Address")?.split_whitespace().last())
            .filter_map(|word| word.parse().ok())
            .collect())
    }
}

/// What the manager says of `web` on `back`: its virtual address, and its tasks' addresses.
fn told(swarm: &Swarm) -> Result<(Ipv4Addr, BTreeSet<Ipv4Addr>)> {
    let text = swarm.swarmctl(&["network", "inspect", "--verbose", "back"])?;
    let networks: Value = serde_json::from_str(&text)?;
    let web = &networks[0]["services"]["web"];
    let address = |value: &Value| {
        let text = value
            .as_str()
            .with_context(|| format!("no address in {web}"))?;
        Ok::<_, anyhow::Error>(text.parse::<Ipv4Addr>()?)
    };
    let tasks = web["tasks"].as_array().context("no tasks")?;
    let running = tasks.iter().filter(|task| task["state"] == "running");
    let tasks = running.map(|task| address(&task["address"]));
    Ok((address(&web["vip"])?, tasks.collect::<Result<_>>()?))
}

#[test]
fn names_are_what_network_inspect_says() {
    let swarm = swarm();
    let asker = Inside::of(&swarm, "asker").unwrap();
    let (vip, tasks) = told(&swarm).unwrap();
    assert_eq!(tasks.len(), 3);
    wait_until(DEADLINE, "all tasks are named", || {
        let named = asker.addresses("tasks.web")?;
        ensure!(named == tasks, "{named:?} instead of {tasks:?}");
        Ok(())
    })
    .unwrap();
    for name in ["web", "WEB", "www", "web.back"] {
        assert_eq!(asker.addresses(name).unwrap(), [vip].into(), "{name}");
    }
    let one = &swarm.wait_running("web", 3).unwrap()[0];
    let name = format!("{}.{}", one.name, one.id);
    let address = asker.addresses(&name).unwrap();
    assert!(
        address.is_subset(&tasks) && address.len() == 1,
        "{address:?}"
    );
    let address = address.first().unwrap().to_string();
    let named = asker.exec(&["nslookup", &address]).unwrap().success();
    assert!(named.unwrap().contains(&format!("{name}.back")));

    let stranger = Inside::of(&swarm, "stranger").unwrap();
    let known = stranger.addresses("web").unwrap_or_default();
    assert_eq!(known, BTreeSet::new(), "not on its network");
    assert_eq!(stranger.addresses("asker").unwrap().len(), 1);
}

#[test]
fn a_name_outlives_its_tasks_and_its_managers() {
    let swarm = swarm();
    let asker = Inside::of(&swarm, "asker").unwrap();
    let (vip, tasks) = told(&swarm).unwrap();
    swarm.manager().agent().stop().unwrap();
    // Its own agent anew: what was said last is on disk.
    asker.host.agent().kill().unwrap();
    asker.host.agent().start().unwrap();
    wait_until(DEADLINE, "names without a manager", || {
        let named = (asker.addresses("web")?, asker.addresses("tasks.web")?);
        ensure!(named == ([vip].into(), tasks.clone()), "{named:?}");
        Ok(())
    })
    .unwrap();
    swarm.manager().agent().start().unwrap();
    swarm.wait_ready().unwrap();

    swarm.swarmctl(&["service", "scale", "web=0"]).unwrap();
    swarm.wait_running("web", 0).unwrap();
    wait_until(DEADLINE, "no task is named", || {
        let named = asker.addresses("tasks.web").unwrap_or_default();
        ensure!(named.is_empty(), "{named:?}");
        Ok(())
    })
    .unwrap();
    assert_eq!(asker.addresses("web").unwrap(), [vip].into());
    swarm.swarmctl(&["service", "scale", "web=3"]).unwrap();
    swarm.wait_running("web", 3).unwrap();
}
