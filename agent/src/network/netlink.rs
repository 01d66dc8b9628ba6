//! A blocking route netlink socket: one request at a time, answered in full.
//!
//! Blocking is right here: the kernel carries a route request out, and queues its answer, before
//! `send` returns, so that no wait for another process is involved. It belongs to the namespace it
//! was opened in and is used from any thread.

use std::fmt;
use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage,
    NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket as RawSocket, SocketAddr};
use nix::errno::Errno;

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
    #[error("open a route netlink socket")]
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
    /// The named object is not there.
    #[error("no answer")]
    NoAnswer,
}

impl NetlinkError {
    /// The kernel's error, when it refused.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Open(_) | Self::Exchange(_) | Self::NoAnswer => None,
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

/// A route netlink socket.
pub(crate) struct Socket {
    socket: RawSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl Socket {
    /// A socket in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let connect = || {
            let mut socket = RawSocket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            socket.set_netlink_get_strict_chk(true)?;
            Ok(socket)
        };
        let socket = connect().map_err(NetlinkError::Open)?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(BUFFER_BYTES),
        })
    }

    /// Carries out a request; `flags` beside `NLM_F_REQUEST` and `NLM_F_ACK`.
    pub(crate) fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags)
            .map(drop)
    }

    /// Asks for one object.
    pub(crate) fn get(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, NetlinkError> {
        let (mut answers, _) = self.exchange(message, NLM_F_REQUEST | NLM_F_ACK)?;
        answers.pop().ok_or(NetlinkError::NoAnswer)
    }

    /// Asks for all objects of a kind.
    pub(crate) fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let mut attempts = 1;
        loop {
            let (answers, interrupted) =
                self.exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            if !interrupted || attempts == MAX_DUMP_ATTEMPTS {
                return Ok(answers);
            }
            attempts += 1;
        }
    }

    /// Sends a request and collects its answers up to the acknowledgement or the end of the dump;
    /// also whether a dump was changed on the way.
    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket
            .send(&bytes, 0)
            .map_err(NetlinkError::Exchange)?;

        let mut answers = Vec::new();
        let mut interrupted = false;
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
                let (sequence, flags) = (frame.sequence_number(), frame.flags());
                let frame = &rest[..length];
                rest = &rest[length.next_multiple_of(NLMSG_ALIGN).min(rest.len())..];
                // The end of something that was given up earlier.
                if sequence != self.sequence {
                    continue;
                }
                interrupted |= flags & NLM_F_DUMP_INTR != 0;
                match NetlinkMessage::<RouteNetlinkMessage>::deserialize(frame).map(|m| m.payload) {
                    Ok(NetlinkPayload::InnerMessage(answer)) => answers.push(answer),
                    Ok(NetlinkPayload::Done(_)) => return Ok((answers, interrupted)),
                    Ok(NetlinkPayload::Error(error)) => match error.code {
                        None => return Ok((answers, interrupted)),
                        Some(_) => {
                            let errno = Errno::from_raw(error.raw_code().saturating_neg());
                            let words = kernel_words(&error.header);
                            return Err(NetlinkError::Refused { words, errno });
                        }
                    },
                    Ok(_) => {}
                    // A link of a kind this library misreads must not hide all the others.
                    Err(error) => tracing::debug!(%error, "a netlink message was not understood"),
                }
            }
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
