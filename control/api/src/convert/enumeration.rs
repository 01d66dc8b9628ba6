//! Enums: open numbers on the wire, closed in the model.

use swarm_model::{
    Availability, DesiredState, EndpointMode, NodeState, Protocol, PublishMode, RestartCondition,
    Role, RoutingPolicy, Scheduler, TaskState, UpdateOrder,
};

use super::ConvertError;
use crate::v1;

/// The model's value for a number from the wire.
pub(super) fn read<W, M>(field: &'static str, value: i32) -> Result<M, ConvertError>
where
    W: TryFrom<i32>,
    M: From<W>,
{
    W::try_from(value)
        .map(M::from)
        .map_err(|_| ConvertError::UnknownValue { field, value })
}

macro_rules! enumerations {
    ($($name:ident { $($variant:ident),+ } unspecified $default:ident;)+) => {$(
        impl From<v1::$name> for $name {
            /// Unspecified is the default.
            fn from(value: v1::$name) -> Self {
                match value {
                    v1::$name::Unspecified => Self::$default,
                    $(v1::$name::$variant => Self::$variant,)+
                }
            }
        }

        impl From<$name> for v1::$name {
            fn from(value: $name) -> Self {
                match value {
                    $($name::$variant => Self::$variant,)+
                }
            }
        }

        impl From<&$name> for v1::$name {
            fn from(value: &$name) -> Self {
                (*value).into()
            }
        }
    )+};
}

enumerations! {
    Availability { Active, Pause, Drain } unspecified Active;
    DesiredState { Running, Draining, Shutdown, Remove } unspecified Running;
    EndpointMode { Vip, Dnsrr } unspecified Vip;
    NodeState { Unknown, Ready, Suspect, Down } unspecified Unknown;
    Protocol { Tcp, Udp, Sctp } unspecified Tcp;
    PublishMode { Ingress, Host } unspecified Ingress;
    RestartCondition { None, OnFailure, Any } unspecified Any;
    Role { Worker, Manager } unspecified Worker;
    RoutingPolicy { Cluster, Local, PreferLocal } unspecified Cluster;
    Scheduler { Rr, Wrr, Lc, Sh, Mh } unspecified Rr;
    TaskState {
        New, Pending, Assigned, Accepted, Preparing, Starting, Running, Complete, Shutdown,
        Failed, Rejected, Orphaned
    } unspecified New;
    UpdateOrder { StopFirst, StartFirst } unspecified StopFirst;
}
