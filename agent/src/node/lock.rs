//! One agent a run directory.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// Why this agent may not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error(
        "another swarm-agent runs with {}: stop it first, or choose another --run-dir", .0.display()
    )]
    Held(PathBuf),
    #[error("cannot lock {}", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Held for as long as the agent runs; the kernel gives it up when the process ends, however it does.
pub(crate) fn lock(run_dir: &Path) -> Result<Flock<File>, LockError> {
    let path = run_dir.join("agent.lock");
    let error = |source| LockError::Io {
        path: path.clone(),
        source,
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(run_dir)
        .map_err(error)?;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(error)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::Error::EWOULDBLOCK => LockError::Held(run_dir.to_owned()),
        errno => error(errno.into()),
    })
}
