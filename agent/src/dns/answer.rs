//! From the bytes of a query to what is done about it. Pure.
//!
//! Invariants:
//! * Any bytes are answered with at most one message, of at most 1232 bytes over UDP and 65535 over
//!   TCP, and never with a panic. What is no query is not answered at all: two servers must not
//!   keep answering each other.
//! * Nothing of a query reaches an upstream server but its question, its flags RD and CD, and of
//!   EDNS the size and the flag DO.

use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::PTR;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::forward::Forward;
use super::records::{Asker, Found, Records, Reverse};

/// The longest query that is read, in bytes: a name takes at most 255, and what EDNS adds to it
/// (cookies, padding to a multiple of 128) fits several times over.
pub(super) const QUERY_BYTES_MAX: usize = 1232;

/// The longest answer over UDP, in bytes, also for who would take more: what fits in the smallest
/// packet that IPv6 delivers whole (1280 bytes, less 48 of headers; dnsflagday.net/2020).
pub(super) const UDP_ANSWER_BYTES_MAX: usize = 1232;

/// The same for who does not say what it takes (RFC 1035, 4.2.1).
const UDP_ANSWER_BYTES_MIN: usize = 512;

/// The longest message over TCP, in bytes: its length is a 16-bit number.
pub(super) const TCP_MESSAGE_BYTES_MAX: usize = 65_535;

/// Most records of an answer: as many IPv6 addresses, at 28 bytes each, as are sure to fit in a
/// message over TCP. Of a larger service an answer names a part, another one every time.
const ANSWER_RECORDS_MAX: usize = 2048;

/// Bytes of the shortest record: name (a reference) 2, type 2, class 2, TTL 4, length 2, address 4.
const RECORD_BYTES_MIN: usize = 16;

/// Bytes of a message before its question.
pub(super) const HEADER_BYTES: usize = 12;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// As a datagram.
    Udp,
    /// In a stream.
    Tcp,
}

/// What is done about a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Ignore,
    /// This is sent back.
    Reply(Vec<u8>),
    /// An upstream server is asked.
    Forward(Forward),
}

/// What to do about `query`, which `asker` sent. `turn` is drawn for each query: the order of an
/// answer's records starts with one as good as any other.
pub(super) fn answer(
    query: &[u8],
    transport: Transport,
    asker: &Asker,
    records: &Records,
    turn: u64,
) -> Verdict {
    let Some(header) = query.first_chunk::<HEADER_BYTES>() else {
        return Verdict::Ignore;
    };
    let is_response = header[2] & 0x80 != 0;
    if is_response {
        return Verdict::Ignore;
    }
    if OpCode::from_u8(header[2] >> 3 & 0x0f) != OpCode::Query {
        return Verdict::Reply(failure(header, ResponseCode::NotImp));
    }
    let malformed = || Verdict::Reply(failure(header, ResponseCode::FormErr));
    // Looked at first, because the decoder sets aside memory for as many questions as are announced.
    let one_question = header[4..6] == [0, 1];
    if !one_question || query.len() > QUERY_BYTES_MAX {
        return malformed();
    }
    let Ok(message) = Message::from_vec(query) else {
        return malformed();
    };
    let [question] = message.queries.as_slice() else {
        return malformed();
    };
    let reply = Reply {
        query: &message,
        question,
        transport,
    };
    let refused = || reply.without_records(ResponseCode::Refused);
    if message.version() > 0 {
        return reply.without_records(ResponseCode::BADVERS);
    }
    let transfers = [RecordType::AXFR, RecordType::IXFR];
    if question.query_class() != DNSClass::IN || transfers.contains(&question.query_type()) {
        return refused();
    }
    if let Some(name) = text(question.name()) {
        if let Some(found) = records.find(asker, &name) {
            return reply.addresses(&found, turn);
        }
        match address_of(question.name(), &name).and_then(|ip| records.reverse(asker, ip)) {
            Some(Reverse::Name(name, ttl)) => return reply.pointer(&name, ttl),
            Some(Reverse::Nobody) => return reply.without_records(ResponseCode::NXDomain),
            None => {}
        }
    }
    if !records.has_outside(asker) {
        return refused();
    }
    match Forward::new(&message, question, transport) {
        Some(forward) => Verdict::Forward(forward),
        None => malformed(),
    }
}

/// `name` in lower case and without the last dot. None for one that nothing of the swarm can have:
/// with bytes in it that are not graphic ASCII, or dots within a label.
fn text(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            if !byte.is_ascii_graphic() || *byte == b'.' {
                return None;
            }
            text.push(char::from(byte.to_ascii_lowercase()));
        }
    }
    Some(text)
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
fn address_of(name: &Name, text: &str) -> Option<IpAddr> {
    if !text.ends_with(".arpa") {
        return None;
    }
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// A message that says nothing but that the query with this header failed.
pub(super) fn failure(header: &[u8; HEADER_BYTES], code: ResponseCode) -> Vec<u8> {
    let [id_high, id_low, flags, ..] = *header;
    // Of the flags, the operation and RD are repeated; RA is set.
    let flags = 0x80 | (flags & 0x79);
    vec![
        id_high,
        id_low,
        flags,
        0x80 | code.low(),
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ]
}

/// The longest answer to `query` in bytes.
pub(super) fn answer_bytes_max(query: &Message, transport: Transport) -> usize {
    match transport {
        Transport::Udp => {
            usize::from(query.max_payload()).clamp(UDP_ANSWER_BYTES_MIN, UDP_ANSWER_BYTES_MAX)
        }
        Transport::Tcp => TCP_MESSAGE_BYTES_MAX,
    }
}

/// EDNS of a message of ours, when `query` has it.
pub(super) fn edns_for(query: &Message) -> Option<Edns> {
    let theirs = query.edns.as_ref()?;
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_ANSWER_BYTES_MAX as u16);
    edns.set_dnssec_ok(theirs.flags().dnssec_ok);
    Some(edns)
}

/// What answers are made with.
struct Reply<'a> {
    query: &'a Message,
    question: &'a Query,
    transport: Transport,
}

impl Reply<'_> {
    fn without_records(&self, code: ResponseCode) -> Verdict {
        self.verdict(code, Vec::new())
    }

    /// Of the addresses, those of the type that was asked for.
    fn addresses(&self, found: &Found<'_>, turn: u64) -> Verdict {
        let kind = self.question.query_type();
        let wants = |of| kind == of || kind == RecordType::ANY;
        let count = found.addresses.len().max(1) as u64;
        let (before, first) = found.addresses.split_at((turn % count) as usize);
        let in_turn = || first.iter().chain(before).copied();
        let v4 = in_turn()
            .filter(|_| wants(RecordType::A))
            .map(|address| RData::A(address.into()));
        let v6 = in_turn()
            .filter(|_| wants(RecordType::AAAA))
            .filter_map(|address: Ipv4Addr| found.subnets.address6(address))
            .map(|address| RData::AAAA(address.into()));
        let records = v4.chain(v6).take(ANSWER_RECORDS_MAX);
        let records = records.map(|data| self.record(found.ttl, data)).collect();
        self.verdict(ResponseCode::NoError, records)
    }

    fn pointer(&self, name: &str, ttl: u32) -> Verdict {
        let kind = self.question.query_type();
        let mut records = Vec::new();
        // Nothing of the swarm is named so that it would not fit.
        if let Ok(name) = Name::from_labels(name.split('.').map(str::as_bytes))
            && (kind == RecordType::PTR || kind == RecordType::ANY)
        {
            records.push(self.record(ttl, RData::PTR(PTR(name))));
        }
        self.verdict(ResponseCode::NoError, records)
    }

    fn record(&self, ttl: u32, data: RData) -> Record {
        Record::from_rdata(self.question.name().clone(), ttl, data)
    }

    /// The answer with these records, or with as many of the first as fit.
    fn verdict(&self, code: ResponseCode, records: Vec<Record>) -> Verdict {
        let theirs = &self.query.metadata;
        let mut message = Message::new(theirs.id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = theirs.recursion_desired;
        message.metadata.checking_disabled = theirs.checking_disabled;
        message.metadata.recursion_available = true;
        message.metadata.authoritative =
            matches!(code, ResponseCode::NoError | ResponseCode::NXDomain);
        message.metadata.response_code = code;
        message.add_query(self.question.clone());
        message.edns = edns_for(self.query);
        let bytes_max = answer_bytes_max(self.query, self.transport);
        match encode(message, records, bytes_max) {
            Some(bytes) => Verdict::Reply(bytes),
            // Not reached: a message of a name and the bounded records can be encoded.
            None => Verdict::Ignore,
        }
    }
}

/// `message` with `records` as its answer in at most `bytes_max` bytes; with as many of the first as
/// fit, and marked as truncated, where not all of them do.
fn encode(mut message: Message, records: Vec<Record>, bytes_max: usize) -> Option<Vec<u8>> {
    message.answers = records;
    let bytes = message.to_vec().ok()?;
    if bytes.len() <= bytes_max {
        return Some(bytes);
    }
    message.metadata.truncation = true;
    let mut records = std::mem::take(&mut message.answers);
    let mut best = message.to_vec().ok()?;
    // How many fit is found by halves: how well names are compressed is the encoder's affair.
    let (mut fit, mut too_many) = (0, records.len().min(bytes_max / RECORD_BYTES_MIN + 1));
    records.truncate(too_many);
    while fit + 1 < too_many {
        let count = fit.midpoint(too_many);
        message.answers = records[..count].to_vec();
        let bytes = message.to_vec().ok()?;
        if bytes.len() <= bytes_max {
            (fit, best) = (count, bytes);
        } else {
            too_many = count;
        }
    }
    Some(best)
}
