//! Asking published ports whether they answer, without a connection.
//!
//! A SYN from the ingress namespace takes the way of a client's packet from there on: IPVS, overlay,
//! task. What comes back is read by a raw socket; as no socket of this host has asked for it, the
//! kernel itself resets what began. So the task's kernel has seen a client that went away in the
//! middle of the handshake, and its server has seen nothing at all.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, recvfrom,
    sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::names::{INGRESS_NETNS, NETNS_DIR};
use super::netns::NetnsDir;

/// A SYN that is not answered is sent again after this time, as a client would.
const RETRANSMIT: Duration = Duration::from_millis(500);
/// How long an answer is waited for in all.
const DEADLINE: Duration = Duration::from_millis(1500);
/// One look at one socket; there are two.
const LOOK: Duration = Duration::from_millis(10);

/// What became of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Somebody would have taken the connection.
    Answers,
    /// Somebody said no.
    Refuses,
    /// Nobody said anything.
    Silent,
}

/// Asks `targets`, at most some tens of them, from the ingress namespace under `run_dir`, by those
/// of its addresses `own` that are of the same IP version. An outcome for each; nothing for one that
/// could not be asked.
///
/// # Errors
/// When there is no such namespace, or no raw socket in it. Blocks for at most [`DEADLINE`].
pub(crate) fn probe(
    run_dir: &Path,
    own: &[IpAddr],
    targets: &[SocketAddr],
) -> io::Result<Vec<Option<Outcome>>> {
    let dir = NetnsDir::new(run_dir.join(NETNS_DIR));
    let netns = dir.open(INGRESS_NETNS).map_err(io::Error::other)?;
    let netns = netns.ok_or_else(|| io::Error::other("there is no ingress namespace"))?;
    let first_port = rand::random_range(32_768..60_000);
    let sequence = rand::random();
    netns
        .run(|| ask(own, targets, first_port, sequence))
        .map_err(io::Error::other)?
}

/// One of the ends of what is asked.
struct Asker {
    socket: OwnedFd,
    own: IpAddr,
}

impl Asker {
    fn open(own: IpAddr) -> io::Result<Self> {
        let family = match own {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(family, SockType::Raw, flags, SockProtocol::Tcp)?;
        bind(socket.as_raw_fd(), &address(own))?;
        let look = TimeVal::new(0, i64::try_from(LOOK.as_micros()).unwrap_or(i64::MAX));
        setsockopt(&socket, sockopt::ReceiveTimeout, &look)?;
        Ok(Self { socket, own })
    }

    /// Whether it could be sent.
    fn ask(&self, target: SocketAddr, port: u16, sequence: u32) -> bool {
        let segment = syn((self.own, port), (target.ip(), target.port()), sequence);
        let to = address(target.ip());
        sendto(self.socket.as_raw_fd(), &segment, &to, MsgFlags::empty()).is_ok()
    }

    /// The next segment that has come, and from whom, within [`LOOK`].
    fn hear(&self) -> Option<(IpAddr, Segment)> {
        let mut buffer = [0; 256];
        let heard = recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), &mut buffer);
        let (len, from) = match heard {
            Ok((len, from)) => (len, from?),
            Err(Errno::EAGAIN | Errno::EINTR) => return None,
            Err(error) => {
                tracing::debug!(%error, "a probe's answers cannot be read");
                std::thread::sleep(LOOK);
                return None;
            }
        };
        let from = match (from.as_sockaddr_in(), from.as_sockaddr_in6()) {
            (Some(from), _) => IpAddr::V4(from.ip()),
            (_, Some(from)) => IpAddr::V6(from.ip()),
            _ => return None,
        };
        // Over IPv4 the header is there too.
        let bytes = buffer.get(..len)?;
        let start = match from {
            IpAddr::V4(_) => usize::from(bytes.first()? & 0x0f) * 4,
            IpAddr::V6(_) => 0,
        };
        Some((from, Segment::parse(bytes.get(start..)?)?))
    }
}

/// An address without a port, for a raw socket.
fn address(address: IpAddr) -> SockaddrStorage {
    SockaddrStorage::from(SocketAddr::new(address, 0))
}

fn ask(
    own: &[IpAddr],
    targets: &[SocketAddr],
    first_port: u16,
    sequence: u32,
) -> io::Result<Vec<Option<Outcome>>> {
    let mut askers = Vec::new();
    for own in own {
        if targets
            .iter()
            .any(|target| target.is_ipv4() == own.is_ipv4())
        {
            askers.push(Asker::open(*own)?);
        }
    }
    let port = |index: usize| first_port.wrapping_add(u16::try_from(index).unwrap_or(0));
    let send = |index: usize, target: &SocketAddr| {
        let same = |asker: &&Asker| asker.own.is_ipv4() == target.is_ipv4();
        let asker = askers.iter().find(same);
        asker.is_some_and(|asker| asker.ask(*target, port(index), sequence))
    };
    let sent = targets.iter().enumerate();
    let mut outcomes: Vec<Option<Outcome>> = sent
        .map(|(index, target)| send(index, target).then_some(Outcome::Silent))
        .collect();
    let began = Instant::now();
    let mut again = false;
    while outcomes.contains(&Some(Outcome::Silent)) && began.elapsed() < DEADLINE {
        if !again && began.elapsed() >= RETRANSMIT {
            again = true;
            for (index, target) in targets.iter().enumerate() {
                if outcomes[index] == Some(Outcome::Silent) {
                    send(index, target);
                }
            }
        }
        for asker in &askers {
            let Some((from, segment)) = asker.hear() else {
                continue;
            };
            let index = usize::from(segment.destination_port.wrapping_sub(first_port));
            let asked = targets.get(index);
            let is_asked = asked == Some(&SocketAddr::new(from, segment.source_port));
            if let (true, Some(outcome)) = (is_asked, segment.answer_to(sequence)) {
                outcomes[index] = Some(outcome);
            }
        }
    }
    Ok(outcomes)
}

/// TCP's flags (RFC 9293).
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What matters of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    source_port: u16,
    destination_port: u16,
    acknowledged: u32,
    flags: u8,
}

impl Segment {
    /// Of any bytes; nothing where they are too few.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let two = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        Some(Self {
            source_port: two(0)?,
            destination_port: two(2)?,
            acknowledged: u32::from(two(8)?) << 16 | u32::from(two(10)?),
            flags: *bytes.get(13)?,
        })
    }

    /// What it says to a SYN with this number; nothing when it is no answer to that.
    fn answer_to(self, sequence: u32) -> Option<Outcome> {
        let answers = self.flags & ACK != 0 && self.acknowledged == sequence.wrapping_add(1);
        match self.flags & (SYN | RST) {
            _ if !answers => None,
            SYN => Some(Outcome::Answers),
            RST => Some(Outcome::Refuses),
            _ => None,
        }
    }
}

/// A SYN without options, checksum included.
fn syn(source: (IpAddr, u16), destination: (IpAddr, u16), sequence: u32) -> [u8; 20] {
    let mut segment = [0; 20];
    segment[0..2].copy_from_slice(&source.1.to_be_bytes());
    segment[2..4].copy_from_slice(&destination.1.to_be_bytes());
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    // A header of five words.
    segment[12] = 5 << 4;
    segment[13] = SYN;
    // A window like any.
    segment[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
    let sum = checksum(source.0, destination.0, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// TCP's checksum of a segment whose own is zero (RFC 9293, section 3.1).
fn checksum(source: IpAddr, destination: IpAddr, segment: &[u8; 20]) -> u16 {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mut bytes = [octets(source), octets(destination)].concat();
    // IPPROTO_TCP and the length, as words.
    bytes.extend([0, 6, 0, 20]);
    bytes.extend(segment);
    let words = bytes.chunks_exact(2);
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
