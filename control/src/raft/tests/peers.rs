//! Three members that exchange messages by hand.

use raft::eraftpb::MessageType;

use super::super::log::Log;
use super::cluster::Cluster;
use super::*;
use crate::store::Unavailable;
use crate::store::testing::{node, node_id};

#[test]
fn what_the_leader_acknowledges_all_have() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.leader(), None);
    cluster.elect(1);
    let mut outcome = cluster.member(1).propose(&[node(1).into()]);
    cluster.settle();
    assert_eq!(outcome.try_recv(), Ok(Ok(())));
    cluster.tick(1);
    let state = cluster.member(1).state();
    assert!(state.node(&node_id(1)).is_some());
    for raft_id in 2..=3 {
        assert_eq!(cluster.member(raft_id).state(), state);
        let leadership = cluster.member(raft_id).replica.leadership();
        assert_eq!((leadership.leader, leadership.leader_id), (false, Some(1)));
    }
}

#[test]
fn a_leader_leads_only_once_it_has_all_that_was_committed() {
    let mut cluster = Cluster::new();
    cluster.elect(1);
    // Committed, but only the leader knows.
    cluster.lost = vec![MessageType::MsgHeartbeat];
    let mut outcome = cluster.member(1).propose(&[node(1).into()]);
    cluster.settle();
    assert_eq!(outcome.try_recv(), Ok(Ok(())));
    cluster.cut = vec![1];

    cluster.lost = vec![MessageType::MsgAppend];
    cluster.tick(40);
    let elected = |cluster: &mut Cluster, raft_id| {
        cluster.member(raft_id).replica.leadership().leader_id == Some(raft_id)
    };
    let raft_id = if elected(&mut cluster, 2) { 2 } else { 3 };
    assert!(elected(&mut cluster, raft_id), "neither was elected");
    assert_eq!(
        cluster.leader(),
        None,
        "leads without knowing what is committed"
    );

    cluster.lost.clear();
    cluster.tick(2);
    assert_eq!(cluster.leader(), Some(raft_id));
    assert!(cluster.member(raft_id).state().node(&node_id(1)).is_some());
}

#[test]
fn a_follower_does_not_take_proposals() {
    let mut cluster = Cluster::new();
    cluster.elect(1);
    let mut outcome = cluster.member(2).propose(&[node(1).into()]);
    let refused = Err(ProposeError::NotLeader { leader: Some(1) });
    assert_eq!(outcome.try_recv(), Ok(refused));
}

#[test]
fn a_leader_that_is_cut_off_gives_up_its_proposals() {
    let mut cluster = Cluster::new();
    cluster.elect(1);
    cluster.cut = vec![1];
    let mut outcome = cluster.member(1).propose(&[node(1).into()]);
    // A tail longer than what will replace it.
    let mut tail: Vec<Outcome> = (0..5)
        .map(|_| cluster.member(1).propose(&[node(3).into()]))
        .collect();
    cluster.settle();
    assert!(
        outcome.try_recv().is_err(),
        "acknowledged without a majority"
    );

    // The others wait for twice the election timeout at most; the cut off one steps down.
    cluster.tick(40);
    let lost = Err(ProposeError::Unavailable(Unavailable::LeaderChanged));
    assert_eq!(outcome.try_recv(), Ok(lost.clone()));
    for outcome in &mut tail {
        assert_eq!(outcome.try_recv(), Ok(lost.clone()));
    }
    let leader = cluster.leader().expect("the two others elect one of them");

    // Once back, it takes over what they did and drops what it alone had.
    let mut outcome = cluster.member(leader).propose(&[node(2).into()]);
    cluster.settle();
    assert_eq!(outcome.try_recv(), Ok(Ok(())));
    cluster.cut.clear();
    cluster.tick(4);
    let state = cluster.member(leader).state();
    assert!(state.node(&node_id(1)).is_none() && state.node(&node_id(2)).is_some());
    assert_eq!(cluster.member(1).state(), state);
    // On disk as well.
    let disk = cluster.member(1).disk.after_crash(|| false);
    let mut again = Running::open(disk).unwrap();
    assert!(again.state().node(&node_id(1)).is_none());
    assert!(again.member.run().unwrap().is_empty());
}

#[test]
fn a_follower_far_behind_gets_a_snapshot() {
    let mut cluster = Cluster::new();
    cluster.elect(1);
    cluster.cut = vec![3];
    // More than the margin that is kept before a snapshot.
    for number in 0..600 {
        let number = u8::try_from(number % 4).unwrap();
        let mut outcome = cluster.member(1).propose(&[node(number).into()]);
        cluster.settle();
        assert_eq!(outcome.try_recv(), Ok(Ok(())));
    }
    cluster.cut.clear();
    cluster.tick(20);
    let state = cluster.member(1).state();
    assert_eq!(state.nodes().count(), 4);
    assert_eq!(cluster.member(3).state(), state);

    let disk = cluster.member(3).disk.after_crash(|| false);
    let recovered = Log::with_backend(disk).unwrap().recover().unwrap();
    assert!(recovered.compacted.index > 1, "no snapshot was installed");
}
