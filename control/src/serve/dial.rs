//! Connections to other managers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

/// The name that every manager's certificate carries, whatever its address.
const MANAGER_NAME: &str = "swarm-manager";

/// Time for a connection: managers are near each other, and one that does not answer within this is
/// as good as down.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// How soon a connection whose other end is gone without a word is given up.
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_DEADLINE: Duration = Duration::from_secs(2);

/// A manager that cannot be reached.
#[derive(Debug, thiserror::Error)]
#[error("cannot reach manager {address}")]
pub(crate) struct DialError {
    address: SocketAddr,
    #[source]
    source: tonic::transport::Error,
}

/// Connects to managers with this manager's certificate. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    tls: watch::Receiver<Arc<ClientConfig>>,
}

impl Dialer {
    /// Each connection is made with the newest configuration in `tls`.
    pub(crate) fn new(tls: watch::Receiver<Arc<ClientConfig>>) -> Self {
        Self { tls }
    }

    /// A channel to the manager at `address`, connected. Once that connection ends its calls fail:
    /// who wants another dials again, to the address of that moment.
    pub(crate) async fn connect(&self, address: SocketAddr) -> Result<Channel, DialError> {
        let tls = TlsConnector::from(Arc::clone(&self.tls.borrow()));
        let mut first = Some(tls);
        let connector = tower::service_fn(move |_: Uri| {
            let tls = first.take();
            async move {
                let tls = tls.ok_or(std::io::ErrorKind::NotConnected)?;
                let name = ServerName::try_from(MANAGER_NAME).map_err(std::io::Error::other)?;
                let handshake = async {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    tls.connect(name, stream).await
                };
                let stream = timeout(CONNECT_DEADLINE, handshake).await??;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        // The address is only a name: the connector knows where to go, and puts TLS in.
        Endpoint::from_static("http://swarm-manager")
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_DEADLINE)
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await
            .map_err(|source| DialError { address, source })
    }
}
