//! What has a name, as one table for each network. Pure.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use swarm_model::NetworkId;

/// Prefix of the name that stands for a service's tasks instead of its virtual address.
const TASKS_PREFIX: &str = "tasks.";

/// How long an answer may be kept, in seconds, when it is an address that stays with its service.
/// Short all the same: the service may be removed and made again.
const STABLE_TTL_SECONDS: u32 = 5;

/// The same when the answer is a list of tasks: a task that stops is drained within a few seconds,
/// and nobody should be told of it for longer.
const TASKS_TTL_SECONDS: u32 = 1;

/// Everything this node can name.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    /// User networks with a task on this node.
    pub(super) zones: BTreeMap<NetworkId, Arc<Zone>>,
    /// Networks whose addresses have no names, and are nobody else's to name either: the ingress
    /// network.
    pub(super) nameless: Vec<Subnets>,
}

/// The addresses of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subnets {
    /// Where its IPv4 addresses are from.
    pub(super) v4: Ipv4Net,
    /// Where its IPv6 addresses are from: this prefix, of 96 bits at most, and the IPv4 address in
    /// the low 32 bits. Nothing for a network without IPv6.
    pub(super) v6: Option<Ipv6Net>,
}

impl Subnets {
    /// The IPv6 address of who has `address`.
    pub(super) fn address6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let prefix = self.v6?.network().to_bits();
        Some(Ipv6Addr::from_bits(prefix | u128::from(address.to_bits())))
    }

    /// The IPv4 address of who has `address`, which is one of this network's or none.
    fn address4(&self, address: IpAddr) -> Option<Ipv4Addr> {
        match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(address) => {
                let low = u32::try_from(address.to_bits() & u128::from(u32::MAX)).ok()?;
                let address4 = Ipv4Addr::from_bits(low);
                (self.address6(address4) == Some(address)).then_some(address4)
            }
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.contains(&address),
            IpAddr::V6(address) => self.v6.is_some_and(|subnet| subnet.contains(&address)),
        }
    }
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asker {
    /// The user networks it is on, in the order of its attachments: a name that two of them have is
    /// looked for in this order.
    pub(crate) networks: Vec<NetworkId>,
}

/// The names on one network. All in lower case, without a dot at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Zone {
    name: String,
    subnets: Subnets,
    internal: bool,
    services: HashMap<String, ServiceName>,
    tasks: HashMap<String, Ipv4Addr>,
    reverse: HashMap<Ipv4Addr, String>,
}

/// What the name or an alias of services stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ServiceName {
    /// Virtual addresses; and tasks of services that have none.
    addresses: Vec<Ipv4Addr>,
    /// All tasks.
    tasks: Vec<Ipv4Addr>,
    /// Whether tasks are among the addresses.
    changing: bool,
}

/// A service on a network.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServiceRecord<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Its other names on this network.
    pub(super) aliases: &'a [String],
    /// How its name is answered.
    pub(super) mode: Mode,
    /// Addresses of the tasks that new connections may go to.
    pub(super) ready: &'a [Ipv4Addr],
}

/// What the name of a service stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Its virtual address; nothing where it was given none yet.
    Vip(Option<Ipv4Addr>),
    /// Its tasks.
    Tasks,
}

/// Addresses found for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found<'a> {
    /// The network.
    pub(super) subnets: &'a Subnets,
    /// Possibly none.
    pub(super) addresses: &'a [Ipv4Addr],
    /// How long they may be kept, in seconds.
    pub(super) ttl: u32,
}

/// What is known of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reverse {
    /// Its full name, and how long that may be kept, in seconds.
    Name(String, u32),
    /// It is an address of the swarm's networks, and nobody has it.
    Nobody,
}

impl Zone {
    /// The network called `name`, without anything on it.
    pub(super) fn new(name: &str, subnets: Subnets, internal: bool) -> Self {
        Self {
            name: name.to_lowercase(),
            subnets,
            internal,
            services: HashMap::new(),
            tasks: HashMap::new(),
            reverse: HashMap::new(),
        }
    }

    /// Adds a service. Services that share a name or an alias share its answers.
    pub(super) fn add_service(&mut self, service: &ServiceRecord<'_>) {
        for (index, name) in std::iter::once(service.name)
            .chain(service.aliases.iter().map(String::as_str))
            .enumerate()
        {
            let known = service.aliases[..index.saturating_sub(1)]
                .iter()
                .any(|alias| alias.eq_ignore_ascii_case(name));
            if index > 0 && (known || name.eq_ignore_ascii_case(service.name)) {
                continue;
            }
            let entry = self.services.entry(name.to_lowercase()).or_default();
            entry.tasks.extend(service.ready);
            match service.mode {
                Mode::Vip(vip) => entry.addresses.extend(vip),
                Mode::Tasks => {
                    entry.addresses.extend(service.ready);
                    entry.changing = true;
                }
            }
        }
        if let Mode::Vip(Some(vip)) = service.mode {
            self.reverse.insert(vip, service.name.to_lowercase());
        }
    }

    /// Adds a task under its full name (`web.1.<id>`), which is also the name of its address, and
    /// under its container's host name.
    pub(super) fn add_task(&mut self, name: &str, host_name: &str, address: Ipv4Addr) {
        let name = name.to_lowercase();
        self.reverse.insert(address, name.clone());
        self.tasks.insert(name, address);
        self.tasks.insert(host_name.to_lowercase(), address);
    }

    fn find(&self, name: &str) -> Option<Found<'_>> {
        if let Some(service) = self.services.get(name) {
            let ttl = if service.changing {
                TASKS_TTL_SECONDS
            } else {
                STABLE_TTL_SECONDS
            };
            return Some(self.found(&service.addresses, ttl));
        }
        if let Some(address) = self.tasks.get(name) {
            return Some(self.found(std::slice::from_ref(address), STABLE_TTL_SECONDS));
        }
        let service = self.services.get(name.strip_prefix(TASKS_PREFIX)?)?;
        Some(self.found(&service.tasks, TASKS_TTL_SECONDS))
    }

    fn found<'a>(&'a self, addresses: &'a [Ipv4Addr], ttl: u32) -> Found<'a> {
        Found {
            subnets: &self.subnets,
            addresses,
            ttl,
        }
    }

    /// `name` without the network's own name at its end.
    fn unqualified<'n>(&self, name: &'n str) -> Option<&'n str> {
        name.strip_suffix(self.name.as_str())?.strip_suffix('.')
    }
}

impl Records {
    fn zones_of<'a>(&'a self, asker: &'a Asker) -> impl Iterator<Item = &'a Zone> {
        asker
            .networks
            .iter()
            .filter_map(|id| Some(self.zones.get(id)?.as_ref()))
    }

    /// The addresses of `name` (lower case, without a dot at the end) for `asker`: the name as it
    /// is, else as one that ends with the name of one of its networks. None for a name that is not
    /// the swarm's to answer.
    pub(super) fn find<'a>(&'a self, asker: &'a Asker, name: &str) -> Option<Found<'a>> {
        self.zones_of(asker)
            .find_map(|zone| zone.find(name))
            .or_else(|| {
                self.zones_of(asker)
                    .find_map(|zone| zone.find(zone.unqualified(name)?))
            })
    }

    /// What `address` is called for `asker`. None for an address that is not the swarm's.
    pub(super) fn reverse(&self, asker: &Asker, address: IpAddr) -> Option<Reverse> {
        let mut ours = self
            .nameless
            .iter()
            .any(|network| network.contains(address));
        for zone in self.zones_of(asker) {
            if !zone.subnets.contains(address) {
                continue;
            }
            ours = true;
            let name = zone
                .subnets
                .address4(address)
                .and_then(|address| zone.reverse.get(&address));
            if let Some(name) = name {
                let name = format!("{name}.{}", zone.name);
                return Some(Reverse::Name(name, STABLE_TTL_SECONDS));
            }
        }
        ours.then_some(Reverse::Nobody)
    }

    /// Whether `asker` may have names of the outside world resolved. One whose networks are all
    /// internal may not: a name server that asks on its behalf would be a way out. Networks that
    /// are not known count as internal.
    pub(super) fn has_outside(&self, asker: &Asker) -> bool {
        asker.networks.is_empty() || self.zones_of(asker).any(|zone| !zone.internal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnets() -> Subnets {
        Subnets {
            v4: "10.1.0.0/24".parse().unwrap(),
            v6: Some("fd00:1::/64".parse().unwrap()),
        }
    }

    fn zone(name: &str) -> Zone {
        Zone::new(name, subnets(), false)
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 1, 0, last)
    }

    #[test]
    fn an_ipv6_address_is_the_prefix_and_the_ipv4_address() {
        let six = subnets().address6(address(9)).unwrap();
        assert_eq!(six, "fd00:1::a01:9".parse::<Ipv6Addr>().unwrap());
        assert_eq!(subnets().address4(six.into()), Some(address(9)));
        let other = "fd00:1::1:a01:9".parse::<IpAddr>().unwrap();
        assert_eq!(subnets().address4(other), None);
    }

    #[test]
    fn services_that_share_an_alias_share_its_answers() {
        let mut zone = zone("back");
        let aliases = ["DB".to_owned(), "db".to_owned(), "One".to_owned()];
        zone.add_service(&ServiceRecord {
            name: "one",
            aliases: &aliases,
            mode: Mode::Vip(Some(address(2))),
            ready: &[address(3)],
        });
        zone.add_service(&ServiceRecord {
            name: "two",
            aliases: &aliases[..1],
            mode: Mode::Tasks,
            ready: &[address(4), address(5)],
        });
        let found = |name| zone.find(name).map(|found| (found.addresses, found.ttl));
        let [two, three, four, five] = [2, 3, 4, 5].map(address);
        assert_eq!(found("one"), Some((&[two][..], STABLE_TTL_SECONDS)));
        assert_eq!(found("two"), Some((&[four, five][..], TASKS_TTL_SECONDS)));
        assert_eq!(
            found("db"),
            Some((&[two, four, five][..], TASKS_TTL_SECONDS))
        );
        assert_eq!(
            found("tasks.db"),
            Some((&[three, four, five][..], TASKS_TTL_SECONDS))
        );
        assert_eq!(found("tasks.three"), None);
        assert_eq!(found("tasks."), None);
    }

    #[test]
    fn networks_are_searched_in_the_order_of_attachment() {
        let mut rng = rand::rng();
        let ids = [NetworkId::random(&mut rng), NetworkId::random(&mut rng)];
        let mut records = Records::default();
        for (index, id) in ids.iter().enumerate() {
            let mut zone = zone(&format!("net{index}"));
            let vip = address(u8::try_from(index).unwrap() + 10);
            zone.add_service(&ServiceRecord {
                name: "web",
                aliases: &[],
                mode: Mode::Vip(Some(vip)),
                ready: &[],
            });
            records.zones.insert(id.clone(), Arc::new(zone));
        }
        let [first, second] = ids;
        let first_of = |networks: Vec<NetworkId>, name| {
            let asker = Asker { networks };
            records
                .find(&asker, name)
                .map(|found| found.addresses.to_vec())
        };
        let both = vec![second.clone(), first.clone()];
        assert_eq!(first_of(both.clone(), "web"), Some(vec![address(11)]));
        assert_eq!(first_of(both, "web.net0"), Some(vec![address(10)]));
        assert_eq!(first_of(vec![first.clone()], "web.net1"), None);
        assert_eq!(first_of(vec![first], "net0"), None);
        assert_eq!(first_of(Vec::new(), "web"), None);
    }

    #[test]
    fn who_is_on_internal_networks_alone_has_no_outside() {
        let mut rng = rand::rng();
        let [inner, outer, unknown] = [(); 3].map(|()| NetworkId::random(&mut rng));
        let mut records = Records::default();
        let zones = [
            (&inner, Zone::new("inner", subnets(), true)),
            (&outer, zone("outer")),
        ];
        for (id, zone) in zones {
            records.zones.insert(id.clone(), Arc::new(zone));
        }
        let outside = |networks: &[&NetworkId]| {
            let networks = networks.iter().copied().cloned().collect();
            records.has_outside(&Asker { networks })
        };
        assert!(outside(&[]));
        assert!(!outside(&[&inner]));
        assert!(!outside(&[&unknown]));
        assert!(outside(&[&inner, &outer]));
    }
}
