//! Tasks on the ingress network reach published targets of each other and nothing else.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::world::{World, address_of, as_root, connect, listen, task_id};

/// How long something is waited for that must not happen.
const REFUSAL: Duration = Duration::from_millis(700);

#[tokio::test]
async fn only_published_targets_of_other_tasks_are_reached() {
    let Some(_root) = as_root() else { return };
    let world = World::new(2);
    world
        .place(&[(1, 1), (2, 1), (3, 2)], &[(8080, &[2, 3])])
        .await;
    let attacker = world.node(1).task(&task_id(1));
    for (node, number) in [(1, 2), (2, 3)] {
        let task = task_id(number);
        let netns = world.node(node).task(&task);
        let (open, _closed) = (listen(&netns, 80), listen(&netns, 81));
        let at = |port| SocketAddr::from((address_of(&task), port));
        connect(&attacker, at(80)).unwrap();
        open.accept().unwrap();
        let closed = attacker
            .run(|| TcpStream::connect_timeout(&at(81), REFUSAL))
            .unwrap();
        assert!(closed.is_err(), "task {number} was reached at port 81");
        // The host is no task: it may look.
        connect(&world.node(1).host, at(81)).unwrap();
    }
    // No longer published, it is closed.
    world.place(&[(1, 1), (2, 1), (3, 2)], &[]).await;
    let netns = world.node(1).task(&task_id(2));
    let _open = listen(&netns, 82);
    let to = SocketAddr::from((address_of(&task_id(2)), 82));
    let closed = attacker
        .run(|| TcpStream::connect_timeout(&to, REFUSAL))
        .unwrap();
    assert!(closed.is_err());
}
