//! The certificate that this manager serves: signed with the root in the store, kept in one file so
//! that restarts do not make more of them, replaced together with its key at a random point of 50 to
//! 80 % of its life.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rand::Rng;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use swarm_model::{Cluster, ClusterId, NodeId, Renewal, Role, Timestamp};

use crate::private_file;

use super::creds::CredentialsError;
use super::subject::{SubjectError, validity};
use super::{Authority, IssueError, Subject, Term, client_config, server_config};

/// Largest credentials file that is read; ours are about 2 KB.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Why the manager has no certificate to serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnCertificateError {
    /// No new one could be made.
    #[error("cannot issue the manager's own certificate")]
    Issue(#[from] IssueError),
    /// Its key could not be drawn.
    #[error("cannot make a key for the manager's own certificate")]
    Key(#[source] rcgen::Error),
    /// What was made cannot be used.
    #[error("cannot use the manager's own certificate")]
    Use(#[from] CredentialsError),
    /// What was made cannot be read back.
    #[error("cannot read the manager's own certificate")]
    Read(#[from] SubjectError),
    /// A new manager's agent has left it none, or another node's.
    #[error(
        "{0} does not hold this node's certificate as a manager; let the node leave the swarm with \
         `swarmctl swarm leave --force` and join it again"
    )]
    Absent(PathBuf),
    /// The file cannot be written.
    #[error(
        "cannot write {path}; check that its directory belongs to the user that runs swarm-control"
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A certificate in use.
pub(crate) struct OwnCertificate {
    /// What the listener serves.
    pub(crate) server: ServerConfig,
    /// What other managers are shown.
    pub(crate) client: ClientConfig,
    /// When it is to be replaced.
    pub(crate) renewal: Renewal,
}

impl OwnCertificate {
    /// The certificate of manager `node_id` from the file `path`, or a new one, written there, when
    /// the file is missing, damaged, of another swarm or node, or due to be replaced, for which `rng`
    /// draws a moment. Reads and writes a small file.
    pub(crate) fn load_or_issue(
        path: &Path,
        cluster: &Cluster,
        node_id: &NodeId,
        now: Timestamp,
        rng: &mut impl Rng,
    ) -> Result<Self, OwnCertificateError> {
        let subject = Subject {
            node_id: node_id.clone(),
            role: Role::Manager,
            cluster_id: cluster.id.clone(),
        };
        let root_pem = &cluster.root_ca_pem;
        if let Some(kept) =
            read(path).and_then(|pem| Self::from_pem(&pem, root_pem, &subject, rng).ok())
            && now < kept.renewal.due()
        {
            return Ok(kept);
        }
        let key =
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(OwnCertificateError::Key)?;
        let request = CertificateParams::default()
            .serialize_request(&key)
            .map_err(OwnCertificateError::Key)?;
        let term = Term {
            now,
            life: cluster.spec.certificate_expiry,
        };
        let chain = Authority::new(cluster)?.issue(request.der(), &subject, term, rng)?;
        let pem = key.serialize_pem() + &chain;
        let own = Self::from_pem(&pem, root_pem, &subject, rng)?;
        private_file::replace(path, pem.as_bytes()).map_err(|source| {
            OwnCertificateError::Write {
                path: path.to_owned(),
                source,
            }
        })?;
        Ok(own)
    }

    /// The certificate of manager `node_id` that its agent has left in the file `path`, for a manager
    /// whose store has no root yet; and the swarm that it is of. Reads a small file.
    pub(crate) fn load(
        path: &Path,
        node_id: &NodeId,
        rng: &mut impl Rng,
    ) -> Result<(Self, ClusterId), OwnCertificateError> {
        let absent = || OwnCertificateError::Absent(path.to_owned());
        let pem = read(path).ok_or_else(absent)?;
        // The chain ends in the root.
        let root = pem
            .rfind("-----BEGIN CERTIFICATE-----")
            .ok_or_else(absent)?;
        let leaf = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(CredentialsError::Pem)?;
        let subject = Subject::from_der(&leaf)?;
        if subject.node_id != *node_id || subject.role != Role::Manager {
            return Err(absent());
        }
        let own = Self::from_pem(&pem, &pem[root..], &subject, rng)?;
        Ok((own, subject.cluster_id))
    }

    /// Reads key and chain from `pem`; they must be `expected`'s, under the root `root_pem`.
    fn from_pem(
        pem: &str,
        root_pem: &str,
        expected: &Subject,
        rng: &mut impl Rng,
    ) -> Result<Self, OwnCertificateError> {
        let leaf = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(CredentialsError::Pem)?;
        if Subject::from_der(&leaf)? != *expected {
            return Err(SubjectError::Name("subject").into());
        }
        // The chain ends in the root it was issued under, verbatim.
        if !pem.ends_with(root_pem) {
            return Err(SubjectError::Name("root").into());
        }
        Ok(Self {
            server: server_config(pem, pem, root_pem)?,
            client: client_config(pem, pem, root_pem)?,
            renewal: Renewal::of(&validity(&leaf)?, rng),
        })
    }
}

/// The file's text; none when it is not there or cannot be read, which a new certificate mends.
fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = fs::File::open(path).ok()?;
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use rand::SeedableRng as _;
    use rand::rngs::StdRng;
    use swarm_model::{ClusterId, ClusterSpec, Meta};

    use super::super::new_root;
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn cluster() -> Cluster {
        let root = new_root(NOW).unwrap();
        Cluster {
            id: ClusterId::random(&mut rand::rng()),
            meta: Meta::default(),
            spec: ClusterSpec::default(),
            root_ca_pem: root.certificate_pem,
            root_key_pem: root.key_pem,
            worker_secret: String::new().into(),
            manager_secret: String::new().into(),
            networks_made: swarm_model::NetworkCursor::default(),
            epoch: 0,
        }
    }

    #[test]
    fn it_is_kept_until_it_must_be_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tls/manager.pem");
        let (cluster, node_id) = (cluster(), NodeId::random(&mut rand::rng()));
        let mut rng = StdRng::seed_from_u64(1);
        let mut file_after = |cluster: &Cluster, node_id: &NodeId, now: Timestamp| {
            let own =
                OwnCertificate::load_or_issue(&path, cluster, node_id, now, &mut rng).unwrap();
            assert!(own.renewal.due() > now);
            fs::read_to_string(&path).unwrap()
        };
        let first = file_after(&cluster, &node_id, NOW);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(file_after(&cluster, &node_id, NOW.after(44 * DAY)), first);

        let late = file_after(&cluster, &node_id, NOW.after(73 * DAY));
        assert_ne!(late, first, "four fifths of its life are over");
        let other_node = NodeId::random(&mut rand::rng());
        let of_other_node = file_after(&cluster, &other_node, NOW);
        assert_ne!(of_other_node, late);
        let other_cluster = self::cluster();
        let of_other_cluster = file_after(&other_cluster, &other_node, NOW);
        assert_ne!(of_other_cluster, of_other_node);

        for damaged in ["", "garbage", &of_other_cluster[..700]] {
            fs::write(&path, damaged).unwrap();
            file_after(&other_cluster, &other_node, NOW);
        }
        // A key that is not the certificate's.
        let mixed = first[..first.find("-----BEGIN CERT").unwrap()].to_owned()
            + &of_other_cluster[of_other_cluster.find("-----BEGIN CERT").unwrap()..];
        fs::write(&path, &mixed).unwrap();
        assert_ne!(file_after(&other_cluster, &other_node, NOW), mixed);
    }
}
