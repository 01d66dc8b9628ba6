//! What goes wrong, and when.

use super::*;

impl World {
    pub(super) fn fault(&mut self) {
        if self.is_calm {
            return;
        }
        let pause = self.plan.fault_every_us;
        let pause = self.faults.random_range(pause / 2..pause * 2);
        self.after(pause, Event::Fault);
        let count = self.hosts.len();
        let anyone = self.faults.random_range(0..count);
        let host = match self.leader() {
            Some(leader) if self.faults.random_bool(0.5) => leader,
            _ => anyone,
        };
        match self.faults.random_range(0..24) {
            0..3 => self.end(host, false),
            3..6 => self.end(host, true),
            6 => {
                for host in 0..count {
                    self.end(host, true);
                }
            }
            7..9 => {
                let syncs = self.faults.random_range(0..4);
                self.trace.note(
                    self.now,
                    format_args!("the disk of {host} fails after {syncs} syncs"),
                );
                self.hosts[host].disk.fail_after(syncs);
            }
            9..11 => {
                let sides: Vec<bool> = (0..count).map(|_| self.faults.random_bool(0.5)).collect();
                self.trace
                    .note(self.now, format_args!("the network parts: {sides:?}"));
                self.network.part(count, |host| sides[host]);
                self.mend_later();
            }
            11 => {
                self.trace.note(self.now, format_args!("{host} is alone"));
                self.network.part(count, |it| it == host);
                self.mend_later();
            }
            12..14 => {
                let other = self.faults.random_range(0..count);
                self.trace
                    .note(self.now, format_args!("no way from {host} to {other}"));
                self.network.cut(host, other);
                self.mend_later();
            }
            14 => {
                self.trace
                    .note(self.now, format_args!("the disk of {host} is slow"));
                self.hosts[host].disk.set_habits(disk::Habits {
                    sync_us: (20 * MILLISECOND, 900 * MILLISECOND),
                    ..self.plan.disk
                });
                let time = self.faults.random_range(SECOND..4 * SECOND);
                self.after(time, Event::Quick(host));
            }
            15 => {
                self.trace
                    .note(self.now, format_args!("{host} is to hand over"));
                self.hosts[host].inbox.push_back(Input::HandOver);
            }
            16..18 => self.change_members(),
            18..23 if !self.agents.is_empty() => self.fault_of_agent(),
            _ => {
                let time = self.faults.random_range(50 * MILLISECOND..4 * SECOND);
                self.trace
                    .note(self.now, format_args!("{host} stands still for {time} us"));
                let it = &mut self.hosts[host];
                it.busy_until = it.busy_until.max(self.now + time);
                let incarnation = it.incarnation;
                self.after(time, Event::Free(host, incarnation));
            }
        }
    }

    pub(super) fn fault_of_agent(&mut self) {
        let agent = self.faults.random_range(0..self.agents.len());
        if !self.agents[agent].is_up || self.lonely.contains(&agent) {
            return;
        }
        let time = self.faults.random_range(100 * MILLISECOND..14 * SECOND);
        match self.faults.random_range(0..3) {
            0 => {
                self.trace
                    .note(self.now, format_args!("agent {agent} is alone"));
                self.lonely.insert(agent);
                self.after(time, Event::MendAgent(agent));
            }
            1 => {
                self.trace
                    .note(self.now, format_args!("agent {agent} ends"));
                self.agents[agent].stop();
                self.after(time, Event::StartAgent(agent));
            }
            _ => {
                self.trace
                    .note(self.now, format_args!("agent {agent} loses its power"));
                self.agents[agent].lose_power();
                self.after(time, Event::StartAgent(agent));
            }
        }
    }

    /// Lets a manager join, or one that does not lead leave.
    pub(super) fn change_members(&mut self) {
        let Some(leader) = self.leader() else {
            return;
        };
        let manager = self.hosts[leader].manager.as_ref();
        let (voters, learners) = manager.map(Manager::members).unwrap_or_default();
        let others: Vec<u64> = (voters.iter().chain(&learners))
            .copied()
            .filter(|raft_id| *raft_id != leader as u64 + 1)
            .collect();
        let request = if others.len() >= MANAGERS_MAX - 1
            || (!others.is_empty() && self.faults.random_bool(0.4))
        {
            Request::RemoveMember(others[self.faults.random_range(0..others.len())])
        } else if self.hosts.len() < HOSTS_MAX {
            let host = self.hosts.len();
            let raft_id = host as u64 + 1;
            let disk = Disk::new(self.plan.disk, stream(self.seed, 100 + raft_id));
            if Founding::join(disk.clone(), raft_id).is_err() {
                return;
            }
            disk.take_spent_us();
            let node_id = NodeId::random(&mut self.faults);
            self.hosts.push(Host::new(node_id, &disk));
            self.after(0, Event::Start(host));
            self.after(0, Event::Tick(host));
            Request::AddMember(raft_id)
        } else {
            return;
        };
        let call = self.users.call_for(request.clone());
        self.trace.note(
            self.now,
            format_args!("{leader} is asked {call}: {}", in_short(&request)),
        );
        let it = &mut self.hosts[leader];
        it.calls.push(call);
        it.inbox.push_back(Input::Call(call, request));
    }

    pub(super) fn mend_later(&mut self) {
        let time = self.faults.random_range(100 * MILLISECOND..5 * SECOND);
        self.after(time, Event::Heal);
    }
}
