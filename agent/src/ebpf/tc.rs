//! tc filters over route netlink: attach, look up, detach.
//!
//! A filter of ours is known by its place: a fixed priority and handle at each hook. Attaching
//! there creates or replaces, and the kernel swaps the program under RCU, so that no packet finds
//! the hook empty (`cls_bpf_change` in `net/sched/cls_bpf.c`).

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::libc;

use super::{Direction, Program};

/// Early among the filters of an interface, after those that insist on being first.
const PRIORITY: u16 = 50;

/// "SW", so that a filter somebody else has at the same priority is never taken for ours.
const HANDLE: u32 = 0x5357;

/// Bytes of one reply; the kernel's route netlink stays below this for a single object.
const REPLY_LEN_MAX: usize = 32 * 1024;

/// What became of an [attach](super::Mesh::attach).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attached {
    /// There was none.
    Created,
    /// The program of this number was there, such as an earlier agent's.
    Replaced(u32),
    /// This very program was there.
    Unchanged,
}

/// Why the kernel's traffic control could not be asked or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TcError {
    /// No conversation with the kernel.
    #[error("cannot talk to the kernel over route netlink")]
    Socket(#[source] io::Error),
    /// An answer that is not netlink, or not to the question.
    #[error("cannot understand the kernel's answer: {0}")]
    Answer(String),
    /// The kernel said no.
    #[error("the kernel refused{}", Reason(.reason))]
    Refused {
        /// The error number.
        #[source]
        source: io::Error,
        /// The kernel's own words, where it has any.
        reason: Option<String>,
    },
}

struct Reason<'a>(&'a Option<String>);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .as_ref()
            .map_or(Ok(()), |reason| write!(f, " ({reason})"))
    }
}

impl TcError {
    fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            Self::Socket(_) | Self::Answer(_) => None,
        }
    }
}

/// The kernel's number of the program at our place of that hook; nothing when there is none.
pub(super) fn program_id(ifindex: u32, direction: Direction) -> Result<Option<u32>, TcError> {
    let message = RouteNetlinkMessage::GetTrafficFilter(filter(ifindex, direction));
    match exchange(message, 0) {
        Ok(Some(RouteNetlinkMessage::NewTrafficFilter(found))) => Ok(bpf_program_id(&found)),
        Ok(_) => Err(TcError::Answer("not a filter".to_owned())),
        // No filter at that place; and no clsact qdisc, or a filter of another kind there.
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EINVAL)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts a program at our place of its hook. `id` is the kernel's number of it.
pub(super) fn attach(
    program: Program,
    fd: BorrowedFd<'_>,
    id: u32,
    ifindex: u32,
) -> Result<Attached, TcError> {
    let before = program_id(ifindex, program.direction())?;
    if before == Some(id) {
        return Ok(Attached::Unchanged);
    }
    add_clsact(ifindex)?;
    let mut message = filter(ifindex, program.direction());
    message.attributes = vec![
        TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
        TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(fd.as_raw_fd().cast_unsigned())),
            TcOption::Bpf(TcFilterBpfOption::ProgName(program.name().to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]),
    ];
    // Without NLM_F_EXCL an existing filter with this handle is replaced.
    exchange(
        RouteNetlinkMessage::NewTrafficFilter(message),
        NLM_F_ACK | NLM_F_CREATE,
    )?;
    Ok(before.map_or(Attached::Created, Attached::Replaced))
}

/// Takes away whatever is at our place of that hook. False when nothing was.
pub(super) fn detach(ifindex: u32, direction: Direction) -> Result<bool, TcError> {
    let message = RouteNetlinkMessage::DelTrafficFilter(filter(ifindex, direction));
    match exchange(message, NLM_F_ACK) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EINVAL)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The qdisc that has the two hooks.
fn add_clsact(ifindex: u32) -> Result<(), TcError> {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.handle = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: 0,
    };
    message.header.parent = TcHandle::CLSACT;
    message.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    match exchange(RouteNetlinkMessage::NewQueueDiscipline(message), flags) {
        Ok(_) => Ok(()),
        Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Our place at a hook.
fn filter(ifindex: u32, direction: Direction) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    let minor = match direction {
        Direction::Ingress => TcHandle::MIN_INGRESS,
        Direction::Egress => TcHandle::MIN_EGRESS,
    };
    message.header.parent = TcHandle {
        major: TcHandle::CLSACT.major,
        minor,
    };
    message.header.handle = TcHandle::from(HANDLE);
    let every_protocol = (libc::ETH_P_ALL as u16).to_be();
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(every_protocol);
    message
}

fn bpf_program_id(message: &TcMessage) -> Option<u32> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Options(options) => options.iter().find_map(|option| match option {
                TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
                _ => None,
            }),
            _ => None,
        })
}

/// One request and its answer: a message, or nothing when it was only acknowledged.
pub(super) fn exchange(
    message: RouteNetlinkMessage,
    flags: u16,
) -> Result<Option<RouteNetlinkMessage>, TcError> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | flags;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);

    let socket = Socket::new(NETLINK_ROUTE).map_err(TcError::Socket)?;
    // The kernel's own words in refusals, without our request repeated.
    socket.set_ext_ack(true).map_err(TcError::Socket)?;
    socket.set_cap_ack(true).map_err(TcError::Socket)?;
    socket
        .send_to(&bytes, &SocketAddr::new(0, 0), 0)
        .map_err(TcError::Socket)?;
    let mut answer = Vec::with_capacity(REPLY_LEN_MAX);
    // Route netlink has answered before `send` returns: no need to wait, and nothing to wait for.
    socket
        .recv(&mut answer, libc::MSG_DONTWAIT)
        .map_err(TcError::Socket)?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|error| TcError::Answer(error.to_string()))?;
    match answer.payload {
        NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
        NetlinkPayload::Error(error) if error.code.is_none() => Ok(None),
        NetlinkPayload::Error(error) => Err(TcError::Refused {
            reason: reason(&error.header),
            source: error.to_io(),
        }),
        other => Err(TcError::Answer(format!("{other:?}"))),
    }
}

/// The text in a refusal: after the 16 bytes of our request's header come attributes, of which
/// number 1 is the message (`NLMSGERR_ATTR_MSG` in `linux/netlink.h`).
fn reason(refusal: &[u8]) -> Option<String> {
    const HEADER_LEN: usize = 16;
    const ATTRIBUTE_MESSAGE: u16 = 1;
    let attributes = NlasIterator::new(refusal.get(HEADER_LEN..)?);
    let message = attributes
        .flatten()
        .find(|attribute| attribute.kind() == ATTRIBUTE_MESSAGE)?;
    let text = String::from_utf8_lossy(message.value());
    Some(text.trim_end_matches('\0').to_owned())
}
