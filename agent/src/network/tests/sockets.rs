//! Services asked for on the node itself and from its tasks, which no packet of the mesh does.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use swarm_model::{NetworkId, TaskId};

use super::world::{
    DEADLINE, World, address_of, as_root, command, connect, listen, task_id, within,
};
use crate::network::desired::{Desired, TaskSockets, VirtualService};
use crate::network::netns::Netns;

/// Nobody has this address.
const VIP: [u8; 4] = [10, 77, 0, 2];

/// Two nodes with a task each; both tasks are behind a published port and a virtual address. There
/// are no other networks here, so the tasks' addresses on the ingress network stand for those on
/// the virtual address's.
async fn world_with_services() -> (World, TaskId, TaskId) {
    let world = World::new(2);
    let (first, second) = (task_id(1), task_id(2));
    apply(&world, &[1, 2], 1).await;
    for (number, task) in [(1, &first), (2, &second)] {
        let node = world.node(number);
        // Answers with the task's address.
        let listener = listen(&node.task(task), 80);
        let name = address_of(task).to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let _ = stream.write_all(name.as_bytes());
            }
        });
    }
    (world, first, second)
}

fn network() -> NetworkId {
    format!("w{:024}", 0).parse().unwrap()
}

fn desired(world: &World, node: u8, ready: &[u8]) -> Desired {
    let mut desired = world.desired(node, &[(1, 1), (2, 2)], &[(8080, ready)]);
    let sockets = TaskSockets {
        networks: [network()].into(),
        published: true,
    };
    let local = desired.local_tasks.keys();
    desired.task_sockets = local.map(|task| (task.clone(), sockets.clone())).collect();
    let service = VirtualService {
        addresses: [IpAddr::from(VIP)].into(),
        ready: ready
            .iter()
            .map(|task| address_of(&task_id(*task)))
            .collect(),
    };
    let services = desired.services.keys().cloned();
    desired.virtual_services = BTreeMap::from([(
        network(),
        services.map(|id| (id, service.clone())).collect(),
    )]);
    desired
}

/// Tells every node who is ready, and waits until it is so.
async fn apply(world: &World, ready: &[u8], generation: u64) {
    for number in [1, 2] {
        let desired = Arc::new(desired(world, number, ready));
        let reconciler = world.node(number.into()).reconciler();
        reconciler.apply(desired, generation);
        let mut applied = reconciler.applied();
        let reached = applied.wait_for(|applied| applied.generation == Some(generation));
        tokio::time::timeout(DEADLINE, reached)
            .await
            .unwrap()
            .unwrap();
    }
}

fn ask(from: &Netns, to: impl Into<SocketAddr>) -> io::Result<IpAddr> {
    let mut stream = connect(from, to.into())?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.parse().unwrap())
}

/// Everybody who answers.
fn answerers(from: &Netns, to: impl Into<SocketAddr>) -> Vec<IpAddr> {
    let to = to.into();
    let mut all: Vec<_> = (0..24).map(|_| ask(from, to).unwrap()).collect();
    all.sort();
    all.dedup();
    all
}

#[tokio::test]
async fn services_answer_on_the_node_itself_and_from_its_tasks() {
    let Some(_root) = as_root() else { return };
    let (world, first, second) = world_with_services().await;
    let both = [address_of(&first), address_of(&second)];
    let node = world.node(1);
    let task = node.task(&first);
    for address in ["127.0.0.1:8080", "[::1]:8080", "192.0.2.1:8080"] {
        let to: SocketAddr = address.parse().unwrap();
        assert_eq!(answerers(&node.host, to), both, "{address} on the host");
    }
    assert_eq!(answerers(&task, ([192, 0, 2, 1], 8080)), both);
    assert_eq!(answerers(&task, (VIP, 80)), both);

    // One that is no longer ready is asked no more; without any, it is refused at once.
    apply(&world, &[2], 2).await;
    assert_eq!(answerers(&task, (VIP, 80)), both[1..]);
    assert_eq!(answerers(&node.host, ([127, 0, 0, 1], 8080)), both[1..]);
    apply(&world, &[], 3).await;
    for (from, to) in [(&task, (VIP, 80)), (&node.host, ([127, 0, 0, 1], 8080))] {
        let error = ask(from, to).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    }
}

#[tokio::test]
async fn sockets_of_a_new_namespace_are_balanced_and_those_of_a_left_node_are_not() {
    let Some(_root) = as_root() else { return };
    let (world, first, _second) = world_with_services().await;
    let node = world.node(1);
    // The agent makes it anew, with another cookie.
    let path = node.netns_path(&format!("task-{first}"));
    command(&node.host, &format!("umount -l {}", path.display()));
    let answered = || {
        let task = node.try_task(&first);
        // Briefly: before it is, the connection may leave for an address that nobody has.
        let connect = || TcpStream::connect_timeout(&(VIP, 80).into(), Duration::from_secs(1));
        task.is_some_and(|task| task.run(connect).unwrap().is_ok())
    };
    assert!(
        within(DEADLINE, answered),
        "the new namespace is not balanced"
    );

    let pins = &node.config.bpffs_dir;
    let link = pins.join("links/sock_connect4");
    std::fs::remove_file(&link).unwrap();
    // Not asked meanwhile: without the program the address is one of the outside's.
    assert!(
        within(DEADLINE, || link.exists()),
        "the program is not back"
    );
    assert!(within(DEADLINE, answered), "the program does nothing");

    node.reconciler().teardown().await.unwrap();
    assert!(!pins.exists());
    let error = ask(&node.host, ([127, 0, 0, 1], 8080)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}
