//! Reading what IPVS says of itself.

use netlink_packet_core::DecodeError;

use super::Ipvs;
use crate::codec::{Command, IpvsMessage};
use crate::error::IpvsError;
use crate::exchange::Fault;
use crate::info::Info;

impl Ipvs {
    /// The version of the kernel's IPVS and the size of its connection table.
    pub fn info(&mut self) -> Result<Info, IpvsError> {
        self.ask(IpvsMessage {
            command: Command::GET_INFO,
            attrs: Vec::new(),
        })
        .and_then(|replies| {
            replies
                .first()
                .ok_or_else(|| DecodeError::from("no info in the answer"))
                .and_then(|reply| Info::from_attrs(&reply.attrs))
                .map_err(Fault::Malformed)
        })
        .map_err(|fault| IpvsError::of_query("read IPVS info".to_owned(), fault))
    }
}
