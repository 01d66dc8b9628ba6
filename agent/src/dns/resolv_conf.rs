//! `/etc/resolv.conf`: what the host's says, and what a container's is to say. Pure.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

use super::{ADDRESS, PORT};

/// Servers that are used, as by the C libraries (`MAXNS`).
const SERVERS_MAX: usize = 3;

/// Search domains that are handed on, and their bytes: more than glibc before 2.26 (6 and 256)
/// reads, and few enough for a failed name to cost a bounded number of queries.
const SEARCH_MAX: usize = 16;
const SEARCH_BYTES_MAX: usize = 1024;

/// The content of a container's `/etc/resolv.conf` on a host whose own has the content `host`.
pub(crate) fn resolv_conf_for_container(host: &str) -> String {
    ResolvConf::parse(host, |_| None).for_container()
}

/// What matters of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResolvConf {
    /// Servers in order of preference; at least one.
    pub(super) servers: Vec<SocketAddr>,
    /// Domains to look for a name in.
    search: Vec<String>,
}

impl ResolvConf {
    /// Reads the text of a file. What it does not understand it leaves out; without a server it is
    /// the one on this host, as for the C libraries. `scope` gives the index of an interface by its
    /// name or number, for link-local servers (`fe80::1%eth0`).
    pub(super) fn parse(text: &str, scope: impl Fn(&str) -> Option<u32>) -> Self {
        let mut servers = Vec::new();
        let mut search = Vec::new();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") if servers.len() < SERVERS_MAX => {
                    servers.extend(words.next().and_then(|word| server(word, &scope)));
                }
                // The last of these counts.
                Some("search") => search = words.map(str::to_owned).collect(),
                Some("domain") => search = words.take(1).map(str::to_owned).collect(),
                _ => {}
            }
        }
        if servers.is_empty() {
            servers.push(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)));
        }
        let mut bytes = 0;
        search = search
            .into_iter()
            .take(SEARCH_MAX)
            .take_while(|domain| {
                bytes += domain.len() + 1;
                bytes <= SEARCH_BYTES_MAX
            })
            .collect();
        Self { servers, search }
    }

    /// The text of a container's file on this host: our server and the host's search domains. Every
    /// name is tried as it is first (`ndots:0`), so that one of a service is no search.
    fn for_container(&self) -> String {
        let mut text = format!("nameserver {ADDRESS}\n");
        if !self.search.is_empty() {
            let _ = writeln!(text, "search {}", self.search.join(" "));
        }
        text.push_str("options ndots:0\n");
        text
    }
}

fn server(word: &str, scope: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let Some((address, zone)) = word.split_once('%') else {
        let address: IpAddr = word.parse().ok()?;
        return Some(SocketAddr::new(address, PORT));
    };
    let address = address.parse().ok()?;
    Some(SocketAddrV6::new(address, PORT, 0, scope(zone)?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ResolvConf {
        ResolvConf::parse(text, |zone| (zone == "eth0").then_some(7))
    }

    #[test]
    fn servers_are_the_first_three_that_can_be_read() {
        let conf = parse(
            "# nameserver 192.0.2.9\nnameserver nonsense\nnameserver 192.0.2.1 # yes\n\
             nameserver fe80::1%eth0\nnameserver fe80::1%eth9\n\tnameserver 2001:db8::1\n\
             nameserver 192.0.2.4\noptions edns0\n",
        );
        let servers: Vec<String> = conf.servers.iter().map(ToString::to_string).collect();
        assert_eq!(
            servers,
            ["192.0.2.1:53", "[fe80::1%7]:53", "[2001:db8::1]:53"]
        );
        let local = parse("");
        assert_eq!(local.servers, vec!["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn a_container_asks_us_and_searches_where_the_host_does() {
        assert_eq!(
            parse("nameserver 192.0.2.1\nsearch old.example\nsearch a.example b.example\n")
                .for_container(),
            "nameserver 127.0.0.11\nsearch a.example b.example\noptions ndots:0\n"
        );
        assert_eq!(
            parse("domain one.example two.example").for_container(),
            "nameserver 127.0.0.11\nsearch one.example\noptions ndots:0\n"
        );
        let many = format!("search {}", "long.example ".repeat(10_000));
        assert!(parse(&many).for_container().len() < 2 * SEARCH_BYTES_MAX);
    }
}
