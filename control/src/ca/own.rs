//! The certificate that this manager serves: signed with the root in the store, kept in one file so
//! that restarts do not make more of them, replaced together with its key at a random point of 50 to
//! 80 % of its life.

use std::fs;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::Rng;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use swarm_model::{Cluster, ClusterId, NodeId, Renewal, Role, Timestamp};
use zeroize::Zeroizing;

use crate::private_file;
use crate::seal::Seal;

use super::creds::CredentialsError;
use super::rotation::{chain_tail, trusted_roots};
use super::subject::{SubjectError, issuer_of, validity};
use super::{Authority, IssueError, Signer, Subject, Term, client_config, external, server_config};

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

/// What a credentials file begins with that is sealed.
const SEALED_HEADER: &[u8] = b"swarm sealed 1\n";

/// The file with the manager's own key and certificate. With autolock it is sealed with the log's key.
/// Copies are of the same one.
#[derive(Clone, Debug)]
pub(crate) struct CredentialsFile {
    path: PathBuf,
    /// None before there is a log.
    seal: Option<Seal>,
    /// Whether it is to be sealed. Held while it is written.
    sealed: Arc<Mutex<bool>>,
}

impl CredentialsFile {
    /// The file `path`, to be sealed with `seal` if `sealed`.
    pub(crate) fn new(path: PathBuf, seal: Option<Seal>, sealed: bool) -> Self {
        Self {
            path,
            seal,
            sealed: Arc::new(Mutex::new(sealed)),
        }
    }

    /// Brings the file to how it is to be kept from now on, if it is not kept so. On disk when this
    /// returns. A file that cannot be read is left alone: another certificate will be made.
    pub(crate) fn keep_sealed(&self, sealed: bool) -> io::Result<()> {
        let mut now = self.sealed();
        *now = sealed;
        match self.read() {
            Some((pem, was)) if was != sealed => self.write(&pem, sealed),
            _ => Ok(()),
        }
    }

    /// Its text, and whether it was sealed; none when it is not there or cannot be read, which a new
    /// certificate mends.
    fn read(&self) -> Option<(Zeroizing<String>, bool)> {
        let mut bytes = Zeroizing::new(Vec::new());
        let file = fs::File::open(&self.path).ok()?;
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
        let text = |bytes: &[u8]| Some(Zeroizing::new(std::str::from_utf8(bytes).ok()?.to_owned()));
        match bytes.strip_prefix(SEALED_HEADER) {
            None => Some((text(&bytes)?, false)),
            Some(sealed) => {
                let opened = self.seal.as_ref()?.open(SEALED_HEADER, sealed).ok()?;
                Some((text(&opened)?, true))
            }
        }
    }

    fn write(&self, pem: &str, sealed: bool) -> io::Result<()> {
        match &self.seal {
            Some(seal) if sealed => {
                let sealed = seal.seal(SEALED_HEADER, pem.as_bytes().to_vec());
                private_file::replace(&self.path, &[SEALED_HEADER, &sealed].concat())
            }
            _ => private_file::replace(&self.path, pem.as_bytes()),
        }
    }

    fn sealed(&self) -> MutexGuard<'_, bool> {
        self.sealed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How new a certificate has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needed {
    /// One that others take now.
    Good,
    /// One of the newest root that is not due to be replaced.
    Fresh,
}

/// The certificate that a manager is to have.
struct Wanted {
    subject: Subject,
    term: Term,
    /// Roots that others are verified with; what its chain ends in. PEM.
    roots: (String, String),
}

impl Wanted {
    fn new(cluster: &Cluster, node_id: &NodeId, now: Timestamp) -> Self {
        Self {
            subject: Subject {
                node_id: node_id.clone(),
                role: Role::Manager,
                cluster_id: cluster.id.clone(),
            },
            term: Term {
                now,
                life: cluster.spec.certificate_expiry,
            },
            roots: (trusted_roots(cluster), chain_tail(cluster)),
        }
    }

    /// What is in `file`, if it need not be replaced.
    fn kept(&self, file: &CredentialsFile, rng: &mut impl Rng) -> Option<OwnCertificate> {
        let (pem, _) = file.read()?;
        let kept = OwnCertificate::from_pem(&pem, &self.roots, &self.subject, rng).ok()?;
        (self.term.now < kept.renewal.due()).then_some(kept)
    }

    /// What is in `file`, if those who trust the roots of `cluster` take it.
    fn good(
        &self,
        file: &CredentialsFile,
        cluster: &Cluster,
        rng: &mut impl Rng,
    ) -> Option<OwnCertificate> {
        let (pem, _) = file.read()?;
        let roots = (self.roots.0.clone(), tail_in(&pem)?.to_owned());
        let kept = OwnCertificate::from_pem(&pem, &roots, &self.subject, rng).ok()?;
        let mut chain = CertificateDer::pem_slice_iter(pem.as_bytes());
        let leaf = chain.next()?.ok()?;
        let between: Vec<_> = chain.collect::<Result<_, _>>().ok()?;
        let trusted = trusted_roots(cluster);
        external::verify(&leaf, &between, &trusted, self.term.now).ok()?;
        Some(kept)
    }

    /// Takes the certificate that `chain` begins with, of the key `key`, and keeps it in `file`.
    fn take(
        &self,
        file: &CredentialsFile,
        key: &KeyPair,
        chain: &str,
        rng: &mut impl Rng,
    ) -> Result<OwnCertificate, OwnCertificateError> {
        let pem = Zeroizing::new(key.serialize_pem() + chain);
        let own = OwnCertificate::from_pem(&pem, &self.roots, &self.subject, rng)?;
        let sealed = file.sealed();
        let written = file.write(&pem, *sealed);
        written.map_err(|source| OwnCertificateError::Write {
            path: file.path.clone(),
            source,
        })?;
        Ok(own)
    }
}

/// A new key, and a request for a certificate of it, DER.
fn request() -> Result<(KeyPair, Vec<u8>), OwnCertificateError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(OwnCertificateError::Key)?;
    let request = CertificateParams::default()
        .serialize_request(&key)
        .map_err(OwnCertificateError::Key)?;
    Ok((key, request.der().to_vec()))
}

/// All that follows the certificate itself in the key and chain `pem`: its root; with the new root too while
/// that is being changed, which is the key in the certificate between the two.
fn tail_in(pem: &str) -> Option<&str> {
    let mut begins = pem.match_indices("-----BEGIN CERTIFICATE-----");
    let (tail, _) = begins.nth(1)?;
    Some(&pem[tail..])
}

/// A certificate in use.
pub(crate) struct OwnCertificate {
    /// What the listener serves.
    pub(crate) server: ServerConfig,
    /// What other managers are shown.
    pub(crate) client: ClientConfig,
    /// When it is to be replaced.
    pub(crate) renewal: Renewal,
    /// Key identifier of the root that has signed it, hexadecimal.
    pub(crate) issuer: String,
    /// What follows the certificate in its chain: other with another root.
    pub(crate) tail_pem: String,
}

impl OwnCertificate {
    /// The certificate of manager `node_id` from `file`, or a new one, written there, when
    /// the file is missing, damaged, of another swarm, root or node, or due to be replaced, for which
    /// `rng` draws a moment. Reads and writes a small file.
    pub(crate) fn load_or_issue(
        file: &CredentialsFile,
        cluster: &Cluster,
        node_id: &NodeId,
        now: Timestamp,
        rng: &mut impl Rng,
    ) -> Result<Self, OwnCertificateError> {
        let wanted = Wanted::new(cluster, node_id, now);
        if let Some(kept) = wanted.kept(file, rng) {
            return Ok(kept);
        }
        let (key, csr) = request()?;
        let authority = Authority::new(cluster)?;
        let chain = authority.issue(&csr, &wanted.subject, wanted.term, rng)?;
        wanted.take(file, &key, &chain, rng)
    }

    /// As [`Self::load_or_issue`], by `signer`. Where an external authority is to sign, it is asked for no
    /// other certificate as long as the one in `file` is good, if that is all that is `needed`: a manager
    /// must come up without it.
    pub(crate) async fn load_or_request(
        file: &CredentialsFile,
        cluster: &Cluster,
        node_id: &NodeId,
        now: Timestamp,
        signer: &Signer,
        needed: Needed,
    ) -> Result<Self, OwnCertificateError> {
        if let Ok(None) = external::asked(cluster) {
            return Self::load_or_issue(file, cluster, node_id, now, &mut rand::rng());
        }
        let wanted = Wanted::new(cluster, node_id, now);
        let kept = wanted.kept(file, &mut rand::rng());
        let good = || wanted.good(file, cluster, &mut rand::rng());
        if let Some(kept) = kept.or_else(|| (needed == Needed::Good).then(good).flatten()) {
            return Ok(kept);
        }
        let (key, csr) = request()?;
        let issued = signer.issue(cluster, &csr, &wanted.subject, wanted.term);
        let chain = issued.await?.chain_pem;
        wanted.take(file, &key, &chain, &mut rand::rng())
    }

    /// The certificate of manager `node_id` that its agent has left in `file`, for a manager
    /// whose store has no root yet; and the swarm that it is of. Reads a small file.
    pub(crate) fn load(
        file: &CredentialsFile,
        node_id: &NodeId,
        rng: &mut impl Rng,
    ) -> Result<(Self, ClusterId), OwnCertificateError> {
        let absent = || OwnCertificateError::Absent(file.path.clone());
        let (pem, _) = file.read().ok_or_else(absent)?;
        let tail = tail_in(&pem).ok_or_else(absent)?;
        let leaf = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(CredentialsError::Pem)?;
        let subject = Subject::from_der(&leaf)?;
        if subject.node_id != *node_id || subject.role != Role::Manager {
            return Err(absent());
        }
        let roots = (tail.to_owned(), tail.to_owned());
        let own = Self::from_pem(&pem, &roots, &subject, rng)?;
        Ok((own, subject.cluster_id))
    }

    /// Reads key and chain from `pem`; they must be `expected`'s, the chain ending in `tail_pem`. Others
    /// are verified with `roots_pem`.
    fn from_pem(
        pem: &str,
        (roots_pem, tail_pem): &(String, String),
        expected: &Subject,
        rng: &mut impl Rng,
    ) -> Result<Self, OwnCertificateError> {
        let leaf = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(CredentialsError::Pem)?;
        if Subject::from_der(&leaf)? != *expected {
            return Err(SubjectError::Name("subject").into());
        }
        // The chain ends in what it was issued under, verbatim.
        if !pem.ends_with(tail_pem) {
            return Err(SubjectError::Name("root").into());
        }
        Ok(Self {
            server: server_config(pem, pem, roots_pem)?,
            client: client_config(pem, pem, roots_pem)?,
            renewal: Renewal::of(&validity(&leaf)?, rng),
            issuer: issuer_of(&leaf)?,
            tail_pem: tail_pem.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
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
            lock: swarm_model::ManagerLock::default(),
            rotation: None,
        }
    }

    #[test]
    fn it_is_kept_until_it_must_be_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tls/manager.pem");
        let (cluster, node_id) = (cluster(), NodeId::random(&mut rand::rng()));
        let mut rng = StdRng::seed_from_u64(1);
        let file = CredentialsFile::new(path.clone(), None, false);
        let mut file_after = |cluster: &Cluster, node_id: &NodeId, now: Timestamp| {
            let own =
                OwnCertificate::load_or_issue(&file, cluster, node_id, now, &mut rng).unwrap();
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

    /// The time of connections is not to pass.
    #[tokio::test(start_paused = true)]
    async fn a_good_one_is_enough_to_start_while_an_external_authority_is_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tls/manager.pem");
        let file = CredentialsFile::new(path.clone(), None, false);
        let (mut cluster, node_id) = (cluster(), NodeId::random(&mut rand::rng()));
        let mut rng = StdRng::seed_from_u64(1);
        OwnCertificate::load_or_issue(&file, &cluster, &node_id, NOW, &mut rng).unwrap();
        let first = fs::read_to_string(&path).unwrap();
        let signer = Signer::new(None);
        let tried = async |cluster: &Cluster, now, needed| {
            let tried =
                OwnCertificate::load_or_request(&file, cluster, &node_id, now, &signer, needed);
            let outcome = tried.await.map(|own| own.tail_pem);
            assert_eq!(fs::read_to_string(&path).unwrap(), first);
            outcome.map_err(|error| format!("{:#}", anyhow::Error::from(error)))
        };
        let away = |root: &str| swarm_model::ExternalCa {
            url: "https://127.0.0.1:1/sign".to_owned(),
            root_ca_pem: root.to_owned(),
        };
        cluster.spec.external_cas = vec![away(&cluster.root_ca_pem)];
        cluster.root_key_pem = String::new().into();
        let tail = cluster.root_ca_pem.clone();
        let (due, over) = (NOW.after(73 * DAY), NOW.after(91 * DAY));
        assert_eq!(
            tried(&cluster, NOW, Needed::Fresh).await.as_ref(),
            Ok(&tail)
        );
        assert_eq!(tried(&cluster, due, Needed::Good).await.as_ref(), Ok(&tail));
        for (now, needed) in [(due, Needed::Fresh), (over, Needed::Good)] {
            let error = tried(&cluster, now, needed).await.unwrap_err();
            assert!(error.contains("no external CA has signed"), "{error}");
        }
        assert!(signer.trouble().contains("https://127.0.0.1:1/sign"));

        // On the way to another root, whose chain is another.
        let mut on_the_way = self::cluster();
        (on_the_way.id, on_the_way.root_ca_pem) = (cluster.id.clone(), tail.clone());
        on_the_way.rotation = Some(swarm_model::RootRotation {
            root_ca_pem: new_root(NOW).unwrap().certificate_pem,
            root_key_pem: String::new().into(),
            cross_signed_pem: tail.clone(),
            worker_secret: String::new().into(),
            manager_secret: String::new().into(),
            given_up: Vec::new(),
        });
        assert_eq!(
            tried(&on_the_way, NOW, Needed::Good).await.as_ref(),
            Ok(&tail)
        );
        let error = tried(&on_the_way, NOW, Needed::Fresh).await.unwrap_err();
        assert!(error.contains("no external CA is named"), "{error}");
        // One that nobody trusts any more.
        cluster.root_ca_pem = new_root(NOW).unwrap().certificate_pem;
        cluster.spec.external_cas = vec![away(&cluster.root_ca_pem)];
        let error = tried(&cluster, NOW, Needed::Good).await.unwrap_err();
        assert!(error.contains("no external CA has signed"), "{error}");
    }

    #[test]
    fn it_is_sealed_and_opened_as_the_lock_wants() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tls/manager.pem");
        let (cluster, node_id) = (cluster(), NodeId::random(&mut rand::rng()));
        let seal = Seal::new(&[1; 32], b"test");
        let file = |sealed| CredentialsFile::new(path.clone(), Some(seal.clone()), sealed);
        let issue = |file: &CredentialsFile, now| {
            let mut rng = StdRng::seed_from_u64(1);
            OwnCertificate::load_or_issue(file, &cluster, &node_id, now, &mut rng).unwrap();
            let (pem, _) = file.read().unwrap();
            pem
        };
        let is_clear = || {
            let bytes = fs::read(&path).unwrap();
            bytes.windows(7).any(|word| word == b"PRIVATE")
        };
        let kept = file(false);
        let first = issue(&kept, NOW);
        assert!(is_clear());
        kept.keep_sealed(true).unwrap();
        assert!(!is_clear());
        assert_eq!(issue(&kept, NOW), first, "the same certificate");
        assert_eq!(issue(&file(true), NOW), first, "after a restart");
        // The next one too.
        let next = issue(&kept, NOW.after(80 * DAY));
        assert!(next != first && !is_clear());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        kept.keep_sealed(false).unwrap();
        assert!(is_clear());
        assert_eq!(issue(&kept, NOW.after(80 * DAY)), next);
        // Without its key there is another certificate, and nothing worse.
        kept.keep_sealed(true).unwrap();
        let other = CredentialsFile::new(path.clone(), Some(Seal::new(&[2; 32], b"test")), true);
        assert!(other.read().is_none());
        assert_ne!(issue(&other, NOW.after(80 * DAY)), next);
    }
}
