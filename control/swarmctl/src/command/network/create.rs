//! `swarmctl network create`.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use swarm_api::v1;
use swarm_model::NetworkSpec;

use crate::command::service::parse_label;
use crate::connect::{Sockets, answer, request};

/// Creates a network. It is on a node while that has a task on it.
#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Kind of network; overlays are the only one that spans a swarm
    #[arg(short, long, value_enum, default_value_t)]
    driver: Driver,
    /// Addresses in CIDR form, IPv4 or IPv6, one of each at most; chosen when not given
    #[arg(long, value_parser = parse_subnet, value_name = "SUBNET")]
    subnet: Vec<IpNet>,
    /// IPv4 address of the gateway; the first of the subnet when not given
    #[arg(long, value_parser = parse_gateway, value_name = "ADDRESS")]
    gateway: Option<Ipv4Addr>,
    /// Part of the IPv4 subnet that tasks and services get addresses from, in CIDR form
    #[arg(long, value_parser = parse_range, value_name = "RANGE")]
    ip_range: Option<Ipv4Net>,
    /// Give the network IPv6 as well
    #[arg(long)]
    ipv6: bool,
    /// Give the tasks no way out of the swarm through this network
    #[arg(long)]
    internal: bool,
    /// Let containers that are no tasks join it
    #[arg(long)]
    attachable: bool,
    /// Label KEY=VALUE; may be given several times
    #[arg(long, value_parser = parse_label, value_name = "KEY=VALUE")]
    label: Vec<(String, String)>,
    /// Option of the driver: mtu=BYTES; may be given several times
    #[arg(short, long = "opt", value_parser = parse_option, value_name = "KEY=VALUE")]
    option: Vec<DriverOption>,
    /// Name, unique in the swarm
    name: String,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Driver {
    #[default]
    Overlay,
}

/// An option of the overlay driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DriverOption {
    Mtu(u16),
}

impl Create {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let spec = self.into_spec()?;
        let message = v1::CreateNetworkRequest {
            spec: Some((&spec).into()),
        };
        let mut control = sockets.control().await?;
        let created = answer(control.create_network(request(message)).await)?;
        println!("{}", created.network.unwrap_or_default().id);
        Ok(())
    }

    fn into_spec(self) -> anyhow::Result<NetworkSpec> {
        let Driver::Overlay = self.driver;
        let mut spec = NetworkSpec {
            name: self.name,
            labels: self.label.into_iter().collect(),
            gateway: self.gateway,
            ip_range: self.ip_range,
            ipv6: self.ipv6,
            internal: self.internal,
            attachable: self.attachable,
            ..NetworkSpec::default()
        };
        for subnet in self.subnet {
            let twice = match subnet {
                IpNet::V4(subnet) => spec.subnet.replace(subnet).is_some(),
                IpNet::V6(subnet) => {
                    // What else could be meant by it.
                    spec.ipv6 = true;
                    spec.subnet6.replace(subnet).is_some()
                }
            };
            if twice {
                anyhow::bail!(
                    "a network has one IPv4 and one IPv6 subnet at most: give --subnet once for \
                     each"
                );
            }
        }
        for DriverOption::Mtu(mtu) in self.option {
            spec.mtu = Some(mtu);
        }
        Ok(spec)
    }
}

fn parse_subnet(text: &str) -> Result<IpNet, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not a subnet: write for example 10.20.0.0/16"))
}

fn parse_gateway(text: &str) -> Result<Ipv4Addr, String> {
    match text.parse() {
        Ok(std::net::IpAddr::V4(gateway)) => Ok(gateway),
        Ok(std::net::IpAddr::V6(_)) => Err(
            "the IPv6 gateway follows from the IPv4 one: give that, or leave --gateway out"
                .to_owned(),
        ),
        Err(_) => Err(format!("{text:?} is not an IPv4 address")),
    }
}

fn parse_range(text: &str) -> Result<Ipv4Net, String> {
    match text.parse() {
        Ok(IpNet::V4(range)) => Ok(range),
        Ok(IpNet::V6(_)) => Err(
            "IPv6 addresses follow from the IPv4 ones: give an IPv4 range, or leave --ip-range out"
                .to_owned(),
        ),
        Err(_) => Err(format!(
            "{text:?} is not a range: write for example 10.20.7.0/24"
        )),
    }
}

/// `mtu=BYTES`, also as Docker names it. An option that has no effect here is refused, above all
/// one that would encrypt.
fn parse_option(text: &str) -> Result<DriverOption, String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    match key {
        "mtu" | "com.docker.network.driver.mtu" => value
            .parse()
            .map(DriverOption::Mtu)
            .map_err(|_| format!("{value:?} is not a number of bytes: write for example mtu=1400")),
        "encrypted" => {
            Err("networks cannot be encrypted by this version: leave encrypted out".to_owned())
        }
        _ => Err(format!("{key:?} is not known: use mtu=BYTES")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }

    fn spec(line: &str) -> Result<NetworkSpec, String> {
        let words = std::iter::once("create").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.create.into_spec().map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_is_enough() {
        let expected = NetworkSpec {
            name: "front".to_owned(),
            ..NetworkSpec::default()
        };
        assert_eq!(spec("front"), Ok(expected.clone()));
        assert_eq!(spec("-d overlay front"), Ok(expected));
    }

    #[test]
    fn every_option_arrives() {
        let read = spec(
            "--driver overlay --subnet 10.20.0.0/16 --subnet fd00:7::/64 --gateway 10.20.0.254 \
             --ip-range 10.20.7.0/24 --internal --attachable --label a=b --label c \
             --opt com.docker.network.driver.mtu=1400 front",
        );
        let expected = NetworkSpec {
            name: "front".to_owned(),
            labels: [("a", "b"), ("c", "")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            subnet: "10.20.0.0/16".parse().ok(),
            gateway: "10.20.0.254".parse().ok(),
            ip_range: "10.20.7.0/24".parse().ok(),
            subnet6: "fd00:7::/64".parse().ok(),
            ipv6: true,
            internal: true,
            attachable: true,
            mtu: Some(1400),
            ingress: false,
        };
        assert_eq!(read, Ok(expected));
        assert_eq!(spec("-o mtu=9000 front").map(|it| it.mtu), Ok(Some(9000)));
        assert_eq!(spec("--ipv6 front").map(|it| it.subnet6), Ok(None));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, word) in [
            ("", "<NAME>"),
            ("-d bridge front", "overlay"),
            ("--subnet 10.20.0.0 front", "10.20.0.0/16"),
            (
                "--subnet 10.20.0.0/16 --subnet 10.21.0.0/16 front",
                "one IPv4 and one IPv6 subnet",
            ),
            ("--gateway fd00::1 front", "follows from the IPv4 one"),
            ("--gateway here front", "not an IPv4 address"),
            ("--ip-range fd00::/64 front", "follow from the IPv4 ones"),
            ("--opt mtu=many front", "mtu=1400"),
            ("--opt encrypted front", "cannot be encrypted"),
            ("--opt encrypted=true front", "cannot be encrypted"),
            ("--opt dsr front", "not known"),
        ] {
            let told = spec(line).expect_err(line);
            assert!(told.contains(word), "{line}: {told}");
        }
    }
}
