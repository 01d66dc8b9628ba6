//! `swarmctl swarm init`.

use std::time::Duration;

use anyhow::Context as _;
use swarm_api::v1;

use super::external_ca::{self, ExternalCa};
use super::unlock_key::how_to_unlock;
use crate::connect::{Sockets, answer, request};
use crate::time::{milliseconds, parse_duration};

/// Makes a swarm.
#[derive(Debug, clap::Args)]
pub(crate) struct Init {
    /// What the others dial: `address[:port]` or interface of this host (its only address by default)
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "",
        hide_default_value = true
    )]
    advertise_addr: String,
    /// What to listen on [default: 0.0.0.0:2377]
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "",
        hide_default_value = true
    )]
    listen_addr: String,
    /// Address of this host for the traffic between tasks (the advertised one by default)
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "",
        hide_default_value = true
    )]
    data_path_addr: String,
    /// Life of nodes' certificates, such as 2160h; at least 30m [default: 2160h0m0s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    cert_expiry: Option<Duration>,
    /// Go on with this manager alone, and everything the swarm has, after its other managers were lost
    #[arg(long, conflicts_with = "cert_expiry")]
    force_new_cluster: bool,
    /// Let managers that are restarted wait for an unlock key, which is printed
    #[arg(long, conflicts_with = "force_new_cluster")]
    autolock: bool,
    /// Who signs certificates in place of the managers: protocol=cfssl,url=URL,cacert=FILE; the swarm takes
    /// the root certificate in that file
    #[arg(long, value_name = "SPEC", conflicts_with = "force_new_cluster")]
    external_ca: Vec<ExternalCa>,
}

impl Init {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let rotation = rotation(&self.external_ca)?;
        let message = v1::InitRequest {
            advertise_address: self.advertise_addr,
            listen_address: self.listen_addr,
            data_path_address: self.data_path_addr,
            certificate_expiry_ms: certificate_expiry_ms(self.cert_expiry),
            force_new_cluster: self.force_new_cluster,
            autolock: self.autolock,
        };
        let made = answer(sockets.agent().await?.init(request(message)).await)?;
        println!(
            "Swarm initialized: current node ({}) is now a manager.\n",
            made.node_id
        );
        println!("To add a worker to this swarm, run the following command:\n");
        println!(
            "    swarmctl swarm join --token {} {}",
            made.worker_token, made.manager_address
        );
        if self.autolock {
            println!("\n{}", how_to_unlock(&made.unlock_key));
        }
        if let Some(rotation) = rotation {
            let mut control = sockets.control().await?;
            let begun = answer(control.rotate_root(request(rotation)).await);
            begun.context(
                "the swarm was made, but with a root of its own; change that with `swarmctl swarm ca \
                 --rotate --ca-cert FILE --external-ca ...`",
            )?;
            println!(
                "\nThe swarm is changing over to the root of its external CA, which must take certificates of \
                 the root of now from its clients until then: `swarmctl swarm ca` prints that root, and \
                 `swarmctl swarm status` says how the external CA answers. Join tokens change at the end."
            );
        }
        Ok(())
    }
}

/// The change of the root that the new swarm begins with; none without an external authority.
fn rotation(flags: &[ExternalCa]) -> anyhow::Result<Option<v1::RotateRootRequest>> {
    let external_cas = external_ca::read(flags)?;
    let Some(first) = external_cas.first() else {
        return Ok(None);
    };
    let root_ca_pem = first.root_ca_pem.clone();
    let is_one = external_cas.iter().all(|ca| ca.root_ca_pem == root_ca_pem);
    anyhow::ensure!(
        is_one && !root_ca_pem.is_empty(),
        "a new swarm takes the root of its external CA: name the file with that certificate, the same with \
         each --external-ca, as cacert=FILE"
    );
    Ok(Some(v1::RotateRootRequest {
        root_ca_pem,
        external_cas,
        ..v1::RotateRootRequest::default()
    }))
}

/// What was asked for, on the wire, where 0 means that nothing was.
fn certificate_expiry_ms(asked: Option<Duration>) -> u64 {
    asked.map_or(0, |expiry| milliseconds(expiry).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_swarm_takes_the_root_of_its_external_authority() {
        let directory = tempfile::tempdir().unwrap();
        let flag = |name: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, name).unwrap();
            let text = format!("protocol=cfssl,url=https://ca,cacert={}", path.display());
            text.parse::<ExternalCa>().unwrap()
        };
        assert!(rotation(&[]).unwrap().is_none());
        let asked = rotation(&[flag("a"), flag("a")]).unwrap().unwrap();
        assert_eq!((&*asked.root_ca_pem, &*asked.root_key_pem), ("a", ""));
        assert_eq!(asked.external_cas.len(), 2);
        let without: ExternalCa = "protocol=cfssl,url=https://ca".parse().unwrap();
        for wrong in [vec![without], vec![flag("a"), flag("b")]] {
            let error = rotation(&wrong).unwrap_err().to_string();
            assert!(error.starts_with("a new swarm takes the root"), "{error}");
        }
    }
}
