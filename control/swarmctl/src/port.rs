//! `--publish`, short and long (docker/cli `opts/swarmopts/port.go`).

use swarm_model::{PortConfig, Protocol};

/// Reads `[PUBLISHED:]TARGET[/PROTOCOL]` or
/// `published=N,target=N[,protocol=tcp|udp][,mode=ingress]`.
pub(crate) fn parse_port(text: &str) -> Result<PortConfig, String> {
    if text.contains('=') {
        parse_long(text)
    } else {
        parse_short(text)
    }
}

fn parse_short(text: &str) -> Result<PortConfig, String> {
    let (ports, protocol) = match text.split_once('/') {
        Some((ports, protocol)) => (ports, parse_protocol(protocol)?),
        None => (text, Protocol::Tcp),
    };
    let parts: Vec<_> = ports.split(':').collect();
    match parts.as_slice() {
        [target] => Ok(PortConfig {
            protocol,
            target: number(target)?,
            published: 0,
        }),
        [published, target] => Ok(PortConfig {
            protocol,
            target: number(target)?,
            published: number(published)?,
        }),
        _ => Err(
            "an address cannot be given: published ports are open on every address of \
                  every node; write PUBLISHED:TARGET[/PROTOCOL]"
                .to_owned(),
        ),
    }
}

fn parse_long(text: &str) -> Result<PortConfig, String> {
    let mut port = PortConfig {
        protocol: Protocol::Tcp,
        target: 0,
        published: 0,
    };
    for field in text.split(',') {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| format!("{field:?} is not KEY=VALUE"))?;
        match key.trim() {
            "target" => port.target = number(value)?,
            "published" => port.published = number(value)?,
            "protocol" => port.protocol = parse_protocol(value)?,
            "mode" if value == "ingress" => {}
            "mode" => {
                return Err(format!(
                    "mode {value:?} is not known to this version: use mode=ingress"
                ));
            }
            _ => {
                return Err(format!(
                    "{key:?} is not known: use target, published, protocol and mode"
                ));
            }
        }
    }
    if port.target == 0 {
        Err("target=PORT is needed".to_owned())
    } else {
        Ok(port)
    }
}

fn parse_protocol(text: &str) -> Result<Protocol, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err(format!("protocol {text:?} is not known: use tcp or udp")),
    }
}

fn number(text: &str) -> Result<u16, String> {
    match text.trim().parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{text:?} is not a port from 1 to 65535")),
    }
}

/// A port as lists show it: `*:8080->80/tcp`.
pub(crate) fn port_text(port: &swarm_api::v1::PortConfig) -> String {
    let protocol = match port.protocol() {
        swarm_api::v1::Protocol::Udp => "udp",
        swarm_api::v1::Protocol::Tcp | swarm_api::v1::Protocol::Unspecified => "tcp",
    };
    format!("*:{}->{}/{protocol}", port.published, port.target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(published: u16, target: u16, protocol: Protocol) -> PortConfig {
        PortConfig {
            protocol,
            target,
            published,
        }
    }

    #[test]
    fn both_forms_are_read() {
        for (text, expected) in [
            ("80", port(0, 80, Protocol::Tcp)),
            ("8080:80", port(8080, 80, Protocol::Tcp)),
            ("53:5353/udp", port(53, 5353, Protocol::Udp)),
            ("published=8080,target=80", port(8080, 80, Protocol::Tcp)),
            (
                "target=80,protocol=udp,mode=ingress",
                port(0, 80, Protocol::Udp),
            ),
        ] {
            assert_eq!(parse_port(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("", "port"),
            ("0:80", "port"),
            ("80000", "port"),
            ("8080:80/xyz", "protocol"),
            ("127.0.0.1:8080:80", "address"),
            ("published=8080", "target"),
            ("target=80,mode=host", "mode"),
            ("target=80,colour=red", "colour"),
        ] {
            let error = parse_port(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
