//! The conversation with the kernel: requests out, their answers matched and counted.
//!
//! Knows nothing of IPVS. A request is answered by any number of messages and then an
//! acknowledgement (or, for a dump, an end mark), all with the sequence number of the request;
//! what carries another number is left over from a request given up before, and passed over.

use std::fmt::Debug;
use std::io;
use std::num::NonZeroI32;
use std::ops::Range;

use netlink_packet_core::{
    DecodeError, DoneBuffer, Emitable, ErrorBuffer, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR,
    NLM_F_REQUEST, NLMSG_ALIGNTO, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN,
    NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, Parseable,
    ParseableParametrized,
};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use nix::errno::Errno;

use crate::socket::Transport;

/// Requests sent in one datagram, and so acknowledgements outstanding at most. Their
/// acknowledgements, under 1 KiB of accounted memory each, fit half of the kernel's default receive
/// buffer (208 KiB); more would save no time worth having.
pub const MAX_IN_FLIGHT: usize = 64;

/// Dumps taken of a table that does not hold still. Each takes milliseconds: a table that changes
/// during five in a row has a busier writer than a reader should wait for.
pub const MAX_DUMP_ATTEMPTS: usize = 5;

/// Answers to other requests passed over while waiting for one: more than the leftovers of a batch
/// and of a large dump given up half way.
pub(crate) const MAX_STALE_MESSAGES: usize = 65_536;

/// Capacity for one datagram: the kernel fills dumps up to 32 KiB at a time.
const DATAGRAM_BYTES: usize = 64 * 1024;

/// What went wrong, before it is put in the words of an action.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The kernel answered with this error number.
    Refused(i32),
    /// Sending failed.
    Send(io::Error),
    /// Receiving failed.
    Receive(io::Error),
    /// Nothing came in time.
    TimedOut,
    /// `ENOBUFS`: answers were lost.
    Overrun,
    /// An answer made no sense.
    Malformed(DecodeError),
    /// Too many answers to other requests.
    Flooded,
    /// Every dump was interrupted by changes.
    Unstable,
    /// Another request of the same batch had the fault.
    Unconfirmed,
    /// A request of an earlier batch had the fault.
    NotSent,
}

/// One conversation over one socket.
#[derive(Debug)]
pub(crate) struct Exchange<T> {
    transport: T,
    /// Of the last request.
    sequence: u32,
    /// The datagram last received, and how much of it has been read.
    datagram: Vec<u8>,
    read: usize,
}

/// What the messages of one request's answer came to.
struct Answer<E> {
    entries: Vec<E>,
    /// Whether the kernel says that a dump is inconsistent.
    interrupted: bool,
}

/// What a message means to the conversation.
enum Meaning {
    /// An acknowledgement or the end of a dump.
    End,
    /// A refusal, with its error number.
    Refusal(i32),
    /// A message of the family.
    Reply,
    /// The kernel lost messages.
    Overrun,
    /// Nothing.
    Noop,
}

impl<T: Transport> Exchange<T> {
    pub(crate) fn new(transport: T) -> Self {
        Self {
            transport,
            sequence: 0,
            datagram: Vec::with_capacity(DATAGRAM_BYTES),
            read: 0,
        }
    }

    /// Sends a request and returns the messages that came before its acknowledgement.
    pub(crate) fn ask<Q, R>(&mut self, request: Q, family_id: u16) -> Result<Vec<R>, Fault>
    where
        Q: GenlFamily + Emitable + Debug,
        R: ParseableParametrized<[u8], GenlHeader> + Debug,
    {
        let mut datagram = Vec::new();
        self.encode(request, family_id, NLM_F_ACK, &mut datagram);
        self.send(&datagram)?;
        Ok(self.answer(Ok)?.entries)
    }

    /// Dumps a table, again when the kernel says that it changed meanwhile. Each message becomes an
    /// entry as it comes: the messages of a large table are never there at once.
    pub(crate) fn dump<Q, R, E>(
        &mut self,
        request: &Q,
        family_id: u16,
        entry: impl Fn(R) -> Result<E, Fault>,
    ) -> Result<Vec<E>, Fault>
    where
        Q: GenlFamily + Emitable + Debug + Clone,
        R: ParseableParametrized<[u8], GenlHeader> + Debug,
    {
        for _ in 0..MAX_DUMP_ATTEMPTS {
            let mut datagram = Vec::new();
            self.encode(request.clone(), family_id, NLM_F_DUMP, &mut datagram);
            self.send(&datagram)?;
            let answer = self.answer(&entry)?;
            if !answer.interrupted {
                return Ok(answer.entries);
            }
        }
        Err(Fault::Unstable)
    }

    /// Sends requests in batches of [`MAX_IN_FLIGHT`] and returns the outcome of each, in order.
    ///
    /// A refused request does not keep the others from being sent. A socket that fails does: the
    /// first request without an answer gets the fault, the rest of its batch is unconfirmed, and
    /// what follows is not sent.
    pub(crate) fn pipeline<Q>(
        &mut self,
        requests: impl IntoIterator<Item = Q>,
        family_id: u16,
    ) -> Vec<Result<(), Fault>>
    where
        Q: GenlFamily + Emitable + Debug,
    {
        let mut requests = requests.into_iter();
        let mut outcomes = Vec::new();
        let mut datagram = Vec::new();
        loop {
            datagram.clear();
            let first = self.sequence.wrapping_add(1);
            let mut batch = Vec::with_capacity(MAX_IN_FLIGHT);
            for request in requests.by_ref().take(MAX_IN_FLIGHT) {
                self.encode(request, family_id, NLM_F_ACK, &mut datagram);
                batch.push(None);
            }
            if batch.is_empty() {
                return outcomes;
            }
            let (mut fault, sent) = match self.send(&datagram) {
                Ok(()) => (self.acknowledgements(first, &mut batch).err(), true),
                Err(fault) => (Some(fault), false),
            };
            let broken = fault.is_some();
            outcomes.extend(batch.into_iter().map(|outcome| {
                let lost = if sent {
                    Fault::Unconfirmed
                } else {
                    Fault::NotSent
                };
                outcome.unwrap_or_else(|| Err(fault.take().unwrap_or(lost)))
            }));
            if broken {
                outcomes.extend(requests.map(|_| Err(Fault::NotSent)));
                return outcomes;
            }
        }
    }

    /// Appends a request with the next sequence number to `datagram`.
    fn encode<Q>(&mut self, request: Q, family_id: u16, flags: u16, datagram: &mut Vec<u8>)
    where
        Q: GenlFamily + Emitable + Debug,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = GenlMessage::from_payload(request);
        request.set_resolved_family_id(family_id);
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        // Attributes are padded to NLMSG_ALIGNTO, so the next message starts where this one ends.
        let start = datagram.len();
        datagram.resize(start + message.buffer_len(), 0);
        message.serialize(&mut datagram[start..]);
    }

    /// Sends a datagram, after forgetting what is left of the last one received.
    fn send(&mut self, datagram: &[u8]) -> Result<(), Fault> {
        self.read = self.datagram.len();
        self.transport.send(datagram).map_err(Fault::Send)
    }

    /// Receives the answer to the last request, to its end even when part of it is malformed.
    fn answer<R, E>(&mut self, entry: impl Fn(R) -> Result<E, Fault>) -> Result<Answer<E>, Fault>
    where
        R: ParseableParametrized<[u8], GenlHeader> + Debug,
    {
        let mut answer = Answer {
            entries: Vec::new(),
            interrupted: false,
        };
        let mut malformed = None;
        loop {
            let (_, header, payload) = self.next_of(self.sequence, 1)?;
            let payload = &self.datagram[payload];
            answer.interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
            match meaning(&header, payload).map_err(Fault::Malformed)? {
                Meaning::End => break,
                Meaning::Refusal(errno) => return Err(Fault::Refused(errno)),
                Meaning::Overrun => return Err(Fault::Overrun),
                Meaning::Noop => {}
                Meaning::Reply => {
                    let message = GenlMessage::<R>::deserialize(&header, payload);
                    let message = message.map_err(Fault::Malformed);
                    match message.and_then(|message| entry(message.payload)) {
                        Ok(entry) => answer.entries.push(entry),
                        Err(fault) => malformed = malformed.or(Some(fault)),
                    }
                }
            }
        }
        malformed.map_or(Ok(answer), Err)
    }

    /// Receives the acknowledgements of the requests numbered from `first`, until every outcome is
    /// there.
    fn acknowledgements(
        &mut self,
        first: u32,
        outcomes: &mut [Option<Result<(), Fault>>],
    ) -> Result<(), Fault> {
        let mut missing = outcomes.len();
        while missing > 0 {
            let (at, header, payload) = self.next_of(first, outcomes.len())?;
            let outcome = match meaning(&header, &self.datagram[payload]) {
                Ok(Meaning::End) => Ok(()),
                Ok(Meaning::Refusal(errno)) => Err(Fault::Refused(errno)),
                Ok(Meaning::Overrun) => return Err(Fault::Overrun),
                Ok(Meaning::Noop | Meaning::Reply) => continue,
                Err(error) => return Err(Fault::Malformed(error)),
            };
            missing -= usize::from(outcomes[at].is_none());
            outcomes[at] = Some(outcome);
        }
        Ok(())
    }

    /// The next message that answers one of the `count` requests numbered from `first`: which of
    /// them, the header, and where in the datagram the payload is.
    fn next_of(
        &mut self,
        first: u32,
        count: usize,
    ) -> Result<(usize, NetlinkHeader, Range<usize>), Fault> {
        for _ in 0..MAX_STALE_MESSAGES {
            let (header, payload) = self.next()?;
            let at = header.sequence_number.wrapping_sub(first) as usize;
            if at < count {
                return Ok((at, header, payload));
            }
        }
        Err(Fault::Flooded)
    }

    /// The next message, from the datagram at hand or a new one.
    fn next(&mut self) -> Result<(NetlinkHeader, Range<usize>), Fault> {
        if self.read >= self.datagram.len() {
            self.read = 0;
            self.transport
                .receive(&mut self.datagram)
                .map_err(receive_fault)?;
        }
        let start = self.read;
        // If it is malformed, the rest of the datagram is no use.
        self.read = self.datagram.len();
        let rest = &self.datagram[start..];
        let message = NetlinkBuffer::new_checked(rest).map_err(Fault::Malformed)?;
        let header = NetlinkHeader::parse(&message).map_err(Fault::Malformed)?;
        let end = start + header.length as usize;
        let payload = end - message.payload_length()..end;
        self.read = end.next_multiple_of(usize::from(NLMSG_ALIGNTO));
        Ok((header, payload))
    }
}

fn receive_fault(error: io::Error) -> Fault {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOBUFS) => Fault::Overrun,
        _ if error.kind() == io::ErrorKind::WouldBlock => Fault::TimedOut,
        _ => Fault::Receive(error),
    }
}

fn meaning(header: &NetlinkHeader, payload: &[u8]) -> Result<Meaning, DecodeError> {
    let code = match header.message_type {
        NLMSG_NOOP => return Ok(Meaning::Noop),
        NLMSG_OVERRUN => return Ok(Meaning::Overrun),
        NLMSG_ERROR => ErrorBuffer::new_checked(payload)?
            .code()
            .map_or(0, NonZeroI32::get),
        // The end of a dump may come without a code.
        NLMSG_DONE if payload.is_empty() => 0,
        NLMSG_DONE => DoneBuffer::new_checked(payload)?.code(),
        _ => return Ok(Meaning::Reply),
    };
    // Error numbers are negative; a positive code is nothing the kernel complains of.
    Ok(if code < 0 {
        Meaning::Refusal(code.saturating_neg())
    } else {
        Meaning::End
    })
}

#[cfg(test)]
mod tests;
