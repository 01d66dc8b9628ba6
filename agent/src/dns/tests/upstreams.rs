//! Servers that misbehave, on this host's loopback.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::answer::{Transport, Verdict, answer};
use super::super::forward::Forward;
use super::super::upstream::Upstream;
use super::{on, query, world};

const LOCAL: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

fn forward(transport: Transport) -> Forward {
    let query = query("www.example", RecordType::A, None).to_vec().unwrap();
    match answer(&query, transport, &on(&[]), &world().records, 0) {
        Verdict::Forward(forward) => forward,
        other => panic!("{other:?}"),
    }
}

/// The answer to `query` with these last bytes of addresses.
fn reply(query: &[u8], last: impl IntoIterator<Item = u8>) -> Message {
    let query = Message::from_vec(query).unwrap();
    let name = query.queries[0].name.clone();
    let mut reply = query.into_response();
    for last in last {
        let data = RData::A(Ipv4Addr::new(192, 0, 2, last).into());
        reply.add_answer(Record::from_rdata(name.clone(), 60, data));
    }
    reply
}

/// A server that sends what `answers` gives for each query.
async fn server(
    work: &mut JoinSet<()>,
    answers: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static,
) -> SocketAddr {
    let socket = UdpSocket::bind(LOCAL).await.unwrap();
    let address = socket.local_addr().unwrap();
    work.spawn(async move {
        let mut buffer = [0; 2048];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            for answer in answers(&buffer[..length]) {
                // The asker may have what it wanted.
                let _ = socket.send_to(&answer, from).await;
            }
        }
    });
    address
}

async fn ask(servers: &[SocketAddr], transport: Transport) -> Message {
    let upstream = Upstream::fixed(servers.to_vec());
    Message::from_vec(&upstream.ask(&forward(transport)).await).unwrap()
}

fn last_bytes(message: &Message) -> Vec<u8> {
    let addresses = message.answers.iter().map(|record| match record.data {
        RData::A(address) => address.octets()[3],
        _ => panic!("{record}"),
    });
    addresses.collect()
}

fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}

#[tokio::test]
async fn forged_answers_are_passed_over() {
    let mut work = JoinSet::new();
    let forger = server(&mut work, |query| {
        let mut wrong_id = reply(query, [1]);
        wrong_id.metadata.id = wrong_id.metadata.id.wrapping_add(1);
        let mut wrong_name = reply(query, [2]);
        wrong_name.queries[0].name = "www.example.net.".parse().unwrap();
        let mut wrong_type = reply(query, [3]);
        wrong_type.queries[0].query_type = RecordType::AAAA;
        let mut no_question = reply(query, [4]);
        no_question.queries.clear();
        let mut answers: Vec<_> = [
            wrong_id,
            wrong_name,
            wrong_type,
            no_question,
            reply(query, [5]),
        ]
        .iter()
        .map(|message| message.to_vec().unwrap())
        .collect();
        // Our own query sent back, and nothing at all.
        answers.insert(0, query.to_vec());
        answers.insert(0, Vec::new());
        answers
    })
    .await;
    let message = ask(&[forger], Transport::Udp).await;
    assert_eq!(message.metadata.id, 7);
    assert_eq!(last_bytes(&message), [5]);
}

#[tokio::test]
async fn who_guesses_is_given_up_and_the_next_server_asked() {
    let mut work = JoinSet::new();
    let guesser = server(&mut work, |query| {
        let id = reply(query, []).metadata.id;
        let guesses = (1..=100).map(|offset| {
            let mut guess = reply(query, [1]);
            guess.metadata.id = id.wrapping_add(offset);
            guess.to_vec().unwrap()
        });
        guesses.collect()
    })
    .await;
    let started = Instant::now();
    let message = ask(&[guesser], Transport::Udp).await;
    assert_eq!(code(&message), ResponseCode::ServFail);
    let honest = server(&mut work, |query| vec![reply(query, [9]).to_vec().unwrap()]).await;
    let message = ask(&[guesser, honest], Transport::Udp).await;
    assert_eq!(last_bytes(&message), [9]);
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_server_that_refuses_or_is_not_there_is_followed_by_the_next() {
    let mut work = JoinSet::new();
    let refuser = server(&mut work, |query| {
        let mut refusal = reply(query, []);
        refusal.metadata.response_code = ResponseCode::Refused;
        vec![refusal.to_vec().unwrap()]
    })
    .await;
    let bare = server(&mut work, |query| {
        vec![[&query[..2], &[0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]].concat()]
    })
    .await;
    let honest = server(&mut work, |query| vec![reply(query, [9]).to_vec().unwrap()]).await;
    let absent = UdpSocket::bind(LOCAL).await.unwrap().local_addr().unwrap();
    for first in [refuser, bare, absent] {
        let message = ask(&[first, honest], Transport::Udp).await;
        assert_eq!(last_bytes(&message), [9]);
    }
    assert_eq!(
        code(&ask(&[refuser], Transport::Udp).await),
        ResponseCode::Refused
    );
    for silent in [bare, absent] {
        assert_eq!(
            code(&ask(&[silent], Transport::Udp).await),
            ResponseCode::ServFail
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_costs_two_tries_of_two_seconds() {
    let silent = UdpSocket::bind(LOCAL).await.unwrap();
    let started = Instant::now();
    let message = ask(&[silent.local_addr().unwrap()], Transport::Udp).await;
    assert_eq!(code(&message), ResponseCode::ServFail);
    assert_eq!(message.metadata.id, 7);
    let took = started.elapsed();
    assert!(
        (Duration::from_secs(4)..Duration::from_millis(4100)).contains(&took),
        "{took:?}"
    );
}

/// Answers over UDP that there is more, and over TCP what `stream` does.
async fn more<F: Future<Output = ()> + Send>(
    work: &mut JoinSet<()>,
    stream: impl Fn(TcpStream) -> F + Send + Sync + 'static,
) -> SocketAddr {
    let address = server(work, |query| {
        let mut reply = reply(query, [1]);
        reply.metadata.truncation = true;
        vec![reply.to_vec().unwrap()]
    })
    .await;
    let listener = TcpListener::bind(address).await.unwrap();
    work.spawn(async move {
        loop {
            stream(listener.accept().await.unwrap().0).await;
        }
    });
    address
}

async fn read_query(stream: &mut TcpStream) -> Vec<u8> {
    let length = stream.read_u16().await.unwrap();
    let mut query = vec![0; length.into()];
    stream.read_exact(&mut query).await.unwrap();
    query
}

#[tokio::test]
async fn a_long_answer_is_fetched_over_tcp_for_who_came_over_tcp() {
    let mut work = JoinSet::new();
    let address = more(&mut work, |mut stream| async move {
        let query = read_query(&mut stream).await;
        let reply = reply(&query, 0..200).to_vec().unwrap();
        stream.write_u16(reply.len() as u16).await.unwrap();
        // In two pieces.
        stream.write_all(&reply[..100]).await.unwrap();
        stream.write_all(&reply[100..]).await.unwrap();
    })
    .await;
    let message = ask(&[address], Transport::Tcp).await;
    assert_eq!(last_bytes(&message).len(), 200);
    assert!(!message.metadata.truncation);
    let message = ask(&[address], Transport::Udp).await;
    assert_eq!(last_bytes(&message), [1]);
    assert!(message.metadata.truncation);
}

#[tokio::test]
async fn a_stream_that_breaks_off_leaves_the_short_answer() {
    let mut work = JoinSet::new();
    let address = more(&mut work, |mut stream| async move {
        read_query(&mut stream).await;
        stream.write_all(&[0xff, 0xff, 0, 1, 2]).await.unwrap();
    })
    .await;
    let message = ask(&[address], Transport::Tcp).await;
    assert_eq!(last_bytes(&message), [1]);
    let address = more(&mut work, |mut stream| async move {
        let query = read_query(&mut stream).await;
        let mut forged = reply(&query, [2]);
        forged.metadata.id = forged.metadata.id.wrapping_add(1);
        let forged = forged.to_vec().unwrap();
        stream.write_u16(forged.len() as u16).await.unwrap();
        stream.write_all(&forged).await.unwrap();
    })
    .await;
    let message = ask(&[address], Transport::Tcp).await;
    assert_eq!(last_bytes(&message), [1]);
}

#[tokio::test]
async fn a_datagram_that_is_too_long_is_cut() {
    let mut work = JoinSet::new();
    let address = server(&mut work, |query| {
        vec![reply(query, 0..255).to_vec().unwrap()]
    })
    .await;
    let message = ask(&[address], Transport::Udp).await;
    assert!(message.metadata.truncation);
    assert!(message.answers.is_empty());
    assert_eq!(message.queries.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn too_many_at_once_fail_at_once() {
    let silent = UdpSocket::bind(LOCAL).await.unwrap();
    let upstream = Arc::new(Upstream::fixed(vec![silent.local_addr().unwrap()]));
    let mut work = JoinSet::new();
    let started = Instant::now();
    for _ in 0..1100 {
        let upstream = upstream.clone();
        work.spawn(async move {
            upstream.ask(&forward(Transport::Udp)).await;
            Instant::now()
        });
    }
    let ends = work.join_all().await;
    let at_once = ends.iter().filter(|end| **end == started).count();
    // Some systems have file descriptors for less than there are permits for: those fail, too.
    assert!(at_once >= 1100 - 1024, "{at_once}");
}
