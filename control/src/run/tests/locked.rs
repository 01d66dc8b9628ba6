//! Managers with autolock.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_manager_does_nothing_until_the_right_key_comes() {
    let mut manager = Manager::found().await;
    manager.create("web").await.unwrap();
    assert_eq!(manager.unlock_key(false).await.unwrap(), "");
    let refused = manager.unlock_key(true).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    manager.set_autolock(true).await;
    let key = manager.unlock_key(false).await.unwrap();
    let before = manager.lasting().await.unwrap();
    manager.until_kept_under(Some(&key)).await;
    let refused = manager.unlock(&key).await.unwrap_err();
    assert_eq!(refused.message(), "this manager is not locked");
    assert!(!manager.is_locked().await.unwrap());
    manager.end().await;

    manager.start_locked().await;
    assert!(manager.is_locked().await.unwrap());
    let refused = manager.create("other").await.unwrap_err();
    assert!(
        refused.message().contains("`swarmctl swarm unlock`"),
        "{refused}"
    );
    let root = LocalControlClient::new(manager.local());
    let csr = v1::IssueManagerCertificateRequest { csr: request().0 };
    let refused = root
        .clone()
        .issue_manager_certificate(csr)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    // It does not listen for nodes and managers either.
    let dialled = TcpStream::connect(manager.config.listen_address).await;
    assert!(dialled.is_err());
    let kept = std::fs::read(manager.config.state_dir.join("raft/raft.key")).unwrap();
    let slip = manager.unlock(&key[..key.len() - 1]).await.unwrap_err();
    assert_eq!(slip.code(), Code::InvalidArgument);
    let wrong = UnlockKey::new([7; 32]).to_text();
    let mut codes = Vec::new();
    for _ in 0..8 {
        codes.push(manager.unlock(&wrong).await.unwrap_err().code());
    }
    assert_eq!(codes[..5], [Code::InvalidArgument; 5]);
    assert!(codes.contains(&Code::ResourceExhausted), "{codes:?}");
    let now = std::fs::read(manager.config.state_dir.join("raft/raft.key")).unwrap();
    assert_eq!(now, kept, "nothing was changed");

    until("the right key", || async {
        match manager.unlock(&key).await {
            Err(status) if status.code() != Code::ResourceExhausted => panic!("{status}"),
            outcome => outcome,
        }
    })
    .await;
    until("everything", || async {
        let lasting = manager.lasting().await?;
        (lasting == before)
            .then_some(())
            .ok_or_else(|| Status::unavailable("not yet"))
    })
    .await;
    manager.create("other").await.unwrap();

    // Turned off, it starts by itself.
    manager.set_autolock(false).await;
    manager.until_kept_under(None).await;
    assert_eq!(manager.unlock_key(false).await.unwrap(), "");
    manager.end().await;
    manager.start();
    until("an unlocked manager", || manager.create("third")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_unlock_key_is_taken_over_by_every_manager_that_runs() {
    let mut first = Manager::new(NodeId::random(&mut rand::rng()), None);
    first.config.autolock = true;
    first.start();
    until("the first manager", || first.nodes()).await;
    let second = Manager::join(&first).await;
    first.until_managers(2).await;
    let mut third = Manager::join(&second).await;
    first.until_managers(3).await;
    let old = second.unlock_key(false).await.unwrap();
    for manager in [&first, &second, &third] {
        manager.until_kept_under(Some(&old)).await;
    }
    third.end().await;
    let key = until("a new key", || second.unlock_key(true)).await;
    assert_ne!(key, old);
    for manager in [&first, &second] {
        manager.until_kept_under(Some(&key)).await;
    }
    // It was not there: it needs the old key once more.
    third.start_locked().await;
    let refused = third.unlock(&key).await.unwrap_err();
    assert!(
        refused.message().contains("the key from before"),
        "{refused}"
    );
    third.unlock(&old).await.unwrap();
    first.until_managers(3).await;
    third.until_kept_under(Some(&key)).await;
    third.end().await;
    third.start_locked().await;
    assert!(third.unlock(&old).await.is_err());
    third.unlock(&key).await.unwrap();
    first.until_managers(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_manager_goes_on_alone_once_it_is_unlocked() {
    let (mut leader, mut followers) = split(three().await).await;
    leader.create("web").await.unwrap();
    leader.set_autolock(true).await;
    let key = leader.unlock_key(false).await.unwrap();
    leader.until_kept_under(Some(&key)).await;
    for follower in &mut followers {
        follower.until_kept_under(Some(&key)).await;
        follower.end().await;
    }
    let local = v1::GetLocalUnlockKeyRequest {};
    let local = LocalControlClient::new(leader.local())
        .get_local_unlock_key(local)
        .await;
    assert_eq!(
        local.unwrap().into_inner().unlock_key,
        key,
        "without a leader"
    );
    leader.end().await;
    leader.config.bootstrap = false;
    leader.config.join = None;
    leader.config.force_new_cluster = true;
    leader.start_locked().await;
    leader.unlock(&key).await.unwrap();
    until("the manager alone", || leader.create("next")).await;
    assert_eq!(leader.services().await.unwrap().len(), 2);
    assert_eq!(leader.unlock_key(false).await.unwrap(), key);
}
