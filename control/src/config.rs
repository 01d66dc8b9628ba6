//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use swarm_model::NodeId;

/// The manager of a swarm. Started by swarm-agent; see `swarmctl` for what people use.
#[derive(Debug, Parser)]
#[command(name = "swarm-control", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What it can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the manager until its standard input closes or SIGTERM arrives.
    ///
    /// Exit codes: 0 told to stop; 1 something failed; 2 wrong usage; 10 the listen address is in
    /// use; 11 the listen address is not this host's; 12 another process uses the state directory;
    /// 13 the state directory holds no swarm, or another node's; 14 another manager went on without this
    /// one, whose state counts no more.
    Run(Config),
}

/// Where the manager keeps its state and whom it answers.
#[derive(Clone, Debug, Args)]
pub(crate) struct Config {
    /// Directory of the log and the manager's own certificate.
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: PathBuf,
    /// Socket that people and the agent of this host use; answers once the manager is ready.
    #[arg(long, value_name = "FILE")]
    pub(crate) socket: PathBuf,
    /// Address and port that nodes' connections are accepted on.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen_address: SocketAddr,
    /// Address and port by which other hosts reach this one.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = dialable)]
    pub(crate) advertise_address: SocketAddr,
    /// Make a new swarm if the state directory holds none.
    #[arg(long, requires = "node_id", conflicts_with = "join")]
    pub(crate) bootstrap: bool,
    /// Become one of the managers of the swarm that the manager at this address is of, if the state
    /// directory holds none. The state directory holds this node's certificate (`tls/manager.pem`).
    #[arg(long, value_name = "ADDRESS:PORT", requires = "node_id", value_parser = dialable)]
    pub(crate) join: Option<SocketAddr>,
    /// First make this manager the only one of its swarm, whose other managers are lost. The swarm keeps
    /// everything else; the other managers, should they come back, become workers.
    #[arg(long, requires = "node_id", conflicts_with_all = ["join", "bootstrap"])]
    pub(crate) force_new_cluster: bool,
    /// Id of this node.
    #[arg(long, value_name = "ID")]
    pub(crate) node_id: Option<NodeId>,
    /// Address that VXLAN packets to this node of the new swarm are sent to; the advertised one
    /// where not given.
    #[arg(long, value_name = "ADDRESS", requires = "bootstrap")]
    pub(crate) data_path_address: Option<IpAddr>,
    /// Let managers of the new swarm wait for the unlock key when they are restarted.
    #[arg(long, requires = "bootstrap")]
    pub(crate) autolock: bool,
    /// Life of nodes' certificates in the new swarm, in milliseconds; 90 days where not given.
    #[arg(long, value_name = "MILLISECONDS", requires = "bootstrap")]
    pub(crate) certificate_expiry_ms: Option<u64>,
}

/// An address that other hosts can dial.
fn dialable(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "write ADDRESS:PORT, for example 10.0.0.1:2377".to_owned())?;
    if address.ip().is_unspecified() || address.port() == 0 {
        return Err("other hosts cannot dial it: name one address of this host and a port".into());
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_new_swarm_needs_a_node_id() {
        let words = "swarm-control run --state-dir d --socket s --listen-address 0.0.0.0:2377 \
                     --advertise-address 10.0.0.1:2377";
        let parse = |more: &str| {
            let words = words.split_whitespace().chain(more.split_whitespace());
            Cli::try_parse_from(words).map_err(|error| error.kind())
        };
        assert!(parse("").is_ok());
        assert!(parse("--bootstrap --node-id 0123456789abcdefghijklmno").is_ok());
        assert!(parse("--join 10.0.0.2:2377 --node-id 0123456789abcdefghijklmno").is_ok());
        for (more, kind) in [
            ("--bootstrap", ErrorKind::MissingRequiredArgument),
            ("--join 10.0.0.2:2377", ErrorKind::MissingRequiredArgument),
            (
                "--join 10.0.0.2:2377 --bootstrap --node-id 0123456789abcdefghijklmno",
                ErrorKind::ArgumentConflict,
            ),
            ("--bootstrap --node-id x", ErrorKind::ValueValidation),
            ("--force-new-cluster", ErrorKind::MissingRequiredArgument),
            (
                "--force-new-cluster --join 10.0.0.2:2377 --node-id 0123456789abcdefghijklmno",
                ErrorKind::ArgumentConflict,
            ),
            ("--unknown", ErrorKind::UnknownArgument),
        ] {
            assert_eq!(parse(more).err(), Some(kind), "{more}");
        }
    }

    #[test]
    fn others_must_be_able_to_dial_the_advertised_address() {
        assert!(dialable("10.0.0.1:2377").is_ok());
        for text in [
            "0.0.0.0:2377",
            "[::]:2377",
            "10.0.0.1:0",
            "10.0.0.1",
            "h1:2377",
        ] {
            assert!(dialable(text).is_err(), "{text}");
        }
    }
}
