//! Reading and setting how long connections are remembered.

use netlink_packet_core::DecodeError;

use super::Ipvs;
use crate::codec::{Command, IpvsMessage};
use crate::error::IpvsError;
use crate::exchange::Fault;
use crate::op::Op;
use crate::timeouts::Timeouts;

impl Ipvs {
    /// The timeouts of connections.
    pub fn timeouts(&mut self) -> Result<Timeouts, IpvsError> {
        self.ask(IpvsMessage {
            command: Command::GET_CONFIG,
            attrs: Vec::new(),
        })
        .and_then(|replies| {
            replies
                .first()
                .ok_or_else(|| DecodeError::from("no configuration in the answer"))
                .and_then(|reply| Timeouts::from_attrs(&reply.attrs))
                .map_err(Fault::Malformed)
        })
        .map_err(|fault| IpvsError::of_query("read IPVS timeouts".to_owned(), fault))
    }

    /// Sets them.
    pub fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<(), IpvsError> {
        self.change(&Op::SetTimeouts(*timeouts))
    }
}
