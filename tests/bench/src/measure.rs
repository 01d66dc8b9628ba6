//! What is measured.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use swarm_api::v1;
use swarm_control::simulation::Placement;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::agent::now_ms;
use crate::report::{Bar, Report};
use crate::swarm::{LOOK, Swarm, control, create, service, until};

/// Bars: issue 4, "Proof".
const PLACEMENTS_PER_S: Bar = Bar::AtLeast(100_000.0);
const STEADY_CORES: Bar = Bar::Below(1.0);
const SCHEDULED_S: Bar = Bar::Below(2.0);
const OUT_S: Bar = Bar::Below(10.0);
const LEADER_CHANGE_S: Bar = Bar::Below(3.0);

/// Longest that a service may take to run, and agents to come back: beyond, the run fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// Time that a manager gets for what is left to do before what it holds is looked at.
pub(crate) const REST: Duration = Duration::from_secs(3);

/// Beyond the time after which a node that is not heard is down, and its tasks are replaced.
pub(crate) const DOWN: Duration = Duration::from_secs(12);

/// Services that the agents' tasks are of, before one is scaled.
const SERVICES: usize = 10;

/// Tasks that wait in the scheduler's measurement, and how often it is repeated.
const WAITING: usize = 20_000;
const REPETITIONS: usize = 5;

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) agents: usize,
    pub(crate) tasks_per_agent: usize,
    pub(crate) scale: usize,
    pub(crate) managers: usize,
    pub(crate) writers: usize,
    /// Length of what is measured over time.
    pub(crate) span: Duration,
    pub(crate) nodes: usize,
    /// See [`REST`] and [`DOWN`].
    pub(crate) rest: Duration,
    pub(crate) down: Duration,
}

/// A part of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The scheduler alone.
    Scheduler,
    /// Creating services.
    Proposals,
    /// Agents that rest, a service that is scaled, a leader that is lost.
    Agents,
}

impl Part {
    /// Whether it is asked for.
    pub(crate) fn is_in(self, only: &[Self]) -> bool {
        only.is_empty() || only.contains(&self)
    }
}

/// Placements of the scheduler alone: a pass over tasks that wait, of several services with
/// constraints, over nodes that have tasks already; the best of a few, which other work on this machine
/// disturbed least.
pub(crate) fn scheduler(nodes: usize, report: &mut Report) {
    eprintln!("the scheduler alone, {nodes} nodes");
    let placement = Placement::new(nodes, WAITING);
    let best = (0..REPETITIONS).map(|_| {
        let begun = Instant::now();
        let placed = placement.pass();
        placed as f64 / begun.elapsed().as_secs_f64()
    });
    let best = best.fold(0.0, f64::max);
    let name = format!("placements, {nodes} nodes, constraints and spread");
    report.add(name, best, "/s", Some(PLACEMENTS_PER_S));
}

/// Everything else that is asked for.
pub(crate) async fn all(sizes: Sizes, only: &[Part], report: &mut Report) -> Result<()> {
    if Part::Proposals.is_in(only) {
        for managers in [1, 3] {
            eprintln!("creating services, {managers} manager(s)");
            let swarm = Swarm::new(managers).await?;
            for writers in [1, sizes.writers] {
                proposals(&swarm, writers, sizes.span / 2, report).await?;
            }
            swarm.end().await;
        }
    }
    if Part::Agents.is_in(only) {
        let Sizes {
            agents, managers, ..
        } = sizes;
        eprintln!("{managers} manager(s), {agents} agents join");
        let mut swarm = Swarm::new(managers).await?;
        let patience = PATIENCE + Duration::from_millis(110) * u32::try_from(agents)?;
        swarm.add_agents(agents, patience).await?;
        steady(&swarm, sizes, report).await?;
        scaled(&swarm, sizes, report).await?;
        if managers >= 3 {
            leader_change(&mut swarm, sizes, report).await?;
        }
        swarm.end().await;
    }
    Ok(())
}

/// Services created at the leader's socket, by writers that each wait for the answer.
async fn proposals(
    swarm: &Swarm,
    writers: usize,
    span: Duration,
    report: &mut Report,
) -> Result<()> {
    let leader = &swarm.managers[swarm.leader().await?];
    let mut running = JoinSet::new();
    let begun = Instant::now();
    for writer in 0..writers {
        let mut control = control(leader);
        running.spawn(async move {
            let mut taken = Vec::new();
            for number in 0.. {
                let asked = Instant::now();
                if asked - begun >= span {
                    break;
                }
                let name = format!("s{writers}-{writer}-{number}");
                create(&mut control, service(&name, 0)).await?;
                taken.push(asked.elapsed().as_secs_f64() * 1e3);
            }
            anyhow::Ok(taken)
        });
    }
    let mut taken = Vec::new();
    while let Some(times) = running.join_next().await {
        taken.extend(times??);
    }
    let rate = taken.len() as f64 / begun.elapsed().as_secs_f64();
    taken.sort_by(f64::total_cmp);
    let what = format!("{} manager(s), {writers} writer(s)", swarm.managers.len());
    report.add(format!("services created, {what}"), rate, "/s", None);
    report.add(format!("p50, {what}"), percentile(&taken, 50), "ms", None);
    report.add(format!("p99, {what}"), percentile(&taken, 99), "ms", None);
    Ok(())
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// What the leader costs while nothing happens but heartbeats.
async fn steady(swarm: &Swarm, sizes: Sizes, report: &mut Report) -> Result<()> {
    let Sizes {
        agents,
        tasks_per_agent,
        ..
    } = sizes;
    let leader = &swarm.managers[swarm.leader().await?];
    let total = agents * tasks_per_agent;
    let mut control = control(leader);
    for number in 0..SERVICES {
        let replicas = total * (number + 1) / SERVICES - total * number / SERVICES;
        create(
            &mut control,
            service(&format!("resident-{number}"), replicas),
        )
        .await?;
    }
    until_running(swarm, total).await?;
    sleep(sizes.rest).await;
    let (before, begun) = (leader.usage()?, Instant::now());
    sleep(sizes.span).await;
    let (after, span) = (leader.usage()?, begun.elapsed());
    let cores = (after.cpu_s - before.cpu_s) / span.as_secs_f64();
    let what = format!("{agents} agents with {tasks_per_agent} tasks each at rest");
    report.add(
        format!("leader's processor, {what}"),
        cores,
        "cores",
        Some(STEADY_CORES),
    );
    report.add(
        format!("leader's memory, {what}"),
        after.memory_bytes / MIB,
        "MiB",
        None,
    );
    undisturbed(swarm, report, "at rest").await
}

const MIB: f64 = 1024.0 * 1024.0;

/// Waits until `total` tasks are said to run.
async fn until_running(swarm: &Swarm, total: usize) -> Result<()> {
    let begun = Instant::now();
    let mut control = control(&swarm.managers[swarm.leader().await?]);
    loop {
        let list = control.list_services(v1::ListServicesRequest {}).await?;
        let services = list.into_inner().services;
        let running: u64 = services.iter().map(|it| it.running_tasks).sum();
        if running == total as u64 {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            bail!(
                "{running} of {total} tasks run; agents have heard of {}",
                swarm.seen.count_all()
            );
        }
        sleep(LOOK * 10).await;
    }
}

/// Sessions that ended, and nodes that were taken for silent: there should be none.
async fn undisturbed(swarm: &Swarm, report: &mut Report, when: &str) -> Result<()> {
    let ends = swarm.seen.take_ends();
    for (reason, count) in &ends {
        eprintln!("  {count} sessions ended: {reason}");
    }
    let ended: usize = ends.values().sum();
    report.add(format!("sessions lost {when}"), ended as f64, "", None);
    let leader = &swarm.managers[swarm.leader().await?];
    let nodes = control(leader)
        .list_nodes(v1::ListNodesRequest {})
        .await?
        .into_inner()
        .nodes;
    let silent = nodes.iter().filter(|node| {
        let state = node.status.as_ref().map(v1::NodeStatus::state);
        node.manager.is_none() && state != Some(v1::NodeState::Ready)
    });
    report.add(
        format!("nodes taken for silent {when}"),
        silent.count() as f64,
        "",
        None,
    );
    Ok(())
}

/// One service, scaled from nothing.
async fn scaled(swarm: &Swarm, sizes: Sizes, report: &mut Report) -> Result<()> {
    let Sizes {
        scale,
        agents,
        tasks_per_agent,
        ..
    } = sizes;
    let leader = &swarm.managers[swarm.leader().await?];
    let mut control = control(leader);
    let large = create(&mut control, service("large", 0)).await?;
    sleep(sizes.rest).await;
    let memory = leader.usage()?.memory_bytes;
    let (begun, begun_ms) = (Instant::now(), now_ms());
    let cpu = leader.usage()?.cpu_s;
    // The service's version may have changed since: the leader gives it an index.
    loop {
        let get = v1::GetServiceRequest {
            reference: large.id.clone(),
        };
        let now = control.get_service(get).await?.into_inner().service;
        let version = now.and_then(|it| it.meta).context("no service")?.version;
        let update = v1::UpdateServiceRequest {
            id: large.id.clone(),
            version,
            spec: Some(service("large", scale)),
        };
        match control.update_service(update).await {
            Ok(_) => break,
            Err(status) if status.code() == Code::Aborted => {}
            Err(status) => return Err(status).context("cannot scale"),
        }
    }
    until(PATIENCE, "assignments", || {
        swarm.seen.count(&large.id) >= scale
    })
    .await?;
    let last = swarm.seen.last(&large.id).context("nothing was assigned")?;
    let since = |at_ms: u64| at_ms.saturating_sub(begun_ms) as f64 / 1e3;
    let what = format!("{scale} tasks of one service");
    report.add(
        format!("{what}: all placed"),
        since(last.placed_ms),
        "s",
        Some(SCHEDULED_S),
    );
    report.add(
        format!("{what}: all at their agents"),
        since(last.heard_ms),
        "s",
        Some(OUT_S),
    );
    until_running(swarm, agents * tasks_per_agent + scale).await?;
    report.add(
        format!("{what}: all said to run"),
        begun.elapsed().as_secs_f64(),
        "s",
        None,
    );
    let used = leader.usage()?;
    report.add(
        format!("{what}: leader's processor time"),
        used.cpu_s - cpu,
        "s",
        None,
    );
    sleep(sizes.rest).await;
    let held = leader.usage()?.memory_bytes;
    report.add("leader's memory then", held / MIB, "MiB", None);
    let per_task = (held - memory) / scale as f64 / 1024.0;
    report.add(
        format!("{what}: leader's memory for each"),
        per_task,
        "KiB",
        None,
    );
    undisturbed(swarm, report, "while scaling").await
}

/// The leader's process is killed: how long nothing can be written, and how long agents take to come
/// back.
async fn leader_change(swarm: &mut Swarm, sizes: Sizes, report: &mut Report) -> Result<()> {
    let leader = swarm.leader().await?;
    let known = swarm.seen.count_all();
    let killed = Instant::now();
    let mut lost = swarm.managers.remove(leader);
    lost.kill().await?;
    let mut tries = JoinSet::new();
    for (number, manager) in swarm.managers.iter().enumerate() {
        let socket = manager.socket();
        tries.spawn(async move {
            let mut try_number = 0;
            loop {
                let mut control =
                    v1::control_client::ControlClient::new(crate::client::local(socket.clone()));
                let name = format!("after-{number}-{try_number}");
                match create(&mut control, service(&name, 0)).await {
                    Ok(_) => return Ok(killed.elapsed()),
                    Err(status) if killed.elapsed() > PATIENCE => return Err(status),
                    Err(_) => try_number += 1,
                }
                sleep(LOOK).await;
            }
        });
    }
    let mut first = None;
    while let Some(written) = tries.join_next().await {
        let written = written?.context("nothing can be written")?;
        first = Some(first.map_or(written, |first: Duration| first.min(written)));
    }
    let written = first.context("no manager is left")?;
    let all = sizes.agents * sizes.tasks_per_agent + sizes.scale;
    report.add(
        format!("leader killed, {all} tasks: first write"),
        written.as_secs_f64(),
        "s",
        Some(LEADER_CHANGE_S),
    );
    until(PATIENCE, "the agents' return", || {
        swarm.seen.open() == sizes.agents
    })
    .await?;
    report.add(
        "leader killed: all agents back",
        killed.elapsed().as_secs_f64(),
        "s",
        None,
    );
    sleep(sizes.down.saturating_sub(killed.elapsed())).await;
    let replaced = swarm.seen.count_all() - known;
    report.add("leader killed: tasks replaced", replaced as f64, "", None);
    swarm.seen.take_ends();
    undisturbed(swarm, report, "after the leader's end").await?;
    Ok(())
}
