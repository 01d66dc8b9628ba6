//! People: what they ask for, and what they may rely on afterwards.

use std::collections::BTreeMap;

use rand::RngExt as _;
use rand_chacha::ChaCha12Rng;
use swarm_control::simulation::{Outcome, Request, View};
use swarm_model::{
    Availability, NetworkAttachmentSpec, NetworkSpec, NodeId, PortConfig, ServiceMode, ServiceSpec,
    UpdateOrder,
};

use crate::check::Violation;

/// Calls that wait for an answer. Beyond, people wait.
const UNDER_WAY_MAX: usize = 32;

/// A request as traces show it.
pub(crate) fn in_short(request: &Request) -> String {
    match request {
        Request::CreateService(spec) | Request::UpdateService(spec) => {
            let ports: Vec<_> = spec.endpoint.ports.iter().map(|it| it.published).collect();
            let networks = spec.task.networks.iter().map(|it| it.target.as_str());
            format!(
                "service {} x{} {ports:?} {:?} {:?} force {}",
                spec.name,
                spec.mode.replicas(),
                spec.update.order,
                networks.collect::<Vec<_>>(),
                spec.task.force_update,
            )
        }
        Request::CreateNetwork(spec) => format!("network {}", spec.name),
        other => format!("{other:?}"),
    }
}

/// What is known of one name that somebody asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    /// It was acknowledged that it is there.
    is_made: bool,
    /// It was said that nothing was changed when it was to be made.
    is_refused: bool,
    /// Its removal was asked for, with whatever outcome.
    may_be_gone: bool,
    /// Its removal was acknowledged.
    is_removed: bool,
}

/// Everybody who uses the swarm.
#[derive(Debug)]
pub(crate) struct Users {
    rng: ChaCha12Rng,
    next_call: u64,
    under_way: BTreeMap<u64, Request>,
    services: BTreeMap<String, Fate>,
    networks: BTreeMap<String, Fate>,
    next_read: u64,
    /// What was known of services when each read began that waits.
    reads: BTreeMap<u64, BTreeMap<String, Fate>>,
    /// Calls that were acknowledged.
    pub(crate) acknowledged: u64,
    /// Reads that were answered.
    pub(crate) read: u64,
}

impl Users {
    /// Nobody has asked for anything yet.
    pub(crate) fn new(rng: ChaCha12Rng) -> Self {
        Self {
            rng,
            next_call: 0,
            under_way: BTreeMap::new(),
            services: BTreeMap::new(),
            networks: BTreeMap::new(),
            next_read: 0,
            reads: BTreeMap::new(),
            acknowledged: 0,
            read: 0,
        }
    }

    /// The next call, with its number; none while too many wait.
    pub(crate) fn call(&mut self, view: &View) -> Option<(u64, Request)> {
        if self.under_way.len() >= UNDER_WAY_MAX {
            return None;
        }
        self.next_call += 1;
        let call = self.next_call;
        let request = match self.rng.random_range(0..22) {
            0..8 => Request::CreateService(Box::new(self.service(call, view))),
            8..12 => Request::Scale {
                name: self.known(|users| &users.services),
                replicas: self.rng.random_range(0..5),
            },
            12..16 => Request::RemoveService {
                name: self.known(|users| &users.services),
            },
            16..18 => Request::CreateNetwork(Box::new(NetworkSpec {
                name: format!("n-{call}"),
                ..NetworkSpec::default()
            })),
            18..20 => Request::RemoveNetwork {
                name: self.known(|users| &users.networks),
            },
            _ => self.availability(view)?,
        };
        match &request {
            Request::CreateService(spec) => {
                self.services.insert(spec.name.clone(), Fate::default());
            }
            Request::CreateNetwork(spec) => {
                self.networks.insert(spec.name.clone(), Fate::default());
            }
            Request::RemoveService { name } => {
                self.services.entry(name.clone()).or_default().may_be_gone = true;
            }
            Request::RemoveNetwork { name } => {
                self.networks.entry(name.clone()).or_default().may_be_gone = true;
            }
            _ => {}
        }
        self.under_way.insert(call, request.clone());
        Some((call, request))
    }

    /// Drains, pauses or activates one of the nodes that tasks may be on.
    fn availability(&mut self, view: &View) -> Option<Request> {
        let nodes: Vec<_> = view
            .nodes()
            .filter(|node| !node.description.hostname.is_empty())
            .collect();
        let at = self.rng.random_range(0..nodes.len().max(1));
        let choices = [
            Availability::Active,
            Availability::Active,
            Availability::Pause,
            Availability::Drain,
        ];
        let availability = choices[self.rng.random_range(0..choices.len())];
        Some(Request::SetAvailability {
            node: nodes.get(at)?.id.clone(),
            availability,
        })
    }

    /// The number of a call that somebody else makes.
    pub(crate) fn call_for(&mut self, request: Request) -> u64 {
        self.next_call += 1;
        self.under_way.insert(self.next_call, request);
        self.next_call
    }

    /// The node that is in the swarm for certain, if that is what was asked for by `call`.
    pub(crate) fn admitted(&self, call: u64, outcome: &Outcome) -> Option<NodeId> {
        // Refused when it is there already, from a call that nobody answered.
        match (self.under_way.get(&call)?, outcome) {
            (Request::Admit(node), Outcome::Done | Outcome::Refused(_)) => Some(node.clone()),
            _ => None,
        }
    }

    /// The member of the log that is removed, if that is what was asked for by `call` and is done.
    pub(crate) fn removed_member(&self, call: u64, outcome: &Outcome) -> Option<u64> {
        match (self.under_way.get(&call)?, outcome) {
            (Request::RemoveMember(raft_id), Outcome::Done) => Some(*raft_id),
            _ => None,
        }
    }

    /// A name that was asked for, or one that never was.
    fn known(&mut self, of: impl Fn(&Self) -> &BTreeMap<String, Fate>) -> String {
        let count = of(self).len();
        let at = self.rng.random_range(0..=count);
        let name = of(self).keys().nth(at).cloned();
        name.unwrap_or_else(|| "nobodys".to_owned())
    }

    fn service(&mut self, call: u64, view: &View) -> ServiceSpec {
        let mut spec = ServiceSpec {
            // No name is the beginning of an id, by which the API finds services as well.
            name: format!("s-{call}"),
            mode: ServiceMode::Replicated {
                replicas: self.rng.random_range(0..5),
            },
            ..ServiceSpec::default()
        };
        spec.task.container.image = "web:1".to_owned();
        if self.rng.random_bool(0.5) {
            // Few numbers, so that services collide; 0 asks for any.
            let published = [0, 0, 8080, 8081, 30_000][self.rng.random_range(0..5)];
            spec.endpoint.ports.push(PortConfig {
                target: 80,
                published,
                ..PortConfig::default()
            });
        }
        if self.rng.random_bool(0.3) {
            spec.update.order = UpdateOrder::StartFirst;
        }
        let mine: Vec<_> = view.networks().filter(|it| !it.spec.ingress).collect();
        if !mine.is_empty() && self.rng.random_bool(0.5) {
            let network = mine[self.rng.random_range(0..mine.len())];
            spec.task.networks.push(NetworkAttachmentSpec {
                target: network.spec.name.clone(),
                aliases: Vec::new(),
            });
        }
        spec
    }

    /// Call number `call` was answered; `view` is the newest state.
    pub(crate) fn answered(
        &mut self,
        call: u64,
        outcome: &Outcome,
        view: &View,
    ) -> Result<(), Violation> {
        let Some(request) = self.under_way.remove(&call) else {
            return Err(format!("call {call} was answered twice"));
        };
        if *outcome == Outcome::Done {
            self.acknowledged += 1;
        }
        let is_made = *outcome == Outcome::Done;
        let is_refused = matches!(outcome, Outcome::Refused(_) | Outcome::NotLeader(_));
        match &request {
            Request::CreateService(spec) => {
                let fate = self.services.entry(spec.name.clone()).or_default();
                fate.is_made |= is_made;
                fate.is_refused |= is_refused;
            }
            Request::CreateNetwork(spec) => {
                let fate = self.networks.entry(spec.name.clone()).or_default();
                fate.is_made |= is_made;
                fate.is_refused |= is_refused;
            }
            Request::RemoveService { name } if is_made => {
                self.services.entry(name.clone()).or_default().is_removed = true;
            }
            Request::RemoveNetwork { name } if is_made => {
                self.networks.entry(name.clone()).or_default().is_removed = true;
            }
            _ => {}
        }
        self.relies_on(view)
    }

    /// Somebody was told that `request` is done, by who does not know ([`Sabotage::EarlyAnswers`]).
    ///
    /// [`Sabotage::EarlyAnswers`]: crate::Sabotage::EarlyAnswers
    pub(crate) fn promised(&mut self, request: &Request) {
        if let Request::CreateService(spec) = request {
            self.services.entry(spec.name.clone()).or_default().is_made = true;
        }
    }

    /// Begins a read that is to see everything acknowledged until now; gives its number.
    pub(crate) fn begin_read(&mut self) -> u64 {
        self.next_read += 1;
        self.reads.insert(self.next_read, self.services.clone());
        self.next_read
    }

    /// Read number `read` was answered with `view`, or refused.
    pub(crate) fn end_read(&mut self, read: u64, view: Option<&View>) -> Result<(), Violation> {
        let Some((before, view)) = self.reads.remove(&read).zip(view) else {
            return Ok(());
        };
        self.read += 1;
        for (name, fate) in before {
            let service = view.service_by_name(&name);
            // Its removal may have been asked for since.
            let may_be_gone = self.services.get(&name).is_some_and(|it| it.may_be_gone);
            if fate.is_made && !may_be_gone && service.is_none() {
                return Err(format!(
                    "service {name} was acknowledged before read {read}, which does not see it"
                ));
            }
            if fate.is_removed && service.is_some_and(|service| !service.pending_delete) {
                return Err(format!(
                    "the removal of service {name} was acknowledged before read {read}, which does not \
                     see it"
                ));
            }
        }
        Ok(())
    }

    /// Nobody will answer `call` any more.
    pub(crate) fn forget(&mut self, call: u64) {
        self.under_way.remove(&call);
    }

    /// Compares what people may rely on with the newest state.
    pub(crate) fn relies_on(&self, view: &View) -> Result<(), Violation> {
        for (name, fate) in &self.services {
            let service = view.service_by_name(name);
            if fate.is_made && !fate.may_be_gone && service.is_none() {
                return Err(format!("service {name} was acknowledged, and is lost"));
            }
            if fate.is_refused && service.is_some() {
                return Err(format!("service {name} was refused, and is there"));
            }
            if fate.is_removed && service.is_some_and(|service| !service.pending_delete) {
                return Err(format!(
                    "the removal of service {name} was acknowledged, and is lost"
                ));
            }
        }
        for (name, fate) in &self.networks {
            let network = view.network_by_name(name);
            if fate.is_made && !fate.may_be_gone && network.is_none() {
                return Err(format!("network {name} was acknowledged, and is lost"));
            }
            if (fate.is_refused || fate.is_removed) && network.is_some() {
                return Err(format!(
                    "network {name} was refused or removed, and is there"
                ));
            }
        }
        Ok(())
    }
}
