//! A blocking netlink socket: one request at a time, answered in full.
//!
//! Blocking is right here: the kernel carries a route or netfilter request out, and queues its
//! answer, before `send` returns, so that no wait for another process is involved. A socket belongs
//! to the namespace it was opened in and is used from any thread.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::ops::ControlFlow;

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
    NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket as RawSocket, SocketAddr};
use nix::errno::Errno;

use crate::ebpf::netns_cookie;

/// Receive buffer for one datagram. The kernel fills at most 32 KiB of a dump into one.
const BUFFER_BYTES: usize = 64 * 1024;

/// Times a dump that was changed while it was read is read again. Beyond, the last one counts: the
/// next pass sees what it missed.
const MAX_DUMP_ATTEMPTS: usize = 4;

/// Attribute of an extended acknowledgement that carries the kernel's own words
/// (`NLMSGERR_ATTR_MSG`, include/uapi/linux/netlink.h).
const ERROR_TEXT: u16 = 1;

/// Messages in a datagram start at multiples of this many bytes (`NLMSG_ALIGNTO`).
const NLMSG_ALIGN: usize = 4;

/// Bytes of the request's header that an error with `NETLINK_CAP_ACK` repeats.
const HEADER_BYTES: usize = 16;

/// A request that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetlinkError {
    /// No socket.
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    /// Sending or receiving failed.
    #[error("exchange netlink messages")]
    Exchange(#[source] io::Error),
    /// The kernel said no.
    #[error("the kernel refused{words}")]
    Refused {
        /// What it said, or nothing.
        words: Words,
        /// Its error.
        #[source]
        errno: Errno,
    },
    /// The socket does not tell where it is.
    #[error("ask for a network namespace's cookie (this needs Linux 5.14)")]
    Cookie(#[source] io::Error),
    /// The named object is not there.
    #[error("no answer")]
    NoAnswer,
}

impl NetlinkError {
    /// The kernel's error, when it refused.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Open(_) | Self::Exchange(_) | Self::Cookie(_) | Self::NoAnswer => None,
        }
    }
}

/// The kernel's explanation of an error, mostly absent.
#[derive(Debug, Default)]
pub(crate) struct Words(String);

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, " ({})", self.0)
        }
    }
}

/// A netlink socket that speaks in messages of one family.
pub(crate) struct Socket<M = RouteNetlinkMessage> {
    socket: RawSocket,
    sequence: u32,
    buffer: Vec<u8>,
    messages: PhantomData<fn(M) -> M>,
}

impl<M> fmt::Debug for Socket<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl Socket {
    /// A route socket in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let socket = Self::of_protocol(NETLINK_ROUTE)?;
        socket
            .socket
            .set_netlink_get_strict_chk(true)
            .map_err(NetlinkError::Open)?;
        Ok(socket)
    }
}

impl<M> Socket<M>
where
    M: NetlinkSerializable + NetlinkDeserializable + Clone + fmt::Debug,
{
    /// A socket of a protocol (`NETLINK_*`) in the calling thread's network namespace.
    pub(crate) fn of_protocol(protocol: isize) -> Result<Self, NetlinkError> {
        let connect = || {
            let mut socket = RawSocket::new(protocol)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            Ok(socket)
        };
        let socket = connect().map_err(NetlinkError::Open)?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            messages: PhantomData,
        })
    }

    /// The cookie of the namespace it belongs to.
    pub(crate) fn netns_cookie(&self) -> Result<u64, NetlinkError> {
        netns_cookie(&self.socket).map_err(NetlinkError::Cookie)
    }

    /// Carries out a request; `flags` beside `NLM_F_REQUEST` and `NLM_F_ACK`.
    pub(crate) fn request(&mut self, message: M, flags: u16) -> Result<(), NetlinkError> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags, drop)
            .map(drop)
    }

    /// Asks for one object.
    pub(crate) fn get(&mut self, message: M) -> Result<M, NetlinkError> {
        let mut last = None;
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK, |answer| {
            last = Some(answer);
        })?;
        last.ok_or(NetlinkError::NoAnswer)
    }

    /// Asks for all objects of a kind.
    pub(crate) fn dump(&mut self, message: &M) -> Result<Vec<M>, NetlinkError> {
        self.dump_picked(message, Some)
    }

    /// Asks for all objects of a kind, and keeps of each what `pick` makes of it: tens of thousands
    /// of messages are never there at once.
    pub(crate) fn dump_picked<T>(
        &mut self,
        message: &M,
        mut pick: impl FnMut(M) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut attempts = 1;
        loop {
            let mut picked = Vec::new();
            let flags = NLM_F_REQUEST | NLM_F_DUMP;
            let take = |answer| picked.extend(pick(answer));
            let interrupted = self.exchange(message.clone(), flags, take)?;
            if !interrupted || attempts == MAX_DUMP_ATTEMPTS {
                return Ok(picked);
            }
            attempts += 1;
        }
    }

    /// Sends messages, each with its flags beside `NLM_F_REQUEST`, as one datagram that the kernel
    /// carries out as a whole or not at all: the protocol's own marks of begin and end are the
    /// first and the last of them. The one before the last is acknowledged.
    pub(crate) fn batch(&mut self, messages: Vec<(M, u16)>) -> Result<(), NetlinkError> {
        let count = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        let first = self.sequence.wrapping_add(1);
        let acknowledged = count.saturating_sub(2);
        let mut bytes = Vec::new();
        for (position, (message, flags)) in (0..).zip(messages) {
            let ack = if position == acknowledged {
                NLM_F_ACK
            } else {
                0
            };
            bytes.extend(self.frame(message, NLM_F_REQUEST | flags | ack));
        }
        self.socket
            .send(&bytes, 0)
            .map_err(NetlinkError::Exchange)?;
        let mut outcome = Ok(());
        self.receive(first, count, |position, _, payload| {
            let NetlinkPayload::Error(error) = payload else {
                return ControlFlow::Continue(());
            };
            if let Err(error) = refusal(&error)
                && outcome.is_ok()
            {
                outcome = Err(error);
            }
            // What concerns the batch as a whole is said of its begin.
            match position == 0 || position == acknowledged {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        outcome
    }

    /// Carries out requests one after the other, each with its flags beside `NLM_F_REQUEST`, of which
    /// one that fails does not stop those after it: one datagram there, one back where all succeed.
    pub(crate) fn each(
        &mut self,
        messages: Vec<(M, u16)>,
    ) -> Result<Vec<Result<(), NetlinkError>>, NetlinkError> {
        let count = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        let Some(last) = count.checked_sub(1) else {
            return Ok(Vec::new());
        };
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for (position, (message, flags)) in (0..).zip(messages) {
            let ack = if position == last { NLM_F_ACK } else { 0 };
            bytes.extend(self.frame(message, NLM_F_REQUEST | flags | ack));
        }
        self.socket
            .send(&bytes, 0)
            .map_err(NetlinkError::Exchange)?;
        let mut outcomes: Vec<_> = (0..count).map(|_| Ok(())).collect();
        self.receive(first, count, |position, _, payload| {
            let NetlinkPayload::Error(error) = payload else {
                return ControlFlow::Continue(());
            };
            if let Some(outcome) = outcomes.get_mut(position as usize) {
                *outcome = refusal(&error);
            }
            if position == last {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        Ok(outcomes)
    }

    /// A request with the next sequence number, as bytes.
    fn frame(&mut self, message: M, flags: u16) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let payload = NetlinkPayload::InnerMessage(message);
        let mut request = NetlinkMessage::new(NetlinkHeader::default(), payload);
        request.header.flags = flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        bytes.resize(bytes.len().next_multiple_of(NLMSG_ALIGN), 0);
        bytes
    }

    /// Sends a request and takes its answers up to the acknowledgement or the end of the dump. Says
    /// whether a dump was changed on the way.
    fn exchange(
        &mut self,
        message: M,
        flags: u16,
        mut take: impl FnMut(M),
    ) -> Result<bool, NetlinkError> {
        let bytes = self.frame(message, flags);
        self.socket
            .send(&bytes, 0)
            .map_err(NetlinkError::Exchange)?;
        let mut interrupted = false;
        let mut outcome = Ok(());
        self.receive(self.sequence, 1, |_, flags, payload| {
            interrupted |= flags & NLM_F_DUMP_INTR != 0;
            match payload {
                NetlinkPayload::InnerMessage(answer) => take(answer),
                NetlinkPayload::Done(_) => return ControlFlow::Break(()),
                NetlinkPayload::Error(error) => {
                    outcome = refusal(&error);
                    return ControlFlow::Break(());
                }
                _ => {}
            }
            ControlFlow::Continue(())
        })?;
        outcome.map(|()| interrupted)
    }

    /// Receives the answers to `count` messages from the sequence number `first` on, until `take`
    /// has had the last: it is given the number of the message answered to, from 0, the flags and
    /// the content.
    fn receive(
        &mut self,
        first: u32,
        count: u32,
        mut take: impl FnMut(u32, u16, NetlinkPayload<M>) -> ControlFlow<()>,
    ) -> Result<(), NetlinkError> {
        loop {
            self.buffer.clear();
            self.socket
                .recv(&mut self.buffer, 0)
                .map_err(NetlinkError::Exchange)?;
            let mut rest = &self.buffer[..];
            while let Ok(frame) = NetlinkBuffer::new_checked(rest) {
                let length = usize::try_from(frame.length())
                    .unwrap_or(rest.len())
                    .min(rest.len());
                let position = frame.sequence_number().wrapping_sub(first);
                let flags = frame.flags();
                let frame = &rest[..length];
                rest = &rest[length.next_multiple_of(NLMSG_ALIGN).min(rest.len())..];
                // The end of something that was given up earlier.
                if position >= count {
                    continue;
                }
                match NetlinkMessage::<M>::deserialize(frame).map(|m| m.payload) {
                    Ok(payload) => {
                        if take(position, flags, payload).is_break() {
                            return Ok(());
                        }
                    }
                    // A link of a kind this library misreads must not hide all the others.
                    Err(error) => tracing::debug!(%error, "a netlink message was not understood"),
                }
            }
        }
    }
}

/// An error of the kernel's; none where it is an acknowledgement.
fn refusal(error: &ErrorMessage) -> Result<(), NetlinkError> {
    match error.code {
        None => Ok(()),
        Some(_) => {
            let errno = Errno::from_raw(error.raw_code().saturating_neg());
            let words = kernel_words(&error.header);
            Err(NetlinkError::Refused { words, errno })
        }
    }
}

/// The text in an extended acknowledgement: attributes after the request's header.
fn kernel_words(payload: &[u8]) -> Words {
    let attributes = payload.get(HEADER_BYTES..).unwrap_or_default();
    let text = NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == ERROR_TEXT)
        .map(|attribute| {
            let text = String::from_utf8_lossy(attribute.value());
            text.trim_end_matches('\0').to_owned()
        });
    Words(text.unwrap_or_default())
}
