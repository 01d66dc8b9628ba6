//! Network namespaces: made, named, entered.
//!
//! A namespace is a property of a thread, so entering one happens on a thread of its own that ends
//! with the work: the caller, a runtime's worker most of all, never changes its namespace. What is
//! opened inside (a netlink socket) stays in that namespace and is used from anywhere.
//! `ip netns exec` has no counterpart here on purpose: it also remounts /sys, and cgroups vanish.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

/// The namespace of the calling thread, as a file.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// Mounts found one over the other on a namespace's file before giving up: more than one are left
/// only by a process that was killed between two steps.
const MAX_STACKED_MOUNTS: usize = 8;

/// What can go wrong with a namespace.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetnsError {
    /// No thread to enter the namespace on.
    #[error("start a thread for a network namespace")]
    StartThread(#[source] io::Error),
    /// The namespace cannot be entered.
    #[error("enter a network namespace")]
    Enter(#[source] Errno),
    /// No new namespace.
    #[error("create a network namespace (this needs root)")]
    Unshare(#[source] Errno),
    /// The calling thread's namespace has no file.
    #[error("open {OWN_NETNS}")]
    OpenOwn(#[source] io::Error),
    /// The namespace's file cannot be opened.
    #[error("open network namespace {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The namespace cannot be mounted under its name.
    #[error("mount network namespace at {path}")]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The name cannot be removed.
    #[error("remove network namespace {path}")]
    Remove {
        /// The mount point.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The directory cannot be read.
    #[error("list network namespaces in {path}")]
    List {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An open network namespace. It exists at least as long as this value.
#[derive(Clone, Debug)]
pub(crate) struct Netns {
    file: Arc<OwnedFd>,
    identity: (u64, u64),
}

impl PartialEq for Netns {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

impl Eq for Netns {}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Netns {
    /// The calling thread's namespace.
    pub(crate) fn current() -> Result<Self, NetnsError> {
        File::open(OWN_NETNS)
            .and_then(Self::from_file)
            .map_err(NetnsError::OpenOwn)
    }

    /// A namespace that is in no directory, gone when the last user is.
    #[cfg(test)]
    pub(crate) fn anonymous() -> Result<Self, NetnsError> {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(NetnsError::Unshare)?;
            Self::current()
        })?
    }

    fn from_file(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let identity = (metadata.dev(), metadata.ino());
        Ok(Self {
            file: Arc::new(file.into()),
            identity,
        })
    }

    /// Runs `work` inside the namespace, on a thread of its own, and waits for it. `work` must be
    /// brief and must not depend on the thread (no thread-locals, no current runtime).
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        on_thread(|| {
            setns(self, CloneFlags::CLONE_NEWNET).map_err(NetnsError::Enter)?;
            Ok(work())
        })?
    }
}

/// Runs `work` on a new thread and waits for it.
fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(NetnsError::StartThread)?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// A directory of named namespaces: each an empty file with a namespace mounted over it, as
/// `ip netns` keeps them.
///
/// The directory is no mount of its own: a container runtime in our mount namespace, or in one that
/// receives mounts from it, sees the namespaces as they are; no other could be made to see them.
#[derive(Clone, Debug)]
pub(crate) struct NetnsDir {
    path: PathBuf,
}

impl NetnsDir {
    /// The directory at `path`, made when the first namespace is.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where a namespace of this name is mounted.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a new namespace called `name`, or opens the one there is. `name` is a file name.
    pub(crate) fn create(&self, name: &str) -> Result<Netns, NetnsError> {
        if let Some(netns) = self.open(name)? {
            return Ok(netns);
        }
        let path = self.path(name);
        fs::create_dir_all(&self.path).map_err(|source| mount_error(&path, source))?;
        // Left over where a process ended between the file and the mount: as good as new.
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o444)
            .open(&path)
            .map_err(|source| mount_error(&path, source))?;
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(NetnsError::Unshare)?;
            let none = None::<&Path>;
            mount(Some(OWN_NETNS), &path, none, MsFlags::MS_BIND, none)
                .map_err(|errno| mount_error(&path, errno.into()))?;
            Netns::current()
        })?
    }

    /// The namespace called `name`, when there is one.
    pub(crate) fn open(&self, name: &str) -> Result<Option<Netns>, NetnsError> {
        let path = self.path(name);
        let error = |source| NetnsError::Open {
            path: path.clone(),
            source,
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(error(source)),
        };
        let kind = fstatfs(&file)
            .map_err(|errno| error(errno.into()))?
            .filesystem_type();
        if kind != NSFS_MAGIC {
            return Ok(None);
        }
        Netns::from_file(file).map(Some).map_err(error)
    }

    /// Removes the name; true when it was there. The namespace lives on for as long as a process or
    /// an open file is in it.
    pub(crate) fn delete(&self, name: &str) -> Result<bool, NetnsError> {
        let path = self.path(name);
        let error = |source| NetnsError::Remove {
            path: path.clone(),
            source,
        };
        for _ in 0..MAX_STACKED_MOUNTS {
            match umount2(&path, MntFlags::MNT_DETACH) {
                Ok(()) => {}
                // Not, or no longer, a mount point.
                Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(errno) => return Err(error(errno.into())),
            }
        }
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(error(source)),
        }
    }

    /// The names there are, mounted or not, in order.
    pub(crate) fn list(&self) -> Result<Vec<String>, NetnsError> {
        let error = |source| NetnsError::List {
            path: self.path.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(error(source)),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry.map_err(error)?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }
}

fn mount_error(path: &Path, source: io::Error) -> NetnsError {
    NetnsError::Mount {
        path: path.to_owned(),
        source,
    }
}

/// Reads a setting under `/proc/sys/net` of the calling thread's namespace; nothing when the kernel
/// has no such setting.
pub(crate) fn read_sysctl(key: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(sysctl_path(key)) {
        Ok(value) => Ok(Some(value.trim_end().to_owned())),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a setting under `/proc/sys/net` of the calling thread's namespace; false when the kernel
/// has no such setting.
pub(crate) fn write_sysctl(key: &str, value: &str) -> io::Result<bool> {
    match OpenOptions::new().write(true).open(sysctl_path(key)) {
        Ok(mut file) => io::Write::write_all(&mut file, value.as_bytes()).map(|()| true),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn sysctl_path(key: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(key)
}
