//! Which specs are valid (swarmkit `manager/controlapi/{common,service}.go`).

use std::collections::BTreeSet;

use crate::{
    Constraint, ConstraintError, EndpointMode, InvalidPort, PortConfig, Protocol, PublishMode,
    ServiceSpec,
};

/// Longest name: a DNS label.
pub const MAX_NAME_LEN: usize = 63;

/// Most tasks one service may ask for. Far above what a swarm of a thousand hosts runs, and small
/// enough that a slip of the finger does not fill the managers' memory.
pub const MAX_REPLICAS: u64 = 100_000;

/// Most published ports of one service; keeps an assignment message small.
const MAX_PORTS: usize = 256;

/// Most networks of one service: each is an interface of each of its tasks.
const MAX_NETWORKS: usize = 32;

/// Most further names of a service on one network, and the longest of them (RFC 1035).
const MAX_ALIASES: usize = 64;
const MAX_ALIAS_LEN: usize = 253;

/// Longest single text of a container spec, and most entries in one of its lists.
pub(crate) const MAX_TEXT_LEN: usize = 32 * 1024;
pub(crate) const MAX_LIST_LEN: usize = 1024;

/// What is wrong with a spec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpec {
    /// A name that is no DNS label.
    #[error("name {0:?} is not valid: use 1 to 63 letters and digits, with - or _ between them")]
    Name(String),
    /// No image.
    #[error("an image is needed, for example nginx:latest")]
    NoImage,
    /// An image reference with characters that none has.
    #[error("image {0:?} is not a valid reference: write [REGISTRY/]NAME[:TAG][@DIGEST]")]
    Image(String),
    /// Too many replicas.
    #[error("{0} replicas are more than the {MAX_REPLICAS} a service may have")]
    Replicas(u64),
    /// A published port that makes no sense.
    #[error(transparent)]
    Port(#[from] InvalidPort),
    /// The same published port twice.
    #[error("port {published}/{} is published twice by this service", .protocol.as_str())]
    PublishedTwice {
        /// The port.
        published: u16,
        /// Its protocol.
        protocol: Protocol,
    },
    /// The mesh needs an address that stands for the service. Docker's words.
    #[error("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")]
    IngressWithDnsrr,
    /// A name on a network that no query could ask for.
    #[error(
        "network alias {0:?} is not valid: use letters, digits, -, _ and ., 253 characters at most"
    )]
    Alias(String),
    /// A constraint that cannot be read.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// Something is longer than it may be.
    #[error("{what} is too large: at most {limit} are allowed")]
    TooLarge {
        /// What is.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// An environment entry without a name.
    #[error("environment entry {0:?} has no name: write NAME=VALUE")]
    Environment(String),
}

/// Whether `spec` can be accepted as it stands.
pub fn validate_service(spec: &ServiceSpec) -> Result<(), InvalidSpec> {
    validate_name(&spec.name)?;
    let replicas = spec.mode.replicas();
    if replicas > MAX_REPLICAS {
        return Err(InvalidSpec::Replicas(replicas));
    }
    validate_container(spec)?;
    for constraint in &spec.task.placement.constraints {
        Constraint::parse(constraint)?;
    }
    validate_networks(spec)?;
    validate_ports(spec)
}

fn validate_networks(spec: &ServiceSpec) -> Result<(), InvalidSpec> {
    let networks = &spec.task.networks;
    if networks.len() > MAX_NETWORKS {
        return Err(InvalidSpec::TooLarge {
            what: "the list of networks",
            limit: MAX_NETWORKS,
        });
    }
    for network in networks {
        if network.aliases.len() > MAX_ALIASES {
            return Err(InvalidSpec::TooLarge {
                what: "the list of aliases on a network",
                limit: MAX_ALIASES,
            });
        }
        if let Some(alias) = network.aliases.iter().find(|alias| !is_alias(alias)) {
            return Err(InvalidSpec::Alias(alias.chars().take(80).collect()));
        }
    }
    Ok(())
}

/// Whether a query can ask for `alias`: DNS labels, with underscores as people write them.
fn is_alias(alias: &str) -> bool {
    alias.len() <= MAX_ALIAS_LEN
        && alias.split('.').all(|label| {
            (1..=MAX_NAME_LEN).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        })
}

pub(crate) fn validate_name(name: &str) -> Result<(), InvalidSpec> {
    let valid = name.len() <= MAX_NAME_LEN
        && name
            .split(['-', '_'])
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    if valid {
        Ok(())
    } else {
        Err(InvalidSpec::Name(name.chars().take(80).collect()))
    }
}

fn validate_container(spec: &ServiceSpec) -> Result<(), InvalidSpec> {
    let container = &spec.task.container;
    if container.image.is_empty() {
        return Err(InvalidSpec::NoImage);
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@[]+".contains(&byte);
    if container.image.len() > 512
        || !container.image.bytes().all(allowed)
        || !container
            .image
            .starts_with(|first: char| first.is_ascii_alphanumeric() || first == '[')
    {
        return Err(InvalidSpec::Image(
            container.image.chars().take(80).collect(),
        ));
    }
    for (what, list) in [
        ("the command", &container.command),
        ("the list of arguments", &container.args),
        ("the environment", &container.env),
        ("the list of constraints", &spec.task.placement.constraints),
    ] {
        if list.len() > MAX_LIST_LEN {
            return Err(InvalidSpec::TooLarge {
                what,
                limit: MAX_LIST_LEN,
            });
        }
        if list.iter().any(|text| text.len() > MAX_TEXT_LEN) {
            return Err(InvalidSpec::TooLarge {
                what,
                limit: MAX_TEXT_LEN,
            });
        }
    }
    for labels in [&spec.labels, &container.labels] {
        if labels.len() > MAX_LIST_LEN {
            return Err(InvalidSpec::TooLarge {
                what: "the set of labels",
                limit: MAX_LIST_LEN,
            });
        }
        if labels
            .iter()
            .any(|(key, value)| key.len() + value.len() > MAX_TEXT_LEN)
        {
            return Err(InvalidSpec::TooLarge {
                what: "a label",
                limit: MAX_TEXT_LEN,
            });
        }
    }
    for (what, text) in [
        ("the host name", &container.hostname),
        ("the working directory", &container.dir),
        ("the user", &container.user),
    ] {
        if text.len() > 4096 {
            return Err(InvalidSpec::TooLarge { what, limit: 4096 });
        }
    }
    match container
        .env
        .iter()
        .find(|entry| entry.is_empty() || entry.starts_with('='))
    {
        Some(entry) => Err(InvalidSpec::Environment(entry.clone())),
        None => Ok(()),
    }
}

fn validate_ports(spec: &ServiceSpec) -> Result<(), InvalidSpec> {
    let ports = &spec.endpoint.ports;
    if ports.len() > MAX_PORTS {
        return Err(InvalidSpec::TooLarge {
            what: "the list of ports",
            limit: MAX_PORTS,
        });
    }
    let ingress = |port: &PortConfig| port.mode == PublishMode::Ingress;
    if spec.endpoint.mode == EndpointMode::Dnsrr && ports.iter().any(ingress) {
        return Err(InvalidSpec::IngressWithDnsrr);
    }
    let mut seen = BTreeSet::new();
    for port in ports {
        port.check()?;
        if port.published != 0 && !seen.insert((port.protocol, port.published)) {
            return Err(InvalidSpec::PublishedTwice {
                published: port.published,
                protocol: port.protocol,
            });
        }
        let differs = |other: &&PortConfig| {
            (other.target, other.protocol) == (port.target, port.protocol)
                && other.snat != port.snat
        };
        if ports.iter().any(|other| differs(&other)) {
            return Err(InvalidSpec::Port(InvalidPort::SnatDiffers {
                target: port.target,
                protocol: port.protocol,
            }));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NetworkAttachmentSpec;

    fn spec() -> ServiceSpec {
        let mut spec = ServiceSpec {
            name: "web".to_owned(),
            ..ServiceSpec::default()
        };
        spec.task.container.image = "nginx:latest".to_owned();
        spec
    }

    #[test]
    fn ports_of_one_target_agree_on_snat() {
        let port = |published, target, snat| PortConfig {
            published,
            target,
            snat,
            ..PortConfig::default()
        };
        for (ports, valid) in [
            (vec![port(8080, 80, true), port(8081, 80, true)], true),
            (vec![port(8080, 80, true), port(8081, 81, false)], true),
            (vec![port(8080, 80, true), port(8081, 80, false)], false),
        ] {
            let mut spec = spec();
            spec.endpoint.ports = ports;
            assert_eq!(validate_service(&spec).is_ok(), valid);
        }
        let udp = PortConfig {
            protocol: Protocol::Udp,
            ..port(8080, 80, false)
        };
        let mut spec = spec();
        spec.endpoint.ports = vec![port(8080, 80, true), udp];
        assert_eq!(validate_service(&spec), Ok(()));
    }

    #[test]
    fn names_are_dns_labels() {
        for (name, valid) in [
            ("web", true),
            ("web-1_a", true),
            ("W", true),
            ("", false),
            ("-web", false),
            ("web-", false),
            ("a--b", false),
            ("a.b", false),
            (&"a".repeat(64), false),
        ] {
            let spec = ServiceSpec {
                name: name.to_owned(),
                ..spec()
            };
            assert_eq!(validate_service(&spec).is_ok(), valid, "{name:?}");
        }
    }

    #[test]
    fn a_port_is_published_once() {
        let port = PortConfig {
            target: 80,
            published: 8080,
            ..PortConfig::default()
        };
        let mut spec = spec();
        spec.endpoint.ports = vec![
            port.clone(),
            PortConfig {
                protocol: Protocol::Udp,
                ..port.clone()
            },
        ];
        assert_eq!(validate_service(&spec), Ok(()));
        spec.endpoint.ports.push(port.clone());
        assert!(matches!(
            validate_service(&spec),
            Err(InvalidSpec::PublishedTwice {
                published: 8080,
                ..
            })
        ));
        spec.endpoint.ports = vec![PortConfig { target: 0, ..port }];
        assert_eq!(
            validate_service(&spec),
            Err(InvalidSpec::Port(InvalidPort::Target))
        );
    }

    #[test]
    fn without_a_virtual_address_only_host_mode_ports_are_published() {
        let mut spec = spec();
        spec.endpoint.mode = EndpointMode::Dnsrr;
        let mut port = PortConfig {
            target: 80,
            ..PortConfig::default()
        };
        spec.endpoint.ports = vec![port.clone()];
        assert_eq!(validate_service(&spec), Err(InvalidSpec::IngressWithDnsrr));
        port.mode = PublishMode::Host;
        spec.endpoint.ports = vec![port];
        assert_eq!(validate_service(&spec), Ok(()));
    }

    #[test]
    fn aliases_can_be_asked_for() {
        for (alias, valid) in [
            ("db", true),
            ("db.example_1.org", true),
            ("", false),
            ("db.", false),
            ("d b", false),
            ("dä", false),
            (&"a".repeat(64), false),
            (&["a"; 127].join("."), true),
            (&["a"; 128].join("."), false),
        ] {
            let mut spec = spec();
            spec.task.networks = vec![NetworkAttachmentSpec {
                target: "front".to_owned(),
                aliases: vec![alias.to_owned()],
            }];
            assert_eq!(validate_service(&spec).is_ok(), valid, "{alias:?}");
        }
    }

    #[test]
    fn images_are_references() {
        for (image, valid) in [
            ("nginx", true),
            ("10.0.0.1:5000/web:2", true),
            ("a/b@sha256:00", true),
            ("", false),
            ("nginx latest", false),
            ("-x", false),
        ] {
            let mut spec = spec();
            spec.task.container.image = image.to_owned();
            assert_eq!(validate_service(&spec).is_ok(), valid, "{image:?}");
        }
    }
}
