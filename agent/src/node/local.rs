//! The agent's own socket: init, join, leave, status, and looks at the mesh.

use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use swarm_api::v1;
use swarm_api::v1::local_agent_server::{LocalAgent, LocalAgentServer};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::lifecycle::{Agent, LifecycleError};
use super::trace::{Subject, Traces};

/// Only root, and whom root puts into its group.
const SOCKET_MODE: u32 = 0o660;

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("another swarm-agent answers on {}: stop it first, or choose another --run-dir", .0.display())]
    InUse(PathBuf),
    #[error("cannot {action} {}", .path.display())]
    Socket {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot serve the local socket")]
    Serve(#[from] tonic::transport::Error),
}

/// Answers on `path` until `stop`.
pub(crate) async fn serve(
    agent: Arc<Agent>,
    path: &Path,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let listener = listen(path).await?;
    let incoming = UnixListenerStream::new(listener);
    let traces = Traces::new(stop.clone());
    tonic::transport::Server::builder()
        .add_service(LocalAgentServer::new(Local { agent, traces }))
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await?;
    Ok(())
}

async fn listen(path: &Path) -> Result<UnixListener, ServeError> {
    let error = |action, source| ServeError::Socket {
        action,
        path: path.to_owned(),
        source,
    };
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)
            .map_err(|source| error("make the directory of", source))?;
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(ServeError::InUse(path.to_owned()));
    }
    // Left by an agent that was killed.
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(error("remove the stale socket", source));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(|source| error("listen on", source))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))
        .map_err(|source| error("set the mode of", source))?;
    Ok(listener)
}

struct Local {
    agent: Arc<Agent>,
    traces: Traces,
}

impl From<LifecycleError> for Status {
    fn from(error: LifecycleError) -> Self {
        let code = error.code();
        Status::new(code, crate::error_text(&error))
    }
}

#[tonic::async_trait]
impl LocalAgent for Local {
    async fn init(
        &self,
        request: Request<v1::InitRequest>,
    ) -> Result<Response<v1::InitResponse>, Status> {
        let agent = self.agent.clone();
        let request = request.into_inner();
        Ok(Response::new(
            detached(async move { agent.init(request).await }).await?,
        ))
    }

    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinResponse>, Status> {
        let agent = self.agent.clone();
        let request = request.into_inner();
        Ok(Response::new(
            detached(async move { agent.join(request).await }).await?,
        ))
    }

    async fn leave(
        &self,
        request: Request<v1::LeaveRequest>,
    ) -> Result<Response<v1::LeaveResponse>, Status> {
        let agent = self.agent.clone();
        let force = request.into_inner().force;
        detached(async move { agent.leave(force).await }).await?;
        Ok(Response::new(v1::LeaveResponse {}))
    }

    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Ok(Response::new(self.agent.status().await))
    }

    async fn get_stats(
        &self,
        _: Request<v1::GetStatsRequest>,
    ) -> Result<Response<v1::GetStatsResponse>, Status> {
        Ok(Response::new(self.agent.stats().await?.into()))
    }

    async fn check_mesh(
        &self,
        _: Request<v1::CheckMeshRequest>,
    ) -> Result<Response<v1::CheckMeshResponse>, Status> {
        let (network, found) = self.agent.network()?;
        let checked = network.check().await;
        let mut checked = checked.map_err(LifecycleError::from)?;
        checked.problems.extend(found);
        let differences = checked.differences.into_iter();
        Ok(Response::new(v1::CheckMeshResponse {
            differences: differences
                .map(|difference| v1::MeshDifference {
                    place: difference.place,
                    text: difference.text,
                })
                .collect(),
            left_out: checked.left_out as u64,
            problems: checked.problems,
        }))
    }

    type TraceMeshStream = ReceiverStream<Result<v1::TraceMeshResponse, Status>>;

    async fn trace_mesh(
        &self,
        request: Request<v1::TraceMeshRequest>,
    ) -> Result<Response<Self::TraceMeshStream>, Status> {
        let subject = Subject::new(&request.into_inner())?;
        let told = self.traces.start(subject, self.agent.scene()?)?;
        Ok(Response::new(ReceiverStream::new(told)))
    }
}

/// Runs to its end even when the caller goes away in the middle: a half done join is worse than one
/// that nobody waits for.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, LifecycleError>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(Status::internal(format!("swarm-agent failed: {error}"))),
    }
}
