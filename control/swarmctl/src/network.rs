//! `--network`, short and long (docker/cli `opts/network.go`).

use swarm_model::{EndpointMode, NetworkAttachmentSpec};

/// What a service's name stands for on its networks, as `--endpoint-mode` names it.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(crate) enum Mode {
    /// One virtual address a network, balanced over the tasks
    #[default]
    Vip,
    /// The addresses of the tasks
    Dnsrr,
}

impl From<Mode> for EndpointMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Vip => Self::Vip,
            Mode::Dnsrr => Self::Dnsrr,
        }
    }
}

/// Reads `NAME[,alias=ALIAS]...` or `name=NAME[,alias=ALIAS]...`.
pub(crate) fn parse_network(text: &str) -> Result<NetworkAttachmentSpec, String> {
    let mut network = NetworkAttachmentSpec::default();
    for (at, field) in text.split(',').enumerate() {
        match field.split_once('=') {
            None if at == 0 => network.target = named(field)?,
            None => return Err(format!("{field:?} is not KEY=VALUE")),
            Some(("name", _)) if !network.target.is_empty() => {
                return Err("a network has one name: give --network once for each".to_owned());
            }
            Some(("name", name)) => network.target = named(name)?,
            Some(("alias", alias)) => network.aliases.push(named(alias)?),
            Some((key, _)) => return Err(format!("{key:?} is not known: use name and alias")),
        }
    }
    if network.target.is_empty() {
        Err("the network's name is needed: write NAME or name=NAME".to_owned())
    } else {
        Ok(network)
    }
}

fn named(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("a name cannot be empty".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        for (text, target, aliases) in [
            ("front", "front", &[][..]),
            ("front,alias=www", "front", &["www"]),
            ("front,alias=www,alias=web", "front", &["www", "web"]),
            ("name=front", "front", &[]),
            ("alias=www,name=front", "front", &["www"]),
        ] {
            let read = parse_network(text).expect(text);
            assert_eq!(
                (read.target.as_str(), &read.aliases[..]),
                (target, &*aliases_of(aliases))
            );
        }
    }

    fn aliases_of(aliases: &[&str]) -> Vec<String> {
        aliases.iter().map(|alias| (*alias).to_owned()).collect()
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("", "empty"),
            ("alias=www", "name is needed"),
            ("front,www", "KEY=VALUE"),
            ("front,name=back", "one name"),
            ("front,alias=", "empty"),
            ("front,driver-opt=a", "driver-opt"),
        ] {
            let error = parse_network(text).expect_err(text);
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
