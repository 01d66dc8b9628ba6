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
