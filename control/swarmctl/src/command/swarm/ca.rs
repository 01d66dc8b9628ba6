//! `swarmctl swarm ca`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use swarm_api::v1;

use super::external_ca::{self, ExternalCa};
use crate::connect::{Control, Sockets, answer, answer_now, request};
use crate::shown::Shown;
use crate::time::{milliseconds, parse_duration};

/// How often the progress of a rotation is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// Most nodes that are named while they are waited for; the rest is counted.
const NAMED_MAX: usize = 10;

/// Shows the swarm's root certificate; with --rotate the swarm gets another one first.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("signer").args(["ca_key", "external_ca"]).multiple(true)))]
pub(crate) struct Ca {
    /// Change the root: every node gets a certificate of the new one, then the old one is forgotten
    #[arg(long)]
    rotate: bool,
    /// File with the new root certificate, PEM; without it the swarm makes one
    #[arg(long, value_name = "FILE", requires = "rotate", requires = "signer")]
    ca_cert: Option<PathBuf>,
    /// File with the new root's private key, PEM (PKCS#8, not encrypted)
    #[arg(long, value_name = "FILE", requires = "rotate", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
    /// Who signs with the new root: protocol=cfssl,url=https://HOST:8888/api/v1/cfssl/sign; may be given
    /// several times
    #[arg(long, value_name = "SPEC", requires = "rotate", requires = "ca_cert")]
    external_ca: Vec<ExternalCa>,
    /// Life of nodes' certificates from now on, such as 2160h; at least 30m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, requires = "rotate")]
    cert_expiry: Option<Duration>,
    /// Return at once instead of waiting until every node has its certificate
    #[arg(short, long)]
    detach: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

impl Ca {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let mut control = sockets.control().await?;
        if self.rotate {
            let begun = control.rotate_root(request(self.rotation()?)).await;
            let root_ca_pem = answer(begun)?.root_ca_pem;
            if self.detach || !self.wait(&mut control, &root_ca_pem).await? {
                return Ok(());
            }
        }
        let message = v1::GetClusterRequest {};
        let cluster = answer(control.get_cluster(request(message)).await)?;
        print!("{}", cluster.root_ca_pem);
        Ok(())
    }

    fn rotation(&self) -> anyhow::Result<v1::RotateRootRequest> {
        let read = |path: &Option<PathBuf>| match path {
            None => Ok(String::new()),
            Some(path) => std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display())),
        };
        Ok(v1::RotateRootRequest {
            root_ca_pem: read(&self.ca_cert)?,
            root_key_pem: read(&self.ca_key)?,
            certificate_expiry_ms: self.cert_expiry.map(milliseconds),
            external_cas: external_ca::read(&self.external_ca)?,
        })
    }

    /// Waits until every node has a certificate of the root `root_ca_pem`; false when the person does not
    /// want to.
    async fn wait(&self, control: &mut Control, root_ca_pem: &str) -> anyhow::Result<bool> {
        let mut shown = Shown::new();
        loop {
            let message = v1::GetRootRotationRequest {};
            let now = answer_now(control.get_root_rotation(request(message)).await)?;
            let standing = now.map(|now| standing(&now, root_ca_pem));
            if let Some(Standing::UnderWay(text) | Standing::Over(text)) = &standing
                && !self.quiet
            {
                shown.tell(text);
            }
            match standing {
                Some(Standing::Over(_)) => return Ok(true),
                Some(Standing::Replaced) => anyhow::bail!(
                    "another rotation was begun meanwhile, with another root; follow that one with \
                     `swarmctl swarm ca`"
                ),
                Some(Standing::UnderWay(_)) | None => {}
            }
            tokio::select! {
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                _ = tokio::signal::ctrl_c() => {
                    eprintln!("\nGoing on in the background.");
                    return Ok(false);
                }
            }
        }
    }
}

/// How a rotation stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// On its way, in words.
    UnderWay(String),
    /// Every node has its certificate, in words.
    Over(String),
    /// It is another one that is on its way, or that was.
    Replaced,
}

/// How the rotation to the root `root_ca_pem` stands.
fn standing(now: &v1::GetRootRotationResponse, root_ca_pem: &str) -> Standing {
    if now.root_ca_pem != root_ca_pem {
        return Standing::Replaced;
    }
    let nodes = now.nodes as usize;
    let count = format!(
        "rotated {}/{nodes} nodes",
        nodes.saturating_sub(now.missing.len())
    );
    if !now.under_way {
        return Standing::Over(count);
    }
    let named = now.missing.iter().take(NAMED_MAX);
    let mut text = named.fold(count, |text, node| {
        format!("{text}\n  {}: {}", node.name, node.waits_for)
    });
    if now.missing.len() > NAMED_MAX {
        text = format!("{text}\n  and {} more", now.missing.len() - NAMED_MAX);
    }
    if !now.problem.is_empty() {
        text = format!("{text}\n  {}", now.problem);
    }
    Standing::UnderWay(text)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        ca: Ca,
    }

    fn read(line: &str) -> Option<Ca> {
        let words = std::iter::once("ca").chain(line.split_whitespace());
        Line::try_parse_from(words).ok().map(|line| line.ca)
    }

    #[test]
    fn a_rotation_is_asked_for_in_dockers_words() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, name).unwrap();
            path.display().to_string()
        };
        let (cert, key) = (file("cert"), file("key"));
        let rotation = |line: &str| read(line).unwrap().rotation();
        assert_eq!(
            rotation("--rotate").unwrap().certificate_expiry_ms,
            None,
            "the swarm makes the root"
        );
        let line = format!("--rotate --ca-cert {cert} --ca-key {key} --cert-expiry 1h -d -q");
        let asked = rotation(&line).unwrap();
        assert_eq!((&*asked.root_ca_pem, &*asked.root_key_pem), ("cert", "key"));
        assert_eq!(asked.certificate_expiry_ms, Some(3_600_000));
        let absent = rotation(&format!("--rotate --ca-cert {cert} --ca-key {key}x"));
        assert!(absent.unwrap_err().to_string().starts_with("cannot read "));
        let line = format!("--rotate --ca-cert {cert} --external-ca protocol=cfssl,url=a");
        let asked = rotation(&format!(
            "{line} --external-ca protocol=cfssl,url=b,cacert={key}"
        ));
        let asked = asked.unwrap().external_cas;
        let asked: Vec<_> = asked
            .iter()
            .map(|ca| (&*ca.url, &*ca.root_ca_pem))
            .collect();
        assert_eq!(asked, [("a", ""), ("b", "key")]);
        assert!(read("").is_some());
        for wrong in [
            "--ca-cert a --ca-key b",
            "--rotate --ca-cert a",
            "--rotate --ca-key b",
            "--rotate --external-ca protocol=cfssl,url=a",
            "--rotate --ca-cert a --external-ca protocol=acme,url=a",
            "--cert-expiry 1h",
            "--rotate --cert-expiry soon",
        ] {
            assert!(read(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn progress_is_counted_and_names_who_is_missing() {
        let node = |number: usize| v1::NodeToRotate {
            id: String::new(),
            name: format!("h{number}"),
            waits_for: "it is down".to_owned(),
        };
        let mut now = v1::GetRootRotationResponse {
            root_ca_pem: "new".to_owned(),
            under_way: true,
            nodes: 15,
            missing: vec![node(1), node(2)],
            problem: String::new(),
        };
        let text = "rotated 13/15 nodes\n  h1: it is down\n  h2: it is down";
        assert_eq!(standing(&now, "new"), Standing::UnderWay(text.to_owned()));
        assert_eq!(standing(&now, "other"), Standing::Replaced);
        now.missing = (0..12).map(node).collect();
        let Standing::UnderWay(text) = standing(&now, "new") else {
            panic!("it is under way");
        };
        assert_eq!(text.lines().count(), 12);
        assert!(text.ends_with("\n  and 2 more"), "{text}");
        now.problem = "no external CA has signed".to_owned();
        let Standing::UnderWay(text) = standing(&now, "new") else {
            panic!("it is under way");
        };
        assert!(
            text.ends_with(" more\n  no external CA has signed"),
            "{text}"
        );
        now.missing.clear();
        now.under_way = false;
        let text = "rotated 15/15 nodes".to_owned();
        assert_eq!(standing(&now, "new"), Standing::Over(text));
    }
}
