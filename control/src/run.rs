//! Putting the manager together, running it, and taking it apart.
//!
//! Tasks: the leader's loop, the two servers, what carries Raft's messages, what keeps this manager a
//! member, the renewal of its own certificate; all in one `JoinSet`, ended by one token. Raft has a
//! thread of its own. When any of them ends before it was told to, the process ends with its error:
//! the agent starts it again.

use std::convert::Infallible;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use rustls::{ClientConfig, ServerConfig};
use swarm_model::{
    ClusterId, ClusterSpec, ManagerStatus, NodeId, Renewal, UnlockKey, validate_cluster,
};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::autolock::Keeper;
use crate::bootstrap::{FIRST_RAFT_ID, Founder, new_swarm};
use crate::ca::rotation::chain_tail;
use crate::ca::{CredentialsFile, Needed, OwnCertificate, Signer, new_root};
use crate::config::Config;
use crate::dispatch::Dispatcher;
use crate::failure::Failure;
use crate::membership::Membership;
use crate::raft::{
    AddressBook, AloneError, Config as LogConfig, LogError, Node, RaftService, StartError,
    Superseded,
};
use crate::serve::{Dialer, Network, bind_socket, serve_local, serve_locked, serve_network};
use crate::store::Store;
use crate::{clock, leader, recovery};

/// Time that a manager which is still ending gets to let go of the log.
const LOCK_DEADLINE: Duration = Duration::from_secs(10);

/// How often the log is tried while it is locked.
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// Time that another manager gets to lead before this one ends: a round trip. Without it the others
/// would wait for an election timeout.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(1);

/// Time that tasks get to end by themselves.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Runs the manager until it is told to stop or cannot go on.
pub(crate) async fn run(config: Config) -> Result<(), Failure> {
    warn_if_root();
    let stop = CancellationToken::new();
    let mut watchers = JoinSet::new();
    watch_signals(&stop, &mut watchers)?;
    watch_stdin(stop.clone());
    run_until(config, stop).await
}

/// Runs the manager until `stop`, or until it cannot go on.
async fn run_until(config: Config, stop: CancellationToken) -> Result<(), Failure> {
    let opening = async {
        let log = LogConfig {
            dir: config.state_dir.join("raft"),
            unlock: unlocked(&config).await?,
        };
        let opened = open_log(&config, &log).await?;
        Ok::<_, Failure>((log, opened))
    };
    let (log, opened) = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        opened = opening => opened?,
    };
    // Before a new swarm is made: an address that is taken must not leave one behind.
    let listener = listen(config.listen_address).await?;
    let (store, mut raft) = match opened {
        Some(opened) => opened,
        None if config.force_new_cluster => force_new_cluster(&config, &log)?,
        None if config.join.is_some() => join(&config, &log)?,
        None => found(&config, &log)?,
    };
    let parts = Parts::new(&config, &store, &mut raft).await?;
    let end = CancellationToken::new();
    let ending = async {
        stop.cancelled().await;
        // While everything still runs that the others need for it.
        hand_over(&store).await;
        end.cancel();
        std::future::pending::<Infallible>().await
    };
    let result = tokio::select! {
        result = serve(&config, listener, &store, parts, &end) => result,
        never = ending => match never {},
        ended = raft.ended() => {
            return Err(ended.map_or_else(Failure::Raft, |()| Failure::Ended("the log")));
        }
    };
    let stopped = raft.stop().await.map_err(Failure::Raft);
    result.and(stopped)
}

/// What is found out, and connected with the log, before anything runs.
struct Parts {
    self_id: NodeId,
    cluster_id: ClusterId,
    raft_id: u64,
    raft: RaftService,
    transport: Pin<Box<dyn Future<Output = Result<(), Superseded>> + Send>>,
    dialer: Dialer,
    signer: Signer,
    own: Own,
    keeper: Keeper,
}

/// The manager's own certificate, as those who need it see it.
struct Own {
    /// What the listener serves.
    server: watch::Sender<Arc<ServerConfig>>,
    /// What other managers are shown.
    client: watch::Sender<Arc<ClientConfig>>,
    /// Who has signed it.
    issuer: watch::Sender<String>,
    renewal: Renewal,
    /// What follows it in its chain.
    tail_pem: String,
}

impl Parts {
    async fn new(config: &Config, store: &Store, raft: &mut Node) -> Result<Self, Failure> {
        let raft_id = raft.raft_id();
        let key = raft.kept_key().cloned().ok_or(Failure::Ended("the log"))?;
        let seal = Some(raft.file_seal().clone());
        let credentials = CredentialsFile::new(own_path(config), seal, key.is_sealed());
        let (self_id, cluster_id, own) = identify(config, &credentials, store, raft_id).await?;
        let keeper = Keeper {
            store: store.clone(),
            key,
            credentials,
        };
        let own = Own {
            server: watch::Sender::new(Arc::new(own.server)),
            client: watch::Sender::new(Arc::new(own.client)),
            issuer: watch::Sender::new(own.issuer),
            renewal: own.renewal,
            tail_pem: own.tail_pem,
        };
        let dialer = Dialer::new(own.client.subscribe());
        let signer = Signer::new(Some(own.client.subscribe()));
        let book = AddressBook::new(store.clone());
        let transport = raft.transport(book.clone(), dialer.clone(), config.advertise_address);
        Ok(Self {
            self_id,
            cluster_id,
            raft_id,
            raft: raft.service(store, &book),
            transport: Box::pin(transport.ok_or(Failure::Ended("the log"))?),
            dialer,
            signer,
            own,
            keeper,
        })
    }
}

/// Runs everything above the log.
async fn serve(
    config: &Config,
    listener: TcpListener,
    store: &Store,
    parts: Parts,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let Parts {
        self_id,
        cluster_id,
        raft_id,
        raft,
        transport,
        dialer,
        signer,
        own,
        keeper,
    } = parts;
    let dispatcher = Dispatcher::new(store.clone(), self_id.clone());
    let local = bind_socket(&config.socket)?;

    let mut tasks: JoinSet<Result<(), Failure>> = JoinSet::new();
    tasks.spawn({
        let run = leader::run(
            store.clone(),
            dispatcher.clone(),
            self_id.clone(),
            stop.clone(),
        );
        async {
            run.await;
            Ok(())
        }
    });
    let membership = Membership {
        store: store.clone(),
        dialer: dialer.clone(),
        self_id: self_id.clone(),
        raft_id,
        address: config.advertise_address,
        remote: config.join,
        issuer: own.issuer.subscribe(),
    };
    tasks.spawn(until(stop.clone(), async {
        transport.await.map_err(Failure::Superseded)
    }));
    tasks.spawn(until(stop.clone(), async {
        membership.keep().await;
        Ok(())
    }));
    let network = Network {
        listener,
        tls: own.server.subscribe(),
        cluster_id: cluster_id.clone(),
        self_id: self_id.clone(),
        dispatcher,
        raft,
        dialer: dialer.clone(),
        signer: signer.clone(),
    };
    let serving = serve_network(network, store.clone(), stop.clone());
    tasks.spawn(async { serving.await.map_err(Failure::Server) });
    let serving = serve_local(
        local,
        self_id.clone(),
        store.clone(),
        dialer,
        signer.clone(),
        stop.clone(),
    );
    tasks.spawn(async { serving.await.map_err(Failure::Server) });
    let credentials = keeper.credentials.clone();
    tasks.spawn(until(stop.clone(), async {
        keeper.keep().await;
        Ok(())
    }));
    tasks.spawn(renew(
        credentials,
        store.clone(),
        self_id.clone(),
        own,
        signer,
        stop.clone(),
    ));
    tracing::info!(
        node_id = %self_id,
        %cluster_id,
        raft_id,
        listen_address = %config.listen_address,
        "the manager is ready"
    );
    let result = supervise(tasks, stop).await;
    // Who connects from now on is told at once that nobody answers.
    let _ = std::fs::remove_file(&config.socket);
    result
}

/// `work`, cut off at `stop`.
async fn until(
    stop: CancellationToken,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    tokio::select! {
        outcome = work => outcome,
        () = stop.cancelled() => Ok(()),
    }
}

/// Lets another manager lead, where there is one, before this one ends.
async fn hand_over(store: &Store) {
    let alone = store.members().borrow().voters.len() < 2;
    if alone || !store.leadership().borrow().leader {
        return;
    }
    store.hand_over();
    let mut leadership = store.leadership();
    let handed = leadership.wait_for(|now| !now.leader);
    let _ = timeout(HAND_OVER_DEADLINE, handed).await;
}

fn own_path(config: &Config) -> PathBuf {
    config.state_dir.join("tls/manager.pem")
}

/// Waits for `stop`, or for a task that ends without it; then lets the others end.
async fn supervise(
    mut tasks: JoinSet<Result<(), Failure>>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let early = tokio::select! {
        // First: tasks that end because they were told to are no failure.
        biased;
        () = stop.cancelled() => Ok(()),
        ended = tasks.join_next() => flatten(ended).and(Err(Failure::Ended("a task"))),
    };
    if early.is_ok() {
        tracing::info!("the manager is stopping");
    }
    stop.cancel();
    let rest = async {
        let mut result = early;
        while let Some(ended) = tasks.join_next().await {
            result = result.and(flatten(Some(ended)));
        }
        result
    };
    match timeout(STOP_DEADLINE, rest).await {
        Ok(result) => result,
        // What did not end is cut off with the process.
        Err(_elapsed) => Ok(()),
    }
}

fn flatten(ended: Option<Result<Result<(), Failure>, JoinError>>) -> Result<(), Failure> {
    match ended {
        None => Ok(()),
        Some(Ok(result)) => result,
        Some(Err(error)) => Err(Failure::Task(error)),
    }
}

/// The key that this manager's keys are sealed with on disk, once somebody has given it; none where they
/// are not sealed. Until then nothing else is done.
async fn unlocked(config: &Config) -> Result<Option<UnlockKey>, Failure> {
    let log = LogConfig {
        dir: config.state_dir.join("raft"),
        unlock: None,
    };
    let sealed = Node::sealed_key(&log).map_err(|error| Failure::Log(error.into()))?;
    let Some(sealed) = sealed else {
        return Ok(None);
    };
    let listener = bind_socket(&config.socket)?;
    tracing::warn!("this manager is locked: it waits for `swarmctl swarm unlock`");
    let served = serve_locked(listener, move |key| sealed.is_opened_by(key)).await;
    let key = served.map_err(Failure::Server)?;
    let key = key.ok_or(Failure::Ended("the local server"))?;
    tracing::info!("this manager was unlocked");
    Ok(Some(key))
}

/// The log in the state directory; none where there is none and one may be made. A manager that is
/// just ending may still have it open.
async fn open_log(config: &Config, log: &LogConfig) -> Result<Option<(Store, Node)>, Failure> {
    if config.force_new_cluster {
        // Its log is there, and is to be changed before it is run.
        return Ok(None);
    }
    let deadline = Instant::now() + LOCK_DEADLINE;
    let mut told = false;
    loop {
        match Node::open(log) {
            Ok(opened) => return Ok(Some(opened)),
            Err(StartError::Log(LogError::Missing { .. }))
                if config.bootstrap || config.join.is_some() =>
            {
                return Ok(None);
            }
            Err(StartError::Log(LogError::Missing { .. })) => {
                return Err(Failure::NoSwarm(config.state_dir.clone()));
            }
            Err(StartError::Log(LogError::Locked { .. })) if Instant::now() < deadline => {
                if !told {
                    tracing::info!("waiting for another process to let go of the log");
                    told = true;
                }
                sleep(LOCK_INTERVAL).await;
            }
            Err(error) => return Err(Failure::Log(error)),
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address)
        .await
        .map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => Failure::AddressInUse(address),
            io::ErrorKind::AddrNotAvailable => Failure::AddressNotHere(address),
            _ => Failure::Listen { address, source },
        })
}

/// Makes a new swarm.
fn found(config: &Config, log: &LogConfig) -> Result<(Store, Node), Failure> {
    let node_id = config
        .node_id
        .clone()
        .ok_or_else(|| Failure::NoSwarm(config.state_dir.clone()))?;
    let founder = Founder {
        node_id,
        address: config.advertise_address,
        data_path_address: config
            .data_path_address
            .unwrap_or_else(|| config.advertise_address.ip()),
    };
    let mut spec = ClusterSpec {
        autolock: config.autolock,
        ..ClusterSpec::default()
    };
    if let Some(milliseconds) = config.certificate_expiry_ms {
        spec.certificate_expiry = Duration::from_millis(milliseconds);
    }
    validate_cluster(&spec).map_err(Failure::Settings)?;
    let now = clock::now();
    let root = new_root(now).map_err(Failure::Root)?;
    let changes = new_swarm(founder, spec, root, now, &mut rand::rng());
    tracing::info!("making a new swarm");
    Node::bootstrap(log, FIRST_RAFT_ID, changes).map_err(Failure::Log)
}

/// Makes this manager the only one of its swarm, and runs its log.
fn force_new_cluster(config: &Config, log: &LogConfig) -> Result<(Store, Node), Failure> {
    let node_id = (config.node_id.as_ref()).ok_or(Failure::Incomplete("a swarm"))?;
    let raft_id = new_raft_id();
    let address = config.advertise_address;
    let alone = Node::go_on_alone(log, raft_id, |state, was| {
        recovery::go_on_alone(state, node_id, (was, raft_id), address, clock::now())
    });
    match alone {
        Ok(()) => {}
        Err(AloneError::Log(LogError::Missing { .. })) => {
            return Err(Failure::NoSwarm(config.state_dir.clone()));
        }
        Err(error) => return Err(Failure::Alone(error)),
    }
    tracing::warn!(raft_id, "this manager goes on alone");
    Node::open(log).map_err(Failure::Log)
}

/// A number for a new member of Raft: never used again, by chance alone, since there are more numbers
/// than managers there will ever be.
fn new_raft_id() -> u64 {
    rand::rng().random_range(1..=u64::MAX >> 1)
}

/// Makes the log of a new manager of a swarm, which the others will fill.
fn join(config: &Config, log: &LogConfig) -> Result<(Store, Node), Failure> {
    // Without its certificate nobody would talk to it, and no log should be left behind then.
    let node_id = (config.node_id.as_ref()).ok_or(Failure::Incomplete("a swarm"))?;
    let file = CredentialsFile::new(own_path(config), None, false);
    OwnCertificate::load(&file, node_id, &mut rand::rng())?;
    Node::join(log, new_raft_id()).map_err(Failure::Log)
}

/// Which node of which swarm this is, and its certificate. A new manager's store is empty: there the
/// certificate that its agent has left says it.
async fn identify(
    config: &Config,
    file: &CredentialsFile,
    store: &Store,
    raft_id: u64,
) -> Result<(NodeId, ClusterId, OwnCertificate), Failure> {
    let Some(cluster) = store.read(|state| state.cluster().cloned()) else {
        let incomplete = Failure::Incomplete("a swarm");
        let node_id = config.node_id.clone().ok_or(incomplete)?;
        let (own, cluster_id) = OwnCertificate::load(file, &node_id, &mut rand::rng())?;
        return Ok((node_id, cluster_id, own));
    };
    let found = store.read(|state| {
        let is_own = |manager: &ManagerStatus| manager.raft_id == raft_id;
        let mut nodes = state.nodes();
        nodes
            .find(|node| node.manager.as_ref().is_some_and(is_own))
            .cloned()
    });
    let self_id = match (found, &config.node_id) {
        (Some(found), Some(wanted)) if found.id != *wanted => {
            return Err(Failure::OtherNode {
                path: config.state_dir.clone(),
                found: found.id.clone(),
                wanted: wanted.clone(),
            });
        }
        (Some(found), _) => found.id.clone(),
        (None, Some(wanted)) => return Err(Failure::Demoted(wanted.clone())),
        (None, None) => return Err(Failure::Incomplete("this node")),
    };
    let now = clock::now();
    // There may be no certificate to show an external authority.
    let signer = Signer::new(None);
    let own = OwnCertificate::load_or_request(file, &cluster, &self_id, now, &signer, Needed::Good);
    let own = own.await?;
    Ok((self_id, cluster.id.clone(), own))
}

/// Replaces the manager's own certificate whenever that is due, and as soon as the swarm has another root.
/// Connections that are open stay.
async fn renew(
    file: CredentialsFile,
    store: Store,
    self_id: NodeId,
    mut own: Own,
    signer: Signer,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let mut changed = store.watch();
    let mut wanted = own.tail_pem.clone();
    loop {
        changed.borrow_and_update();
        let tail = store.read(|state| state.cluster().map(|it| chain_tail(it)));
        if let Some(tail) = tail.filter(|tail| *tail != wanted) {
            wanted = tail;
            if wanted != own.tail_pem {
                own.renewal.hasten(clock::now());
            }
        }
        if clock::now() < own.renewal.due() {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sleep(own.renewal.wait(clock::now())) => {}
                news = changed.changed() => if news.is_err() {
                    stop.cancelled().await;
                    return Ok(());
                }
            }
            continue;
        }
        let renewed = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            renewed = renewed(&file, &store, &self_id, &signer) => renewed,
        };
        match renewed {
            Ok(new) => {
                own.renewal = new.renewal;
                own.tail_pem = new.tail_pem;
                own.server.send_replace(Arc::new(new.server));
                own.client.send_replace(Arc::new(new.client));
                // Last: whoever hears of it takes it for in use.
                own.issuer.send_if_modified(|issuer| {
                    let is_news = *issuer != new.issuer;
                    *issuer = new.issuer;
                    is_news
                });
                tracing::info!("renewed the manager's certificate");
            }
            Err(failure) => {
                let error = anyhow::Error::from(failure);
                tracing::warn!("cannot renew the manager's certificate: {error:#}");
                own.renewal.failed(clock::now(), &mut rand::rng());
            }
        }
    }
}

async fn renewed(
    file: &CredentialsFile,
    store: &Store,
    self_id: &NodeId,
    signer: &Signer,
) -> Result<OwnCertificate, Failure> {
    let cluster = store
        .read(|state| state.cluster().cloned())
        .ok_or(Failure::Incomplete("a swarm"))?;
    let now = clock::now();
    let own = OwnCertificate::load_or_request(file, &cluster, self_id, now, signer, Needed::Fresh);
    Ok(own.await?)
}

/// Lets SIGTERM and SIGINT end the process in order.
fn watch_signals(stop: &CancellationToken, watchers: &mut JoinSet<()>) -> Result<(), Failure> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).map_err(Failure::Signals)?;
        let stop = stop.clone();
        watchers.spawn(async move {
            signals.recv().await;
            tracing::info!("told to stop by a signal");
            stop.cancel();
        });
    }
    Ok(())
}

/// Ends the process in order when standard input closes: the agent holds the other end, so that
/// however the agent ends, its manager does not stay behind. A thread of its own, since reading a
/// file that is no pipe may block; it ends with the process.
fn watch_stdin(stop: CancellationToken) {
    std::thread::spawn(move || {
        let mut nothing = [0; 64];
        let mut stdin = io::stdin().lock();
        loop {
            match stdin.read(&mut nothing) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        tracing::info!("standard input closed: the agent is gone");
        stop.cancel();
    });
}

/// The manager needs no privilege, and gives away the host with any that it has.
fn warn_if_root() {
    // The owner of /proc/self is the process's effective user.
    if std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
        tracing::warn!("running as root, which the manager never needs; start it as its own user");
    }
}

#[cfg(test)]
mod tests;
