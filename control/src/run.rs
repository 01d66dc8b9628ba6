//! Putting the manager together, running it, and taking it apart.
//!
//! Tasks: the leader's loop, the two servers, the renewal of the manager's own certificate; all in
//! one `JoinSet`, ended by one token. Raft has a thread of its own. When any of them ends before it
//! was told to, the process ends with its error: the agent starts it again.

use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use swarm_model::{Cluster, ClusterSpec, Node as SwarmNode, NodeId, Renewal, validate_cluster};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::bootstrap::{FIRST_RAFT_ID, Founder, new_swarm};
use crate::ca::{OwnCertificate, new_root};
use crate::config::Config;
use crate::dispatch::Dispatcher;
use crate::failure::Failure;
use crate::raft::{Config as LogConfig, LogError, Node, StartError};
use crate::serve::{Network, bind_socket, serve_local, serve_network};
use crate::store::{State, Store};
use crate::{clock, leader};

/// Time that a manager which is still ending gets to let go of the log.
const LOCK_DEADLINE: Duration = Duration::from_secs(10);

/// How often the log is tried while it is locked.
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// Time until the log must lead: several elections. Alone, it needs one.
const LEAD_DEADLINE: Duration = Duration::from_secs(15);

/// Time that tasks get to end by themselves.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Runs the manager until it is told to stop or cannot go on.
pub(crate) async fn run(config: Config) -> Result<(), Failure> {
    warn_if_root();
    let stop = CancellationToken::new();
    let mut watchers = JoinSet::new();
    watch_signals(&stop, &mut watchers)?;
    watch_stdin(stop.clone());

    let opened = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        opened = open_log(&config) => opened?,
    };
    // Before a new swarm is made: an address that is taken must not leave one behind.
    let listener = listen(config.listen_address).await?;
    let (store, mut raft) = match opened {
        Some(opened) => opened,
        None => found(&config)?,
    };
    let result = tokio::select! {
        result = serve(&config, listener, &store, raft.raft_id(), &stop) => result,
        ended = raft.ended() => {
            return Err(ended.map_or_else(Failure::Raft, |()| Failure::Ended("the log")));
        }
    };
    let stopped = raft.stop().await.map_err(Failure::Raft);
    result.and(stopped)
}

/// Runs everything above the log.
async fn serve(
    config: &Config,
    listener: TcpListener,
    store: &Store,
    raft_id: u64,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    if !lead(store, stop).await? {
        return Ok(());
    }
    let (cluster, self_id) = store.read(|state| identify(config, state, raft_id))?;
    record_address(store, &self_id, config.advertise_address).await?;

    let path = config.state_dir.join("tls/manager.pem");
    let now = clock::now();
    let own = OwnCertificate::load_or_issue(&path, &cluster, &self_id, now, &mut rand::rng())?;
    let (tls, tls_receiver) = watch::channel(Arc::new(own.server));
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
    let network = Network {
        listener,
        tls: tls_receiver,
        cluster_id: cluster.id.clone(),
        self_id: self_id.clone(),
        dispatcher,
    };
    let server = serve_network(network, store.clone(), stop.clone());
    tasks.spawn(async { server.await.map_err(Failure::Server) });
    let server = serve_local(local, self_id.clone(), store.clone(), stop.clone());
    tasks.spawn(async { server.await.map_err(Failure::Server) });
    tasks.spawn(renew(
        path,
        store.clone(),
        self_id.clone(),
        tls,
        own.renewal,
        stop.clone(),
    ));
    tracing::info!(
        node_id = %self_id,
        cluster_id = %cluster.id,
        listen_address = %config.listen_address,
        "the manager is ready"
    );
    let result = supervise(tasks, stop).await;
    // Who connects from now on is told at once that nobody answers.
    let _ = std::fs::remove_file(&config.socket);
    result
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

/// The log in the state directory; none where there is none and one may be made. A manager that is
/// just ending may still have it open.
async fn open_log(config: &Config) -> Result<Option<(Store, Node)>, Failure> {
    let deadline = Instant::now() + LOCK_DEADLINE;
    let mut told = false;
    loop {
        match Node::open(&log_config(config)) {
            Ok(opened) => return Ok(Some(opened)),
            Err(StartError::Log(LogError::Missing { .. })) if config.bootstrap => return Ok(None),
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

fn log_config(config: &Config) -> LogConfig {
    LogConfig {
        dir: config.state_dir.join("raft"),
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
fn found(config: &Config) -> Result<(Store, Node), Failure> {
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
    let mut spec = ClusterSpec::default();
    if let Some(milliseconds) = config.certificate_expiry_ms {
        spec.certificate_expiry = Duration::from_millis(milliseconds);
    }
    validate_cluster(&spec).map_err(Failure::Settings)?;
    let now = clock::now();
    let root = new_root(now).map_err(Failure::Root)?;
    let changes = new_swarm(founder, spec, root, now, &mut rand::rng());
    tracing::info!("making a new swarm");
    Node::bootstrap(&log_config(config), FIRST_RAFT_ID, changes).map_err(Failure::Log)
}

/// Waits until this manager leads; false when it is told to stop before.
async fn lead(store: &Store, stop: &CancellationToken) -> Result<bool, Failure> {
    let mut leadership = store.leadership();
    tokio::select! {
        () = stop.cancelled() => Ok(false),
        led = timeout(LEAD_DEADLINE, leadership.wait_for(|now| now.leader)) => match led {
            Ok(Ok(_)) => Ok(true),
            _ => Err(Failure::NoLeader(LEAD_DEADLINE)),
        },
    }
}

/// Which swarm and which node of it this is.
fn identify(
    config: &Config,
    state: &State,
    raft_id: u64,
) -> Result<(Arc<Cluster>, NodeId), Failure> {
    let cluster = state.cluster().ok_or(Failure::Incomplete("a swarm"))?;
    let own = |node: &&Arc<SwarmNode>| {
        let manager = node.manager.as_ref();
        manager.is_some_and(|manager| manager.raft_id == raft_id)
    };
    let node = state
        .nodes()
        .find(own)
        .ok_or(Failure::Incomplete("this node"))?;
    match &config.node_id {
        Some(wanted) if *wanted != node.id => Err(Failure::OtherNode {
            path: config.state_dir.clone(),
            found: node.id.clone(),
            wanted: wanted.clone(),
        }),
        _ => Ok((Arc::clone(cluster), node.id.clone())),
    }
}

/// Writes down where this manager is reached, if that has changed.
async fn record_address(
    store: &Store,
    self_id: &NodeId,
    address: SocketAddr,
) -> Result<(), Failure> {
    let update = store.update(|state| {
        let mut changes = Vec::new();
        if let Some(node) = state.node(self_id) {
            let mut node = SwarmNode::clone(node);
            if let Some(manager) = &mut node.manager
                && manager.address != address
            {
                manager.address = address;
                node.meta.updated_at = clock::now();
                changes.push(node.into());
            }
        }
        Ok((changes, ()))
    });
    update.await.map_err(Failure::Address)
}

/// Replaces the manager's own certificate whenever that is due. Connections that are open stay.
async fn renew(
    path: PathBuf,
    store: Store,
    self_id: NodeId,
    tls: watch::Sender<Arc<ServerConfig>>,
    mut renewal: Renewal,
    stop: CancellationToken,
) -> Result<(), Failure> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = sleep(renewal.wait(clock::now())) => {}
        }
        if clock::now() >= renewal.due() {
            match renewed(&path, &store, &self_id) {
                Ok(own) => {
                    renewal = own.renewal;
                    tls.send_replace(Arc::new(own.server));
                    tracing::info!("renewed the manager's certificate");
                }
                Err(failure) => {
                    let error = anyhow::Error::from(failure);
                    tracing::warn!("cannot renew the manager's certificate: {error:#}");
                    renewal.failed(clock::now(), &mut rand::rng());
                }
            }
        }
    }
}

fn renewed(path: &Path, store: &Store, self_id: &NodeId) -> Result<OwnCertificate, Failure> {
    let cluster = store
        .read(|state| state.cluster().cloned())
        .ok_or(Failure::Incomplete("a swarm"))?;
    Ok(OwnCertificate::load_or_issue(
        path,
        &cluster,
        self_id,
        clock::now(),
        &mut rand::rng(),
    )?)
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
