//! Reads that ask the others first.

use super::cluster::Cluster;
use super::*;
use crate::store::ReadError;
use crate::store::testing::{node, node_id};

/// Ticks within which a cluster that can elect a leader has one.
const ELECTION: usize = 40;

/// The outcome of a read, once there is one.
type Reading = oneshot::Receiver<Result<(), ReadError>>;

fn read(cluster: &mut Cluster, raft_id: u64) -> Reading {
    let (done, outcome) = oneshot::channel();
    cluster.member(raft_id).member.read_index(done);
    outcome
}

#[test]
fn a_read_is_good_once_a_majority_has_answered_it() {
    let mut cluster = Cluster::new();
    cluster.elect(1);
    cluster.member(1).propose(&[node(1).into()]);
    cluster.settle();
    let mut reading = read(&mut cluster, 1);
    assert!(reading.try_recv().is_err(), "it asked nobody");
    cluster.settle();
    assert_eq!(reading.try_recv(), Ok(Ok(())));
    // Of a follower's state nothing is known.
    let mut reading = read(&mut cluster, 2);
    assert_eq!(reading.try_recv(), Ok(Err(ReadError::NotLeader)));
}

#[test]
fn who_is_cut_off_answers_no_read_while_others_write() {
    let mut cluster = Cluster::new();
    cluster.elect(1);
    cluster.cut = vec![1];
    let mut before = read(&mut cluster, 1);
    cluster.settle();
    // Another one leads before this one knows.
    cluster.tick(5);
    cluster.member(2).member.campaign().unwrap();
    cluster.settle();
    cluster.tick(ELECTION);
    let next = cluster.leader().expect("the other two can elect");
    cluster.member(next).propose(&[node(1).into()]);
    cluster.settle();
    assert!(cluster.member(next).state().node(&node_id(1)).is_some());

    let mut after = read(&mut cluster, 1);
    cluster.tick(ELECTION);
    for reading in [&mut before, &mut after] {
        assert_eq!(reading.try_recv(), Ok(Err(ReadError::NotLeader)));
    }
    let mut reading = read(&mut cluster, next);
    cluster.settle();
    assert_eq!(reading.try_recv(), Ok(Ok(())));
}

#[test]
fn who_is_alone_asks_nobody() {
    let mut cluster = Cluster::lone();
    let mut reading = read(&mut cluster, 1);
    cluster.settle();
    assert_eq!(reading.try_recv(), Ok(Ok(())));
}

#[test]
fn reads_that_wait_are_bounded_and_those_given_up_do_not_count() {
    let mut cluster = Cluster::new();
    cluster.elect(1);
    cluster.cut = vec![1];
    let waiting: Vec<_> = (0..1024).map(|_| read(&mut cluster, 1)).collect();
    let mut refused = read(&mut cluster, 1);
    assert_eq!(refused.try_recv(), Ok(Err(ReadError::Busy)));
    drop(waiting);
    let mut reading = read(&mut cluster, 1);
    assert!(reading.try_recv().is_err());
    cluster.cut.clear();
    cluster.tick(2);
    assert_eq!(reading.try_recv(), Ok(Ok(())));
}
