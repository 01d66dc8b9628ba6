//! Processes of the host that listen, as `/proc/net` lists them (`tcp4_seq_show`, `udp4_seq_show`).
//!
//! They are looked for because a published port shadows them: its packets are taken off the uplink
//! before any socket of the host is asked. Nobody would know.
//!
//! Deliberately absent: SCTP, and the name of the process; `ss` tells it to whoever has read the
//! report.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use swarm_model::Protocol;

/// The calling thread's network namespace. `/proc/net` is that of the process.
const OWN_NAMESPACE: &str = "/proc/thread-self/net";

/// Longest line that is read; the kernel's are 150 to 200 bytes.
const LINE_BYTES_MAX: u64 = 1024;

/// Sockets of a protocol that are looked at. A host with more of them that are open to everybody
/// has other worries.
const SOCKETS_MAX: usize = 65_536;

/// States of a TCP socket (linux/tcp_states.h).
const TCP_ESTABLISHED: u8 = 0x01;
const TCP_SYN_RECV: u8 = 0x03;
const TCP_LISTEN: u8 = 0x0a;

/// A socket that takes what comes from anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listener {
    /// Transport protocol.
    pub(super) protocol: Protocol,
    /// Port.
    pub(super) port: u16,
    /// Address; an unspecified one is every address.
    pub(super) address: IpAddr,
}

impl Listener {
    /// Whether packets to `address` would be this socket's. One bound to `::` takes IPv4 as well,
    /// unless it asked not to, which is not told.
    pub(super) fn takes(&self, address: IpAddr) -> bool {
        match self.address {
            IpAddr::V6(own) if own.is_unspecified() => true,
            IpAddr::V4(own) if own.is_unspecified() => address.is_ipv4(),
            own => own.to_canonical() == address,
        }
    }
}

/// Connections of others to the servers of the calling thread's network namespace: those that are
/// established or being made, accepted by their server or not, to a port that somebody listens on.
/// Those over loopback are the namespace's own.
pub(super) fn connections() -> io::Result<usize> {
    let mut all = 0;
    let mut listening = BTreeSet::new();
    for name in ["tcp", "tcp6"] {
        match File::open(Path::new(OWN_NAMESPACE).join(name)) {
            Ok(file) => all += count(BufReader::new(file), &mut listening)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// Counts the connections of one table. IPv4 comes first: a socket bound to `::` has its IPv4
/// connections in the IPv6 table.
fn count(mut table: impl BufRead, listening: &mut BTreeSet<u16>) -> io::Result<usize> {
    let mut connections = 0;
    let mut line = Vec::new();
    for _ in 0..=SOCKETS_MAX {
        line.clear();
        let mut limited = io::Read::take(&mut table, LINE_BYTES_MAX);
        if limited.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        match parse(&line) {
            Some((_, port, TCP_LISTEN)) => {
                listening.insert(port);
            }
            Some((address, port, TCP_ESTABLISHED | TCP_SYN_RECV)) => {
                let own = address.to_canonical().is_loopback();
                connections += usize::from(!own && listening.contains(&port));
            }
            _ => {}
        }
    }
    Ok(connections)
}

/// The listeners of the calling thread's network namespace.
pub(super) fn listeners() -> io::Result<BTreeSet<Listener>> {
    let mut all = BTreeSet::new();
    for (protocol, names) in [
        (Protocol::Tcp, ["tcp", "tcp6"]),
        (Protocol::Udp, ["udp", "udp6"]),
    ] {
        for name in names {
            match File::open(Path::new(OWN_NAMESPACE).join(name)) {
                Ok(file) => collect(protocol, BufReader::new(file), &mut all)?,
                // A kernel without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(all)
}

/// Reads one table. Of TCP the listening sockets come first (`tcp_get_idx`): the first other one
/// ends it, so that a host with many connections pays nothing for them.
fn collect(
    protocol: Protocol,
    mut table: impl BufRead,
    all: &mut BTreeSet<Listener>,
) -> io::Result<()> {
    let mut line = Vec::new();
    for number in 0..=SOCKETS_MAX {
        line.clear();
        let mut limited = io::Read::take(&mut table, LINE_BYTES_MAX);
        if limited.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        // The first line is the heading.
        let Some(socket) = (number > 0).then(|| parse(&line)).flatten() else {
            continue;
        };
        let (address, port, state) = socket;
        if state == takes_all(protocol) {
            all.insert(Listener {
                protocol,
                port,
                address,
            });
        } else if protocol == Protocol::Tcp {
            return Ok(());
        }
    }
    Ok(())
}

/// The state of a socket that takes what comes from anywhere (linux/tcp_states.h): `TCP_LISTEN`, and
/// for a datagram socket without a peer `TCP_CLOSE`.
fn takes_all(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => TCP_LISTEN,
        Protocol::Udp | Protocol::Sctp => 0x07,
    }
}

/// Local address, port and state of a line; nothing where it has another form.
fn parse(line: &[u8]) -> Option<(IpAddr, u16, u8)> {
    let text = std::str::from_utf8(line).ok()?;
    let mut fields = text.split_ascii_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    let state = fields.nth(1)?;
    let word = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::to_ne_bytes);
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(address)?)),
        32 => {
            let mut octets = [0; 16];
            for (at, part) in octets.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(address.get(at * 8..at * 8 + 8)?)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some((
        address,
        u16::from_str_radix(port, 16).ok()?,
        u8::from_str_radix(state, 16).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use proptest::prelude::*;

    use super::*;

    fn read(protocol: Protocol, table: &str) -> Vec<Listener> {
        let mut all = BTreeSet::new();
        collect(protocol, table.as_bytes(), &mut all).unwrap();
        all.into_iter().collect()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_tables_are_read() {
        let tcp = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4 1 0
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 5 1 0
   2: 0A02000A:0016 0202000A:9C40 01 00000000:00000000 00:00000000 00000000     0        0 6 1 0
   3: 00000000:0051 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1 0
";
        let listener = |protocol, address: &str, port| Listener {
            protocol,
            port,
            address: address.parse().unwrap(),
        };
        assert_eq!(
            read(Protocol::Tcp, tcp),
            [
                listener(Protocol::Tcp, "0.0.0.0", 80),
                listener(Protocol::Tcp, "127.0.0.1", 8080),
            ],
            "what comes after a connection is none"
        );
        let udp = "\
  sl  local_address                         remote_address                        st tx_queue
   9: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 00000000
  10: B80D0120000000000000000001000000:0036 B80D0120000000000000000002000000:0037 01 00000000
  11: B80D0120000000000000000001000000:0038 00000000000000000000000000000000:0000 07 00000000
";
        assert_eq!(
            read(Protocol::Udp, udp),
            [
                listener(Protocol::Udp, "::1", 53),
                listener(Protocol::Udp, "2001:db8::1", 56),
            ]
        );
    }

    #[test]
    fn what_listens_here_is_found_and_what_is_connected_is_not() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp6 = TcpListener::bind("[::]:0");
        let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
        let connection = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let found = listeners().unwrap();
        let listens = |protocol, address: std::net::SocketAddr| {
            found.contains(&Listener {
                protocol,
                port: address.port(),
                address: address.ip(),
            })
        };
        assert!(listens(Protocol::Tcp, tcp.local_addr().unwrap()));
        assert!(listens(Protocol::Udp, udp.local_addr().unwrap()));
        if let Ok(tcp6) = tcp6 {
            assert!(listens(Protocol::Tcp, tcp6.local_addr().unwrap()));
        }
        assert!(!listens(Protocol::Tcp, connection.local_addr().unwrap()));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn connections_are_those_of_others_to_a_listening_port() {
        let tcp = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 5 1 0
   1: 0A02000A:0050 0202000A:9C40 01 00000000:00000000 00:00000000 00000000     0        0 6 1 0
   2: 0A02000A:0050 0202000A:9C41 03 00000000:00000000 00:00000000 00000000     0        0 0 1 0
   3: 0A02000A:0050 0202000A:9C42 06 00000000:00000000 00:00000000 00000000     0        0 0 1 0
   4: 0100007F:0050 0100007F:9C43 01 00000000:00000000 00:00000000 00000000     0        0 8 1 0
   5: 0A02000A:9C44 0302000A:0051 01 00000000:00000000 00:00000000 00000000     0        0 9 1 0
";
        let mut listening = BTreeSet::new();
        assert_eq!(count(tcp.as_bytes(), &mut listening).unwrap(), 2);
        assert_eq!(Vec::from_iter(listening), [80]);
    }

    #[test]
    fn a_listener_takes_what_is_for_its_address() {
        let takes = |own: &str, address: &str| {
            let listener = Listener {
                protocol: Protocol::Tcp,
                port: 80,
                address: own.parse().unwrap(),
            };
            listener.takes(address.parse().unwrap())
        };
        assert!(takes("0.0.0.0", "192.0.2.1"));
        assert!(!takes("0.0.0.0", "2001:db8::1"));
        assert!(takes("::", "192.0.2.1") && takes("::", "2001:db8::1"));
        assert!(takes("192.0.2.1", "192.0.2.1"));
        assert!(takes("::ffff:192.0.2.1", "192.0.2.1"));
        assert!(!takes("127.0.0.1", "192.0.2.1"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let mut all = BTreeSet::new();
            collect(Protocol::Udp, &bytes[..], &mut all).unwrap();
            count(&bytes[..], &mut BTreeSet::new()).unwrap();
        }
    }
}
