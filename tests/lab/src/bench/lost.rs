//! What clients lose by a rolling update, and with a host: ours and Docker's, one after the other,
//! with the same service (four tasks on two hosts), the same image and the same clients.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{System, docker, environment, ours, report::Environment};
use crate::load::{Clients, Counts, Load};
use crate::services::registry;
use crate::topology::Node;
use crate::{Host, Lab, Swarm, wait_until};

/// Most requests of one run: half an hour's worth.
pub const MAX_REQUESTS: u64 = 1_000_000;

/// Tasks of the service.
const TASKS: usize = 4;

/// Published port.
const PORT: u16 = 8080;

/// How long the tasks may take to answer, and one update to end; emulation is slow.
const SETTLE_DEADLINE: Duration = Duration::from_secs(180);

/// Updates until enough requests were made.
const UPDATES_MAX: u32 = 20;

/// How long clients ask before their host dies.
const BEFORE: Duration = Duration::from_secs(3);

/// How long nothing may have failed before the failing counts as over: longer than any limit of
/// the clients', and than the tries of a connection.
const CALM: Duration = Duration::from_secs(8);

/// When the failing has to be over.
const CALM_DEADLINE: Duration = Duration::from_secs(120);

/// What clients lost by rolling updates of one system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// Rolling updates that went on meanwhile.
    pub updates: u32,
    /// How long all of it took, in seconds.
    pub seconds: f64,
    /// Requests, and what became of them.
    #[serde(flatten)]
    pub counts: Counts,
}

/// What clients lost with a host of one system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failover {
    /// From the host's death to the start of the last request that failed; 0 when none did.
    pub seconds_failing: f64,
    /// Requests, and what became of them.
    #[serde(flatten)]
    pub counts: Counts,
}

/// The results of one benchmark, by system, and what they were measured on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lost<T> {
    /// What it was measured on.
    pub environment: Environment,
    /// By system.
    #[serde(flatten)]
    pub systems: BTreeMap<System, T>,
}

/// Rolling updates, one after the other, until `requests` requests were made and one update at
/// least has ended.
///
/// # Errors
/// When a system cannot be set up or updated. Everything is taken down then, too.
pub fn update(requests: u64, systems: &[System]) -> Result<Lost<Update>> {
    ensure!(
        (1..=MAX_REQUESTS).contains(&requests),
        "1 to {MAX_REQUESTS} requests"
    );
    each(systems, |cluster| updated(cluster, requests))
}

/// A host with half of the tasks dies while four clients ask at the other.
///
/// # Errors
/// When a system cannot be set up, or requests still fail after two minutes. Everything is taken
/// down then, too.
pub fn failover(systems: &[System]) -> Result<Lost<Failover>> {
    each(systems, failed_over)
}

/// Two hosts with the service on both.
struct Cluster {
    system: System,
    client: Host,
    hosts: [Node; 2],
    /// Ours alone.
    swarm: Option<Swarm>,
}

fn each<T>(systems: &[System], measure: impl Fn(&Cluster) -> Result<T>) -> Result<Lost<T>> {
    let environment = environment()?;
    let mut results = BTreeMap::new();
    for system in systems {
        super::clean_systems(&[System::Docker])?;
        eprintln!("setting up {system}");
        let result = Cluster::set_up(*system).and_then(|cluster| measure(&cluster));
        let cleaned = super::clean_systems(&[*system]);
        results.insert(*system, result.with_context(|| format!("{system}"))?);
        cleaned?;
    }
    Ok(Lost {
        environment,
        systems: results,
    })
}

impl Cluster {
    fn set_up(system: System) -> Result<Self> {
        let tasks = TASKS.to_string();
        let published = format!("{PORT}:80");
        let mut options = vec!["--replicas", &tasks, "--publish", &published];
        let client = Lab::attach()?.client().clone();
        let cluster = match system {
            System::Plain => bail!("plain forwarding has neither updates nor a second task"),
            System::Docker => {
                let hosts = docker::start()?;
                docker::create(&hosts[0], &options, "web:1")?;
                Self {
                    system,
                    client,
                    hosts,
                    swarm: None,
                }
            }
            System::Ours => {
                let swarm = Swarm::fresh()?;
                let others = swarm.lab.hosts()[2..].iter();
                let others = others.map(|host| format!("node.hostname!={}", host.name()));
                let others: Vec<String> = others.collect();
                for other in &others {
                    options.extend(["--constraint", other]);
                }
                let image = format!("{}/web:1", registry());
                let mut arguments = vec!["service", "create", "--name", ours::SERVICE];
                arguments.extend(options);
                arguments.push(&image);
                swarm.swarmctl(&arguments)?;
                let node = |number: usize| swarm.lab.host(number).node().clone();
                Self {
                    system,
                    client,
                    hosts: [node(1), node(2)],
                    swarm: Some(swarm),
                }
            }
        };
        for host in 0..2 {
            cluster.wait_answers(host)?;
        }
        Ok(cluster)
    }

    fn at(&self, host: usize) -> SocketAddr {
        (self.hosts[host].address, PORT).into()
    }

    /// Until every task has answered through that host.
    fn wait_answers(&self, host: usize) -> Result<()> {
        let mut seen = std::collections::BTreeSet::new();
        wait_until(SETTLE_DEADLINE, "every task answers", || {
            seen.insert(self.client.ask_web_at(self.at(host))?.task);
            ensure!(seen.len() == TASKS, "{} of {TASKS} tasks", seen.len());
            Ok(())
        })
    }

    /// One rolling update to the end.
    fn update(&self, image: &str) -> Result<()> {
        let Some(swarm) = &self.swarm else {
            return docker::update(&self.hosts[0], image);
        };
        let image = format!("{}/{image}", registry());
        let argv = [
            "swarmctl",
            "service",
            "update",
            "--image",
            &image,
            ours::SERVICE,
        ];
        let manager = swarm.manager();
        manager.exec_within(SETTLE_DEADLINE, &argv)?.success()?;
        Ok(())
    }
}

fn updated(cluster: &Cluster, requests: u64) -> Result<Update> {
    let clients = Clients {
        at: vec![cluster.at(0), cluster.at(1)],
        short: 4,
        keepalive: 4,
        download: 2,
        limit_ms: 5000,
    };
    let started = Instant::now();
    let load = Load::start(&cluster.client, &clients)?;
    let mut updates = 0;
    while updates < UPDATES_MAX && (updates == 0 || load.counts().requests < requests) {
        cluster.update(["web:2", "web:1"][updates as usize % 2])?;
        updates += 1;
        let counts = load.counts();
        eprintln!(
            "{}: {updates} updates, {} requests, {} failed",
            cluster.system, counts.requests, counts.failed
        );
    }
    let counts = load.finish()?;
    ensure!(
        counts.requests >= requests && counts.downloads > 0,
        "too few requests in {updates} updates: {counts:?}"
    );
    Ok(Update {
        updates,
        seconds: started.elapsed().as_secs_f64(),
        counts,
    })
}

fn failed_over(cluster: &Cluster) -> Result<Failover> {
    let clients = Clients {
        at: vec![cluster.at(0)],
        short: 4,
        keepalive: 0,
        download: 0,
        limit_ms: 1000,
    };
    let load = Load::start(&cluster.client, &clients)?;
    let enough = Instant::now() + BEFORE;
    wait_until(BEFORE * 2, "clients have asked for a while", || {
        ensure!(Instant::now() >= enough, "not yet");
        Ok(())
    })?;
    let before = load.counts();
    ensure!(before.failed == 0, "failed before anything: {before:?}");
    let died_us = now_us()?;
    cluster.hosts[1].set_link(false)?;
    let died = Instant::now();
    wait_until(CALM_DEADLINE, "requests do not fail any more", || {
        let last = load.counts().last_failed_us.unwrap_or(died_us);
        let calm_us = now_us()?.saturating_sub(last);
        let calm = Duration::from_micros(calm_us).min(died.elapsed());
        ensure!(calm >= CALM, "one failed {calm:?} ago");
        Ok(())
    })?;
    let counts = load.finish()?;
    let last = counts.last_failed_us.unwrap_or(died_us);
    Ok(Failover {
        seconds_failing: Duration::from_micros(last.saturating_sub(died_us)).as_secs_f64(),
        counts,
    })
}

fn now_us() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(now.as_micros())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_told_by_system_and_read_back() {
        let failover = |seconds_failing| Failover {
            seconds_failing,
            counts: Counts::default(),
        };
        let lost = Lost {
            environment: Environment {
                kernel: "6.12".into(),
                cpus: 2,
                docker: "26.1".into(),
            },
            systems: BTreeMap::from([
                (System::Docker, failover(5.0)),
                (System::Ours, failover(1.5)),
            ]),
        };
        let json = serde_json::to_value(&lost).unwrap();
        assert_eq!(json["ours"]["seconds_failing"], 1.5);
        assert_eq!(json["docker"]["failed"], 0);
        let text = serde_json::to_string(&lost).unwrap();
        assert_eq!(serde_json::from_str::<Lost<Failover>>(&text).unwrap(), lost);
    }
}
