//! A manager that goes on without the others, or on another disk.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn one_manager_goes_on_alone_with_everything() {
    let (mut leader, mut followers) = split(three().await).await;
    let mut rest = followers.pop().unwrap();
    rest.create("one").await.unwrap();
    rest.create("two").await.unwrap();
    let before = rest.lasting().await.unwrap();
    until("the news of it", || async {
        let known = rest.services().await?.len() == 2;
        known
            .then_some(())
            .ok_or_else(|| Status::unavailable("not yet"))
    })
    .await;
    // Two are gone for good, or so it seems.
    leader.end().await;
    followers[0].end().await;
    rest.end().await;
    rest.force_new_cluster().await;
    assert_eq!(rest.lasting().await.unwrap(), before);
    let both: BTreeSet<_> = ["one", "two"].map(str::to_owned).into();
    assert_eq!(rest.services().await.unwrap(), both);
    rest.create("three").await.unwrap();
    let nodes = rest.nodes().await.unwrap().nodes;
    let managers: Vec<_> = nodes.iter().filter(|it| it.manager.is_some()).collect();
    assert_eq!((nodes.len(), managers.len()), (3, 1));
    assert_eq!(managers[0].id, rest.id());

    // They come back, with a majority of what was: they are told, and change nothing.
    leader.start();
    followers[0].start();
    for manager in [&mut leader, &mut followers[0]] {
        let failure = manager.failure().await;
        assert!(matches!(failure, Failure::Superseded(_)), "{failure:?}");
        let text = failure.to_string();
        assert!(
            text.contains(&rest.config.advertise_address.to_string()),
            "{text}"
        );
    }
    let three: BTreeSet<_> = ["one", "two", "three"].map(str::to_owned).into();
    assert_eq!(rest.services().await.unwrap(), three);

    // New managers join, and the next start is an ordinary one.
    let second = Manager::join(&rest).await;
    rest.until_managers(2).await;
    let _third = Manager::join(&second).await;
    rest.until_managers(3).await;
    rest.end().await;
    rest.start();
    until("everything again", || async {
        let services = rest.services().await?;
        (services == three)
            .then_some(())
            .ok_or_else(|| Status::unavailable("not yet"))
    })
    .await;
    second.until_managers(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_is_restored_from_a_copy_of_its_directory() {
    let (mut leader, mut followers) = split(three().await).await;
    leader.create("web").await.unwrap();
    let before = leader.lasting().await.unwrap();
    let state_dir = leader.config.state_dir.clone();
    let copy = state_dir.with_file_name("copy");
    leader.end().await;
    copy_dir(&state_dir, &copy);
    // Later than the copy, and lost with the hosts.
    until("a write", || followers[0].create("later")).await;
    for follower in &mut followers {
        follower.end().await;
    }
    std::fs::remove_dir_all(&state_dir).unwrap();
    // Without a state there is nothing to go on with.
    leader.config.bootstrap = false;
    leader.config.join = None;
    leader.config.force_new_cluster = true;
    leader.start();
    let failure = leader.failure().await;
    assert!(matches!(failure, Failure::NoSwarm(_)), "{failure:?}");

    let _ = std::fs::remove_dir_all(&state_dir);
    copy_dir(&copy, &state_dir);
    // On a host with another address, too.
    let address = free_address();
    leader.config.listen_address = address;
    leader.config.advertise_address = address;
    leader.force_new_cluster().await;
    assert_eq!(leader.lasting().await.unwrap(), before);
    let web: BTreeSet<_> = ["web".to_owned()].into();
    assert_eq!(leader.services().await.unwrap(), web);
    let second = Manager::join(&leader).await;
    leader.until_managers(2).await;
    second.create("next").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_goes_on_alone_beside_a_running_manager_or_with_anothers_state() {
    let mut manager = Manager::found().await;
    let mut beside = manager.config.clone();
    beside.bootstrap = false;
    beside.force_new_cluster = true;
    let address = free_address();
    beside.listen_address = address;
    let refused = force_new_cluster(&beside, &log_of(&beside)).unwrap_err();
    assert!(
        matches!(
            refused,
            Failure::Alone(AloneError::Log(LogError::Locked { .. }))
        ),
        "{refused:?}"
    );
    manager.end().await;
    beside.node_id = Some(NodeId::random(&mut rand::rng()));
    let refused = force_new_cluster(&beside, &log_of(&beside)).unwrap_err();
    let text = format!("{:#}", anyhow::Error::from(refused));
    assert!(
        text.contains(&format!("belongs to node {}", manager.id())),
        "{text}"
    );
    // Nothing was changed.
    manager.start();
    until("the manager", || manager.create("web")).await;
}
