//! The end of a run: all is mended, and the swarm comes to rest.

use super::*;

impl World {
    /// Mends everything.
    pub(super) fn calm(&mut self) {
        self.trace.note(self.now, format_args!("all is mended"));
        self.is_calm = true;
        self.network.calm();
        self.lonely.clear();
        for agent in 0..self.agents.len() {
            if !self.agents[agent].is_up {
                self.after(SECOND, Event::StartAgent(agent));
            }
        }
        for host in 0..self.hosts.len() {
            self.hosts[host].disk.set_habits(disk::Habits {
                sync_us: (100, 2 * MILLISECOND),
                ..self.plan.disk
            });
            self.after(SECOND, Event::Start(host));
        }
        self.after(4 * SECOND, Event::Look);
    }

    /// What of what people asked for is not there yet.
    pub(super) fn unsettled(&self) -> Option<String> {
        let view = self.history.newest();
        if let Some(agent) = self.agents.iter().position(|it| it.stream.is_none()) {
            return Some(format!("agent {agent} has no session"));
        }
        if self.agents.is_empty() {
            return None;
        }
        // Where nobody takes new tasks, what was asked for cannot all be there.
        let drained: BTreeSet<_> = view
            .nodes()
            .filter(|node| node.spec.availability == Availability::Drain)
            .map(|node| &node.id)
            .collect();
        let mine = |node: &&Arc<Node>| self.agents.iter().any(|it| it.node_id == node.id);
        let mut nodes = view.nodes().filter(mine);
        let has_place = nodes.any(|node| node.spec.availability == Availability::Active);
        for service in view.services() {
            let name = &service.spec.name;
            if service.pending_delete {
                return Some(format!("service {name} is not removed"));
            }
            let tasks = || {
                let of_it = |task: &&Arc<Task>| task.service_id == service.id;
                view.tasks().filter(of_it)
            };
            let runs = |task: &&Arc<Task>| {
                task.status.state == TaskState::Running
                    && task.desired_state == DesiredState::Running
            };
            let running = tasks().filter(runs).count() as u64;
            let wanted = service.spec.mode.replicas();
            // One that got no port is told so, and starts nothing.
            if has_place && running != wanted && service.endpoint.error.is_empty() {
                return Some(format!("service {name} has {running} tasks of {wanted}"));
            }
            let stays = |task: &&Arc<Task>| {
                runs(task) && task.node_id.as_ref().is_some_and(|id| drained.contains(id))
            };
            if has_place
                && service.endpoint.error.is_empty()
                && let Some(task) = tasks().find(stays)
            {
                return Some(format!("task {} is still on a drained node", task.id));
            }
            let over = |task: &&Arc<Task>| {
                task.desired_state > DesiredState::Running && !task.status.state.is_terminal()
            };
            if let Some(task) = tasks().find(over) {
                return Some(format!("task {} does not end", task.id));
            }
        }
        None
    }

    /// Whether all managers are up, one leads, and all have the same state; an error when that
    /// takes too long.
    pub(super) fn has_come_to_rest(&mut self) -> Result<bool, Violation> {
        let mut why = None;
        if self.leader().is_none() {
            why = Some("there is no leader".to_owned());
        }
        let newest = self.history.newest().index();
        let leader = self
            .leader()
            .and_then(|host| self.hosts[host].manager.as_ref());
        let (voters, learners) = leader.map(Manager::members).unwrap_or_default();
        if !learners.is_empty() {
            why = Some(format!("{learners:?} have no vote yet"));
        }
        for (host, it) in self.hosts.iter_mut().enumerate() {
            if !voters.contains(&(host as u64 + 1)) {
                continue;
            }
            match &mut it.manager {
                None => why = Some(format!("manager {host} is down")),
                Some(manager) if manager.index() < newest => {
                    why = Some(format!("manager {host} is behind"));
                }
                Some(manager) => self.history.compare(host, &manager.view())?,
            }
        }
        if why.is_none() {
            why = self.unsettled();
        }
        match why {
            None => {
                self.users.relies_on(self.history.newest())?;
                Ok(true)
            }
            Some(why) if self.now > self.plan.storm_us + REST_US => {
                Err(format!("the swarm does not come to rest: {why}"))
            }
            Some(_) => Ok(false),
        }
    }
}
