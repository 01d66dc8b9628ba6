//! Changes that are brought into the kernel without a look at everything.

use super::world::{DEADLINE, World, address_of, as_root, command, task_id, within};

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
async fn tables_that_are_not_looked_at_are_put_right_when_the_kernel_tells() {
    let Some(_root) = as_root() else { return };
    let world = World::new(2);
    world.place(&[(1, 1), (2, 2)], &[(8080, &[1, 2])]).await;
    let node = world.node(1);
    let ingress = node.ingress();
    let passes = node.reconciler().passes();
    let tables = || {
        let lists = ["ip neigh show dev br0 nud permanent", "bridge fdb show"];
        lists.map(|list| {
            let list = command(&ingress, list);
            let mut lines: Vec<_> = list.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            lines
        })
    };
    let whole = tables();
    for damage in [
        "ip neigh del 10.255.1.2 dev br0",
        "ip neigh replace 10.255.1.2 lladdr 02:00:00:00:00:99 dev br0 nud permanent",
        "bridge fdb del 02:42:0a:ff:01:02 dev vx0 self",
        "bridge fdb del 02:42:0a:ff:01:02 dev vx0 master",
        "bridge fdb add 02:42:0a:ff:09:09 dev vx0 master static",
        "ip link set br0 address 02:00:00:00:00:99",
    ] {
        let before = passes.borrow().untold.count;
        let at_rest = within(DEADLINE, || passes.borrow().untold.count > before);
        assert!(at_rest, "before {damage}: it still looks at everything");
        command(&ingress, damage);
        let put_right = within(DEADLINE, || tables() == whole);
        assert!(put_right, "{damage}: {:?}", tables());
    }
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
