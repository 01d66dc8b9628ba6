//! The directory of a task: its log, and the files of /etc that the node writes for it.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::spec::GENERATED_FILES;
use crate::runtime::TaskContainer;

/// Logs may hold secrets: only the node's administrator looks into the directory.
const DIR_MODE: u32 = 0o700;
const LOG_MODE: u32 = 0o600;
/// Every user inside the container reads the files that are mounted there.
const FILE_MODE: u32 = 0o644;

/// Name of the log.
pub(super) const LOG: &str = "log";

/// The log of the task whose directory is `dir`, as the shim is to be told where standard output
/// and standard error go.
///
/// One file, two spellings: given the same text twice, and always given a `file://` URI, the shim
/// closes the file when standard output ends and loses what standard error still has to say
/// (`copyPipes` in its `process/io.go`, up to containerd 2.3 at least).
pub(super) fn log_paths(dir: &Path) -> [String; 2] {
    let dir = dir.display();
    [format!("{dir}/{LOG}"), format!("{dir}/./{LOG}")]
}

/// Makes the directory with its files. Those that exist are written in place, as a container may
/// have them mounted.
pub(super) async fn write(dir: PathBuf, task: &TaskContainer) -> std::io::Result<()> {
    let hostname = format!("{}\n", task.hostname);
    let contents = [task.resolv_conf.clone(), task.hosts.clone(), hostname];
    blocking(move || {
        DirBuilder::new()
            .recursive(true)
            .mode(DIR_MODE)
            .create(&dir)?;
        for (name, content) in GENERATED_FILES.into_iter().zip(contents) {
            let mut options = OpenOptions::new();
            options
                .write(true)
                .create(true)
                .truncate(true)
                .mode(FILE_MODE);
            options
                .open(dir.join(name))?
                .write_all(content.as_bytes())?;
        }
        // The shim opens the log and does not make it.
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(LOG_MODE)
            .open(dir.join(LOG))?;
        Ok(())
    })
    .await
}

/// Removes the directory with everything in it.
pub(super) async fn remove(dir: PathBuf) -> std::io::Result<()> {
    blocking(move || match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    })
    .await
}

async fn blocking(
    work: impl FnOnce() -> std::io::Result<()> + Send + 'static,
) -> std::io::Result<()> {
    tokio::task::spawn_blocking(work)
        .await
        .expect("file operations do not panic, and nobody cancels them")
}
