//! The local side: the socket file and who connects to it.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::sleep;

use super::connection::{Connection, Stream};
use super::lease::Lease;
use super::listen::ACCEPT_PAUSE;
use super::{Identity, Peer};

/// Connections at a time: people and scripts of one host.
const MAX_CONNECTIONS: usize = 64;

/// Owner and group: whoever may give the swarm orders.
const MODE: u32 = 0o660;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// Another process answers on it.
    #[error("another swarm-control already answers on {0}; stop it first")]
    InUse(PathBuf),
    /// Something else has the name.
    #[error("{0} is not a socket; move it away or name another with --socket")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot open the socket {path}; check that its directory exists and may be written to")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Makes the socket `path`, readable and writable by owner and group. A file left by a process
/// that is gone is replaced; one that still answers is not.
pub(crate) fn bind_socket(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |source| SocketError::Io {
        path: path.to_owned(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => match StdUnixStream::connect(path) {
            Ok(_) => return Err(SocketError::InUse(path.to_owned())),
            Err(_) => std::fs::remove_file(path).map_err(failed)?,
        },
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, Permissions::from_mode(MODE)).map_err(failed)?;
    Ok(listener)
}

/// Accepts on `listener` until the receiving end of `ready` is gone.
pub(super) async fn accept(listener: UnixListener, ready: mpsc::Sender<io::Result<Connection>>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            let permit = Arc::clone(&places).acquire_owned().await;
            let (stream, _) = listener.accept().await?;
            Ok::<_, io::Error>((stream, permit.expect("the semaphore is never closed")))
        };
        let accepted = tokio::select! {
            () = ready.closed() => return,
            accepted = next => accepted,
        };
        match accepted {
            Ok((stream, permit)) => {
                let peer = Peer {
                    identity: Identity::LocalOperator,
                    address: None,
                    forwarded_by: None,
                };
                let stream = Stream::Unix(stream);
                let connection = Connection::new(stream, peer, Lease::new(None), (permit, None));
                // Fails only when the server is stopping.
                let _ = ready.send(Ok(connection)).await;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a local connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let first = bind_socket(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        assert!(matches!(bind_socket(&path), Err(SocketError::InUse(_))));
        drop(first);
        assert!(path.exists());
        bind_socket(&path).unwrap();

        let file = directory.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(matches!(
            bind_socket(&file),
            Err(SocketError::NotASocket(_))
        ));
        assert!(file.exists());
        assert!(matches!(
            bind_socket(&directory.path().join("missing/control.sock")),
            Err(SocketError::Io { .. })
        ));
    }
}
