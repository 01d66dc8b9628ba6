//! The comparison of plan and kernel on a kernel.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

use super::world::{World, as_root, task_id};
use super::{DAMAGES, damage};
use crate::ebpf::Mesh;
use crate::network::kernel::Kernel;
use crate::network::pass::Pass;
use crate::network::reconcile::Applied;

/// A pass of node 1 that nobody runs but the test, brought to rest.
fn pass(world: &World) -> Pass {
    let config = world.node(1).config.clone();
    let kernel = world
        .node(1)
        .host
        .run(move || Kernel::new(config.run_dir.join("netns"), config.bpffs_dir).unwrap())
        .unwrap();
    let (applied, _) = watch::channel(Applied::default());
    let mut pass = Pass::new(kernel, applied);
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

    pass.run();
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
        pass.run();
        assert_eq!(lines(&mut pass), Vec::<String>::new(), "{line} in {place}");
    }
}

#[tokio::test]
async fn what_somebody_wrote_into_the_maps_is_told() {
    let Some(_root) = as_root() else { return };
    let world = World::bare(2);
    let mut pass = pass(&world);
    pass.run();
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
    pass.run();
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
