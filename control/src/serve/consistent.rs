//! Reads that the caller wants linearisable: they see everything that was acknowledged before they were
//! asked for, by whichever manager.
//!
//! Asked for with one line of metadata (`swarm_api::CONSISTENCY_METADATA`), on any method of `Control`.
//! The leader answers those, after a majority of the managers has confirmed that it still leads; without
//! that line it answers from memory at once, and one that is cut off may not know for up to two seconds that
//! others have written without it.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use swarm_api::{CONSISTENCY_METADATA, LINEARIZABLE};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tower::Layer;

use crate::store::{ReadError, Store};

impl From<ReadError> for Status {
    fn from(error: ReadError) -> Self {
        Self::unavailable(error.to_string())
    }
}

/// Puts the wait before every service; comes after forwarding.
#[derive(Clone, Debug)]
pub(super) struct ConsistentLayer(pub(super) Store);

impl<S> Layer<S> for ConsistentLayer {
    type Service = Consistent<S>;

    fn layer(&self, inner: S) -> Consistent<S> {
        Consistent {
            inner,
            store: self.0.clone(),
        }
    }
}

/// Services that wait where they are asked to.
#[derive(Clone, Debug)]
pub(super) struct Consistent<S> {
    inner: S,
    store: Store,
}

impl<S> Service<Request<Body>> for Consistent<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(wanted) = request.headers().get(CONSISTENCY_METADATA) else {
            return Box::pin(self.inner.call(request));
        };
        if wanted != LINEARIZABLE {
            let text = format!("{CONSISTENCY_METADATA} is {LINEARIZABLE}, or absent");
            let refused = Status::invalid_argument(text).into_http();
            return Box::pin(std::future::ready(Ok(refused)));
        }
        let store = self.store.clone();
        // The clone takes the place of the one that was found ready.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            match store.read_index().await {
                Ok(()) => inner.call(request).await,
                Err(error) => Ok(Status::from(error).into_http()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::oneshot;
    use tonic::Code;

    use super::*;
    use crate::store::{Backend, Proposal, Replica};

    /// Confirms nothing.
    struct Deposed;

    impl Backend for Deposed {
        fn propose(&self, _: Proposal) {}

        fn read_index(&self, done: oneshot::Sender<Result<(), ReadError>>) {
            let _ = done.send(Err(ReadError::NotLeader));
        }
    }

    /// The code that a call gets with `consistency`, from a service that answers everything.
    async fn asked(store: &Store, consistency: Option<&str>) -> Code {
        let answers = tower::service_fn(|_: Request<Body>| {
            std::future::ready(Ok::<_, Infallible>(Response::new(Body::empty())))
        });
        let mut request = Request::new(Body::empty());
        if let Some(value) = consistency {
            let value = value.parse().unwrap();
            request.headers_mut().insert(CONSISTENCY_METADATA, value);
        }
        let mut service = ConsistentLayer(store.clone()).layer(answers);
        let Ok(response) = service.call(request).await;
        let status = Status::from_header_map(response.headers());
        status.map_or(Code::Ok, |status| status.code())
    }

    #[tokio::test]
    async fn who_asks_for_it_waits_for_a_majority_and_nobody_else() {
        let deposed = Store::new(Arc::new(Replica::default()), Arc::new(Deposed));
        assert_eq!(asked(&deposed, None).await, Code::Ok);
        let refused = asked(&deposed, Some(LINEARIZABLE)).await;
        assert_eq!(refused, Code::Unavailable);
        let alone = Store::in_memory();
        assert_eq!(asked(&alone, Some(LINEARIZABLE)).await, Code::Ok);
        let refused = asked(&alone, Some("eventual")).await;
        assert_eq!(refused, Code::InvalidArgument);
    }
}
