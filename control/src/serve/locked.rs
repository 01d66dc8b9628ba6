//! What a locked manager answers: what opens it, and to everything else that it is locked.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use swarm_api::v1;
use swarm_api::v1::local_control_server::{LocalControl, LocalControlServer};
use swarm_model::UnlockKey;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tower::Layer;

use super::rate::TokenBucket;
use super::refusal::Refusal;
use super::{listen, socket};
use crate::clock;

/// Keys that may be tried at once, and how soon one more: what a person mistypes, and nothing to guess
/// with.
const TRIES_BURST: u64 = 5;
const TRIES_INTERVAL_MS: u64 = 3_000;

/// Time that the answer gets to reach who unlocked it, and open connections to end.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

const MAX_MESSAGE_BYTES: usize = 4 * 1024;

/// What is answered otherwise than that it is locked.
const ANSWERED: [&str; 2] = [
    "/swarm.v1.LocalControl/GetManagerState",
    "/swarm.v1.LocalControl/Unlock",
];

/// Answers on `listener` until a key comes that `opens`, and gives it; none if it ended without one.
pub(crate) async fn serve_locked(
    listener: UnixListener,
    opens: impl Fn(&UnlockKey) -> bool + Send + Sync + 'static,
) -> Result<Option<UnlockKey>, tonic::transport::Error> {
    let (given, mut opened) = mpsc::channel(1);
    let service = Locked {
        opens: Box::new(opens),
        tries: Mutex::new(TokenBucket::new(TRIES_BURST, TRIES_INTERVAL_MS)),
        given,
    };
    let (ready, connections) = mpsc::channel(listen::QUEUE);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = Server::builder()
        .layer(LockedLayer)
        .add_service(LocalControlServer::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES));
    let server = server.serve_with_incoming_shutdown(ReceiverStream::new(connections), async {
        // Also when the other end is dropped.
        let _ = stopped.await;
    });
    let serve = async { tokio::join!(server, socket::accept(listener, ready)).0 };
    tokio::pin!(serve);
    let key = tokio::select! {
        ended = &mut serve => return ended.map(|()| None),
        key = opened.recv() => key,
    };
    drop(stop);
    if let Ok(ended) = timeout(STOP_DEADLINE, serve).await {
        ended?;
    }
    Ok(key)
}

struct Locked {
    opens: Box<dyn Fn(&UnlockKey) -> bool + Send + Sync>,
    tries: Mutex<TokenBucket>,
    given: mpsc::Sender<UnlockKey>,
}

#[tonic::async_trait]
impl LocalControl for Locked {
    async fn get_manager_state(
        &self,
        _: Request<v1::GetManagerStateRequest>,
    ) -> Result<Response<v1::GetManagerStateResponse>, Status> {
        Ok(Response::new(v1::GetManagerStateResponse {
            locked: true,
            ..v1::GetManagerStateResponse::default()
        }))
    }

    async fn unlock(
        &self,
        request: Request<v1::UnlockRequest>,
    ) -> Result<Response<v1::UnlockResponse>, Status> {
        let key = request.into_inner().unlock_key;
        // A slip that shows costs no try.
        let key: UnlockKey = key.parse().map_err(Refusal::UnlockKey)?;
        let free = {
            let mut tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
            tries.take(clock::now())
        };
        if !free {
            return Err(Refusal::TooManyUnlocks.into());
        }
        if !(self.opens)(&key) {
            tracing::warn!("somebody tried to unlock this manager with another key");
            return Err(Refusal::WrongUnlockKey.into());
        }
        // Full when it has been unlocked already.
        let _ = self.given.try_send(key);
        Ok(Response::new(v1::UnlockResponse {}))
    }

    async fn issue_manager_certificate(
        &self,
        _: Request<v1::IssueManagerCertificateRequest>,
    ) -> Result<Response<v1::IssueManagerCertificateResponse>, Status> {
        Err(Refusal::Locked.into())
    }

    async fn get_local_unlock_key(
        &self,
        _: Request<v1::GetLocalUnlockKeyRequest>,
    ) -> Result<Response<v1::GetLocalUnlockKeyResponse>, Status> {
        Err(Refusal::Locked.into())
    }
}

/// Lets nothing but [`ANSWERED`] through.
#[derive(Clone, Debug)]
struct LockedLayer;

impl<S> Layer<S> for LockedLayer {
    type Service = OnlyAnswered<S>;

    fn layer(&self, inner: S) -> OnlyAnswered<S> {
        OnlyAnswered(inner)
    }
}

#[derive(Clone, Debug)]
struct OnlyAnswered<S>(S);

impl<S> Service<http::Request<Body>> for OnlyAnswered<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if ANSWERED.contains(&request.uri().path()) {
            return Box::pin(self.0.call(request));
        }
        let response = Status::from(Refusal::Locked).into_http();
        Box::pin(std::future::ready(Ok(response)))
    }
}
