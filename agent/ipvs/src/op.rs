//! Changes to a table.

use std::fmt;

use crate::codec::{Attr, Command, IpvsMessage};
use crate::destination::{Destination, DestinationKey};
use crate::service::{Service, ServiceKey};
use crate::timeouts::Timeouts;

/// One change to the table of a network namespace. Its display names the action and the object:
/// `add destination 10.255.0.7:8080 to service tcp 10.0.0.1:80`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Add a service, without destinations.
    AddService(Service),
    /// Change the configuration of a service that exists; its destinations stay.
    UpdateService(Service),
    /// Delete a service and its destinations. Connections lose their way at their next packet.
    DeleteService(ServiceKey),
    /// Add a destination to a service that exists.
    AddDestination(ServiceKey, Destination),
    /// Change the configuration of a destination that exists; its connections stay.
    UpdateDestination(ServiceKey, Destination),
    /// Delete a destination from its service.
    DeleteDestination(ServiceKey, DestinationKey),
    /// Delete all services.
    Flush,
    /// Set how long connections are remembered without a packet.
    SetTimeouts(Timeouts),
}

impl Op {
    /// Why the kernel should not be asked, if that is so: it would misread a mask of the wrong
    /// family, not refuse it.
    pub(crate) fn objection(&self) -> Option<&'static str> {
        match self {
            Self::AddService(service) | Self::UpdateService(service)
                if service.config.netmask.family() != service.key.family() =>
            {
                Some("the netmask is of another address family than the service")
            }
            _ => None,
        }
    }
}

impl From<&Op> for IpvsMessage {
    /// The request that makes the change.
    fn from(op: &Op) -> Self {
        let (command, attrs) = match op {
            Op::AddService(service) => (Command::NEW_SERVICE, vec![Attr::Service(service.attrs())]),
            Op::UpdateService(service) => {
                (Command::SET_SERVICE, vec![Attr::Service(service.attrs())])
            }
            Op::DeleteService(key) => (Command::DEL_SERVICE, vec![Attr::Service(key.attrs())]),
            Op::AddDestination(service, destination) => (
                Command::NEW_DEST,
                vec![
                    Attr::Service(service.attrs()),
                    Attr::Destination(destination.attrs()),
                ],
            ),
            Op::UpdateDestination(service, destination) => (
                Command::SET_DEST,
                vec![
                    Attr::Service(service.attrs()),
                    Attr::Destination(destination.attrs()),
                ],
            ),
            Op::DeleteDestination(service, key) => (
                Command::DEL_DEST,
                vec![
                    Attr::Service(service.attrs()),
                    Attr::Destination(key.attrs()),
                ],
            ),
            Op::Flush => (Command::FLUSH, Vec::new()),
            Op::SetTimeouts(timeouts) => (Command::SET_CONFIG, timeouts.attrs()),
        };
        Self { command, attrs }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddService(service) => write!(f, "add service {}", service.key),
            Self::UpdateService(service) => write!(f, "update service {}", service.key),
            Self::DeleteService(key) => write!(f, "delete service {key}"),
            Self::AddDestination(service, destination) => {
                write!(
                    f,
                    "add destination {} to service {service}",
                    destination.key
                )
            }
            Self::UpdateDestination(service, destination) => {
                write!(
                    f,
                    "update destination {} of service {service}",
                    destination.key
                )
            }
            Self::DeleteDestination(service, key) => {
                write!(f, "delete destination {key} of service {service}")
            }
            Self::Flush => f.write_str("delete all services"),
            Self::SetTimeouts(timeouts) => write!(f, "set timeouts: {timeouts}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Family;
    use crate::name::Name;
    use crate::service::Netmask;

    #[test]
    fn a_mask_of_the_wrong_family_is_objected_to() {
        let key = ServiceKey::Fwmark {
            family: Family::V6,
            mark: std::num::NonZeroU32::MIN,
        };
        let mut service = Service::new(key, Name::RR);
        assert_eq!(Op::AddService(service).objection(), None);
        service.config.netmask = Netmask::full(Family::V4);
        assert!(Op::AddService(service).objection().is_some());
        assert!(Op::UpdateService(service).objection().is_some());
    }
}
