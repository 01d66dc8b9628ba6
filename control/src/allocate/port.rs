//! Published ports and service indexes.

use std::collections::{BTreeMap, BTreeSet};

use swarm_model::{Endpoint, PortConfig, Protocol, PublishMode, Service};

use crate::store::State;

/// The ports given to those who do not ask for a number (swarmkit `portallocator.go`).
const CHOSEN_FIRST: u16 = 30000;
const CHOSEN_LAST: u16 = 32767;

/// Who has which port, and in which mode. Host-mode ports can have several holders, of which the
/// first is named.
#[derive(Debug, Default)]
struct Taken<'a>(BTreeMap<(Protocol, u16), (&'a Service, PublishMode)>);

impl<'a> Taken<'a> {
    fn take(&mut self, port: &PortConfig, number: u16, service: &'a Service) {
        let key = (port.protocol, number);
        self.0.entry(key).or_insert((service, port.mode));
    }

    fn has(&self, protocol: Protocol, number: u16) -> bool {
        self.0.contains_key(&(protocol, number))
    }

    /// Whoever has the port that `port` names, and does not share it.
    fn holder(&self, port: &PortConfig) -> Option<(&'a Service, PublishMode)> {
        let (service, mode) = *self.0.get(&(port.protocol, port.published))?;
        let shared = mode == PublishMode::Host && port.mode == PublishMode::Host;
        (!shared).then_some((service, mode))
    }
}

/// Every service with the endpoint it is to have, oldest first.
///
/// What services own already and still ask for is claimed first, then the numbers they name, then
/// a free number is chosen for those that name none. A service gets all of its new ports or none
/// of them. `cursor` is the last number chosen.
pub(super) fn settle<'a>(
    state: &'a State,
    cursor: &mut Option<u16>,
) -> Vec<(&'a Service, Endpoint)> {
    let mut services: Vec<&Service> = state.services().map(AsRef::as_ref).collect();
    services.sort_by_key(|service| (service.meta.created_at, &service.id));

    let mut taken = Taken::default();
    let owned: Vec<_> = services
        .iter()
        .map(|service| claim_owned(service, &mut taken))
        .collect();
    let named: Vec<_> = services
        .iter()
        .zip(owned)
        .map(|(service, ports)| claim_named(service, ports, &mut taken))
        .collect();
    let mut indexes = Indexes::of(&services);
    services
        .iter()
        .zip(named)
        .map(|(service, named)| {
            let chosen = named.and_then(|ports| choose(service, ports, &mut taken, cursor));
            let (ports, error) = match chosen {
                Ok(ports) => (ports, String::new()),
                Err(error) => (owned_ports(service), error),
            };
            let index = indexes.of_service(service);
            let endpoint = Endpoint {
                index,
                ports,
                vips: service.endpoint.vips.clone(),
                error,
            };
            (*service, endpoint)
        })
        .collect()
}

/// The service's ports as far as settled: the number for each port of the spec, in its order.
type Numbers = Vec<Option<u16>>;

/// What the service asks for. One that is being removed keeps what it has until its last task is
/// gone, and asks for no more.
fn wanted(service: &Service) -> &[PortConfig] {
    if service.pending_delete {
        &service.endpoint.ports
    } else {
        &service.spec.endpoint.ports
    }
}

/// Takes what the service owns of what it asks for.
fn claim_owned<'a>(service: &'a Service, taken: &mut Taken<'a>) -> Numbers {
    let numbers = owned_numbers(service);
    for (port, number) in wanted(service).iter().zip(&numbers) {
        if let Some(number) = number {
            taken.take(port, *number, service);
        }
    }
    numbers
}

/// Which of the service's allocated numbers answers which port of its spec. Ports that name their
/// number come first: what is left may answer for one that does not.
fn owned_numbers(service: &Service) -> Numbers {
    let wanted = wanted(service);
    let mut left = service.endpoint.ports.clone();
    let mut numbers = vec![None; wanted.len()];
    for named in [true, false] {
        for (port, number) in wanted.iter().zip(&mut numbers) {
            if (port.published != 0) != named {
                continue;
            }
            let owned = left.iter().position(|owned| {
                owned.protocol == port.protocol
                    && owned.target == port.target
                    && owned.mode == port.mode
                    && (!named || owned.published == port.published)
            });
            *number = owned.map(|at| left.swap_remove(at).published);
        }
    }
    numbers
}

/// What the service owns of what it asks for.
fn owned_ports(service: &Service) -> Vec<PortConfig> {
    wanted(service)
        .iter()
        .zip(owned_numbers(service))
        .filter_map(|(port, number)| {
            Some(PortConfig {
                published: number?,
                ..port.clone()
            })
        })
        .collect()
}

/// Takes the numbers that the service names, all of them or none.
fn claim_named<'a>(
    service: &'a Service,
    mut numbers: Numbers,
    taken: &mut Taken<'a>,
) -> Result<Numbers, String> {
    let wanted = wanted(service);
    for (port, number) in wanted.iter().zip(&mut numbers) {
        if port.published == 0 || number.is_some() {
            continue;
        }
        if let Some((holder, mode)) = taken.holder(port) {
            return Err(already_published(port, holder, mode));
        }
        *number = Some(port.published);
    }
    for (port, number) in wanted.iter().zip(&numbers) {
        if let Some(number) = number {
            taken.take(port, *number, service);
        }
    }
    Ok(numbers)
}

fn already_published(port: &PortConfig, holder: &Service, mode: PublishMode) -> String {
    let (published, protocol) = (port.published, port.protocol.as_str());
    let Service { id, spec, .. } = holder;
    let name = &spec.name;
    let in_mode = if mode == port.mode {
        String::new()
    } else {
        format!(" in mode {}", mode.as_str())
    };
    if holder.pending_delete {
        format!(
            "port {published}/{protocol} is still published{in_mode} by service {name} ({id}), \
             which is being removed"
        )
    } else {
        format!(
            "port {published}/{protocol} is already published{in_mode} by service {name} ({id})"
        )
    }
}

/// Chooses a number for each port that still has none.
fn choose<'a>(
    service: &'a Service,
    numbers: Numbers,
    taken: &mut Taken<'a>,
    cursor: &mut Option<u16>,
) -> Result<Vec<PortConfig>, String> {
    let mut ports = Vec::new();
    for (port, number) in wanted(service).iter().zip(numbers) {
        let published = match number {
            Some(number) => number,
            None => next_free(port.protocol, taken, cursor).ok_or_else(|| {
                format!(
                    "every {} port from {CHOSEN_FIRST} to {CHOSEN_LAST} is published: name \
                     another port, or remove a service",
                    port.protocol.as_str()
                )
            })?,
        };
        taken.take(port, published, service);
        ports.push(PortConfig {
            published,
            ..port.clone()
        });
    }
    Ok(ports)
}

fn next_free(protocol: Protocol, taken: &Taken<'_>, cursor: &mut Option<u16>) -> Option<u16> {
    let start = match *cursor {
        Some(last) if (CHOSEN_FIRST..CHOSEN_LAST).contains(&last) => last + 1,
        _ => CHOSEN_FIRST,
    };
    let free = (start..=CHOSEN_LAST)
        .chain(CHOSEN_FIRST..start)
        .find(|number| !taken.has(protocol, *number))?;
    *cursor = Some(free);
    Some(free)
}

/// The indexes of services: small, so that they can index an array in the kernel.
struct Indexes(BTreeSet<u32>);

impl Indexes {
    fn of(services: &[&Service]) -> Self {
        let used = services.iter().map(|service| service.endpoint.index);
        Self(used.filter(|index| *index != 0).collect())
    }

    /// The service's index, or the smallest free one.
    fn of_service(&mut self, service: &Service) -> u32 {
        if service.endpoint.index != 0 {
            return service.endpoint.index;
        }
        let free = (1..)
            .find(|index| !self.0.contains(index))
            .expect("there are fewer services than numbers");
        self.0.insert(free);
        free
    }
}
