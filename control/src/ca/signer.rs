//! Who signs: this manager with the swarm's key, or an external authority that it asks over HTTPS.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::{InvalidDnsNameError, ServerName};
use swarm_model::{Cluster, ExternalCa};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use super::creds::{CredentialsError, external_config};
use super::external::{self, BadAnswer, MAX_ANSWER_BYTES, Wanted};
use super::{Authority, IssueError, RootCa, Subject, Term, rotation};
use crate::clock;
use crate::error_text::error_text;

/// Requests that are on their way at a time. A whole swarm that renews together must not be a flood for an
/// authority of somebody else.
const MAX_IN_FLIGHT: usize = 8;

/// Time for one authority to answer.
const ONE_DEADLINE: Duration = Duration::from_secs(4);

/// Time for all of it, waiting for a place included. Shorter than agents wait for their certificates, so
/// that they are told why there is none.
const ALL_DEADLINE: Duration = Duration::from_secs(8);

/// How often all authorities are asked while one of them could not be reached, and the pause in between:
/// for one that is just being restarted. Later tries are those of who wants the certificate.
const ROUNDS: usize = 2;
const PAUSE: Duration = Duration::from_secs(1);

/// Most of an answer's head that is kept.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Why no external authority has signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no external CA has signed the certificate: {0}; see that it runs, and that it takes certificates of this \
     swarm's root (`swarmctl swarm ca`) from its clients, or name another with `swarmctl swarm update \
     --external-ca`; what runs goes on"
)]
pub(crate) struct ExternalFailure(String);

/// Why one has not.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("its URL cannot be read")]
    Url(#[source] hyper::http::uri::InvalidUri),
    #[error("its URL names no host")]
    Host,
    #[error("its host's name is none")]
    Name(#[from] InvalidDnsNameError),
    #[error("cannot make TLS for it")]
    Tls(#[from] CredentialsError),
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    #[error("cannot agree on TLS")]
    Handshake(#[source] std::io::Error),
    #[error("cannot ask it")]
    Request(#[source] hyper::http::Error),
    #[error("the connection failed")]
    Connection(#[from] hyper::Error),
    #[error("no answer within {} s", ONE_DEADLINE.as_secs())]
    Late,
    #[error(transparent)]
    Answer(#[from] BadAnswer),
}

/// A certificate.
#[derive(Debug)]
pub(crate) struct Issued {
    /// The chain, leaf first, PEM.
    pub(crate) chain_pem: String,
    /// How long it is good from now.
    pub(crate) life: Duration,
}

/// Has certificates signed by whoever signs for the swarm. Cheap to clone; copies are the same.
#[derive(Clone, Debug)]
pub(crate) struct Signer {
    /// What external authorities are shown; none before this manager has a certificate.
    own: Option<watch::Receiver<Arc<ClientConfig>>>,
    places: Arc<Semaphore>,
    trouble: Arc<Mutex<String>>,
}

impl Signer {
    /// External authorities are shown the certificate of the newest configuration in `own`.
    pub(crate) fn new(own: Option<watch::Receiver<Arc<ClientConfig>>>) -> Self {
        Self {
            own,
            places: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            trouble: Arc::default(),
        }
    }

    /// Why the last certificate that an external authority was asked for was not signed; empty when it was.
    pub(crate) fn trouble(&self) -> String {
        self.trouble_now().clone()
    }

    /// A certificate of `cluster` for `subject`, with the public key of the request `csr` (PKCS#10, DER), as
    /// [`Authority::issue`] makes it. How long it is good an external authority decides, not `term`.
    ///
    /// Takes up to 8 s where an external authority is to sign.
    pub(crate) async fn issue(
        &self,
        cluster: &Cluster,
        csr: &[u8],
        subject: &Subject,
        term: Term,
    ) -> Result<Issued, IssueError> {
        let Some(authorities) = external::asked(cluster)? else {
            self.trouble_now().clear();
            let chain = Authority::new(cluster)?.issue(csr, subject, term, &mut rand::rng())?;
            return Ok(Issued {
                chain_pem: chain,
                life: term.life,
            });
        };
        let wanted = Wanted::node(cluster, csr, subject)?;
        let (pem, life) = self.ask(cluster, &authorities, &wanted).await?;
        Ok(Issued {
            chain_pem: pem + &rotation::chain_tail(cluster),
            life,
        })
    }

    /// Name and key of `root` in a certificate that the external authority of `cluster`'s root of now has
    /// signed, PEM.
    pub(crate) async fn cross_sign(
        &self,
        cluster: &Cluster,
        root: &RootCa,
    ) -> Result<String, IssueError> {
        let authorities = external::of_root(cluster, &cluster.root_ca_pem);
        if authorities.is_empty() {
            return Err(IssueError::NoSigner);
        }
        let wanted = Wanted::root(cluster, root, clock::now(), &mut rand::rng())?;
        Ok(self.ask(cluster, &authorities, &wanted).await?.0)
    }

    /// Asks one after the other.
    async fn ask(
        &self,
        cluster: &Cluster,
        authorities: &[ExternalCa],
        wanted: &Wanted,
    ) -> Result<(String, Duration), ExternalFailure> {
        let trusted = rotation::trusted_roots(cluster);
        let request = wanted.request();
        let deadline = Instant::now() + ALL_DEADLINE;
        let mut reasons = Vec::new();
        let asking = async {
            // It is never closed.
            let _place = self.places.acquire().await.ok()?;
            for round in 0..ROUNDS {
                if round > 0 {
                    sleep(PAUSE).await;
                }
                reasons.clear();
                let mut again = false;
                for ca in authorities {
                    let one = self.ask_one(ca, &trusted, &request, wanted);
                    match timeout(ONE_DEADLINE, one)
                        .await
                        .unwrap_or(Err(AskError::Late))
                    {
                        Ok(signed) => return Some(signed),
                        Err(error) => {
                            again |= !matches!(error, AskError::Answer(_));
                            reasons.push(format!("{}: {}", ca.url, error_text(&error)));
                        }
                    }
                }
                if !again {
                    break;
                }
            }
            None
        };
        let signed = timeout_at(deadline, asking).await.ok().flatten();
        let signed = signed.ok_or_else(|| {
            if reasons.is_empty() {
                reasons.push("too many certificates are asked for at once".to_owned());
            }
            ExternalFailure(reasons.join("; "))
        });
        let mut trouble = self.trouble_now();
        match &signed {
            Ok(_) => trouble.clear(),
            Err(failure) => {
                tracing::warn!("{failure}");
                *trouble = failure.to_string();
            }
        }
        signed
    }

    async fn ask_one(
        &self,
        ca: &ExternalCa,
        trusted: &str,
        request: &str,
        wanted: &Wanted,
    ) -> Result<(String, Duration), AskError> {
        let own = self.own.as_ref().map(|own| Arc::clone(&own.borrow()));
        let tls = external_config(own.as_deref(), trusted)?;
        let (status, answer) = post(&ca.url, tls, request).await?;
        Ok(wanted.read(status, &answer, clock::now())?)
    }

    fn trouble_now(&self) -> MutexGuard<'_, String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends `body`, JSON, to `url`; gives HTTP status and body of the answer, of which no more is read than is
/// looked at.
async fn post(url: &str, tls: ClientConfig, body: &str) -> Result<(u16, Vec<u8>), AskError> {
    let uri: hyper::Uri = url.parse().map_err(AskError::Url)?;
    let authority = uri.authority().ok_or(AskError::Host)?;
    let host = authority.host().trim_matches(['[', ']']);
    let port = authority.port_u16().unwrap_or(443);
    let name = ServerName::try_from(host.to_owned())?;
    let path = uri.path_and_query().map_or("/", |it| it.as_str());
    let request = hyper::Request::post(path)
        .header(HOST, authority.as_str())
        .header(CONTENT_TYPE, "application/json")
        .body(body.to_owned())
        .map_err(AskError::Request)?;

    let stream = TcpStream::connect((host, port)).await;
    let stream = stream.map_err(AskError::Connect)?;
    let connector = TlsConnector::from(Arc::new(tls));
    let stream = connector.connect(name, stream).await;
    let stream = TokioIo::new(stream.map_err(AskError::Handshake)?);
    let mut http = http1::Builder::new();
    http.max_buf_size(MAX_HEAD_BYTES);
    let (mut sender, connection) = http.handshake(stream).await?;
    // Ends with this set.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let answer = sender.send_request(request).await?;
    let status = answer.status().as_u16();
    Ok((status, read(answer.into_body()).await?))
}

/// As much of `body` as tells whether it is too large.
async fn read(mut body: Incoming) -> Result<Vec<u8>, hyper::Error> {
    let mut bytes = Vec::new();
    while bytes.len() <= MAX_ANSWER_BYTES {
        let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await else {
            break;
        };
        if let Ok(data) = frame?.into_data() {
            let room = (MAX_ANSWER_BYTES + 1).saturating_sub(bytes.len());
            bytes.extend_from_slice(&data[..room.min(data.len())]);
        }
    }
    Ok(bytes)
}
