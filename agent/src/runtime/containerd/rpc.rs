//! Calls to containerd: one channel, one namespace, a deadline on each.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::transfer_client::TransferClient;
use containerd_client::services::v1::version_client::VersionClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::classify::essence;
use crate::runtime::{Cause, RuntimeError};

/// Largest answer taken. containerd sends at most 16 MiB (`grpc.max_send_message_size`); a list of
/// a thousand containers with their specifications is about 8 MiB.
const ANSWER_LEN_MAX: usize = 16 << 20;
/// Header that selects the namespace of a call.
const NAMESPACE_HEADER: &str = "containerd-namespace";
/// Header that puts what a call makes under a lease.
const LEASE_HEADER: &str = "containerd-lease";

/// The way to one namespace of one containerd. Connects by itself, and again when containerd was
/// restarted.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    channel: Channel,
    socket: PathBuf,
    namespace: MetadataValue<Ascii>,
}

/// How a call failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// No answer within the bound.
    Deadline(Duration),
    /// An answer, or no connection.
    Status(Status),
}

impl CallError {
    /// containerd's answer was this code.
    pub(super) fn is(&self, code: Code) -> bool {
        self.status().is_some_and(|status| status.code() == code)
    }

    /// containerd's answer; none when it did not give one.
    pub(super) fn status(&self) -> Option<&Status> {
        match self {
            // Only the client's own statuses, made of a failed connection, have a source.
            Self::Status(status) if std::error::Error::source(status).is_none() => Some(status),
            Self::Status(_) | Self::Deadline(_) => None,
        }
    }
}

/// Takes a failure that means that the work is already done for success.
pub(super) fn done_if<T: Default>(
    result: Result<T, CallError>,
    code: Code,
) -> Result<T, CallError> {
    match result {
        Err(error) if error.is(code) => Ok(T::default()),
        other => other,
    }
}

impl Connection {
    /// Prepares a connection to `socket`; nothing is sent yet.
    pub(super) fn new(socket: &Path, namespace: MetadataValue<Ascii>) -> Self {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // gRPC wants an authority; a Unix socket has none.
        let channel =
            Endpoint::from_static("http://containerd").connect_with_connector_lazy(connector);
        Self {
            channel,
            socket: socket.to_owned(),
            namespace,
        }
    }

    /// Path of the socket, for messages.
    pub(super) fn socket(&self) -> String {
        self.socket.display().to_string()
    }

    /// Sends `message` by `send` and waits at most `deadline`. Giving up cancels the call, and
    /// containerd then undoes what it had begun.
    pub(super) async fn call<M, R, F>(
        &self,
        deadline: Duration,
        message: M,
        send: impl FnOnce(Request<M>) -> F,
    ) -> Result<R, CallError>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert(NAMESPACE_HEADER, self.namespace.clone());
        match tokio::time::timeout(deadline, send(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(CallError::Status(status)),
            Err(_) => Err(CallError::Deadline(deadline)),
        }
    }

    /// The error of an action on a subject for which nothing better is known.
    pub(super) fn failure(
        &self,
        action: &'static str,
        subject: impl ToString,
        error: CallError,
    ) -> RuntimeError {
        let subject = subject.to_string();
        match error {
            CallError::Deadline(after) => RuntimeError::Deadline {
                action,
                subject,
                after,
            },
            CallError::Status(status) => match root_cause(&status) {
                Some(cause) => RuntimeError::Unreachable {
                    socket: self.socket(),
                    cause,
                },
                None if status.message().contains("no space left on device") => {
                    RuntimeError::DiskFull { action, subject }
                }
                None => {
                    let cause = Cause::new(essence(status.message()));
                    RuntimeError::Failed {
                        action,
                        subject,
                        cause,
                    }
                }
            },
        }
    }

    pub(super) fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_LEN_MAX)
    }

    pub(super) fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone())
    }

    pub(super) fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone())
    }

    pub(super) fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone())
    }

    pub(super) fn namespaces(&self) -> NamespacesClient<Channel> {
        NamespacesClient::new(self.channel.clone())
    }

    pub(super) fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    pub(super) fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_LEN_MAX)
    }

    pub(super) fn transfer(&self) -> TransferClient<Channel> {
        TransferClient::new(self.channel.clone())
    }

    pub(super) fn version(&self) -> VersionClient<Channel> {
        VersionClient::new(self.channel.clone())
    }
}

/// Puts what a call makes under a lease: it is kept while the lease lasts.
pub(super) fn under_lease<M>(mut request: Request<M>, lease: &MetadataValue<Ascii>) -> Request<M> {
    request.metadata_mut().insert(LEASE_HEADER, lease.clone());
    request
}

/// The innermost error below a status, which says what is wrong with the connection.
fn root_cause(status: &Status) -> Option<Cause> {
    let mut cause = std::error::Error::source(status)?;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Some(Cause::new(cause.to_string()))
}
