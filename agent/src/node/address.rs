//! Which address of this host others dial (moby `daemon/cluster/listen_addr.go`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// The port of the manager's listener.
pub(super) const DEFAULT_PORT: u16 = 2377;

/// Why no address could be chosen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddressError {
    #[error("cannot list this host's addresses")]
    List(#[source] nix::Error),
    #[error("this host has no address that others could dial: bring its network up first")]
    None,
    #[error(
        "this host has several addresses ({0}): choose with --advertise-addr ADDRESS which one the \
         others dial"
    )]
    Ambiguous(String),
    #[error(
        "{0:?} is neither an address of this host nor one of its interfaces: its addresses are {1}"
    )]
    NotLocal(String, String),
    #[error("{0:?} is not an address: write ADDRESS or ADDRESS:PORT")]
    Invalid(String),
    #[error(
        "cannot find out which address of this host reaches {remote}: say it with --advertise-addr"
    )]
    Route {
        remote: SocketAddr,
        #[source]
        source: std::io::Error,
    },
}

/// An interface and one of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Local {
    interface: String,
    address: IpAddr,
}

/// Addresses of interfaces that are up, loopback and link-local ones left out.
fn local_addresses() -> Result<Vec<Local>, AddressError> {
    let mut found = Vec::new();
    for entry in getifaddrs().map_err(AddressError::List)? {
        if !entry.flags.contains(InterfaceFlags::IFF_UP)
            || entry.flags.contains(InterfaceFlags::IFF_LOOPBACK)
        {
            continue;
        }
        let Some(address) = entry.address else {
            continue;
        };
        let address: IpAddr = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) if !v4.ip().is_link_local() => v4.ip().into(),
            (_, Some(v6)) if !v6.ip().is_unicast_link_local() => v6.ip().into(),
            _ => continue,
        };
        found.push(Local {
            interface: entry.interface_name,
            address,
        });
    }
    Ok(found)
}

/// Bridges that container engines make: nobody dials them from another host.
const ENGINE_BRIDGES: [&str; 4] = ["docker0", "docker_gwbridge", "cni0", "sw-"];

/// The address to advertise, from what was asked for: `ADDRESS[:PORT]`, an interface, or nothing.
/// Unless an IPv6 address is asked for, it is an IPv4 one where there is any.
pub(super) fn advertise_address(asked: &str) -> Result<SocketAddr, AddressError> {
    choose(asked, &local_addresses()?)
}

fn choose(asked: &str, local: &[Local]) -> Result<SocketAddr, AddressError> {
    let list = |local: &[Local]| {
        let texts: Vec<_> = local
            .iter()
            .map(|local| format!("{} on {}", local.address, local.interface))
            .collect();
        texts.join(", ")
    };
    if asked.is_empty() {
        let mut dialable: Vec<_> = local
            .iter()
            .filter(|local| {
                !ENGINE_BRIDGES
                    .iter()
                    .any(|prefix| local.interface.starts_with(prefix))
            })
            .cloned()
            .collect();
        if dialable.iter().any(|local| local.address.is_ipv4()) {
            dialable.retain(|local| local.address.is_ipv4());
        }
        return match dialable.as_slice() {
            [] => Err(AddressError::None),
            [only] => Ok(SocketAddr::new(only.address, DEFAULT_PORT)),
            _ => Err(AddressError::Ambiguous(list(&dialable))),
        };
    }
    let of_interface = local.iter().filter(|local| local.interface == asked);
    // IPv4 first: false is less than true.
    if let Some(found) = of_interface.min_by_key(|local| local.address.is_ipv6()) {
        return Ok(SocketAddr::new(found.address, DEFAULT_PORT));
    }
    let not_local = || AddressError::NotLocal(asked.to_owned(), list(local));
    let address = with_port(asked).map_err(|_| not_local())?;
    if local.iter().any(|local| local.address == address.ip()) {
        Ok(address)
    } else {
        Err(not_local())
    }
}

/// Reads `ADDRESS` or `ADDRESS:PORT`.
pub(super) fn with_port(text: &str) -> Result<SocketAddr, AddressError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, DEFAULT_PORT));
    }
    text.parse()
        .map_err(|_| AddressError::Invalid(text.to_owned()))
}

/// What to listen on: what was asked for, or every address of the IP version of what is advertised,
/// with IPv6 also IPv4.
pub(super) fn listen_address(asked: &str, advertise: IpAddr) -> Result<SocketAddr, AddressError> {
    if asked.is_empty() {
        return Ok(SocketAddr::new(unspecified(advertise), DEFAULT_PORT));
    }
    with_port(asked)
}

/// Every address of the same IP version.
pub(super) fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// The address of this host that packets to `remote` leave from.
pub(super) fn address_towards(remote: SocketAddr) -> Result<IpAddr, AddressError> {
    let route = || {
        // Connecting a UDP socket only asks the routing table; nothing is sent.
        let socket = UdpSocket::bind((unspecified(remote.ip()), 0))?;
        socket.connect(remote)?;
        Ok(socket.local_addr()?.ip())
    };
    route().map_err(|source| AddressError::Route { remote, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(interface: &str, last: u8) -> Local {
        Local {
            interface: interface.to_owned(),
            address: IpAddr::from([192, 0, 2, last]),
        }
    }

    #[test]
    fn the_only_address_is_taken() {
        let addresses = [local("eth0", 1), local("docker0", 9)];
        assert_eq!(
            choose("", &addresses).unwrap(),
            "192.0.2.1:2377".parse().unwrap()
        );
    }

    #[test]
    fn several_addresses_need_a_choice() {
        let addresses = [local("eth0", 1), local("eth1", 2)];
        let error = choose("", &addresses).unwrap_err().to_string();
        assert!(
            error.contains("192.0.2.1 on eth0, 192.0.2.2 on eth1"),
            "{error}"
        );
        assert_eq!(
            choose("eth1", &addresses).unwrap(),
            "192.0.2.2:2377".parse().unwrap()
        );
        assert_eq!(
            choose("192.0.2.1:99", &addresses).unwrap(),
            "192.0.2.1:99".parse().unwrap()
        );
        assert!(choose("198.51.100.1", &addresses).is_err());
        assert!(choose("eth7", &addresses).is_err());
    }

    #[test]
    fn ipv6_is_taken_where_it_is_asked_for_or_alone() {
        let ipv6 = |interface: &str, address: &str| Local {
            interface: interface.to_owned(),
            address: address.parse().unwrap(),
        };
        let alone = ipv6("eth0", "2001:db8::1");
        let both = [alone.clone(), local("eth0", 1), ipv6("eth0", "fd00::1")];
        for asked in ["", "eth0", "192.0.2.1"] {
            let chosen = choose(asked, &both).unwrap();
            assert_eq!(chosen, "192.0.2.1:2377".parse().unwrap(), "{asked:?}");
        }
        for (asked, expected) in [
            ("2001:db8::1", "[2001:db8::1]:2377"),
            ("[fd00::1]:99", "[fd00::1]:99"),
        ] {
            assert_eq!(choose(asked, &both).unwrap(), expected.parse().unwrap());
        }
        for asked in ["", "eth0"] {
            let chosen = choose(asked, std::slice::from_ref(&alone)).unwrap();
            assert_eq!(chosen, "[2001:db8::1]:2377".parse().unwrap());
            let listen = listen_address("", chosen.ip()).unwrap();
            assert_eq!(listen, "[::]:2377".parse().unwrap());
        }
        assert!(choose("2001:db8::2", &both).is_err());
    }

    #[test]
    fn ports_are_optional() {
        assert_eq!(with_port("192.0.2.1").unwrap().port(), DEFAULT_PORT);
        assert_eq!(with_port("[2001:db8::1]:5").unwrap().port(), 5);
        assert!(with_port("192.0.2.1:").is_err());
    }
}
