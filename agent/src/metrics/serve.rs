//! The HTTP side: `GET /metrics`, and nothing else.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::families::families;
use super::text::{self, render};
use crate::node::Agent;

/// Connections at one time; more wait in the listener's backlog. Few scrapers look at one node.
const CONNECTIONS_MAX: usize = 8;

/// How long a connection may last. A scraper that keeps its connection opens another one.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a request's head may take to arrive, so that who says nothing takes no place.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of a request's head; hyper's least is 8 KiB.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Pause after a connection could not be accepted: what is missing then, descriptors or memory, does
/// not come back at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why metrics cannot be told.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for requests for metrics on {address}: give --metrics-addr another one")]
pub(crate) struct MetricsError {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// Listens on `address`.
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, MetricsError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| MetricsError { address, source })
}

/// Answers until `stop`.
pub(crate) async fn serve(listener: TcpListener, agent: Arc<Agent>, stop: CancellationToken) {
    let page = move || {
        let agent = agent.clone();
        async move {
            let told = agent.told().await;
            render(&families(&told))
        }
    };
    tokio::select! {
        () = answer(listener, page) => {}
        () = stop.cancelled() => {}
    }
}

/// Answers each request with what `page` gives.
async fn answer<P, F>(listener: TcpListener, page: P)
where
    P: Fn() -> F + Clone + Send + Sync + 'static,
    F: Future<Output = String> + Send,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a request for metrics was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let page = page.clone();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection(stream, page)).await;
            drop(place);
        });
    }
}

async fn connection<P, F>(stream: TcpStream, page: P)
where
    P: Fn() -> F + Send + Sync,
    F: Future<Output = String> + Send,
{
    let respond = service_fn(|request: Request<Incoming>| {
        let asked = asked(request.method(), request.uri().path());
        let page = &page;
        async move {
            Ok::<_, Infallible>(match asked {
                Ok(()) => response(StatusCode::OK, page().await),
                Err((status, text)) => response(status, text.to_owned()),
            })
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), respond).await {
        tracing::debug!(%error, "a connection for metrics ended");
    }
}

/// Whether the metrics are asked for, or what to say instead.
fn asked(method: &Method, path: &str) -> Result<(), (StatusCode, &'static str)> {
    match path {
        "/metrics" if matches!(*method, Method::GET | Method::HEAD) => Ok(()),
        "/metrics" => Err((StatusCode::METHOD_NOT_ALLOWED, "only GET\n")),
        _ => Err((StatusCode::NOT_FOUND, "there is only /metrics\n")),
    }
}

fn response(status: StatusCode, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(text::CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    async fn start() -> SocketAddr {
        let listener = listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(answer(listener, || async { "swarm_up 1\n".to_owned() }));
        address
    }

    async fn exchange(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
        read.expect("the connection ends").unwrap();
        String::from_utf8(answer).unwrap()
    }

    fn get(path: &str) -> Vec<u8> {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").into_bytes()
    }

    #[tokio::test]
    async fn metrics_are_told_to_who_asks_for_them() {
        let address = start().await;
        let answer = exchange(address, &get("/metrics")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(
            answer.contains("content-type: text/plain; version=0.0.4"),
            "{answer}"
        );
        assert!(answer.ends_with("\r\n\r\nswarm_up 1\n"), "{answer}");
        let answer = exchange(address, &get("/")).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        let post =
            b"POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        let answer = exchange(address, post).await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        let answer = exchange(address, b"\x16\x03\x01 nonsense\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }

    #[tokio::test]
    async fn who_says_nothing_holds_nobody_up_for_long() {
        let address = start().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        // All places are taken until the first of them is given up.
        let asked = tokio::time::Instant::now();
        let answer = exchange(address, &get("/metrics")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(
            asked.elapsed() > HEAD_TIMEOUT / 2,
            "more places than there are"
        );
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_refused_with_the_remedy() {
        let address = start().await;
        let error = listen(address).await.unwrap_err().to_string();
        assert!(error.contains("--metrics-addr"), "{error}");
    }
}
