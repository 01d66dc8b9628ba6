//! Managers that come and go.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn any_manager_answers_and_none_is_needed() {
    let (mut leader, mut followers) = split(three().await).await;
    // A follower answers for itself, and what it was asked is known to all.
    let nodes = followers[0].nodes().await.unwrap();
    assert_eq!(nodes.self_id, followers[0].id());
    assert_eq!(nodes.reachable_managers.len(), 3);
    followers[0].create("one").await.unwrap();
    leader.create("two").await.unwrap();
    let both: BTreeSet<_> = ["one", "two"].map(str::to_owned).into();
    for manager in followers.iter().chain([&leader]) {
        assert_eq!(manager.services().await.unwrap(), both);
        assert_eq!(manager.services_consistently().await.unwrap(), both);
    }

    // The leader crashes: another leads, with everything.
    leader.kill();
    until("a write", || followers[0].create("three")).await;
    until("the next leader's word", || async {
        let next = followers[1].leader().await;
        let other = (next != leader.id()).then_some(());
        other.ok_or_else(|| Status::unavailable("not written down yet"))
    })
    .await;
    let three: BTreeSet<_> = ["one", "two", "three"].map(str::to_owned).into();
    assert_eq!(followers[1].services().await.unwrap(), three);
    until("the news of it", || async {
        let reachable = followers[0].nodes().await?.reachable_managers;
        let told = reachable.len() == 2 && !reachable.contains(&leader.id());
        told.then_some(())
            .ok_or_else(|| Status::unavailable("not yet"))
    })
    .await;

    // It comes back with its log, and catches up.
    leader.start();
    followers[0].until_managers(3).await;
    assert_eq!(leader.services().await.unwrap(), three);

    // A leader that is told to end hands over first.
    let now = followers[0].leader().await;
    let ends = followers
        .iter()
        .position(|manager| manager.id() == now)
        .unwrap();
    followers[ends].end().await;
    let begun = Instant::now();
    leader.create("four").await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_the_error_says_who_is_missing() {
    let (mut leader, mut followers) = split(three().await).await;
    let rest = followers.pop().unwrap();
    leader.kill();
    followers[0].kill();
    let missing = [&leader, &followers[0]].map(|it| it.config.advertise_address.to_string());
    until("the news of it", || async {
        let refused = rest.create("web").await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        let text = refused.message();
        let told = text.starts_with(
            "the swarm has lost its quorum: 2 of its 3 managers are needed and 1 can be reached",
        ) && missing.iter().all(|address| text.contains(address));
        told.then_some(()).ok_or(refused)
    })
    .await;
    // One of them is enough.
    followers[0].start();
    until("a write", || rest.create("web")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn managers_are_demoted_the_leader_too_but_never_the_last() {
    let (leader, mut followers) = split(three().await).await;
    // Asked of a follower; the leader hands over, and the next one does it.
    // The next one has not heard from the third manager yet, and waits for it.
    let id = leader.id();
    followers[0].set_role(&id, v1::Role::Worker).await.unwrap();
    followers[0].until_managers(2).await;
    let nodes = followers[0].nodes().await.unwrap().nodes;
    let demoted = nodes.iter().find(|node| node.id == leader.id()).unwrap();
    assert_eq!(demoted.role(), v1::Role::Worker);
    // What it still holds is of no use to it.
    let refused = leader.create("web").await.unwrap_err();
    assert!(
        matches!(refused.code(), Code::PermissionDenied | Code::Unavailable),
        "{refused}"
    );

    let mut last = followers.pop().unwrap();
    if last.leader().await != last.id() {
        last = std::mem::replace(&mut followers[0], last);
    }
    let id = followers[0].id();
    let demote = || last.set_role(&id, v1::Role::Worker);
    until("the other to go", demote).await;
    last.until_managers(1).await;
    let refused = last.set_role("self", v1::Role::Worker).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("the last manager"), "{refused}");
    last.create("web").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_lost_its_disk_joins_as_another_member() {
    let (leader, mut followers) = split(three().await).await;
    let mut wiped = followers.pop().unwrap();
    wiped.end().await;
    std::fs::remove_dir_all(wiped.config.state_dir.join("raft")).unwrap();
    wiped.start();
    leader.until_managers(3).await;
    leader.create("web").await.unwrap();
    until("the news of it", || async {
        let services = wiped.services().await?;
        services
            .contains("web")
            .then_some(())
            .ok_or_else(|| Status::unavailable("not yet"))
    })
    .await;
}
