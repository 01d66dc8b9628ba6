//! What a node keeps of its membership between two starts.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use swarm_model::{ClusterId, NodeId, Role};

use super::tls::Credentials;

/// The version of the directory's layout that this program writes; `node.json` says it.
///
/// | version | key and certificate |
/// |---|---|
/// | 1 | `node.key`, `node.crt` |
/// | 2 | `node.pem`, both, so that they are replaced in one step |
const FORMAT_VERSION: u32 = 2;

const STATE_FILE: &str = "node.json";
const CERTIFICATES_DIR: &str = "certificates";
const NODE_FILE: &str = "node.pem";
const OLD_KEY_FILE: &str = "node.key";
const OLD_CERTIFICATE_FILE: &str = "node.crt";
const ROOT_FILE: &str = "root-ca.crt";

/// A node's place in a swarm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Membership {
    format_version: u32,
    pub(crate) node_id: NodeId,
    pub(crate) cluster_id: ClusterId,
    pub(crate) role: Role,
    /// Managers last heard of, host:port.
    pub(crate) managers: Vec<String>,
    /// Source and destination of this node's VXLAN packets.
    pub(crate) data_path_address: IpAddr,
    /// Where swarm-control listens; of managers, and of nodes that were.
    pub(crate) listen_address: Option<SocketAddr>,
    /// What others dial when this node is a manager.
    pub(crate) advertise_address: Option<SocketAddr>,
}

impl Membership {
    /// A worker's.
    pub(crate) fn new(
        node_id: NodeId,
        cluster_id: ClusterId,
        role: Role,
        managers: Vec<String>,
        data_path_address: IpAddr,
    ) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            node_id,
            cluster_id,
            role,
            managers,
            data_path_address,
            listen_address: None,
            advertise_address: None,
        }
    }
}

/// What can go wrong with the state directory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("cannot {action} {}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is damaged: restore it, or run `swarmctl swarm leave --force` and join again", .path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} holds no key with a certificate: restore it, or run `swarmctl swarm leave --force` and join again", .path.display())]
    NoKey { path: PathBuf },
    #[error(
        "{} has format {found}, newer than the {FORMAT_VERSION} this swarm-agent knows: upgrade swarm-agent",
        .path.display()
    )]
    NewerFormat { path: PathBuf, found: u32 },
}

/// Reads and writes the state directory.
#[derive(Clone, Debug)]
pub(crate) struct StateStore {
    dir: PathBuf,
}

impl StateStore {
    /// On `dir`, which is made when something is first written.
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// The membership and credentials, when this node is in a swarm. What an older version wrote is
    /// brought to this version's layout.
    pub(crate) fn load(&self) -> Result<Option<(Membership, Credentials)>, StateError> {
        let path = self.dir.join(STATE_FILE);
        let Some(text) = read_if_present(&path)? else {
            return Ok(None);
        };
        let mut membership: Membership =
            serde_json::from_str(&text).map_err(|source| StateError::Damaged {
                path: path.clone(),
                source,
            })?;
        if membership.format_version > FORMAT_VERSION {
            return Err(StateError::NewerFormat {
                path,
                found: membership.format_version,
            });
        }
        let certificates = self.dir.join(CERTIFICATES_DIR);
        let read = |name: &str| {
            let path = certificates.join(name);
            fs::read_to_string(&path).map_err(|source| StateError::Io {
                action: "read",
                path,
                source,
            })
        };
        let root_pem = read(ROOT_FILE)?;
        let credentials = if membership.format_version < 2 {
            let credentials = Credentials {
                key_pem: read(OLD_KEY_FILE)?.into(),
                certificate_pem: read(OLD_CERTIFICATE_FILE)?,
                root_pem,
            };
            membership.format_version = FORMAT_VERSION;
            // Repeated whole when it breaks off before `node.json` says the new version.
            self.save(&membership, &credentials)?;
            credentials
        } else {
            let path = certificates.join(NODE_FILE);
            Credentials::from_pem(read(NODE_FILE)?, root_pem).ok_or(StateError::NoKey { path })?
        };
        for name in [OLD_KEY_FILE, OLD_CERTIFICATE_FILE] {
            gone(certificates.join(name), |path| fs::remove_file(path))?;
        }
        Ok(Some((membership, credentials)))
    }

    /// Writes both; `node.json` last.
    pub(crate) fn save(
        &self,
        membership: &Membership,
        credentials: &Credentials,
    ) -> Result<(), StateError> {
        make_private_dir(&self.dir)?;
        self.save_credentials(credentials)?;
        self.save_membership(membership)
    }

    /// Writes the credentials alone, when they are renewed. The roots go first: they also cover the
    /// certificate that is still there when only they are written.
    pub(crate) fn save_credentials(&self, credentials: &Credentials) -> Result<(), StateError> {
        let certificates = self.dir.join(CERTIFICATES_DIR);
        make_private_dir(&certificates)?;
        write_durably(
            &certificates.join(ROOT_FILE),
            credentials.root_pem.as_bytes(),
        )?;
        write_durably(
            &certificates.join(NODE_FILE),
            credentials.to_pem().as_bytes(),
        )
    }

    /// Writes the membership alone, when the list of managers changed.
    pub(crate) fn save_membership(&self, membership: &Membership) -> Result<(), StateError> {
        let path = self.dir.join(STATE_FILE);
        let text =
            serde_json::to_string_pretty(membership).map_err(|source| StateError::Damaged {
                path: path.clone(),
                source,
            })?;
        write_durably(&path, text.as_bytes())
    }

    /// Forgets everything; `node.json` first, so that a crash half way leaves no half member.
    pub(crate) fn clear(&self) -> Result<(), StateError> {
        for name in [STATE_FILE, ASSIGNMENTS_FILE] {
            gone(self.dir.join(name), |path| fs::remove_file(path))?;
        }
        for name in [CERTIFICATES_DIR, "control", "tasks"] {
            gone(self.dir.join(name), |path| fs::remove_dir_all(path))?;
        }
        Ok(())
    }

    /// Forgets what the manager process kept.
    pub(crate) fn clear_control(&self) -> Result<(), StateError> {
        gone(self.dir.join("control"), |path| fs::remove_dir_all(path))
    }

    /// The assignments last received, so that a restarted agent knows what to keep up while no
    /// manager answers. None when there are none.
    pub(crate) fn load_assignments(&self) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.dir.join(ASSIGNMENTS_FILE);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Io {
                action: "read",
                path,
                source,
            }),
        }
    }

    /// Keeps the assignments.
    pub(crate) fn save_assignments(&self, bytes: &[u8]) -> Result<(), StateError> {
        write_durably(&self.dir.join(ASSIGNMENTS_FILE), bytes)
    }
}

const ASSIGNMENTS_FILE: &str = "assignments.pb";

/// Removes `path`; fine when it is not there.
fn gone(
    path: PathBuf,
    remove: impl FnOnce(&Path) -> std::io::Result<()>,
) -> Result<(), StateError> {
    match remove(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(StateError::Io {
            action: "remove",
            path,
            source,
        }),
        _ => Ok(()),
    }
}

fn read_if_present(path: &Path) -> Result<Option<String>, StateError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StateError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

fn make_private_dir(path: &Path) -> Result<(), StateError> {
    // Traversable by others, since swarm-control, which is not root, keeps its state below.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .map_err(|source| StateError::Io {
            action: "make directory",
            path: path.to_owned(),
            source,
        })
}

/// Writes beside, syncs, renames: the file holds either the old text or the new.
fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let error = |action, source| StateError::Io {
        action,
        path: path.to_owned(),
        source,
    };
    let beside = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .map_err(|source| error("create", source))?;
    file.write_all(bytes)
        .map_err(|source| error("write", source))?;
    file.sync_all().map_err(|source| error("sync", source))?;
    fs::rename(&beside, path).map_err(|source| error("replace", source))?;
    if let Some(dir) = path.parent() {
        let dir = fs::File::open(dir).map_err(|source| error("open directory of", source))?;
        dir.sync_all()
            .map_err(|source| error("sync directory of", source))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership() -> Membership {
        let mut rng = rand::rng();
        Membership::new(
            NodeId::random(&mut rng),
            ClusterId::random(&mut rng),
            Role::Worker,
            vec!["192.0.2.1:2377".to_owned()],
            IpAddr::from([192, 0, 2, 2]),
        )
    }

    fn credentials() -> Credentials {
        Credentials {
            key_pem: "-----BEGIN PRIVATE KEY-----\nkey\n".to_owned().into(),
            certificate_pem: "-----BEGIN CERTIFICATE-----\nleaf\n".to_owned(),
            root_pem: "root".to_owned(),
        }
    }

    #[test]
    fn what_is_saved_is_loaded_and_what_is_cleared_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let store = StateStore::new(&dir.path().join("swarm"));
        assert!(store.load().unwrap().is_none());
        let membership = membership();
        store.save(&membership, &credentials()).unwrap();
        store.save_assignments(b"bytes").unwrap();
        let (loaded, loaded_credentials) = store.load().unwrap().unwrap();
        assert_eq!(loaded, membership);
        assert_eq!(loaded_credentials.key_pem, credentials().key_pem);
        assert_eq!(
            loaded_credentials.certificate_pem,
            credentials().certificate_pem
        );
        assert_eq!(loaded_credentials.root_pem, credentials().root_pem);
        assert_eq!(store.load_assignments().unwrap().unwrap(), b"bytes");
        store.clear().unwrap();
        store.clear().unwrap();
        assert!(store.load().unwrap().is_none());
        assert!(store.load_assignments().unwrap().is_none());
    }

    #[test]
    fn a_newer_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = StateStore::new(dir.path());
        let newer = Membership {
            format_version: FORMAT_VERSION + 1,
            ..membership()
        };
        store.save(&newer, &credentials()).unwrap();
        assert!(matches!(store.load(), Err(StateError::NewerFormat { .. })));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = StateStore::new(dir.path());
        store.save(&membership(), &credentials()).unwrap();
        fs::write(dir.path().join(STATE_FILE), "{").unwrap();
        assert!(store.load().unwrap_err().to_string().contains(STATE_FILE));
    }

    #[test]
    fn what_the_first_version_wrote_is_read_and_brought_up_to_date() {
        let dir = tempfile::tempdir().unwrap();
        let store = StateStore::new(dir.path());
        let old = Membership {
            format_version: 1,
            ..membership()
        };
        let certificates = dir.path().join(CERTIFICATES_DIR);
        fs::create_dir(&certificates).unwrap();
        let Credentials {
            key_pem,
            certificate_pem,
            root_pem,
        } = credentials();
        for (name, text) in [
            (OLD_KEY_FILE, &*key_pem),
            (OLD_CERTIFICATE_FILE, &certificate_pem),
            (ROOT_FILE, &root_pem),
        ] {
            fs::write(certificates.join(name), text).unwrap();
        }
        let text = serde_json::to_string(&old).unwrap();
        fs::write(dir.path().join(STATE_FILE), text).unwrap();
        for _ in 0..2 {
            let (loaded, credentials) = store.load().unwrap().unwrap();
            assert_eq!(loaded.node_id, old.node_id);
            assert_eq!(loaded.format_version, FORMAT_VERSION);
            assert_eq!(credentials.key_pem, key_pem);
            assert_eq!(credentials.certificate_pem, certificate_pem);
            assert_eq!(credentials.root_pem, root_pem);
            let mut files: Vec<_> = fs::read_dir(&certificates)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            files.sort();
            assert_eq!(files, [NODE_FILE, ROOT_FILE]);
        }
    }

    #[test]
    fn a_renewal_replaces_key_and_certificate_in_one_step() {
        let dir = tempfile::tempdir().unwrap();
        let store = StateStore::new(dir.path());
        store.save(&membership(), &credentials()).unwrap();
        let new = Credentials {
            key_pem: "-----BEGIN PRIVATE KEY-----\nother\n".to_owned().into(),
            certificate_pem: "-----BEGIN CERTIFICATE-----\nother\n".to_owned(),
            root_pem: "roots".to_owned(),
        };
        // Interrupted before the last step: what is there is the old pair, whole.
        let beside = dir.path().join(CERTIFICATES_DIR).join("node.new");
        fs::create_dir(&beside).unwrap();
        assert!(store.save_credentials(&new).is_err());
        let (_, loaded) = store.load().unwrap().unwrap();
        assert_eq!(loaded.to_pem(), credentials().to_pem());
        fs::remove_dir(&beside).unwrap();

        store.save_credentials(&new).unwrap();
        let (_, loaded) = store.load().unwrap().unwrap();
        assert_eq!(loaded.to_pem(), new.to_pem());
        let path = dir.path().join(CERTIFICATES_DIR).join(NODE_FILE);
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_key_without_a_certificate_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = StateStore::new(dir.path());
        store.save(&membership(), &credentials()).unwrap();
        let path = dir.path().join(CERTIFICATES_DIR).join(NODE_FILE);
        for text in ["", &credentials().key_pem, &credentials().certificate_pem] {
            fs::write(&path, text).unwrap();
            assert!(
                matches!(store.load(), Err(StateError::NoKey { .. })),
                "{text}"
            );
        }
    }
}
