//! The swarm, its network, its disks, and everything that happens to them, on virtual time.

mod fault;
mod rest;
mod session;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;

use rand::RngExt as _;
use rand_chacha::ChaCha12Rng;
use swarm_api::v1;
use swarm_api::v1::agent_message::Message;
use swarm_control::simulation::{
    Answer, Envelope, Founding, Manager, Output, Request, ToAgent, View,
};
use swarm_model::{Availability, DesiredState, Node, NodeId, Task, TaskId, TaskState, Timestamp};

use crate::agents::{Agent, Reaction};
use crate::check::{History, Violation};
use crate::disk::{self, Disk};
use crate::network::Network;
use crate::plan::{MILLISECOND, Plan, SECOND, Sabotage, stream};
use crate::trace::Trace;
use crate::users::{Users, in_short};

/// How often an agent says that it is there (`ClusterSpec`).
const HEARTBEAT_US: u64 = 500 * MILLISECOND;
/// Time between two ticks of Raft (`raft/node.rs`).
const TICK_US: u64 = 100 * MILLISECOND;
/// Most ticks made up for after a manager could not run (`raft/node.rs`).
const MISSED_TICKS_MAX: u32 = 10;
/// Virtual wall-clock time at the start, in milliseconds since the epoch.
const START_MS: u64 = 1_700_000_000_000;
/// Within this after all is mended the swarm must have come to rest, in microseconds: an election
/// or a few, a call that runs into its deadline, and snapshots to who is behind.
const REST_US: u64 = 60 * SECOND;
/// Most managers at a time.
const MANAGERS_MAX: usize = 7;
/// Most hosts over a run, those taken away included.
const HOSTS_MAX: usize = 12;
/// Events of one run; more are a loop.
const EVENTS_MAX: u64 = 3_000_000;

/// One run's summary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Digest of everything that happened.
    pub digest: u64,
    /// How much happened.
    pub events: u64,
    /// Raft index at the end.
    pub index: u64,
    /// Elections won.
    pub elections: u64,
    /// Processes or hosts that ended and were started again.
    pub restarts: u64,
    /// Calls that were acknowledged.
    pub acknowledged: u64,
    /// Consistent reads that were answered.
    pub reads: u64,
}

/// A run that broke a promise.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which promise, and how.
    pub violation: String,
    /// The last things that happened.
    pub trace: Vec<String>,
}

#[derive(Debug)]
enum Event {
    /// A tick of a host's clock.
    Tick(usize),
    /// A host is done with what kept it busy.
    Free(usize, u32),
    /// A message comes out of the network.
    Deliver(Envelope),
    /// A manager's transport learns what became of a message to the manager with this Raft id.
    Sent {
        host: usize,
        incarnation: u32,
        to: u64,
        is_snapshot: bool,
        arrived: bool,
    },
    /// What a manager's step gave leaves it: the writes before are done.
    Leave(usize, u32, Box<Output>),
    /// A host's manager is started.
    Start(usize),
    /// Something goes wrong.
    Fault,
    /// What went wrong is over.
    Heal,
    /// A slow disk is itself again.
    Quick(usize),
    /// Somebody asks for something.
    Call,
    /// Somebody reads.
    Read,
    /// An agent opens a session, if it has none.
    Connect(usize),
    /// An agent's message, on the stream with this number, comes to a manager.
    ToManager(usize, usize, u64, Box<Message>),
    /// A manager's message, on the stream with this number, comes to an agent.
    ToAgent(usize, u64, Box<ToAgent>),
    /// An agent says something on the stream with this number.
    Say(usize, u64, Box<Message>),
    /// A task of an agent goes on.
    GoOn(usize, TaskId),
    /// An agent is started.
    StartAgent(usize),
    /// An agent gives up waiting for its manager.
    GiveUp(usize, u64),
    /// An agent's way to the managers is there again.
    MendAgent(usize),
    /// A host that was a manager is taken away.
    Destroy(usize),
    /// Everything is mended.
    Calm,
    /// Whether the swarm has come to rest.
    Look,
}

/// What waits for a manager to be free.
#[derive(Debug)]
enum Input {
    Envelope(Envelope),
    Sent(u64, bool, bool),
    Call(u64, Request),
    Read(u64),
    Agent(NodeId, u64, Box<Message>),
    HandOver,
}

struct Host {
    node_id: NodeId,
    disk: Disk,
    /// None while it is down.
    manager: Option<Manager>,
    /// Counts starts.
    incarnation: u32,
    inbox: VecDeque<Input>,
    missed_ticks: u32,
    busy_until: u64,
    /// How far its log was compared with the others'.
    compared: u64,
    is_fresh: bool,
    /// Calls that it has not answered.
    calls: Vec<u64>,
    /// Whether it was taken away for good.
    is_gone: bool,
}

impl Host {
    /// One that has never run, with what `disk` holds.
    fn new(node_id: NodeId, disk: &Disk) -> Self {
        Self {
            node_id,
            disk: disk.after_kill(),
            manager: None,
            incarnation: 0,
            inbox: VecDeque::new(),
            missed_ticks: 0,
            busy_until: 0,
            compared: 0,
            is_fresh: true,
            calls: Vec::new(),
            is_gone: false,
        }
    }
}

/// A stream between an agent and a manager.
#[derive(Clone, Copy, Debug)]
struct Stream {
    agent: usize,
    host: usize,
    incarnation: u32,
    /// When the last message to the manager arrives there.
    to_manager: u64,
    /// When the last message to the agent arrives there.
    to_agent: u64,
}

/// The swarm and its surroundings.
pub(crate) struct World {
    plan: Plan,
    seed: u64,
    now: u64,
    sequence: u64,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    /// Events by their place in the queue's entries; places are used again.
    events: Vec<Option<Event>>,
    free: Vec<usize>,
    hosts: Vec<Host>,
    agents: Vec<Agent>,
    /// When each stream was last heard, by its number, and until when what was said is on its way,
    /// to the manager and to the agent: streams keep their order.
    streams: BTreeMap<u64, Stream>,
    next_stream: u64,
    /// The node that each task ever ran on.
    ran_on: BTreeMap<TaskId, usize>,
    /// Agents that nothing comes to or from.
    lonely: BTreeSet<usize>,
    of_agents: ChaCha12Rng,
    network: Network,
    history: History,
    users: Users,
    faults: ChaCha12Rng,
    readers: ChaCha12Rng,
    trace: Trace,
    restarts: u64,
    is_calm: bool,
    calls_until: u64,
}

impl World {
    /// The swarm of `seed`, before anything has happened.
    pub(crate) fn new(seed: u64, plan: Plan, is_shown: bool) -> Result<Self, Violation> {
        let mut ids = stream(seed, 1);
        let nodes: Vec<_> = (0..plan.managers)
            .map(|_| NodeId::random(&mut ids))
            .collect();
        let founding = Founding::new(&nodes, Timestamp(START_MS), seed);
        let mut hosts = Vec::new();
        for (number, node_id) in nodes.into_iter().enumerate() {
            let disk = Disk::new(plan.disk, stream(seed, 100 + number as u64));
            // A disk that lies begins to after the log was made.
            disk.set_habits(disk::Habits {
                lies_ppm: 0,
                ..plan.disk
            });
            let made = founding.format(disk.clone(), number as u64 + 1);
            made.map_err(|error| format!("cannot make a log: {error}"))?;
            disk.take_spent_us();
            disk.set_habits(plan.disk);
            hosts.push(Host::new(node_id, &disk));
        }
        let mut world = Self {
            network: Network::new(plan.network, stream(seed, 2)),
            users: Users::new(stream(seed, 3)),
            faults: stream(seed, 4),
            readers: stream(seed, 6),
            agents: (0..plan.agents)
                .map(|_| Agent::new(NodeId::random(&mut ids)))
                .collect(),
            streams: BTreeMap::new(),
            next_stream: 0,
            lonely: BTreeSet::new(),
            of_agents: stream(seed, 5),
            ran_on: BTreeMap::new(),
            trace: Trace::new(is_shown),
            seed,
            now: 0,
            sequence: 0,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            hosts,
            history: History::default(),
            restarts: 0,
            is_calm: false,
            calls_until: plan.storm_us + 3 * SECOND,
            plan,
        };
        for host in 0..world.hosts.len() {
            // Clocks are not in step.
            let first = world.faults.random_range(0..TICK_US);
            world.at(first, Event::Tick(host));
            world.at(first, Event::Start(host));
        }
        for agent in 0..world.agents.len() {
            world.at(SECOND, Event::Connect(agent));
        }
        world.at(2 * SECOND, Event::Fault);
        world.at(SECOND, Event::Call);
        world.at(SECOND, Event::Read);
        world.at(world.plan.storm_us, Event::Calm);
        Ok(world)
    }

    fn at(&mut self, when: u64, event: Event) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[place] = Some(event);
        self.sequence += 1;
        self.queue.push(Reverse((when, self.sequence, place)));
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    fn clock(&self) -> Timestamp {
        Timestamp(START_MS + self.now / MILLISECOND)
    }

    /// Lets everything happen, to the end.
    pub(crate) fn run(mut self) -> Result<Summary, Failure> {
        match self.events_to_the_end() {
            Ok(()) => Ok(Summary {
                digest: self.trace.digest(),
                events: self.trace.count(),
                index: self.history.newest().index(),
                elections: self.history.elections() as u64,
                restarts: self.restarts,
                acknowledged: self.users.acknowledged,
                reads: self.users.read,
            }),
            Err(violation) => Err(Failure {
                violation,
                trace: self.trace.into_last(),
            }),
        }
    }

    fn events_to_the_end(&mut self) -> Result<(), Violation> {
        let mut count = 0;
        while let Some(Reverse((when, _, place))) = self.queue.pop() {
            self.now = when;
            self.free.push(place);
            let Some(event) = self.events[place].take() else {
                continue;
            };
            if matches!(event, Event::Look) && self.has_come_to_rest()? {
                return Ok(());
            }
            self.happen(event)?;
            count += 1;
            if count > EVENTS_MAX {
                return Err(format!("more than {EVENTS_MAX} events"));
            }
        }
        Err("nothing happens any more".to_owned())
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Tick(host) => {
                self.after(TICK_US, Event::Tick(host));
                let it = &mut self.hosts[host];
                it.missed_ticks = (it.missed_ticks + 1).min(MISSED_TICKS_MAX);
                self.step(host)
            }
            Event::Free(host, incarnation) if self.hosts[host].incarnation == incarnation => {
                self.step(host)
            }
            Event::Deliver(envelope) => self.deliver(envelope),
            Event::Leave(host, incarnation, output)
                if self.hosts[host].incarnation == incarnation =>
            {
                self.leave(host, *output)
            }
            Event::Sent {
                host,
                incarnation,
                to,
                is_snapshot,
                arrived,
            } if self.hosts[host].incarnation == incarnation => {
                let sent = Input::Sent(to, is_snapshot, arrived);
                self.hosts[host].inbox.push_back(sent);
                self.step(host)
            }
            Event::Free(..) | Event::Leave(..) | Event::Sent { .. } => Ok(()),
            Event::Connect(agent) => self.connect(agent),
            Event::Say(agent, number, message) => {
                self.say(agent, number, *message);
                Ok(())
            }
            Event::ToManager(agent, host, number, message) => {
                self.reach_manager(agent, host, number, message)
            }
            Event::ToAgent(agent, number, message) => self.reach_agent(agent, number, *message),
            Event::GoOn(agent, task) => {
                let percent = if self.is_calm { 0 } else { 5 };
                let reaction = self.agents[agent].go_on(&task, percent, &mut self.of_agents);
                self.react(agent, reaction)
            }
            Event::StartAgent(agent) => {
                self.trace
                    .note(self.now, format_args!("agent {agent} starts"));
                self.agents[agent].is_up = true;
                for task in self.agents[agent].unfinished() {
                    self.after(MILLISECOND, Event::GoOn(agent, task));
                }
                Ok(())
            }
            Event::GiveUp(agent, number) => {
                if self.agents[agent].stream.is_some_and(|it| it.1 == number) {
                    self.agents[agent].stream = None;
                }
                self.streams.remove(&number);
                Ok(())
            }
            Event::MendAgent(agent) => {
                self.trace
                    .note(self.now, format_args!("agent {agent} is back"));
                self.lonely.remove(&agent);
                Ok(())
            }
            Event::Destroy(host) => {
                self.trace
                    .note(self.now, format_args!("{host} is taken away"));
                self.hosts[host].is_gone = true;
                self.end(host, true);
                Ok(())
            }
            Event::Start(host) => self.start(host),
            Event::Fault => {
                self.fault();
                Ok(())
            }
            Event::Heal => {
                self.trace
                    .note(self.now, format_args!("the network is mended"));
                self.network.heal();
                Ok(())
            }
            Event::Quick(host) => {
                self.hosts[host].disk.set_habits(self.plan.disk);
                Ok(())
            }
            Event::Call => self.call(),
            Event::Read => self.read(),
            Event::Calm => {
                self.calm();
                Ok(())
            }
            Event::Look => {
                self.after(500 * MILLISECOND, Event::Look);
                Ok(())
            }
        }
    }

    /// Lets a host's manager do what waits for it, unless it is busy or down.
    fn step(&mut self, host: usize) -> Result<(), Violation> {
        let clock = self.clock();
        let now = self.now;
        let it = &mut self.hosts[host];
        if it.busy_until > now {
            return Ok(());
        }
        let Some(manager) = &mut it.manager else {
            it.missed_ticks = 0;
            return Ok(());
        };
        for _ in 0..std::mem::take(&mut it.missed_ticks) {
            manager.tick(clock);
        }
        let mut from_memory = Vec::new();
        for input in it.inbox.drain(..) {
            match input {
                Input::Read(read) if self.plan.sabotage == Sabotage::MemoryReads => {
                    from_memory.push((read, Some(manager.view())));
                }
                Input::Read(read) => manager.read(read),
                Input::Envelope(envelope) => manager.receive(envelope),
                Input::Call(call, request) => manager.call(call, request),
                Input::Sent(to, true, arrived) => manager.snapshot_sent(to, arrived),
                Input::Sent(to, false, _) => manager.unreachable(to),
                Input::Agent(node, stream, message) => {
                    manager.hear(&node, stream, *message, clock);
                }
                Input::HandOver => manager.hand_over(),
            }
        }
        let result = manager.run(clock);
        let spent = it.disk.take_spent_us();
        let output = match result {
            Ok(mut output) => {
                output.reads.extend(from_memory);
                output
            }
            Err(stopped) => {
                self.trace
                    .note(now, format_args!("{host} stops: {stopped}"));
                self.end(host, true);
                return Ok(());
            }
        };
        let observed = self
            .history
            .observe(host, manager, it.compared, it.is_fresh);
        it.compared = observed?;
        it.is_fresh = false;
        it.busy_until = now + spent;
        let incarnation = it.incarnation;
        let is_silent = output.envelopes.is_empty()
            && output.answers.is_empty()
            && output.reads.is_empty()
            && output.to_agents.is_empty();
        if !is_silent {
            self.after(spent, Event::Leave(host, incarnation, Box::new(output)));
        }
        if spent > 0 {
            self.after(spent, Event::Free(host, incarnation));
        }
        Ok(())
    }

    fn leave(&mut self, host: usize, output: Output) -> Result<(), Violation> {
        for envelope in output.envelopes {
            let to = envelope.to() as usize - 1;
            let delays = self.network.carry(host, to);
            let is_snapshot = envelope.is_snapshot();
            let arrived = delays.first().copied();
            for delay in delays {
                self.after(delay, Event::Deliver(envelope.clone()));
            }
            if is_snapshot || arrived.is_none() {
                let incarnation = self.hosts[host].incarnation;
                let sent = Event::Sent {
                    host,
                    incarnation,
                    to: envelope.to(),
                    is_snapshot,
                    arrived: arrived.is_some(),
                };
                // A transport finds out that nothing got through when its patience ends.
                self.after(arrived.map_or(SECOND, |delay| 2 * delay), sent);
            }
        }
        for (_, number, message) in output.to_agents {
            let Some(stream) = self.streams.get(&number) else {
                continue;
            };
            let agent = stream.agent;
            let arrives = (self.now + self.network.delay()).max(stream.to_agent);
            if let Some(stream) = self.streams.get_mut(&number) {
                stream.to_agent = arrives;
            }
            self.at(arrives, Event::ToAgent(agent, number, Box::new(message)));
        }
        for (read, view) in output.reads {
            let seen = view.as_ref().map(View::index);
            self.trace.note(
                self.now,
                format_args!("{host} answers read {read}: {seen:?}"),
            );
            self.users.end_read(read, view.as_ref())?;
        }
        for Answer { call, outcome } in output.answers {
            self.hosts[host].calls.retain(|waiting| *waiting != call);
            self.trace
                .note(self.now, format_args!("{host} answers {call}: {outcome:?}"));
            if let Some(node) = self.users.admitted(call, &outcome)
                && let Some(agent) = self.agents.iter_mut().find(|it| it.node_id == node)
            {
                agent.is_admitted = true;
            }
            let removed = self.users.removed_member(call, &outcome);
            self.users.answered(call, &outcome, self.history.newest())?;
            if let Some(raft_id) = removed {
                let time = self.faults.random_range(SECOND..5 * SECOND);
                self.after(time, Event::Destroy(raft_id as usize - 1));
            }
        }
        Ok(())
    }

    fn deliver(&mut self, envelope: Envelope) -> Result<(), Violation> {
        let (from, to) = (envelope.from() as usize - 1, envelope.to() as usize - 1);
        if self.network.is_cut(from, to) || self.hosts[to].manager.is_none() {
            return Ok(());
        }
        let (kind, term, index, commit, entries) = envelope.summary();
        self.trace.note(
            self.now,
            format_args!("{from} -> {to} {kind} {term}/{index} commit {commit} +{entries}"),
        );
        self.hosts[to].inbox.push_back(Input::Envelope(envelope));
        self.step(to)
    }

    fn start(&mut self, host: usize) -> Result<(), Violation> {
        let seed = self.seed ^ (host as u64) << 48 ^ u64::from(self.hosts[host].incarnation) << 32;
        let it = &mut self.hosts[host];
        if it.manager.is_some() || it.is_gone {
            return Ok(());
        }
        it.incarnation += 1;
        let interval = self.plan.snapshot_interval;
        let opened = Manager::open(it.node_id.clone(), it.disk.clone(), seed, interval);
        it.disk.take_spent_us();
        let manager = match opened {
            Ok(manager) => manager,
            Err(_failed) if it.disk.has_failed() => {
                it.disk = it.disk.after_power_loss();
                self.after(SECOND, Event::Start(host));
                return Ok(());
            }
            // Nothing that a disk may do to what was not synced is damage.
            Err(error) => return Err(format!("manager {host} does not start: {error}")),
        };
        it.compared = 0;
        it.is_fresh = true;
        it.busy_until = self.now;
        it.inbox.clear();
        it.missed_ticks = 0;
        it.manager = Some(manager);
        self.trace.note(self.now, format_args!("{host} starts"));
        self.step(host)
    }

    /// Ends a host's manager: the process alone, or with the power.
    fn end(&mut self, host: usize, power: bool) {
        let it = &mut self.hosts[host];
        if it.manager.is_none() {
            return;
        }
        self.restarts += 1;
        let next = if power {
            it.disk.after_power_loss()
        } else {
            it.disk.after_kill()
        };
        // Its log tries to close itself, on a disk that is gone.
        it.manager = None;
        it.disk = next;
        it.incarnation += 1;
        it.inbox.clear();
        let calls = std::mem::take(&mut it.calls);
        for call in calls {
            self.users.forget(call);
        }
        let what = if power { "power" } else { "process" };
        self.trace
            .note(self.now, format_args!("{host} loses its {what}"));
        let pause = self.faults.random_range(50 * MILLISECOND..6 * SECOND);
        let pause = if self.is_calm { SECOND } else { pause };
        if !self.hosts[host].is_gone {
            self.after(pause, Event::Start(host));
        }
    }

    fn leader(&self) -> Option<usize> {
        let leads = |host: &Host| {
            let manager = host.manager.as_ref();
            manager.is_some_and(|manager| manager.leadership().0)
        };
        self.hosts.iter().position(leads)
    }

    fn read(&mut self) -> Result<(), Violation> {
        let pause = self.plan.call_every_us;
        let pause = self.readers.random_range(pause / 2..pause * 2);
        if self.now + pause < self.calls_until {
            self.after(pause, Event::Read);
        }
        // Also of one that led until a moment ago, and may not know.
        let anyone = self.readers.random_range(0..self.hosts.len());
        let asks_leader = self.readers.random_bool(0.5);
        let host = if asks_leader { self.leader() } else { None };
        let host = host.unwrap_or(anyone);
        if self.hosts[host].manager.is_none() {
            return Ok(());
        }
        let read = self.users.begin_read();
        self.trace
            .note(self.now, format_args!("{host} is asked read {read}"));
        self.hosts[host].inbox.push_back(Input::Read(read));
        self.step(host)
    }

    fn call(&mut self) -> Result<(), Violation> {
        let pause = self.plan.call_every_us;
        let pause = self.faults.random_range(pause / 2..pause * 2);
        if self.now + pause < self.calls_until {
            self.after(pause, Event::Call);
        }
        let anyone = self.faults.random_range(0..self.hosts.len());
        let asks_leader = self.faults.random_bool(0.9);
        let host = if asks_leader { self.leader() } else { None };
        let host = host.unwrap_or(anyone);
        if self.hosts[host].manager.is_none() {
            return Ok(());
        }
        let Some((call, request)) = self.users.call(self.history.newest()) else {
            return Ok(());
        };
        self.trace.note(
            self.now,
            format_args!("{host} is asked {call}: {}", in_short(&request)),
        );
        if self.plan.sabotage == Sabotage::EarlyAnswers && asks_leader {
            let (leads, ..) = self.hosts[host]
                .manager
                .as_ref()
                .map_or((false, 0, None), Manager::leadership);
            if leads && matches!(request, Request::CreateService(_)) {
                self.users.promised(&request);
            }
        }
        let it = &mut self.hosts[host];
        it.calls.push(call);
        it.inbox.push_back(Input::Call(call, request));
        self.step(host)
    }
}
