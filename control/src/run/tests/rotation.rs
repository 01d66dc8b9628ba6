//! The swarm's root is changed while managers and nodes talk.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use swarm_api::v1::agent_message::Message;
use swarm_api::v1::dispatcher_client::DispatcherClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::ca::issuer_of;

/// What a node keeps.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) chain: String,
    pub(super) key: String,
    pub(super) roots: String,
}

impl Credentials {
    pub(super) fn issuer(&self) -> String {
        issuer_of(&CertificateDer::from_pem_slice(self.chain.as_bytes()).unwrap()).unwrap()
    }
}

/// A connection to the manager at `address` of someone who trusts `roots`.
pub(super) async fn dial(
    address: SocketAddr,
    roots: &str,
    own: Option<&Credentials>,
) -> Result<Channel, tonic::transport::Error> {
    let tls = tls(roots, own.map(|own| (own.chain.as_str(), own.key.as_str())));
    let connect = move |_: Uri| secured(tls.clone(), address);
    Endpoint::from_static("http://manager")
        .timeout(PATIENCE)
        .connect_with_connector(tower::service_fn(connect))
        .await
}

/// A node's agent, as far as certificates go.
pub(super) struct Agent {
    id: String,
    first: Credentials,
    credentials: Arc<Mutex<Credentials>>,
    /// Sessions that were open and ended.
    pub(super) ends: Arc<AtomicUsize>,
    running: Option<JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Agent {
    fn new(id: String, credentials: Credentials) -> Self {
        Self {
            id,
            first: credentials.clone(),
            credentials: Arc::new(Mutex::new(credentials)),
            ends: Arc::default(),
            running: None,
        }
    }

    /// The one that started `manager`.
    pub(super) async fn beside(manager: &Manager) -> Self {
        let (csr, key) = request();
        let mut control = LocalControlClient::new(manager.local());
        let request = v1::IssueManagerCertificateRequest { csr };
        let answer = control.issue_manager_certificate(request).await.unwrap();
        let answer = answer.into_inner();
        let credentials = Credentials {
            chain: answer.certificate_chain_pem,
            key,
            roots: answer.root_ca_pem,
        };
        Self::new(manager.id(), credentials)
    }

    /// A new worker's.
    pub(super) async fn join(of: &Manager) -> Self {
        let token = worker_token(of).await;
        let answer = ask_to_join(of, &token, &root(of).await).await.unwrap();
        let (answer, key) = answer;
        let credentials = Credentials {
            chain: answer.certificate_chain_pem,
            key,
            roots: answer.root_ca_pem,
        };
        Self::new(answer.node_id, credentials)
    }

    /// Keeps a session with one of the `managers`.
    pub(super) fn start(&mut self, managers: &[&Manager]) {
        let addresses: Vec<_> = managers
            .iter()
            .map(|it| it.config.advertise_address)
            .collect();
        let (credentials, ends) = (self.credentials.clone(), self.ends.clone());
        self.running = Some(tokio::spawn(async move {
            for address in addresses.iter().cycle() {
                if session(*address, &credentials).await.is_ok() {
                    ends.fetch_add(1, Ordering::Relaxed);
                }
                sleep(LOOK).await;
            }
        }));
    }

    pub(super) fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
    }

    pub(super) fn credentials(&self) -> Credentials {
        locked(&self.credentials).clone()
    }
}

fn locked(credentials: &Mutex<Credentials>) -> std::sync::MutexGuard<'_, Credentials> {
    credentials.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One session; fails when it is not opened.
async fn session(address: SocketAddr, kept: &Mutex<Credentials>) -> Result<(), Status> {
    let own = locked(kept).clone();
    let channel = dial(address, &own.roots, Some(&own)).await;
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    let (outgoing, messages) = mpsc::channel(64);
    let say = async |message| {
        let message = Some(message);
        let _ = outgoing.send(v1::AgentMessage { message }).await;
    };
    say(Message::Hello(v1::Hello {
        certificate_issuer: own.issuer(),
        ..v1::Hello::default()
    }))
    .await;
    let mut client = DispatcherClient::new(channel.clone());
    let stream = client.session(ReceiverStream::new(messages)).await?;
    let mut incoming = stream.into_inner();
    let mut heartbeat = tokio::time::interval(Duration::from_millis(300));
    loop {
        let message = tokio::select! {
            _ = heartbeat.tick() => {
                say(Message::Heartbeat(v1::Heartbeat {})).await;
                continue;
            }
            message = incoming.message() => message,
        };
        let Ok(Some(message)) = message else {
            return Ok(());
        };
        let Some(v1::manager_message::Message::Standing(standing)) = message.message else {
            continue;
        };
        locked(kept).roots = standing.root_ca_pem;
        let has = locked(kept).issuer();
        if has != standing.certificate_issuer {
            let (csr, key) = request();
            let renew = v1::RenewNodeCertificateRequest { csr };
            let mut authority = NodeCaClient::new(channel.clone());
            let Ok(renewed) = authority.renew_node_certificate(renew).await else {
                return Ok(());
            };
            let renewed = renewed.into_inner();
            let new = Credentials {
                chain: renewed.certificate_chain_pem,
                key,
                roots: renewed.root_ca_pem,
            };
            let issuer = new.issuer();
            *locked(kept) = new;
            say(Message::Certificate(v1::CertificateInUse { issuer })).await;
        }
    }
}

pub(super) async fn root(of: &Manager) -> String {
    of.lasting().await.unwrap().0.root_ca_pem
}

pub(super) async fn worker_token(of: &Manager) -> String {
    let [worker, _] = of.lasting().await.unwrap().1;
    worker
}

pub(super) async fn ask_to_join(
    of: &Manager,
    token: &str,
    root: &str,
) -> Result<(v1::IssueNodeCertificateResponse, String), Status> {
    let (csr, key) = request();
    let channel = dial(of.config.advertise_address, root, None).await;
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    let token = token.to_owned();
    let issue = v1::IssueNodeCertificateRequest { token, csr };
    let mut authority = NodeCaClient::new(channel);
    let answer = authority.issue_node_certificate(issue).await?;
    Ok((answer.into_inner(), key))
}

pub(super) async fn rotate(of: &Manager) -> String {
    let rotate = v1::RotateRootRequest::default();
    let begun = ControlClient::new(of.local()).rotate_root(rotate).await;
    begun.unwrap().into_inner().root_ca_pem
}

pub(super) async fn progress(of: &Manager) -> Result<v1::GetRootRotationResponse, Status> {
    let get = v1::GetRootRotationRequest {};
    let progress = ControlClient::new(of.local())
        .get_root_rotation(get)
        .await?;
    Ok(progress.into_inner())
}

/// Waits until just these are missing.
async fn until_missing(of: &Manager, ids: &[&str]) -> v1::GetRootRotationResponse {
    let wanted: BTreeSet<_> = ids.iter().map(ToString::to_string).collect();
    until("the others", || async {
        let progress = progress(of).await?;
        let missing: BTreeSet<_> = progress.missing.iter().map(|it| it.id.clone()).collect();
        let found = format!("{progress:?}");
        (missing == wanted)
            .then_some(progress)
            .ok_or(Status::unavailable(found))
    })
    .await
}

/// Waits for the end.
pub(super) async fn until_over(of: &Manager) {
    until("the end of the rotation", || async {
        let progress = progress(of).await?;
        let found = format!("{progress:?}");
        (!progress.under_way)
            .then_some(())
            .ok_or(Status::unavailable(found))
    })
    .await;
}

/// Waits until a manager shows a certificate that the root `new` vouches for, and `old` does not.
async fn until_shown(of: &Manager, new: &str, old: &str) {
    let address = of.config.advertise_address;
    until("a manager's new certificate", || async {
        let dialled = dial(address, new, None).await.map(drop);
        dialled.map_err(|error| Status::unavailable(error.to_string()))?;
        match dial(address, old, None).await {
            Ok(_) => Err(Status::unavailable("the old root vouches for it")),
            Err(_) => Ok(()),
        }
    })
    .await;
}

pub(super) async fn remove(of: &Manager, id: &str) {
    let remove = v1::RemoveNodeRequest {
        reference: id.to_owned(),
        force: true,
    };
    let mut control = ControlClient::new(of.local());
    control.remove_node(remove).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_is_changed_under_open_sessions() {
    let managers = three().await;
    let all = [&managers[0], &managers[1], &managers[2]];
    let mut agents = Vec::new();
    for manager in all {
        agents.push(Agent::beside(manager).await);
    }
    agents.push(Agent::join(&managers[0]).await);
    for agent in &mut agents {
        agent.start(&all);
    }
    let (before, tokens) = managers[0].lasting().await.unwrap();
    // Nobody is missing while there is nothing to change.
    assert_eq!(progress(&managers[0]).await.unwrap().missing, []);
    let leader = managers[0].leader().await;
    let follower = all.into_iter().find(|it| it.id() != leader).unwrap();
    let new = rotate(follower).await;
    assert_ne!(new, before.root_ca_pem);
    until_over(follower).await;

    let (after, new_tokens) = managers[0].lasting().await.unwrap();
    assert_eq!(after.root_ca_pem, new);
    assert_eq!((after.id, after.spec), (before.id, before.spec));
    for (old, new) in tokens.iter().zip(&new_tokens) {
        assert_ne!(
            old.rsplit_once('-').unwrap().1,
            new.rsplit_once('-').unwrap().1
        );
        assert_ne!(old.split('-').nth(2), new.split('-').nth(2));
    }
    for manager in all {
        until_shown(manager, &new, &before.root_ca_pem).await;
    }
    for agent in &agents {
        until("the new root alone", || async {
            let kept = agent.credentials();
            let is_new = kept.roots == new && kept.chain != agent.first.chain;
            is_new.then_some(()).ok_or(Status::unavailable("not yet"))
        })
        .await;
        // What was open stayed open; what comes now needs the new certificate.
        assert_eq!(
            agent.ends.load(Ordering::Relaxed),
            0,
            "a session was dropped"
        );
        let address = managers[0].config.advertise_address;
        let old = Mutex::new(Credentials {
            roots: new.clone(),
            ..agent.first.clone()
        });
        assert!(session(address, &old).await.is_err());
    }
    let refused = ask_to_join(&managers[1], &tokens[0], &new).await;
    assert!(refused.unwrap_err().message().contains("another swarm"));
    ask_to_join(&managers[1], &new_tokens[0], &new)
        .await
        .unwrap();
    managers[2].create("web").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_goes_on_through_lost_leaders_and_locked_managers() {
    let managers = three().await;
    let mut agents = Vec::new();
    for manager in &managers {
        agents.push(Agent::beside(manager).await);
    }
    // A host that is off.
    let absent = Agent::join(&managers[0]).await;
    let mut worker = Agent::join(&managers[0]).await;
    managers[0].set_autolock(true).await;
    let key = managers[0].unlock_key(false).await.unwrap();
    for manager in &managers {
        manager.until_kept_under(Some(&key)).await;
    }
    let (mut leader, followers) = split(managers).await;
    for agent in agents.iter_mut().chain([&mut worker]) {
        agent.start(&[&leader, &followers[0], &followers[1]]);
    }
    let old = root(&leader).await;
    let first = rotate(&leader).await;
    until_missing(&leader, &[&absent.id]).await;
    // The leader is lost; the next one knows as much, and who it was is missed until it is unlocked.
    leader.kill();
    let now = &followers[0];
    until_missing(now, &[&absent.id]).await;
    let found = progress(now).await.unwrap();
    assert!(found.under_way && found.root_ca_pem == first && found.nodes == 5);
    assert_eq!(root(now).await, old, "until the end");
    // A new target in place of the first, which nobody needs to have reached.
    let new = until("another target", || async {
        let rotate = v1::RotateRootRequest::default();
        let begun = ControlClient::new(now.local()).rotate_root(rotate).await?;
        Ok(begun.into_inner().root_ca_pem)
    })
    .await;
    assert_ne!(new, first);
    until_missing(now, &[&absent.id, &leader.id()]).await;
    // Who joins now trusts what everybody trusts.
    let mut late = Agent::join(now).await;
    late.start(&[now, &followers[1]]);
    until_missing(now, &[&absent.id, &leader.id()]).await;
    leader.start_locked().await;
    leader.unlock(&key).await.unwrap();
    until_missing(now, &[&absent.id]).await;
    remove(now, &absent.id).await;
    until_over(now).await;
    for manager in followers.iter().chain([&leader]) {
        until_shown(manager, &new, &old).await;
        manager.until_kept_under(Some(&key)).await;
    }
    assert_eq!(root(&leader).await, new);
    for agent in agents.iter().chain([&worker, &late]) {
        until("the new root alone", || async {
            let has_it = agent.credentials().roots == new;
            has_it.then_some(()).ok_or(Status::unavailable("not yet"))
        })
        .await;
    }
    until("a service", || leader.create("web")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_goes_on_with_one_manager_alone() {
    let (mut leader, mut followers) = split(three().await).await;
    let mut agent = Agent::beside(&leader).await;
    agent.start(&[&leader]);
    let old = root(&leader).await;
    let new = rotate(&leader).await;
    let others: Vec<_> = followers.iter().map(Manager::id).collect();
    let others: Vec<_> = others.iter().map(String::as_str).collect();
    until_missing(&leader, &others).await;
    for follower in &mut followers {
        follower.kill();
    }
    leader.end().await;
    leader.force_new_cluster().await;
    let found = until_missing(&leader, &others).await;
    assert_eq!(found.root_ca_pem, new);
    // A manager that joins on the way has to get to know both roots.
    let second = Manager::join(&leader).await;
    leader.until_managers(2).await;
    let mut beside = Agent::beside(&second).await;
    beside.start(&[&leader, &second]);
    until_missing(&leader, &others).await;
    for id in others {
        remove(&leader, id).await;
    }
    until_over(&leader).await;
    for manager in [&leader, &second] {
        until_shown(manager, &new, &old).await;
    }
    second.create("web").await.unwrap();
}
