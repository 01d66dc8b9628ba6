//! Asks the host's own name servers, from the host's network namespace.
//!
//! Invariants:
//! * Every query has an outcome within [`TRIES`] times [`TRY_TIMEOUT`].
//! * An answer is taken only from the server that was asked, at the port that asked (drawn by the
//!   kernel for every query), with the id that was drawn and the question that was put.
//!
//! Deliberately absent: a cache. The host's server has one, and it can be flushed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};

use super::answer::{TCP_MESSAGE_BYTES_MAX, Transport, UDP_ANSWER_BYTES_MAX};
use super::forward::{Forward, Incoming};
use super::resolv_conf::ResolvConf;

/// How often a server is asked for one query: each time the next one, when there are several.
const TRIES: u32 = 2;

/// How long one of them may take. Both are over before the C libraries give up (5 s).
const TRY_TIMEOUT: Duration = Duration::from_secs(2);

/// Most queries under way for all tasks: each has a socket, and up to 64 KiB when it takes TCP.
const IN_FLIGHT_MAX: usize = 1024;

/// Datagrams that are no answer to a query before its server is given up: who sends so many is
/// guessing.
const STRAYS_MAX: usize = 32;

/// How long the host's file counts before it is read again.
const CONF_AGE_MAX: Duration = Duration::from_secs(2);

/// More is not read of it.
const CONF_BYTES_MAX: u64 = 64 * 1024;

/// The host's servers.
#[derive(Debug)]
pub(super) struct Upstream {
    path: PathBuf,
    conf: Mutex<Option<(Instant, Arc<ResolvConf>)>>,
    in_flight: Semaphore,
}

impl Upstream {
    /// Those that the file at `path` names, whenever it changes.
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            conf: Mutex::new(None),
            in_flight: Semaphore::new(IN_FLIGHT_MAX),
        }
    }

    /// These, for good.
    #[cfg(test)]
    pub(super) fn fixed(servers: Vec<SocketAddr>) -> Self {
        let mut conf = ResolvConf::parse("", scope);
        conf.servers = servers;
        let read = Instant::now() + Duration::from_secs(3600);
        Self {
            path: PathBuf::new(),
            conf: Mutex::new(Some((read, Arc::new(conf)))),
            in_flight: Semaphore::new(IN_FLIGHT_MAX),
        }
    }

    /// What the host's file says.
    pub(super) async fn conf(&self) -> Arc<ResolvConf> {
        let mut kept = self.conf.lock().await;
        if let Some((read, conf)) = kept.as_ref()
            && read.elapsed() < CONF_AGE_MAX
        {
            return conf.clone();
        }
        let conf = Arc::new(ResolvConf::parse(&self.text().await, scope));
        *kept = Some((Instant::now(), conf.clone()));
        conf
    }

    /// Empty where there is no file, which says the same as an empty one.
    async fn text(&self) -> String {
        let mut bytes = Vec::new();
        if let Ok(file) = tokio::fs::File::open(&self.path).await {
            // Half a file is as good as what could be read of it.
            let _ = file.take(CONF_BYTES_MAX).read_to_end(&mut bytes).await;
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The answer to `forward`; a failure when no server gives one, or too many queries are under
    /// way already.
    pub(super) async fn ask(&self, forward: &Forward) -> Vec<u8> {
        let Ok(_permit) = self.in_flight.try_acquire() else {
            return forward.failure();
        };
        // Around all of it: the file is read from a disk, and who waits for that is not held up either.
        let answer = timeout(TRY_TIMEOUT * TRIES, self.tries(forward)).await;
        answer.ok().flatten().unwrap_or_else(|| forward.failure())
    }

    /// What one server after the other says; the last failure, when there is nothing better.
    async fn tries(&self, forward: &Forward) -> Option<Vec<u8>> {
        let conf = self.conf().await;
        let mut failure = None;
        for server in conf.servers.iter().cycle().take(TRIES as usize) {
            match timeout(TRY_TIMEOUT, exchange(forward, *server)).await {
                Ok(Some(Incoming::Answer(answer) | Incoming::Truncated(answer))) => {
                    return Some(answer);
                }
                Ok(Some(Incoming::Failure(answer))) => failure = Some(answer),
                Ok(Some(Incoming::Stray) | None) | Err(_) => {}
            }
        }
        failure
    }
}

/// One question to one server: over UDP, and when the answer does not fit there and the asker can
/// take a longer one, over TCP. None when the server cannot be reached.
async fn exchange(forward: &Forward, server: SocketAddr) -> Option<Incoming> {
    let incoming = over_udp(forward, server).await?;
    match (incoming, forward.transport) {
        (Incoming::Truncated(short), Transport::Tcp) => {
            let long = over_tcp(forward, server).await;
            Some(long.unwrap_or(Incoming::Truncated(short)))
        }
        (incoming, _) => Some(incoming),
    }
}

async fn over_udp(forward: &Forward, server: SocketAddr) -> Option<Incoming> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await.ok()?;
    // The kernel drops what others send.
    socket.connect(server).await.ok()?;
    let id = rand::random();
    socket.send(&forward.query(id)).await.ok()?;
    // One byte more than was asked for, to see that an answer is too long.
    let mut buffer = [0; UDP_ANSWER_BYTES_MAX + 1];
    for _ in 0..STRAYS_MAX {
        let length = socket.recv(&mut buffer).await.ok()?;
        match forward.incoming(id, buffer[..length].to_vec()) {
            Incoming::Stray => {}
            incoming => return Some(incoming),
        }
    }
    None
}

async fn over_tcp(forward: &Forward, server: SocketAddr) -> Option<Incoming> {
    let mut stream = TcpStream::connect(server).await.ok()?;
    let id = rand::random();
    write_message(&mut stream, &forward.query(id)).await?;
    let length = usize::from(stream.read_u16().await.ok()?);
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.ok()?;
    match forward.incoming(id, bytes) {
        // It does not fit where everything does: what came before the cut is the answer.
        Incoming::Truncated(answer) => Some(Incoming::Answer(answer)),
        Incoming::Stray => None,
        incoming => Some(incoming),
    }
}

/// Writes a message and its length before it; nothing when that fails or it is too long.
pub(super) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> Option<()> {
    debug_assert!(message.len() <= TCP_MESSAGE_BYTES_MAX);
    let length = u16::try_from(message.len()).ok()?;
    // At once: not every server waits for the second half of a message.
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(message);
    stream.write_all(&bytes).await.ok()
}

fn scope(name: &str) -> Option<u32> {
    name.parse()
        .ok()
        .or_else(|| nix::net::if_::if_nametoindex(name).ok())
}
