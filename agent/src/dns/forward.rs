//! A question for an upstream server, and whether what comes back answers it. Pure.
//!
//! An answer is handed on as it is, but for its id and the spelling of its question: nothing in it
//! is taken as true here, so nothing in it has to be understood.

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};

use super::answer::{HEADER_BYTES, Transport, answer_bytes_max, edns_for, failure};

/// Bytes of a question's type and class.
const TYPE_AND_CLASS_BYTES: usize = 4;

/// Flag TC in the third byte of a message.
const TRUNCATED: u8 = 0x02;

/// A query to be forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Forward {
    /// Our query; its id is the asker's.
    message: Vec<u8>,
    /// Where the question in it ends.
    question_end: usize,
    /// The longest answer for the asker, in bytes.
    bytes_max: usize,
    /// How the asker came.
    pub(super) transport: Transport,
}

/// What a message from an upstream server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// No answer to this query: somebody else's, or forged.
    Stray,
    /// The answer, as the asker gets it.
    Answer(Vec<u8>),
    /// The answer is longer than fits a datagram.
    Truncated(Vec<u8>),
    /// This server could not say; another one may. As the asker gets it.
    Failure(Vec<u8>),
}

impl Forward {
    /// The query `message` with its one `question`, of an asker that came by `transport`. None when
    /// the question cannot be encoded again.
    pub(super) fn new(message: &Message, question: &Query, transport: Transport) -> Option<Self> {
        let theirs = &message.metadata;
        let mut ours = Message::new(theirs.id, MessageType::Query, OpCode::Query);
        ours.metadata.recursion_desired = theirs.recursion_desired;
        ours.metadata.checking_disabled = theirs.checking_disabled;
        ours.add_query(question.clone());
        let question_end = ours.to_vec().ok()?.len();
        ours.edns = edns_for(message);
        Some(Self {
            message: ours.to_vec().ok()?,
            question_end,
            bytes_max: answer_bytes_max(message, transport),
            transport,
        })
    }

    /// The query, with this id.
    pub(super) fn query(&self, id: u16) -> Vec<u8> {
        let mut query = self.message.clone();
        query[..2].copy_from_slice(&id.to_be_bytes());
        query
    }

    /// What the asker is told when no server answers.
    pub(super) fn failure(&self) -> Vec<u8> {
        self.message
            .first_chunk::<HEADER_BYTES>()
            .map(|header| failure(header, ResponseCode::ServFail))
            .unwrap_or_default()
    }

    fn question(&self) -> &[u8] {
        &self.message[HEADER_BYTES..self.question_end]
    }

    /// What `bytes` from a server that was asked with `id` are.
    pub(super) fn incoming(&self, id: u16, mut bytes: Vec<u8>) -> Incoming {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Incoming::Stray;
        };
        let is_response = header[2] & 0x80 != 0;
        let op_code = header[2] & 0x78;
        if header[..2] != id.to_be_bytes() || !is_response || op_code != 0 {
            return Incoming::Stray;
        }
        let truncated = header[2] & TRUNCATED != 0;
        let failed = [
            ResponseCode::FormErr,
            ResponseCode::ServFail,
            ResponseCode::NotImp,
            ResponseCode::Refused,
        ]
        .map(ResponseCode::low)
        .contains(&(header[3] & 0x0f));
        if header[4..6] == [0, 0] && failed {
            // Some servers do not repeat a question that they do not understand.
            return Incoming::Failure(self.failure());
        }
        let same = bytes
            .get(HEADER_BYTES..self.question_end)
            .is_some_and(|question| same_question(question, self.question()));
        if bytes[4..6] != [0, 1] || !same {
            return Incoming::Stray;
        }
        bytes[..2].copy_from_slice(&self.message[..2]);
        bytes[HEADER_BYTES..self.question_end].copy_from_slice(self.question());
        if bytes.len() > self.bytes_max {
            bytes = self.too_long(&bytes);
        }
        if failed {
            Incoming::Failure(bytes)
        } else if truncated {
            Incoming::Truncated(bytes)
        } else {
            Incoming::Answer(bytes)
        }
    }

    /// `answer` without its records, marked as truncated.
    fn too_long(&self, answer: &[u8]) -> Vec<u8> {
        let mut short = answer[..self.question_end].to_vec();
        short[2] |= TRUNCATED;
        short[4..HEADER_BYTES].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        short
    }
}

/// Whether two encoded questions ask the same; letters in the name are equal in both cases.
fn same_question(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() || one.len() < TYPE_AND_CLASS_BYTES {
        return false;
    }
    let name_end = one.len() - TYPE_AND_CLASS_BYTES;
    one[..name_end].eq_ignore_ascii_case(&other[..name_end]) && one[name_end..] == other[name_end..]
}
