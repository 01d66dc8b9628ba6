//! Reading and changing services.

use std::collections::BTreeMap;

use netlink_packet_core::DecodeError;
use nix::errno::Errno;

use super::Ipvs;
use crate::codec::{Attr, Command, IpvsMessage};
use crate::error::IpvsError;
use crate::exchange::{Fault, MAX_DUMP_ATTEMPTS};
use crate::op::Op;
use crate::service::{Service, ServiceEntry, ServiceKey};

impl Ipvs {
    /// All services, sorted by key.
    ///
    /// The kernel counts its way through a dump of more than about 90 services, through those of
    /// all network namespaces (net/netfilter/ipvs/ip_vs_ctl.c, `ip_vs_genl_dump_services`): a
    /// change in any of them can hide an entry of this one, unnoticed. So the table is dumped until
    /// a dump brings nothing that those before did not. That makes up for changes now and then, not
    /// for a writer that never pauses: whoever adds what is missing here should take
    /// [`Refusal::Exists`](crate::Refusal::Exists) for an update to make. A service that somebody
    /// else deletes meanwhile may still be in the result. [`IpvsError::Unstable`] when every dump
    /// brought something new.
    pub fn services(&mut self) -> Result<Vec<ServiceEntry>, IpvsError> {
        let request = IpvsMessage {
            command: Command::GET_SERVICE,
            attrs: Vec::new(),
        };
        until_nothing_new(|| self.dump(&request, entry))
            .map_err(|fault| IpvsError::of_query("list services".to_owned(), fault))
    }

    /// One service, or `None` when there is no such service.
    pub fn service(&mut self, key: &ServiceKey) -> Result<Option<ServiceEntry>, IpvsError> {
        let attrs = vec![Attr::Service(key.attrs())];
        match self.ask(IpvsMessage {
            command: Command::GET_SERVICE,
            attrs,
        }) {
            Ok(replies) => replies.first().map(entry).transpose(),
            Err(Fault::Refused(errno)) if errno == Errno::ESRCH as i32 => Ok(None),
            Err(fault) => Err(fault),
        }
        .map_err(|fault| IpvsError::of_query(format!("read service {key}"), fault))
    }

    /// Adds a service, without destinations. [`Refusal::Exists`](crate::Refusal::Exists) when it is
    /// there already, whatever its configuration.
    pub fn add_service(&mut self, service: &Service) -> Result<(), IpvsError> {
        self.change(&Op::AddService(*service))
    }

    /// Gives a service that exists this configuration; its destinations and connections stay.
    pub fn update_service(&mut self, service: &Service) -> Result<(), IpvsError> {
        self.change(&Op::UpdateService(*service))
    }

    /// Deletes a service with its destinations.
    pub fn delete_service(&mut self, key: &ServiceKey) -> Result<(), IpvsError> {
        self.change(&Op::DeleteService(*key))
    }

    /// Deletes all services of the network namespace.
    pub fn flush(&mut self) -> Result<(), IpvsError> {
        self.change(&Op::Flush)
    }
}

/// Repeats a dump until it has nothing that those before it did not, and returns what all of them
/// had.
fn until_nothing_new(
    mut dump: impl FnMut() -> Result<Vec<ServiceEntry>, Fault>,
) -> Result<Vec<ServiceEntry>, Fault> {
    let mut known = BTreeMap::new();
    for attempt in 0..MAX_DUMP_ATTEMPTS {
        let before = known.len();
        known.extend(dump()?.into_iter().map(|entry| (entry.service.key, entry)));
        if attempt > 0 && known.len() == before {
            return Ok(known.into_values().collect());
        }
    }
    Err(Fault::Unstable)
}

fn entry(reply: &IpvsMessage) -> Result<ServiceEntry, Fault> {
    reply
        .service()
        .ok_or_else(|| DecodeError::from("no service in the answer"))
        .and_then(ServiceEntry::from_attrs)
        .map_err(Fault::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Family;
    use crate::name::Name;
    use crate::stats::Stats;

    fn entries(marks: &[u32]) -> Vec<ServiceEntry> {
        let entry = |&mark: &u32| {
            let mark = mark.try_into().unwrap();
            let key = ServiceKey::Fwmark {
                family: Family::V4,
                mark,
            };
            ServiceEntry {
                service: Service::new(key, Name::RR),
                stats: Stats::default(),
            }
        };
        marks.iter().map(entry).collect()
    }

    #[test]
    fn what_one_dump_missed_the_next_ones_bring() {
        let mut dumps = [&[1, 3, 3][..], &[4, 2, 3], &[1, 4], &[9]].into_iter();
        let listed = until_nothing_new(|| Ok(entries(dumps.next().unwrap()))).unwrap();
        assert_eq!(listed, entries(&[1, 2, 3, 4]));
        assert_eq!(dumps.count(), 1);
    }

    #[test]
    fn a_table_that_never_settles_is_given_up() {
        let mut mark = 0;
        let result = until_nothing_new(|| {
            mark += 1;
            Ok(entries(&[mark]))
        });
        assert!(matches!(result, Err(Fault::Unstable)), "{result:?}");
        assert_eq!(mark as usize, MAX_DUMP_ATTEMPTS);
    }
}
