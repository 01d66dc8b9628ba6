//! The comparison of plan and kernel on a kernel.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::sync::Arc;

use swarm_model::TaskId;
use tokio::sync::watch;

use super::world::{DEADLINE, Node, World, address_of, as_root, connect, listen, task_id};
use super::{DAMAGES, damage};
use crate::ebpf::Mesh;
use crate::network::kernel::Kernel;
use crate::network::pass::Pass;
use crate::network::reconcile::Applied;
use crate::network::stats::Traffic;

/// A pass of node 1 that nobody runs but the test, brought to rest.
fn pass(world: &World) -> Pass {
    let config = world.node(1).config.clone();
    let kernel = world
        .node(1)
        .host
        .run(move || Kernel::new(config.run_dir.join("netns"), config.bpffs_dir).unwrap())
        .unwrap();
    let (applied, _) = watch::channel(Applied::default());
    let mut pass = Pass::new(
        kernel,
        applied,
        watch::Sender::default(),
        watch::Sender::default(),
    );
    let desired = world.desired(1, &[(1, 1), (2, 2)], &[(8080, &[1, 2])]);
    pass.desire(Some((Arc::new(desired), 1)));
    pass
}

fn lines(pass: &mut Pass) -> Vec<String> {
    let checked = pass.check().unwrap();
    assert_eq!(checked.left_out, 0);
    let lines = checked.differences.into_iter();
    lines
        .map(|line| format!("{}: {}", line.place, line.text))
        .collect()
}

#[tokio::test]
async fn whatever_is_broken_by_hand_is_told_and_left_as_it_is() {
    let Some(_root) = as_root() else { return };
    let world = World::bare(2);
    let mut pass = pass(&world);
    let task = task_id(1);
    // Before the first pass all is missing, and a look makes nothing.
    let missing = lines(&mut pass);
    assert!(
        missing[0].starts_with("ingress: network namespace ingress is missing"),
        "{missing:#?}"
    );
    assert_eq!(world.node(1).try_ingress(), None);
    assert!(!world.node(1).config.bpffs_dir.join("maps").exists());

    pass.run(&|| false);
    assert_eq!(lines(&mut pass), Vec::<String>::new());
    for (place, line) in DAMAGES {
        damage(world.node(1), &task, place, line);
        let told = lines(&mut pass);
        assert!(!told.is_empty(), "{line} in {place} is not told");
        assert!(
            !told.iter().any(|told| told.contains("to be done")),
            "{line}: {told:#?}"
        );
        assert_eq!(
            lines(&mut pass),
            told,
            "{line} in {place}: looking changes nothing"
        );
        pass.run(&|| false);
        assert_eq!(lines(&mut pass), Vec::<String>::new(), "{line} in {place}");
    }
}

#[tokio::test]
async fn what_somebody_wrote_into_the_maps_is_told() {
    let Some(_root) = as_root() else { return };
    let world = World::bare(2);
    let mut pass = pass(&world);
    pass.run(&|| false);
    let mut other = Mesh::load(&world.node(1).config.bpffs_dir).unwrap();
    let address = "192.0.2.1".parse().unwrap();
    other
        .set_node_addresses(&BTreeSet::from([address]))
        .unwrap();
    other
        .set_ingress_macs(&[([2, 0, 0, 0, 0, 9], 9)].into())
        .unwrap();
    let told = lines(&mut pass);
    for line in [
        "host: node address 2001:db8::1 in the mesh programs is missing",
        "host: ingress node 02:00:00:00:00:09 in the mesh programs is left over",
        "host: ingress node 02:42:0a:ff:00:02 in the mesh programs is missing",
    ] {
        assert!(told.iter().any(|told| told == line), "{line}: {told:#?}");
    }
    assert_eq!(lines(&mut pass), told, "looking changes nothing");
    pass.run(&|| false);
    assert_eq!(lines(&mut pass), Vec::<String>::new());
}

#[tokio::test]
async fn a_node_that_was_told_nothing_says_so() {
    let Some(_root) = as_root() else { return };
    let world = World::bare(1);
    let mut pass = pass(&world);
    pass.desire(None);
    let error = pass.check().unwrap_err().to_string();
    assert!(error.contains("swarmctl swarm status"), "{error}");
}

#[tokio::test]
async fn what_a_task_sends_and_gets_is_counted() {
    let Some(_root) = as_root() else { return };
    let world = World::new(1);
    world.place(&[(1, 1), (2, 1)], &[(8080, &[2])]).await;
    let (one, two) = (task_id(1), task_id(2));
    let (before_one, before_two) = traffic(world.node(1), &one, &two).await;
    let listener = listen(&world.node(1).task(&two), 80);
    let mut stream = connect(&world.node(1).task(&one), (address_of(&two), 80).into()).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    let writer = std::thread::spawn(move || stream.write_all(&[7; 100_000]));
    let mut received = [0; 100_000];
    accepted.read_exact(&mut received).unwrap();
    writer.join().unwrap().unwrap();
    let (after_one, after_two) = traffic(world.node(1), &one, &two).await;
    assert!(
        after_one.out_bytes - before_one.out_bytes > 100_000,
        "{after_one:?}"
    );
    assert!(
        after_two.in_bytes - before_two.in_bytes > 100_000,
        "{after_two:?}"
    );
    assert!(
        after_one.in_bytes - before_one.in_bytes < 50_000,
        "{after_one:?}"
    );
    assert!(
        after_two.out_packets > before_two.out_packets,
        "{after_two:?}"
    );
}

/// What both tasks have sent and got, read anew.
async fn traffic(node: &Node, one: &TaskId, two: &TaskId) -> (Traffic, Traffic) {
    let told = node.reconciler().stats().await.unwrap();
    let end = std::time::Instant::now() + DEADLINE;
    loop {
        let now = node.reconciler().stats().await.unwrap();
        if !Arc::ptr_eq(&told, &now) {
            let of = |task| now.tasks[task].traffic.expect("a task of this node");
            return (of(one), of(two));
        }
        assert!(std::time::Instant::now() < end, "never read anew");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
