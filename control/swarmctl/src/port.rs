//! `--publish`, short and long, in Docker's grammar and with its words for mistakes (docker/cli
//! `opts/swarmopts/port.go`, docker/go-connections `nat`), and with options that Docker has not.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use swarm_model::{PortConfig, Protocol, PublishMode, RoutingPolicy, Scheduler};

use crate::time::parse_duration;

/// What one `--publish` asks for: several ports where it names a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ports(pub(crate) Vec<PortConfig>);

/// What one `--publish-rm` takes away. Mode and published port count only where they are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Removal {
    ports: Vec<PortConfig>,
    any_mode: bool,
}

/// Reads `[[IP:]PUBLISHED:]TARGET[/PROTOCOL]`, each port also as a range `FIRST-LAST`, or
/// `target=N[,published=N][,protocol=tcp|udp|sctp][,mode=ingress|host][,ip=ADDRESS]...`.
pub(crate) fn parse_ports(text: &str) -> Result<Ports, String> {
    if text.contains('=') {
        parse_long(text).map(|port| Ports(vec![port]))
    } else {
        parse_short(text).map(Ports)
    }
}

/// Reads `TARGET[/PROTOCOL]`, or a port as [`parse_ports`] does.
pub(crate) fn parse_removal(text: &str) -> Result<Removal, String> {
    let Ports(ports) = parse_ports(text)?;
    let any_mode = !text.to_ascii_lowercase().contains("mode=");
    Ok(Removal { ports, any_mode })
}

impl Removal {
    /// Whether it takes `port` away.
    pub(crate) fn removes(&self, port: &PortConfig) -> bool {
        self.ports.iter().any(|named| {
            named.target == port.target
                && named.protocol == port.protocol
                && (self.any_mode || named.mode == port.mode)
                && (named.published == 0 || named.published == port.published)
        })
    }
}

/// Publishes `added` beside `ports`; one that is published already is published anew, with the
/// options it now has.
pub(crate) fn publish(ports: &mut Vec<PortConfig>, added: impl IntoIterator<Item = PortConfig>) {
    for port in added {
        let replaces = |old: &PortConfig| {
            let same_target = old.target == port.target;
            old.same_port(&port) && (port.published != 0 || same_target)
        };
        match ports.iter_mut().find(|old| replaces(old)) {
            Some(old) => *old = port,
            None => ports.push(port),
        }
    }
}

fn parse_short(text: &str) -> Result<Vec<PortConfig>, String> {
    let (ports, protocol) = match text.split_once('/') {
        Some((ports, protocol)) => (
            ports,
            parse_protocol(protocol).ok_or_else(|| format!("invalid proto: {protocol}"))?,
        ),
        None => (text, Protocol::Tcp),
    };
    let (rest, target) = match ports.rsplit_once(':') {
        Some((rest, target)) => (Some(rest), target),
        None => (None, ports),
    };
    // An IPv6 address is in brackets, and so the only one with a colon.
    let (address, published) = match rest {
        None => (None, None),
        Some(rest) => match rest.rsplit_once(':') {
            Some((address, published)) => (Some(address), Some(published)),
            None => (None, Some(rest)),
        },
    };
    if target.is_empty() {
        return Err(format!("no port specified: {text}"));
    }
    let targets = range(target)
        .ok_or_else(|| format!("invalid containerPort: {target}: ports are 1 to 65535"))?;
    let published = published.filter(|published| !published.is_empty() && *published != "0");
    let published = published
        .map(|text| {
            range(text).ok_or_else(|| format!("invalid hostPort: {text}: ports are 1 to 65535"))
        })
        .transpose()?;
    let addresses = address.map(parse_address).transpose()?.flatten();
    let port = |published, target| PortConfig {
        protocol,
        target,
        published,
        addresses: addresses.into_iter().collect(),
        ..PortConfig::default()
    };
    let Some(published) = published else {
        return Ok(targets.map(|target| port(0, target)).collect());
    };
    if targets.len() == 1 {
        // Several published ports of one target.
        let target = *targets.start();
        Ok(published.map(|published| port(published, target)).collect())
    } else if published.len() == targets.len() {
        let pairs = published.zip(targets);
        Ok(pairs
            .map(|(published, target)| port(published, target))
            .collect())
    } else {
        let published = format!("{}-{}", published.start(), published.end());
        Err(format!(
            "invalid ranges specified for container and host Ports: {target} and {published}"
        ))
    }
}

/// `HOST` of the short form; nothing where it stands for every address.
fn parse_address(text: &str) -> Result<Option<IpNet>, String> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    let address: IpAddr = bare
        .parse()
        .map_err(|_| format!("invalid IP address: {text}"))?;
    Ok((!address.is_unspecified()).then(|| IpNet::from(address)))
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let port = |text: &str| text.parse().ok().filter(|port| *port > 0);
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    (first <= last).then_some(first..=last)
}

fn parse_long(text: &str) -> Result<PortConfig, String> {
    let mut port = PortConfig::default();
    for field in text.split(',') {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => (key.trim(), value.trim()),
            _ => return Err(format!("invalid field: {field}")),
        };
        let lower = value.to_ascii_lowercase();
        match key.to_ascii_lowercase().as_str() {
            "target" => port.target = number("target", value)?,
            "published" => port.published = number("published", value)?,
            "protocol" => {
                port.protocol = parse_protocol(value).ok_or_else(|| {
                    format!("invalid protocol value {value}: must be 'tcp', 'udp' or 'sctp'")
                })?;
            }
            "mode" => {
                port.mode = named(&lower, [PublishMode::Ingress, PublishMode::Host], |mode| {
                    mode.as_str()
                })
                .ok_or_else(|| {
                    format!(
                        "invalid publish mode value ({value}): must be either 'ingress' or 'host'"
                    )
                })?;
            }
            "ip" => port.addresses.push(network("ip", value)?),
            "iface" => port.interfaces.push(value.to_owned()),
            "policy" => {
                use RoutingPolicy::{Cluster, Local, PreferLocal};
                port.policy = named(&lower, [Cluster, Local, PreferLocal], |policy| {
                    policy.as_str()
                })
                .ok_or_else(|| {
                    format!(
                        "invalid policy value ({value}): must be 'cluster', 'local' or \
                         'prefer-local'"
                    )
                })?;
            }
            "sched" => {
                let all = Scheduler::ALL;
                port.scheduler =
                    named(&lower, all, |scheduler| scheduler.as_str()).ok_or_else(|| {
                        format!(
                            "invalid sched value ({value}): must be 'rr', 'wrr', 'lc', 'sh' or \
                             'mh'"
                        )
                    })?;
            }
            "affinity" => {
                let affinity = parse_duration(&lower)?;
                port.affinity = (!affinity.is_zero()).then_some(affinity);
            }
            "source" => port.sources.push(network("source", value)?),
            "snat" => {
                port.snat = lower.parse().map_err(|_| {
                    format!("invalid snat value ({value}): must be 'true' or 'false'")
                })?;
            }
            _ => {
                return Err(format!(
                    "invalid field key: {key}: use target, published, protocol, mode, ip, iface, \
                     policy, sched, affinity, source or snat"
                ));
            }
        }
    }
    if port.target == 0 {
        Err("missing mandatory field 'target'".to_owned())
    } else {
        Ok(port)
    }
}

fn parse_protocol(text: &str) -> Option<Protocol> {
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    named(&text.to_ascii_lowercase(), all, |protocol| {
        protocol.as_str()
    })
}

/// The one of `all` that has this name.
fn named<T: Copy>(
    text: &str,
    all: impl IntoIterator<Item = T>,
    name: impl Fn(&T) -> &'static str,
) -> Option<T> {
    all.into_iter().find(|value| name(value) == text)
}

/// A port; 0 stands for none.
fn number(field: &str, text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| {
        format!("invalid {field} port ({text}): value must be an integer from 0 to 65535")
    })
}

/// An address, or a network in CIDR form without host bits that would not count.
fn network(field: &str, text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    text.parse().map(|net: IpNet| net.trunc()).map_err(|_| {
        format!(
            "invalid {field} value ({text}): must be an address or a network such as 10.0.0.0/8"
        )
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn port(published: u16, target: u16, protocol: Protocol) -> PortConfig {
        PortConfig {
            protocol,
            target,
            published,
            ..PortConfig::default()
        }
    }

    fn tcp(published: u16, target: u16) -> PortConfig {
        port(published, target, Protocol::Tcp)
    }

    fn one(text: &str) -> PortConfig {
        let Ports(ports) = parse_ports(text).unwrap();
        let [port] = ports.as_slice() else {
            panic!("{text}: {ports:?}")
        };
        port.clone()
    }

    #[test]
    fn both_forms_are_read() {
        for (text, expected) in [
            ("80", tcp(0, 80)),
            ("8080:80", tcp(8080, 80)),
            (":80", tcp(0, 80)),
            ("0:80", tcp(0, 80)),
            ("53:5353/udp", port(53, 5353, Protocol::Udp)),
            ("7:7/SCTP", port(7, 7, Protocol::Sctp)),
            ("0.0.0.0:8080:80", tcp(8080, 80)),
            ("published=8080,target=80", tcp(8080, 80)),
            ("published=0,target=80", tcp(0, 80)),
            (
                "Target=80,PROTOCOL=udp,mode=ingress",
                port(0, 80, Protocol::Udp),
            ),
        ] {
            assert_eq!(one(text), expected, "{text}");
        }
        assert_eq!(one("target=80,mode=host").mode, PublishMode::Host);
    }

    #[test]
    fn ranges_are_several_ports() {
        for (text, expected) in [
            (
                "8080-8082:80-82",
                vec![tcp(8080, 80), tcp(8081, 81), tcp(8082, 82)],
            ),
            ("8080-8081:80", vec![tcp(8080, 80), tcp(8081, 80)]),
            ("80-81", vec![tcp(0, 80), tcp(0, 81)]),
            ("8080-8080:80-80", vec![tcp(8080, 80)]),
        ] {
            assert_eq!(parse_ports(text), Ok(Ports(expected)), "{text}");
        }
    }

    #[test]
    fn every_option_is_read() {
        let text = "published=8080,target=80,ip=192.0.2.1,ip=10.1.2.3/8,ip=2001:db8::1,iface=Eth1,\
                    policy=prefer-local,sched=mh,affinity=5m,source=10.0.0.0/8,source=fd00::/8,snat=true";
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let expected = PortConfig {
            addresses: vec![
                net("192.0.2.1/32"),
                net("10.0.0.0/8"),
                net("2001:db8::1/128"),
            ],
            interfaces: vec!["Eth1".to_owned()],
            policy: RoutingPolicy::PreferLocal,
            scheduler: Scheduler::Mh,
            affinity: Some(Duration::from_secs(300)),
            sources: vec![net("10.0.0.0/8"), net("fd00::/8")],
            snat: true,
            ..tcp(8080, 80)
        };
        assert_eq!(one(text), expected);
        assert_eq!(one("192.0.2.1:8080:80").addresses, [net("192.0.2.1/32")]);
        assert_eq!(one("[fd00::1]:8080:80").addresses, [net("fd00::1/128")]);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("", "no port specified: "),
            ("8080:", "no port specified: 8080:"),
            (
                "80000",
                "invalid containerPort: 80000: ports are 1 to 65535",
            ),
            (
                "82-80",
                "invalid containerPort: 82-80: ports are 1 to 65535",
            ),
            ("x:80", "invalid hostPort: x: ports are 1 to 65535"),
            ("localhost:8080:80", "invalid IP address: localhost"),
            ("8080:80/xyz", "invalid proto: xyz"),
            (
                "8080-8081:80-82",
                "invalid ranges specified for container and host Ports: 80-82 and 8080-8081",
            ),
            ("published=8080", "missing mandatory field 'target'"),
            ("target=80,8080", "invalid field: 8080"),
            ("target=80,=1", "invalid field: =1"),
            ("target=0,published=80", "missing mandatory field 'target'"),
            (
                "target=x",
                "invalid target port (x): value must be an integer from 0 to 65535",
            ),
            (
                "target=80,published=65536",
                "invalid published port (65536): value must be an integer from 0 to 65535",
            ),
            (
                "target=80,protocol=icmp",
                "invalid protocol value icmp: must be 'tcp', 'udp' or 'sctp'",
            ),
            (
                "target=80,mode=global",
                "invalid publish mode value (global): must be either 'ingress' or 'host'",
            ),
        ] {
            assert_eq!(parse_ports(text), Err(expected.to_owned()), "{text}");
        }
        for (text, word) in [
            ("target=80,colour=red", "invalid field key: colour"),
            ("target=80,policy=mine", "prefer-local"),
            ("target=80,sched=random", "'mh'"),
            ("target=80,ip=here", "invalid ip value (here)"),
            ("target=80,source=10.0.0.0/33", "invalid source value"),
            ("target=80,affinity=soon", "not a duration"),
            ("target=80,snat=perhaps", "invalid snat value (perhaps)"),
        ] {
            let error = parse_ports(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn a_removal_names_a_target_and_what_else_it_wants() {
        let host = PortConfig {
            mode: PublishMode::Host,
            ..tcp(9090, 80)
        };
        let all = [
            tcp(8080, 80),
            host,
            port(8080, 80, Protocol::Udp),
            tcp(81, 81),
        ];
        let removed = |text: &str| {
            let removal = parse_removal(text).unwrap();
            let removed = |at: &usize| removal.removes(&all[*at]);
            (0..all.len()).filter(removed).collect::<Vec<_>>()
        };
        assert_eq!(removed("80"), [0, 1]);
        assert_eq!(removed("80/udp"), [2]);
        assert_eq!(removed("8080:80"), [0]);
        assert_eq!(removed("80-81"), [0, 1, 3]);
        assert_eq!(removed("target=80,mode=host"), [1]);
        assert_eq!(removed("target=80,mode=ingress"), [0]);
        assert_eq!(removed("9"), [0; 0]);
    }

    #[test]
    fn a_port_published_again_has_its_new_options() {
        let mut ports = vec![tcp(8080, 80), tcp(0, 90)];
        let maglev = PortConfig {
            scheduler: Scheduler::Mh,
            ..tcp(8080, 80)
        };
        publish(
            &mut ports,
            [maglev.clone(), tcp(0, 90), tcp(0, 91), tcp(8081, 80)],
        );
        assert_eq!(ports, [maglev, tcp(0, 90), tcp(0, 91), tcp(8081, 80)]);
    }

    proptest! {
        #[test]
        fn anything_is_read_or_refused_in_words(text in "[a-z0-9=,:/\\[\\]. -]{0,40}") {
            match parse_ports(&text) {
                Ok(Ports(ports)) => {
                    prop_assert!(!ports.is_empty());
                    prop_assert!(ports.iter().all(|port| port.target > 0));
                }
                Err(error) => prop_assert!(!error.is_empty()),
            }
        }
    }
}
