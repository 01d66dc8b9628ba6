use std::collections::VecDeque;

use netlink_packet_core::{NLM_F_MULTIPART, NetlinkHeader};
use proptest::prelude::*;

use super::*;
use crate::codec::{Attr, Command, FamilyId, InfoAttr, IpvsMessage};
use crate::socket::NetlinkSocket;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};

const FAMILY_ID: u16 = 0x1d;

/// What the kernel queues on the socket: a datagram, or an error that `recv` returns.
type Queued = io::Result<Vec<u8>>;

/// Speaks for the kernel: answers every request as the test says.
struct Kernel<A> {
    answer: A,
    queue: VecDeque<Queued>,
    /// Number of requests in each datagram received.
    datagrams: Vec<usize>,
}

impl<A: FnMut(NetlinkHeader) -> Vec<Queued>> Transport for Kernel<A> {
    fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        let mut requests = 0;
        let mut rest = datagram;
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).unwrap();
            let header = NetlinkHeader::parse(&message).unwrap();
            assert_eq!(header.message_type, FAMILY_ID);
            assert_ne!(header.flags & NLM_F_REQUEST, 0);
            self.queue.extend((self.answer)(header));
            rest = &rest[header.length as usize..];
            requests += 1;
        }
        self.datagrams.push(requests);
        Ok(())
    }

    fn receive(&mut self, datagram: &mut Vec<u8>) -> io::Result<()> {
        datagram.clear();
        let queued = self
            .queue
            .pop_front()
            .unwrap_or(Err(io::ErrorKind::WouldBlock.into()));
        datagram.extend(queued?);
        Ok(())
    }
}

fn exchange<A>(answer: A) -> Exchange<Kernel<A>>
where
    A: FnMut(NetlinkHeader) -> Vec<Queued>,
{
    Exchange::new(Kernel {
        answer,
        queue: VecDeque::new(),
        datagrams: Vec::new(),
    })
}

fn request() -> IpvsMessage {
    IpvsMessage {
        command: Command::GET_INFO,
        attrs: Vec::new(),
    }
}

fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((16 + payload.len() as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(payload);
    bytes
}

/// An acknowledgement (0) or a refusal (an error number).
fn ack(sequence: u32, errno: i32) -> Vec<u8> {
    let mut payload = (-errno).to_ne_bytes().to_vec();
    payload.extend([0; 16]);
    message(NLMSG_ERROR, 0, sequence, &payload)
}

fn done(sequence: u32, flags: u16) -> Vec<u8> {
    message(NLMSG_DONE, NLM_F_MULTIPART | flags, sequence, &[0; 4])
}

/// A reply with one number in it, to tell replies apart.
fn reply(sequence: u32, number: u32) -> Vec<u8> {
    let mut payload = vec![Command::SET_INFO.0, 1, 0, 0, 8, 0, 2, 0];
    payload.extend(number.to_ne_bytes());
    message(FAMILY_ID, NLM_F_MULTIPART, sequence, &payload)
}

fn numbers(replies: &[IpvsMessage]) -> Vec<u32> {
    replies
        .iter()
        .map(|reply| match reply.attrs[..] {
            [Attr::Info(InfoAttr::ConnectionTableSize(number))] => number,
            _ => panic!("{reply:?}"),
        })
        .collect()
}

#[test]
fn a_question_ends_with_its_acknowledgement() {
    let mut exchange = exchange(|request| {
        let sequence = request.sequence_number;
        // Left over from a request given up before.
        let stale = [
            reply(sequence.wrapping_sub(1), 1),
            ack(sequence.wrapping_sub(1), 17),
        ];
        vec![
            Ok(stale.concat()),
            Ok(reply(sequence, 2)),
            Ok(ack(sequence, 0)),
        ]
    });
    let replies = exchange.ask(request(), FAMILY_ID).unwrap();
    assert_eq!(numbers(&replies), [2]);
}

#[test]
fn a_refusal_carries_the_error_number() {
    let mut exchange = exchange(|request| vec![Ok(ack(request.sequence_number, 3))]);
    let result = exchange.ask::<_, IpvsMessage>(request(), FAMILY_ID);
    assert!(matches!(result, Err(Fault::Refused(3))), "{result:?}");
}

#[test]
fn silence_times_out() {
    let mut exchange = exchange(|_| Vec::new());
    let result = exchange.ask::<_, IpvsMessage>(request(), FAMILY_ID);
    assert!(matches!(result, Err(Fault::TimedOut)), "{result:?}");
}

#[test]
fn answers_to_other_requests_do_not_hold_us_up_for_ever() {
    let mut exchange = exchange(|request| {
        let other = ack(request.sequence_number.wrapping_add(9), 0);
        let mut datagrams: Vec<Queued> =
            (0..MAX_STALE_MESSAGES).map(|_| Ok(other.clone())).collect();
        datagrams.push(Ok(ack(request.sequence_number, 0)));
        datagrams
    });
    let result = exchange.ask::<_, IpvsMessage>(request(), FAMILY_ID);
    assert!(matches!(result, Err(Fault::Flooded)), "{result:?}");
}

#[test]
fn an_inconsistent_dump_is_taken_again() {
    let mut attempt = 0;
    let mut exchange = exchange(move |request| {
        attempt += 1;
        assert_eq!(request.flags & NLM_F_DUMP, NLM_F_DUMP);
        let flags = if attempt < 3 { NLM_F_DUMP_INTR } else { 0 };
        let sequence = request.sequence_number;
        let both = [reply(sequence, attempt), reply(sequence, attempt + 10)].concat();
        vec![Ok(both), Ok(done(sequence, flags))]
    });
    let replies = exchange.dump(&request(), FAMILY_ID, Ok).unwrap();
    assert_eq!(numbers(&replies), [3, 13]);
}

#[test]
fn a_dump_that_never_is_consistent_is_given_up() {
    let mut exchange = exchange(|request| vec![Ok(done(request.sequence_number, NLM_F_DUMP_INTR))]);
    let result = exchange.dump(&request(), FAMILY_ID, Ok::<IpvsMessage, Fault>);
    assert!(matches!(result, Err(Fault::Unstable)), "{result:?}");
    assert_eq!(exchange.transport.datagrams.len(), MAX_DUMP_ATTEMPTS);
}

#[test]
fn a_malformed_entry_fails_the_dump_after_its_end() {
    let mut exchange = exchange(|request| {
        let sequence = request.sequence_number;
        let malformed = message(
            FAMILY_ID,
            0,
            sequence,
            &[Command::SET_INFO.0, 1, 0, 0, 2, 0],
        );
        let padded = [malformed, vec![0, 0]].concat();
        vec![
            Ok([padded, reply(sequence, 5)].concat()),
            Ok(done(sequence, 0)),
        ]
    });
    let result = exchange.dump(&request(), FAMILY_ID, Ok::<IpvsMessage, Fault>);
    assert!(matches!(result, Err(Fault::Malformed(_))), "{result:?}");
    assert!(exchange.transport.queue.is_empty());
}

#[test]
fn the_end_of_a_dump_can_be_a_refusal() {
    let mut exchange = exchange(|request| {
        vec![Ok(message(
            NLMSG_DONE,
            0,
            request.sequence_number,
            &(-22_i32).to_ne_bytes(),
        ))]
    });
    let result = exchange.dump(&request(), FAMILY_ID, Ok::<IpvsMessage, Fault>);
    assert!(matches!(result, Err(Fault::Refused(22))), "{result:?}");
}

#[test]
fn a_pipeline_keeps_to_its_window_and_goes_on_after_a_refusal() {
    let mut seen = 0;
    let mut exchange = exchange(move |request| {
        seen += 1;
        vec![Ok(ack(
            request.sequence_number,
            if seen == 71 { 17 } else { 0 },
        ))]
    });
    let outcomes = exchange.pipeline((0..150).map(|_| request()), FAMILY_ID);
    assert_eq!(outcomes.len(), 150);
    for (at, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Ok(()) => assert_ne!(at, 70),
            Err(Fault::Refused(17)) => assert_eq!(at, 70),
            other => panic!("{at}: {other:?}"),
        }
    }
    assert_eq!(
        exchange.transport.datagrams,
        [MAX_IN_FLIGHT, MAX_IN_FLIGHT, 150 - 128]
    );
}

#[test]
fn acknowledgements_are_matched_by_number_not_by_order() {
    let mut waiting = Vec::new();
    let mut exchange = exchange(move |request| {
        waiting.insert(0, request.sequence_number);
        if waiting.len() < 3 {
            return Vec::new();
        }
        // The last of the three is refused, and its refusal comes first.
        let errno = |at: usize| if at == 0 { 3 } else { 0 };
        waiting
            .iter()
            .enumerate()
            .map(|(at, &sequence)| Ok(ack(sequence, errno(at))))
            .collect()
    });
    let outcomes = exchange.pipeline([request(), request(), request()], FAMILY_ID);
    assert!(
        matches!(outcomes[..], [Ok(()), Ok(()), Err(Fault::Refused(3))]),
        "{outcomes:?}"
    );
}

#[test]
fn lost_acknowledgements_are_named_as_such() {
    let mut seen = 0;
    let mut exchange = exchange(move |request| {
        seen += 1;
        match seen {
            ..75 => vec![Ok(ack(request.sequence_number, 0))],
            75 => vec![Err(io::Error::from_raw_os_error(Errno::ENOBUFS as i32))],
            _ => Vec::new(),
        }
    });
    let outcomes = exchange.pipeline((0..200).map(|_| request()), FAMILY_ID);
    for (at, outcome) in outcomes.iter().enumerate() {
        let expected = match at {
            ..74 => matches!(outcome, Ok(())),
            74 => matches!(outcome, Err(Fault::Overrun)),
            75..128 => matches!(outcome, Err(Fault::Unconfirmed)),
            _ => matches!(outcome, Err(Fault::NotSent)),
        };
        assert!(expected, "{at}: {outcome:?}");
    }
    assert_eq!(outcomes.len(), 200);
    assert_eq!(exchange.transport.datagrams, [MAX_IN_FLIGHT; 2]);
}

proptest! {
    /// Whatever comes out of the socket, the conversation ends, and without a panic.
    #[test]
    fn survives_any_datagrams(
        datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..8),
        sequence in any::<u32>(),
    ) {
        let answer = |_| datagrams.iter().cloned().map(Ok).collect::<Vec<_>>();
        let mut exchange = exchange(answer);
        exchange.sequence = sequence;
        let _ = exchange.ask::<_, IpvsMessage>(request(), FAMILY_ID);
        let _ = exchange.dump(&request(), FAMILY_ID, Ok::<IpvsMessage, Fault>);
        let outcomes = exchange.pipeline([request(), request()], FAMILY_ID);
        prop_assert_eq!(outcomes.len(), 2);
    }

    /// The same with a header that belongs to the request, so that more of the reader is reached.
    #[test]
    fn survives_any_answer(
        kind in prop_oneof![0..8_u16, Just(FAMILY_ID), any::<u16>()],
        flags in any::<u16>(),
        payload in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let answer = |request: NetlinkHeader| {
            vec![Ok(message(kind, flags, request.sequence_number, &payload))]
        };
        let mut exchange = exchange(answer);
        let _ = exchange.ask::<_, IpvsMessage>(request(), FAMILY_ID);
        let _ = exchange.dump(&request(), FAMILY_ID, Ok::<IpvsMessage, Fault>);
        let outcomes = exchange.pipeline([request(), request()], FAMILY_ID);
        prop_assert_eq!(outcomes.len(), 2);
    }
}

/// Asks the real kernel's controller, which every kernel has, for a family.
fn family(name: &str) -> GenlCtrl {
    let nlas = vec![GenlCtrlAttrs::FamilyName(name.to_owned())];
    GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas,
    }
}

#[test]
fn the_real_kernel_answers_questions_and_dumps() {
    let mut exchange = Exchange::new(NetlinkSocket::open().unwrap());
    let replies = exchange.ask::<_, FamilyId>(family("nlctrl"), 0).unwrap();
    assert_eq!(replies, [FamilyId(0x10)]);
    let all = GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: Vec::new(),
    };
    let replies = exchange.dump(&all, 0, Ok::<FamilyId, Fault>).unwrap();
    assert!(replies.contains(&FamilyId(0x10)), "{replies:?}");
}

/// More requests than a window takes, each answered by a message besides its acknowledgement: twice
/// the load on the receive buffer that a change to the table makes.
#[test]
fn the_real_kernel_keeps_up_with_a_pipeline() {
    let mut exchange = Exchange::new(NetlinkSocket::open().unwrap());
    let names = |at: usize| {
        if at % 100 == 7 {
            "no-such-family"
        } else {
            "nlctrl"
        }
    };
    let outcomes = exchange.pipeline((0..1_000).map(|at| family(names(at))), 0);
    assert_eq!(outcomes.len(), 1_000);
    for (at, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Ok(()) => assert_eq!(names(at), "nlctrl", "{at}"),
            Err(Fault::Refused(errno)) => {
                assert_eq!(
                    (*errno, names(at)),
                    (Errno::ENOENT as i32, "no-such-family"),
                    "{at}"
                );
            }
            Err(other) => panic!("{at}: {other:?}"),
        }
    }
}
