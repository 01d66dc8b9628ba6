//! Changes that are brought into the kernel without a look at everything.

use super::world::{World, address_of, as_root, command, task_id};

#[tokio::test]
async fn one_more_service_is_in_the_kernel_by_an_increment_and_gone_by_another() {
    let Some(_root) = as_root() else { return };
    let world = World::new(2);
    world.place(&[(1, 1), (2, 2)], &[(8080, &[1, 2])]).await;
    let node = world.node(1);
    let passes = node.reconciler().passes();
    let address = address_of(&task_id(3));
    let neighbour = || command(&node.ingress(), &format!("ip neigh show {address} dev br0"));
    let tunnels = || command(&node.ingress(), "bridge fdb show dev vx0");

    let before = *passes.borrow();
    let more: [(u16, &[u8]); 2] = [(8080, &[1, 2]), (8081, &[3])];
    world.place(&[(1, 1), (2, 2), (3, 2)], &more).await;
    let after = *passes.borrow();
    assert_eq!(after.increments.count, before.increments.count + 1);
    assert!(neighbour().contains("lladdr 02:42:0a:ff:01:03 PERMANENT"));
    let tunnel = "02:42:0a:ff:01:03 dst 192.0.2.2";
    assert!(tunnels().contains(tunnel), "{}", tunnels());

    world.place(&[(1, 1), (2, 2)], &[(8080, &[1, 2])]).await;
    assert_eq!(passes.borrow().increments.count, after.increments.count + 1);
    assert_eq!(neighbour(), "");
    assert!(!tunnels().contains("02:42:0a:ff:01:03"), "{}", tunnels());
}

#[tokio::test]
async fn where_an_increment_fails_everything_is_looked_at_before_it_is_told_as_done() {
    let Some(_root) = as_root() else { return };
    let world = World::new(2);
    world.place(&[(1, 1), (2, 2)], &[(8080, &[1, 2])]).await;
    let node = world.node(1);
    command(&node.ingress(), "ip link delete vx0");
    let more: [(u16, &[u8]); 2] = [(8080, &[1, 2]), (8081, &[3])];
    world.place(&[(1, 1), (2, 2), (3, 2)], &more).await;
    let tunnels = command(&node.ingress(), "bridge fdb show dev vx0");
    for mac in ["02:42:0a:ff:01:02", "02:42:0a:ff:01:03"] {
        assert!(tunnels.contains(mac), "{mac}: {tunnels}");
    }
}
