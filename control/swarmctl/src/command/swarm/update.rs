//! `swarmctl swarm update`.

use std::time::Duration;

use swarm_api::v1;

use super::external_ca::{self, ExternalCa};
use super::unlock_key::how_to_unlock;
use crate::connect::{Sockets, answer, request};
use crate::time::{milliseconds, parse_duration};

/// Changes settings of the swarm.
#[derive(Debug, clap::Args)]
pub(crate) struct Update {
    /// Life of nodes' certificates from their next renewal on, such as 2160h; at least 30m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    cert_expiry: Option<Duration>,
    /// How many ended tasks of a slot are kept
    #[arg(long, value_name = "NUMBER")]
    task_history_limit: Option<u64>,
    /// Let managers that are restarted wait for an unlock key, which is printed; or no longer
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    autolock: Option<bool>,
    /// Who signs certificates in place of the managers: protocol=cfssl,url=URL[,cacert=FILE]; may be given
    /// several times, then the first that answers; '' for nobody
    #[arg(long, value_name = "SPEC")]
    external_ca: Vec<ExternalCa>,
}

impl Update {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let mut control = sockets.control().await?;
        let cluster = answer(control.get_cluster(request(v1::GetClusterRequest {})).await)?;
        let before = cluster.spec.unwrap_or_default();
        let locked = before.autolock;
        let spec = self.applied(before)?;
        let locks = spec.autolock;
        let message = v1::UpdateClusterRequest {
            version: cluster.version,
            spec: Some(spec),
        };
        answer(control.update_cluster(request(message)).await)?;
        println!("Swarm updated.");
        if locks && !locked {
            let message = v1::GetUnlockKeyRequest { rotate: false };
            let found = answer(control.get_unlock_key(request(message)).await)?;
            println!("{}", how_to_unlock(&found.unlock_key));
        }
        Ok(())
    }

    /// The settings, with what was asked for changed.
    fn applied(&self, mut spec: v1::ClusterSpec) -> anyhow::Result<v1::ClusterSpec> {
        if let Some(expiry) = self.cert_expiry {
            spec.certificate_expiry_ms = milliseconds(expiry);
        }
        if let Some(limit) = self.task_history_limit {
            spec.task_history_limit = limit;
        }
        if let Some(autolock) = self.autolock {
            spec.autolock = autolock;
        }
        if !self.external_ca.is_empty() {
            spec.external_cas = external_ca::read(&self.external_ca)?;
        }
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_is_changed() {
        let before = v1::ClusterSpec {
            task_history_limit: 5,
            certificate_expiry_ms: 1,
            heartbeat_period_ms: 2,
            ..v1::ClusterSpec::default()
        };
        let update = |cert_expiry, task_history_limit| Update {
            cert_expiry,
            task_history_limit,
            autolock: None,
            external_ca: Vec::new(),
        };
        assert_eq!(update(None, None).applied(before.clone()).unwrap(), before);
        let half_an_hour = Some(Duration::from_secs(1800));
        let after = update(half_an_hour, Some(7))
            .applied(before.clone())
            .unwrap();
        let expected = v1::ClusterSpec {
            task_history_limit: 7,
            certificate_expiry_ms: 1_800_000,
            ..before
        };
        assert_eq!(after, expected);
    }

    #[test]
    fn autolock_is_turned_on_and_off_in_dockers_words() {
        #[derive(Debug, clap::Parser)]
        struct Line {
            #[command(flatten)]
            update: Update,
        }
        let locks = |words: &[&str], was| {
            let line = ["update"].iter().chain(words);
            let update = <Line as clap::Parser>::try_parse_from(line).ok()?.update;
            let before = v1::ClusterSpec {
                autolock: was,
                ..v1::ClusterSpec::default()
            };
            Some(update.applied(before).unwrap().autolock)
        };
        for was in [false, true] {
            assert_eq!(locks(&[], was), Some(was));
            assert_eq!(locks(&["--autolock"], was), Some(true));
            assert_eq!(locks(&["--autolock=true"], was), Some(true));
            assert_eq!(locks(&["--autolock=false"], was), Some(false));
            assert_eq!(locks(&["--autolock=maybe"], was), None);
        }
    }

    #[test]
    fn external_authorities_are_replaced_or_removed_together() {
        #[derive(Debug, clap::Parser)]
        struct Line {
            #[command(flatten)]
            update: Update,
        }
        let urls = |words: &[&str]| {
            let line = ["update"].iter().chain(words);
            let update = <Line as clap::Parser>::try_parse_from(line).unwrap().update;
            let before = v1::ClusterSpec {
                external_cas: vec![v1::ExternalCa {
                    url: "old".to_owned(),
                    root_ca_pem: "root".to_owned(),
                }],
                ..v1::ClusterSpec::default()
            };
            let after = update.applied(before).unwrap().external_cas;
            after.into_iter().map(|ca| ca.url).collect::<Vec<_>>()
        };
        assert_eq!(urls(&[]), ["old"]);
        let (a, b) = ("protocol=cfssl,url=a", "protocol=cfssl,url=b");
        assert_eq!(urls(&["--external-ca", a, "--external-ca", b]), ["a", "b"]);
        assert_eq!(urls(&["--external-ca", ""]), [""; 0]);
    }
}
