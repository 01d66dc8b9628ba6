//! A member that goes on without the others.

use std::convert::Infallible;

use super::super::alone::go_on_alone;
use super::super::error::AloneError;
use super::super::log::Log;
use super::cluster::Cluster;
use super::*;
use crate::store::testing::{node, node_id};

/// The disk of a follower of three that holds what was acknowledged, and has not heard that it is.
fn follower() -> Disk {
    let mut cluster = Cluster::new();
    cluster.elect(1);
    let mut outcome = cluster.member(1).propose(&[node(1).into()]);
    cluster.settle();
    assert_eq!(outcome.try_recv(), Ok(Ok(())));
    let mut outcome = cluster.member(1).propose(&[node(2).into()]);
    for message in cluster.member(1).member.run().unwrap() {
        if message.to == 2 {
            cluster.member(2).member.receive(message);
        }
    }
    for message in cluster.member(2).member.run().unwrap() {
        cluster.member(1).member.receive(message);
    }
    cluster.member(1).member.run().unwrap();
    assert_eq!(outcome.try_recv(), Ok(Ok(())), "by two of three");
    let follower = cluster.member(2);
    assert!(follower.state().node(&node_id(2)).is_none());
    follower.disk.after_crash(|| false)
}

fn alone(log: &Log) -> Result<(), AloneError<Infallible>> {
    go_on_alone(log, 99, |state, was| {
        assert_eq!(was, 2);
        assert!(state.node(&node_id(2)).is_some());
        Ok(vec![node(3).into()])
    })
}

#[test]
fn what_was_acknowledged_is_kept_although_its_commit_was_not_heard_of() {
    let disk = follower();
    let log = Log::with_backend(disk.clone()).unwrap();
    let before = log.recover().unwrap();
    alone(&log).unwrap();
    drop(log);

    let mut running = Running::lead(disk).unwrap();
    assert!(running.member.is_alone());
    assert!(running.replica.leadership().term > before.hard_state.term + 1);
    running.update(&[node(4).into()]);
    let ids = |running: &Running| -> Vec<_> {
        let state = running.state();
        state.nodes().map(|node| node.id.clone()).collect()
    };
    let expected: Vec<_> = (1..=4).map(node_id).collect();
    assert_eq!(ids(&running), expected);
    let crashed = running.disk.after_crash(|| false);
    assert_eq!(ids(&Running::lead(crashed).unwrap()), expected);
}

#[test]
fn a_refusal_changes_nothing() {
    let log = Log::with_backend(follower()).unwrap();
    let before = log.recover().unwrap();
    let refused = go_on_alone(&log, 99, |_, _| Err("no"));
    assert!(
        matches!(refused, Err(AloneError::Refused("no"))),
        "{refused:?}"
    );
    assert_eq!(log.recover().unwrap(), before);
}

#[test]
fn a_crash_on_the_way_leaves_the_old_log_or_the_new_one() {
    let start = follower();
    let before = Log::with_backend(start.clone()).unwrap().recover().unwrap();
    let mut seen = [0, 0];
    for operations in 0.. {
        for pattern in 0..4_u8 {
            let disk = start.after_crash(|| true);
            let log = Log::with_backend(disk.clone()).unwrap();
            disk.fail_after(operations);
            let done = alone(&log);
            // Of what was not synced some survives.
            let mut number = 0_u8;
            let crashed = disk.after_crash(|| {
                number = number.wrapping_add(1);
                match pattern {
                    0 => false,
                    1 => true,
                    odd => number % 2 == odd % 2,
                }
            });
            drop(log);
            let found = Log::with_backend(crashed).unwrap().recover().unwrap();
            let new = found.raft_id == 99;
            assert!(new || found == before, "{found:?}");
            assert!(new || done.is_err(), "not on disk after {operations}");
            seen[usize::from(new)] += 1;
            if done.is_ok() && pattern == 3 {
                assert!(seen[0] > 0, "{seen:?}");
                return;
            }
        }
    }
}
