//! Serves the queries of one task.
//!
//! What is the swarm's to answer is answered at once; every forwarded query is a tokio task of its
//! own. All of them end with [`serve`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::answer::{QUERY_BYTES_MAX, Transport, Verdict, answer};
use super::records::Asker;
use super::server::Published;
use super::socket::Sockets;
use super::upstream::{Upstream, write_message};

/// Forwarded queries of one task under way. A server that does not answer holds each for 4 s: so a
/// task still gets 32 names a second refused by a dead one, and sixteen such tasks have what there
/// is for all.
const IN_FLIGHT_MAX: usize = 128;

/// Connections of one task. They are for long answers and few; one more is closed at once.
const CONNECTIONS_MAX: usize = 32;

/// How long a connection may be silent, or take to deliver a query or accept an answer.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Datagrams of one task that are looked at in each [`WINDOW`]; the others wait, and what does not
/// fit into the socket's buffer is lost. Some 20,000 a second, and a bounded share of the agent's
/// processor time for who sends more.
const PER_WINDOW: u32 = 1000;
const WINDOW: Duration = Duration::from_millis(50);

/// Pause after a socket failed, which is for lack of memory or file descriptors.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// What the queries of a task are answered from.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    /// What has a name.
    published: watch::Receiver<Published>,
    /// The task.
    asker: watch::Receiver<Asker>,
    /// Who knows the rest.
    upstream: Arc<Upstream>,
    /// Permits to ask there.
    in_flight: Arc<Semaphore>,
}

impl Answers {
    pub(super) fn new(
        published: watch::Receiver<Published>,
        asker: watch::Receiver<Asker>,
        upstream: Arc<Upstream>,
    ) -> Self {
        Self {
            published,
            asker,
            upstream,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
        }
    }

    fn verdict(&self, query: &[u8], transport: Transport) -> Verdict {
        let records = self.published.borrow().records.clone();
        let asker = self.asker.borrow();
        answer(query, transport, &asker, &records, rand::random())
    }

    /// A permit to have one more query forwarded.
    fn permit(&self) -> Option<OwnedSemaphorePermit> {
        self.in_flight.clone().try_acquire_owned().ok()
    }
}

/// Answers what comes in at `sockets` until `stop`; then everything is closed.
///
/// # Errors
/// The sockets cannot be registered with the runtime.
pub(super) async fn serve(
    sockets: Sockets,
    answers: Answers,
    stop: CancellationToken,
) -> io::Result<()> {
    let udp = Arc::new(UdpSocket::from_std(sockets.udp)?);
    let tcp = TcpListener::from_std(sockets.tcp)?;
    let mut work = JoinSet::new();
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut buffer = [0; QUERY_BYTES_MAX + 1];
    let mut window = Window::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            received = udp.recv_from(&mut buffer) => match received {
                Ok((length, from)) => {
                    datagram(&udp, &buffer[..length], from, &answers, &mut work);
                    window.pass().await;
                }
                Err(error) => pause(&error).await,
            },
            accepted = tcp.accept() => match accepted {
                Ok((stream, _)) => {
                    // Else closed: it is dropped here.
                    if let Ok(permit) = connections.clone().try_acquire_owned() {
                        let answers = answers.clone();
                        work.spawn(async move {
                            connection(stream, &answers).await;
                            drop(permit);
                        });
                    }
                }
                Err(error) => pause(&error).await,
            },
            Some(_) = work.join_next() => {}
        }
    }
    work.shutdown().await;
    Ok(())
}

fn datagram(
    udp: &Arc<UdpSocket>,
    query: &[u8],
    from: SocketAddr,
    answers: &Answers,
    work: &mut JoinSet<()>,
) {
    // An answer that the socket has no room for is lost, as datagrams are.
    match answers.verdict(query, Transport::Udp) {
        Verdict::Ignore => {}
        Verdict::Reply(reply) => drop(udp.try_send_to(&reply, from)),
        Verdict::Forward(forward) => {
            let Some(permit) = answers.permit() else {
                return drop(udp.try_send_to(&forward.failure(), from));
            };
            let (udp, upstream) = (udp.clone(), answers.upstream.clone());
            work.spawn(async move {
                let reply = upstream.ask(&forward).await;
                drop(permit);
                drop(udp.try_send_to(&reply, from));
            });
        }
    }
}

/// One query after the other, until the other side ends, is silent, or sends what is no query.
async fn connection(mut stream: TcpStream, answers: &Answers) {
    loop {
        let query = timeout(IDLE_TIMEOUT, read_query(&mut stream));
        let Ok(Some(query)) = query.await else { return };
        let reply = match answers.verdict(&query, Transport::Tcp) {
            Verdict::Ignore => return,
            Verdict::Reply(reply) => reply,
            Verdict::Forward(forward) => match answers.permit() {
                Some(_permit) => answers.upstream.ask(&forward).await,
                None => forward.failure(),
            },
        };
        let written = timeout(IDLE_TIMEOUT, write_message(&mut stream, &reply));
        let Ok(Some(())) = written.await else { return };
    }
}

async fn read_query(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let length = usize::from(stream.read_u16().await.ok()?);
    if length > QUERY_BYTES_MAX {
        return None;
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await.ok()?;
    Some(query)
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "a task's name server cannot use its socket");
    tokio::time::sleep(ERROR_PAUSE).await;
}

/// Counts what was let through.
#[derive(Debug, Default)]
struct Window {
    ends: Option<Instant>,
    passed: u32,
}

impl Window {
    /// Counts one more; waits for the next window when this one is full.
    async fn pass(&mut self) {
        let now = Instant::now();
        let ends = match self.ends {
            Some(ends) if now < ends => ends,
            _ => {
                self.passed = 0;
                *self.ends.insert(now + WINDOW)
            }
        };
        self.passed += 1;
        if self.passed >= PER_WINDOW {
            tokio::time::sleep_until(ends).await;
        }
    }
}
