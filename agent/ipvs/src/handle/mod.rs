//! The handle: verbs over one socket.

mod apply;
mod destinations;
mod info;
mod services;
mod timeouts;

use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use nix::errno::Errno;

use crate::codec::{FamilyId, IpvsMessage, uapi};
use crate::error::IpvsError;
use crate::exchange::{Exchange, Fault};
use crate::socket::NetlinkSocket;

/// The IPVS table of one network namespace.
///
/// The table is that of the network namespace in which the calling thread was when it called
/// [`Ipvs::open`]. The socket stays bound to it: the handle can be moved to and used from any
/// thread, whatever namespace that one is in, and keeps the namespace alive.
///
/// Calls block. The kernel works on a change within the call that sends it (which can be long where
/// it has to load a scheduler's module); the wait for an answer is bounded by
/// [`RECEIVE_TIMEOUT_MS`](crate::RECEIVE_TIMEOUT_MS).
#[derive(Debug)]
pub struct Ipvs {
    exchange: Exchange<NetlinkSocket>,
    family_id: u16,
}

impl Ipvs {
    /// Opens a socket in the calling thread's network namespace and looks up the number of the
    /// family `IPVS`.
    ///
    /// [`IpvsError::Unsupported`] when the kernel does not have it and could not load the module by
    /// itself, which it tries; [`IpvsError::Open`] when there is no socket to be had. Needs no
    /// privilege: that is asked for by every call that follows (`CAP_NET_ADMIN` in the initial user
    /// namespace).
    pub fn open() -> Result<Self, IpvsError> {
        let socket = NetlinkSocket::open().map_err(|source| IpvsError::Open { source })?;
        let mut exchange = Exchange::new(socket);
        let family_id = resolve(&mut exchange)?;
        Ok(Self {
            exchange,
            family_id,
        })
    }

    /// Asks one question and returns the messages of the answer.
    fn ask(&mut self, request: IpvsMessage) -> Result<Vec<IpvsMessage>, Fault> {
        self.exchange.ask(request, self.family_id)
    }

    /// Dumps a table, of whose messages `entry` makes its entries.
    fn dump<E>(
        &mut self,
        request: &IpvsMessage,
        entry: impl Fn(&IpvsMessage) -> Result<E, Fault>,
    ) -> Result<Vec<E>, Fault> {
        let entry = |message: IpvsMessage| entry(&message);
        self.exchange.dump(request, self.family_id, entry)
    }
}

fn resolve(exchange: &mut Exchange<NetlinkSocket>) -> Result<u16, IpvsError> {
    let request = GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(uapi::IPVS_GENL_NAME.to_owned())],
    };
    let fault = match exchange.ask::<_, FamilyId>(request, 0) {
        Ok(replies) => match replies.first() {
            Some(FamilyId(number)) => return Ok(*number),
            None => Fault::Malformed("no family in the answer".into()),
        },
        Err(Fault::Refused(errno)) if errno == Errno::ENOENT as i32 => {
            return Err(IpvsError::Unsupported);
        }
        Err(fault) => fault,
    };
    Err(IpvsError::of_query(
        "look up generic netlink family IPVS".to_owned(),
        fault,
    ))
}
