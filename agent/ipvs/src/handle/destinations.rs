//! Reading and changing the destinations of a service.

use netlink_packet_core::DecodeError;

use super::Ipvs;
use crate::address::Family;
use crate::codec::{Attr, Command, IpvsMessage};
use crate::destination::{Destination, DestinationEntry, DestinationKey};
use crate::error::IpvsError;
use crate::exchange::Fault;
use crate::op::Op;
use crate::service::ServiceKey;

impl Ipvs {
    /// The destinations of a service, in the kernel's order.
    ///
    /// Empty also when there is no such service: the kernel does not tell the two apart. When
    /// somebody else changes the destinations of this service during the dump, an entry may be
    /// missing or come twice.
    pub fn destinations(
        &mut self,
        service: &ServiceKey,
    ) -> Result<Vec<DestinationEntry>, IpvsError> {
        let attrs = vec![Attr::Service(service.attrs())];
        let request = IpvsMessage {
            command: Command::GET_DEST,
            attrs,
        };
        let family = service.family();
        self.dump(&request, |reply| entry(reply, family))
            .map_err(|fault| {
                IpvsError::of_query(format!("list destinations of service {service}"), fault)
            })
    }

    /// Adds a destination to a service that exists.
    /// [`Refusal::Exists`](crate::Refusal::Exists) when it is there already, whatever its
    /// configuration.
    ///
    /// The address must be unicast in the routing tables of the network namespace, or the kernel
    /// finds it invalid (`EINVAL`). No IPv4 address is, in a namespace that never had one of its
    /// own: bring `lo` up first.
    pub fn add_destination(
        &mut self,
        service: &ServiceKey,
        destination: &Destination,
    ) -> Result<(), IpvsError> {
        self.change(&Op::AddDestination(*service, *destination))
    }

    /// Gives a destination that exists this configuration; its connections stay.
    pub fn update_destination(
        &mut self,
        service: &ServiceKey,
        destination: &Destination,
    ) -> Result<(), IpvsError> {
        self.change(&Op::UpdateDestination(*service, *destination))
    }

    /// Deletes a destination from its service.
    pub fn delete_destination(
        &mut self,
        service: &ServiceKey,
        key: &DestinationKey,
    ) -> Result<(), IpvsError> {
        self.change(&Op::DeleteDestination(*service, *key))
    }
}

fn entry(reply: &IpvsMessage, service_family: Family) -> Result<DestinationEntry, Fault> {
    reply
        .destination()
        .ok_or_else(|| DecodeError::from("no destination in the answer"))
        .and_then(|attrs| DestinationEntry::from_attrs(attrs, service_family))
        .map_err(Fault::Malformed)
}
