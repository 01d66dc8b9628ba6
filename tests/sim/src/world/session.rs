//! Streams between agents and managers.

use super::*;

impl World {
    /// Lets an agent open a session, or say that it is there.
    pub(super) fn connect(&mut self, agent: usize) -> Result<(), Violation> {
        self.after(HEARTBEAT_US, Event::Connect(agent));
        let it = &self.agents[agent];
        if !it.is_up {
            return Ok(());
        }
        if let Some((_, number)) = it.stream {
            self.say(agent, number, Message::Heartbeat(v1::Heartbeat {}));
            return Ok(());
        }
        let hello = it.hello(agent);
        let node = it.node_id.clone();
        let is_admitted = it.is_admitted;
        // Anyone of the managers, more often the one that a refusal would name.
        let anyone = self.of_agents.random_range(0..self.hosts.len());
        let hinted = self.of_agents.random_bool(0.7);
        let host = self.leader().filter(|_| hinted).unwrap_or(anyone);
        if self.lonely.contains(&agent) || self.hosts[host].manager.is_none() {
            return Ok(());
        }
        if !is_admitted {
            let call = self.users.call_for(Request::Admit(node.clone()));
            let it = &mut self.hosts[host];
            it.calls.push(call);
            it.inbox.push_back(Input::Call(call, Request::Admit(node)));
            return self.step(host);
        }
        self.next_stream += 1;
        let number = self.next_stream;
        self.streams.insert(
            number,
            Stream {
                agent,
                host,
                incarnation: self.hosts[host].incarnation,
                to_manager: 0,
                to_agent: 0,
            },
        );
        self.agents[agent].stream = Some((host, number));
        self.say(agent, number, hello);
        Ok(())
    }

    /// Puts a message of an agent on its stream.
    pub(super) fn say(&mut self, agent: usize, number: u64, message: Message) {
        if self.agents[agent].stream.map(|it| it.1) != Some(number) {
            return;
        }
        let delay = self.network.delay();
        let Some(stream) = self.streams.get_mut(&number) else {
            return;
        };
        let arrives = (self.now + delay).max(stream.to_manager);
        stream.to_manager = arrives;
        let host = stream.host;
        let event = Event::ToManager(agent, host, number, Box::new(message));
        self.at(arrives, event);
    }

    /// Whether a stream still carries messages; one that does not is given up by its agent.
    pub(super) fn carries(&mut self, number: u64) -> bool {
        let Some(stream) = self.streams.get(&number) else {
            return false;
        };
        let (agent, host) = (stream.agent, stream.host);
        let it = &self.hosts[host];
        let is_whole = it.manager.is_some()
            && it.incarnation == stream.incarnation
            && !self.lonely.contains(&agent);
        if !is_whole {
            self.after(SECOND, Event::GiveUp(agent, number));
            // A broken stream carries nothing more, whatever is mended.
            if let Some(stream) = self.streams.get_mut(&number) {
                stream.incarnation = u32::MAX;
            }
        }
        is_whole
    }

    pub(super) fn reach_manager(
        &mut self,
        agent: usize,
        host: usize,
        number: u64,
        message: Box<Message>,
    ) -> Result<(), Violation> {
        if !self.carries(number) {
            return Ok(());
        }
        let node = self.agents[agent].node_id.clone();
        let input = Input::Agent(node, number, message);
        self.hosts[host].inbox.push_back(input);
        self.step(host)
    }

    pub(super) fn reach_agent(
        &mut self,
        agent: usize,
        number: u64,
        message: ToAgent,
    ) -> Result<(), Violation> {
        let is_its = self.agents[agent].stream.is_some_and(|it| it.1 == number);
        if !self.carries(number) || !is_its || !self.agents[agent].is_up {
            return Ok(());
        }
        match message {
            ToAgent::Closed => {
                self.trace.note(
                    self.now,
                    format_args!("agent {agent}: stream {number} is closed"),
                );
                self.agents[agent].stream = None;
                self.streams.remove(&number);
                Ok(())
            }
            ToAgent::Message(message) => {
                let reaction = self.agents[agent].hear(*message, &mut self.of_agents)?;
                self.react(agent, reaction)
            }
        }
    }

    pub(super) fn react(&mut self, agent: usize, reaction: Reaction) -> Result<(), Violation> {
        let Reaction { say, later, go_on } = reaction;
        for (delay, task) in go_on {
            self.after(delay, Event::GoOn(agent, task));
        }
        if let Some((_, number)) = self.agents[agent].stream {
            for message in say {
                self.say(agent, number, message);
            }
            for (delay, message) in later {
                self.after(delay, Event::Say(agent, number, Box::new(message)));
            }
        }
        for task in self.agents[agent].running() {
            let first = *self.ran_on.entry(task.clone()).or_insert(agent);
            if first != agent {
                return Err(format!("task {task} ran on agents {first} and {agent}"));
            }
        }
        Ok(())
    }
}
