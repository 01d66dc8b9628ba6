//! The two local sockets, and what to say when one does not answer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use swarm_api::v1::control_client::ControlClient;
use swarm_api::v1::local_agent_client::LocalAgentClient;
use swarm_api::v1::local_control_client::LocalControlClient;
use swarm_api::{CONSISTENCY_METADATA, LINEARIZABLE, v1};
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

/// Longest wait for an answer. Joining is the longest of all: ten tries, two seconds apart, and
/// then twenty seconds for the session.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);

/// Lists of a large swarm: 20,000 tasks at about 1 KiB.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why nothing could be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error(
        "cannot reach swarm-agent at {}: start it (`systemctl start swarm-agent`), or name its \
         directory with --run-dir", .0.display()
    )]
    NoAgent(PathBuf),
    #[error("no permission to open {}: run swarmctl as root", .0.display())]
    NotPermitted(PathBuf),
    #[error(
        "this node is not part of a swarm: make one with `swarmctl swarm init`, or join one with \
         `swarmctl swarm join`"
    )]
    NotMember,
    #[error(
        "this node is a worker, and only managers can be asked this: run the command on a manager \
         ({managers})"
    )]
    Worker { managers: String },
    #[error(
        "the manager of this node does not answer at {}; swarm-agent starts it again by itself: \
         look into the log of swarm-agent for the reason", .0.display()
    )]
    NoControl(PathBuf),
    #[error("cannot open {}", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot talk to {}", .path.display())]
    Transport {
        path: PathBuf,
        #[source]
        source: tonic::transport::Error,
    },
}

/// The manager of this host.
pub(crate) type Control = ControlClient<InterceptedService<Channel, Consistency>>;

/// How fresh answers are to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Consistency {
    /// As the leader has it in memory.
    Memory,
    /// After it has made sure that it still leads.
    Linearizable,
}

impl Interceptor for Consistency {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Self::Linearizable = self {
            let value = MetadataValue::from_static(LINEARIZABLE);
            request.metadata_mut().insert(CONSISTENCY_METADATA, value);
        }
        Ok(request)
    }
}

/// Where the sockets are, and how fresh answers are to be.
#[derive(Clone, Debug)]
pub(crate) struct Sockets {
    run_dir: PathBuf,
    consistency: Consistency,
}

impl Sockets {
    pub(crate) fn new(run_dir: PathBuf, consistency: Consistency) -> Self {
        Self {
            run_dir,
            consistency,
        }
    }

    /// The agent of this host.
    pub(crate) async fn agent(&self) -> Result<LocalAgentClient<Channel>, ConnectError> {
        let path = self.run_dir.join("agent.sock");
        match open(&path).await {
            Ok(channel) => {
                Ok(LocalAgentClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
            }
            Err(Opening::Absent) => Err(ConnectError::NoAgent(path)),
            Err(Opening::Other(error)) => Err(error),
        }
    }

    /// The manager of this host.
    pub(crate) async fn control(&self) -> Result<Control, ConnectError> {
        let channel = self.control_channel().await?;
        let control = ControlClient::with_interceptor(channel, self.consistency);
        Ok(control.max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// The manager of this host, for what concerns it alone.
    pub(crate) async fn local_control(&self) -> Result<LocalControlClient<Channel>, ConnectError> {
        Ok(LocalControlClient::new(self.control_channel().await?))
    }

    async fn control_channel(&self) -> Result<Channel, ConnectError> {
        let path = self.run_dir.join("control").join("control.sock");
        match open(&path).await {
            Ok(channel) => Ok(channel),
            Err(Opening::Absent) => Err(self.why_no_control(path).await),
            Err(Opening::Other(error)) => Err(error),
        }
    }

    /// The agent knows why there is no manager here.
    async fn why_no_control(&self, path: PathBuf) -> ConnectError {
        let mut agent = match self.agent().await {
            Ok(agent) => agent,
            Err(error) => return error,
        };
        let Ok(status) = agent.get_status(request(v1::GetStatusRequest {})).await else {
            return ConnectError::NoControl(path);
        };
        let status = status.into_inner();
        match (status.state.as_str(), status.role()) {
            ("inactive", _) => ConnectError::NotMember,
            (_, v1::Role::Worker) => ConnectError::Worker {
                managers: status.managers.join(", "),
            },
            _ => ConnectError::NoControl(path),
        }
    }
}

enum Opening {
    Absent,
    Other(ConnectError),
}

async fn open(path: &Path) -> Result<Channel, Opening> {
    use std::io::ErrorKind;
    // Tried once by hand, since the channel hides why it could not be opened.
    let stream = UnixStream::connect(path)
        .await
        .map_err(|source| match source.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => Opening::Absent,
            ErrorKind::PermissionDenied => {
                Opening::Other(ConnectError::NotPermitted(path.to_owned()))
            }
            _ => Opening::Other(ConnectError::Io {
                path: path.to_owned(),
                source,
            }),
        })?;
    let mut first = Some(stream);
    let target = path.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let (stream, target) = (first.take(), target.clone());
        async move {
            match stream {
                Some(stream) => Ok(TokioIo::new(stream)),
                None => UnixStream::connect(target).await.map(TokioIo::new),
            }
        }
    });
    // The address is only a name: the connector knows where to go.
    Endpoint::from_static("http://local.sock")
        .connect_with_connector(connector)
        .await
        .map_err(|source| {
            Opening::Other(ConnectError::Transport {
                path: path.to_owned(),
                source,
            })
        })
}

/// `message`, to be answered in time.
pub(crate) fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(ANSWER_TIMEOUT);
    request
}

/// The answer, or the words of the refusal.
pub(crate) fn answer<T>(result: Result<Response<T>, Status>) -> anyhow::Result<T> {
    match result {
        Ok(response) => Ok(response.into_inner()),
        Err(status) if status.message().is_empty() => {
            anyhow::bail!("refused without a reason ({:?})", status.code())
        }
        Err(status) => anyhow::bail!("{}", status.message()),
    }
}

/// The answer to a question that is asked again and again; none while nobody can answer it, as
/// between two leaders.
pub(crate) fn answer_now<T>(result: Result<Response<T>, Status>) -> anyhow::Result<Option<T>> {
    match result {
        Err(status) if status.code() == Code::Unavailable => Ok(None),
        result => answer(result).map(Some),
    }
}

/// An error with its causes, on one line.
pub(crate) fn error_text(error: &anyhow::Error) -> String {
    format!("{error:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_leader_a_question_is_asked_again_and_other_refusals_are_told() {
        let none = answer_now::<()>(Err(Status::unavailable("no leader just now")));
        assert!(matches!(none, Ok(None)));
        let refused = answer_now::<()>(Err(Status::not_found("no such service")));
        assert_eq!(
            refused.expect_err("a refusal").to_string(),
            "no such service"
        );
        let answered = answer_now(Ok(Response::new(1)));
        assert!(matches!(answered, Ok(Some(1))));
    }
}
