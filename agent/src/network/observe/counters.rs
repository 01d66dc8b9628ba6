//! Counters.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use swarm_ipvs::IpvsError;

use super::links::link_name;
use crate::network::connection::Connection;
use crate::network::kernel::{Kernel, KernelError};
use crate::network::model::Place;
use crate::network::names::TASK_DEVICE;
use crate::network::netlink::NetlinkError;
use crate::network::stats::{Counted, Traffic};

/// Reads all counters of the data plane. What the kernel has not, or not yet, counts nothing.
pub(in crate::network) fn count(kernel: &mut Kernel) -> Result<Counted, KernelError> {
    let mut counted = Counted::default();
    if let Ok(mesh) = kernel.mesh.look() {
        counted.published = mesh.published();
        counted.services = mesh.service_stats()?;
        counted.drops = mesh.drops()?;
        counted.task_ports = mesh.task_ports();
        counted.events = mesh.events()?;
    }
    match kernel.ipvs() {
        Ok(Some(ipvs)) => {
            for service in ipvs.services()? {
                let destinations = ipvs.destinations(&service.service.key)?;
                counted.balanced.push((service, destinations));
            }
        }
        Ok(None) | Err(KernelError::Ipvs(IpvsError::Unsupported)) => {}
        Err(error) => return Err(error),
    }
    for (place, connection) in &mut kernel.open {
        if let Place::Task(task) = place
            && let Some(through) = traffic(connection)?
        {
            counted.traffic.insert(task.clone(), through);
        }
    }
    Ok(counted)
}

/// What has gone through a task's interface on the ingress network, where it has one. Asked for in
/// the task's namespace: what is redirected into it passes by the other end uncounted.
fn traffic(connection: &mut Connection) -> Result<Option<Traffic>, NetlinkError> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    for message in connection.socket.dump(&request)? {
        let RouteNetlinkMessage::NewLink(link) = message else {
            continue;
        };
        if link_name(&link).as_deref() != Some(TASK_DEVICE) {
            continue;
        }
        return Ok(link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Stats64(stats) => Some(Traffic {
                    in_packets: stats.rx_packets,
                    in_bytes: stats.rx_bytes,
                    out_packets: stats.tx_packets,
                    out_bytes: stats.tx_bytes,
                }),
                _ => None,
            }));
    }
    Ok(None)
}
