//! Members that come and go.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use raft::eraftpb::MessageType;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng as _;

use super::cluster::Cluster;
use super::*;
use crate::store::Unavailable;
use crate::store::testing::{node, node_id};

/// Ticks within which a cluster that can elect a leader has one.
const ELECTION: usize = 40;

fn voters(cluster: &mut Cluster, raft_id: u64) -> Vec<u64> {
    let members = cluster.member(raft_id).replica.members();
    members.voters.into_iter().collect()
}

fn change(cluster: &mut Cluster, number: u8, member: MemberChange) -> Option<Outcomed> {
    let leader = cluster.leader()?;
    let changes = [node(number).into()];
    let mut outcome = cluster.member(leader).reconfigure(&changes, Some(member));
    cluster.settle();
    outcome.try_recv().ok()
}

type Outcomed = Result<(), ProposeError>;

#[test]
fn a_member_that_joins_gets_everything_and_then_a_vote() {
    let mut cluster = Cluster::lone();
    cluster.member(1).update(&[node(1).into()]);
    cluster.start(2);
    assert_eq!(change(&mut cluster, 2, MemberChange::Add(2)), Some(Ok(())));
    // The change and the store's are one; the vote comes when the log has been handed over.
    assert!(cluster.member(1).state().node(&node_id(2)).is_some());
    cluster.tick(10);
    assert_eq!(voters(&mut cluster, 1), [1, 2]);
    assert_eq!(voters(&mut cluster, 2), [1, 2]);
    let state = cluster.member(1).state();
    assert!(state.node(&node_id(1)).is_some());
    assert_eq!(cluster.member(2).state(), state);

    // Neither decides anything without the other now.
    cluster.cut = vec![2];
    let mut outcome = cluster.member(1).propose(&[node(3).into()]);
    cluster.settle();
    assert!(outcome.try_recv().is_err());
    cluster.cut.clear();
    cluster.tick(2);
    assert_eq!(outcome.try_recv(), Ok(Ok(())));

    // Both know who takes part after a loss of power.
    cluster.restart(1);
    cluster.restart(2);
    assert_eq!(cluster.leader(), None);
    cluster.tick(ELECTION);
    assert!(cluster.leader().is_some());
    assert_eq!(voters(&mut cluster, 1), [1, 2]);
    assert_eq!(voters(&mut cluster, 2), [1, 2]);
}

#[test]
fn a_member_that_never_answers_gets_no_vote_and_holds_nobody_up() {
    let mut cluster = Cluster::lone();
    assert_eq!(change(&mut cluster, 2, MemberChange::Add(2)), Some(Ok(())));
    cluster.tick(ELECTION);
    assert_eq!(voters(&mut cluster, 1), [1]);
    let members = cluster.member(1).replica.members();
    assert_eq!(members.learners, BTreeSet::from([2]));
    assert_eq!(members.reachable, BTreeSet::from([1]));
    cluster.member(1).propose(&[node(1).into()]);
    cluster.settle();
    assert!(cluster.member(1).state().node(&node_id(1)).is_some());
    // It can be given up.
    assert_eq!(
        change(&mut cluster, 3, MemberChange::Remove(2)),
        Some(Ok(()))
    );
    assert!(cluster.member(1).replica.members().learners.is_empty());
}

#[test]
fn changes_that_do_not_fit_are_refused_and_leave_the_log_alone() {
    let mut cluster = Cluster::new();
    cluster.elect(1);
    for member in [
        MemberChange::Add(0),
        MemberChange::Add(2),
        MemberChange::Remove(9),
    ] {
        let refused = Some(Err(ProposeError::Members));
        assert_eq!(change(&mut cluster, 1, member), refused, "{member:?}");
    }
    let mut lone = Cluster::lone();
    let refused = Some(Err(ProposeError::Members));
    assert_eq!(change(&mut lone, 1, MemberChange::Remove(1)), refused);
    assert!(lone.member(1).state().node(&node_id(1)).is_none());
}

#[test]
fn only_one_change_of_members_is_under_way() {
    let mut cluster = Cluster::new();
    cluster.elect(1);
    cluster.cut = vec![1];
    let changes = [node(1).into()];
    let mut first = cluster
        .member(1)
        .reconfigure(&changes, Some(MemberChange::Remove(3)));
    let mut second = cluster
        .member(1)
        .reconfigure(&changes, Some(MemberChange::Remove(2)));
    let busy = Err(ProposeError::Unavailable(Unavailable::Busy));
    assert_eq!(second.try_recv(), Ok(busy));
    cluster.cut.clear();
    cluster.tick(2);
    assert_eq!(first.try_recv(), Ok(Ok(())));
    assert_eq!(voters(&mut cluster, 1), [1, 2]);
}

#[test]
fn a_leader_that_is_removed_leads_no_more() {
    // It removes itself.
    let mut cluster = Cluster::new();
    cluster.elect(1);
    let removed = change(&mut cluster, 1, MemberChange::Remove(1));
    assert_eq!(removed, Some(Ok(())));
    cluster.tick(ELECTION);
    assert_ne!(cluster.leader().unwrap(), 1);

    // It was elected with its own removal in its log, not committed yet (seed 27193).
    let mut cluster = Cluster::new();
    cluster.elect(1);
    cluster.cut = vec![3];
    cluster.lost = vec![MessageType::MsgAppendResponse];
    assert_eq!(change(&mut cluster, 1, MemberChange::Remove(2)), None);
    // Nobody but the second has all of the log now.
    (cluster.cut, cluster.lost) = (vec![1], Vec::new());
    cluster.tick(2 * ELECTION);
    assert_eq!(voters(&mut cluster, 2), [1, 3]);
    cluster.cut.clear();
    cluster.tick(ELECTION);
    assert_ne!(cluster.leader().unwrap(), 2);
    let removed = change(&mut cluster, 2, MemberChange::Remove(2));
    assert_eq!(removed, Some(Err(ProposeError::Members)));
}

#[test]
fn a_removed_member_neither_decides_nor_disturbs() {
    let mut cluster = Cluster::new();
    cluster.elect(1);
    assert_eq!(
        change(&mut cluster, 1, MemberChange::Remove(3)),
        Some(Ok(()))
    );
    cluster.tick(ELECTION);
    assert_eq!(cluster.leader(), Some(1));
    assert_eq!(voters(&mut cluster, 2), [1, 2]);
    let term = cluster.member(1).replica.leadership().term;
    cluster.tick(4 * ELECTION);
    assert_eq!(cluster.leader(), Some(1));
    assert_eq!(cluster.member(1).replica.leadership().term, term);
}

#[test]
fn a_leader_hands_over_to_one_that_is_heard() {
    let mut cluster = Cluster::new();
    cluster.elect(1);
    cluster.cut = vec![2];
    // Longer than a member counts as reachable after its last word.
    cluster.tick(60);
    let reachable = cluster.member(1).replica.members().reachable;
    assert_eq!(reachable, BTreeSet::from([1, 3]));
    cluster.member(1).member.hand_over();
    cluster.settle();
    assert_eq!(cluster.leader(), Some(3));
    // Alone, it goes on leading.
    let mut lone = Cluster::lone();
    lone.member(1).member.hand_over();
    lone.tick(ELECTION);
    assert_eq!(lone.leader(), Some(1));
}

#[test]
fn a_new_leader_knows_whom_it_has_not_heard_yet() {
    let mut cluster = Cluster::new();
    cluster.elect(1);
    cluster.cut = vec![3];
    cluster.tick(60);
    // A follower hears the leader alone.
    let followers = cluster.member(2).replica.members();
    assert_eq!(followers.reachable, BTreeSet::from([1, 2]));
    assert_eq!(followers.unheard, BTreeSet::new());
    // It leads with the votes of the first two; what the third says is on its way.
    cluster.member(1).member.hand_over();
    cluster.settle();
    assert_eq!(cluster.leader(), Some(2));
    let leaders = cluster.member(2).replica.members();
    assert_eq!(leaders.reachable, BTreeSet::from([1, 2]));
    assert_eq!(leaders.unheard, BTreeSet::from([3]));
    cluster.cut.clear();
    cluster.tick(2);
    let leaders = cluster.member(2).replica.members();
    assert_eq!(leaders.reachable, BTreeSet::from([1, 2, 3]));
    assert_eq!(leaders.unheard, BTreeSet::new());
    // One that says nothing for long is taken for unreachable.
    cluster.cut = vec![3];
    cluster.tick(60);
    let leaders = cluster.member(2).replica.members();
    assert_eq!(leaders.reachable, BTreeSet::from([1, 2]));
    assert_eq!(leaders.unheard, BTreeSet::new());
}

#[derive(Clone, Debug)]
enum Event {
    Ticks(usize),
    Cut(u64),
    Heal,
    Restart(u64),
    Update(u8),
    Add(u64),
    Remove(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1..15usize).prop_map(Event::Ticks),
        2 => (1..6u64).prop_map(Event::Cut),
        3 => Just(Event::Heal),
        1 => (1..6u64).prop_map(Event::Restart),
        6 => (0..4u8).prop_map(Event::Update),
        2 => (4..6u64).prop_map(Event::Add),
        1 => (1..6u64).prop_map(Event::Remove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever is lost, and whoever comes, goes and loses power: what was acknowledged stays, two
    /// never lead in one term, and at the same index all states are the same.
    #[test]
    fn what_is_acknowledged_stays(
        events in proptest::collection::vec(event(), 1..40),
        seed: u64,
        share in 0.0..0.3f64,
    ) {
        let mut cluster = Cluster::new();
        cluster.elect(1);
        cluster.loss = Some((ChaCha12Rng::seed_from_u64(seed), share));
        let mut leaders = BTreeMap::new();
        let mut states: BTreeMap<u64, State> = BTreeMap::new();
        let mut acknowledged = 0;
        let mut waiting: Vec<(u64, Outcome)> = Vec::new();
        let mut added = BTreeSet::new();
        for event in events {
            let leading = cluster.any_leader();
            match event {
                Event::Ticks(ticks) => cluster.tick(ticks),
                Event::Cut(raft_id) => cluster.cut = vec![raft_id],
                Event::Heal => cluster.cut.clear(),
                Event::Restart(raft_id) if cluster.members.contains_key(&raft_id) => {
                    cluster.restart(raft_id);
                }
                Event::Restart(_) => {}
                Event::Update(number) => if let Some(leader) = leading {
                    let outcome = cluster.member(leader).propose(&[node(number).into()]);
                    waiting.push((leader, outcome));
                }
                Event::Add(raft_id) => if let Some(leader) = leading
                    && added.insert(raft_id)
                {
                    cluster.start(raft_id);
                    let change = Some(MemberChange::Add(raft_id));
                    cluster.member(leader).reconfigure(&[node(9).into()], change);
                }
                Event::Remove(raft_id) => if let Some(leader) = leading.filter(|it| *it != raft_id) {
                    let change = Some(MemberChange::Remove(raft_id));
                    cluster.member(leader).reconfigure(&[node(9).into()], change);
                }
            }
            cluster.settle();
            for (raft_id, running) in &cluster.members {
                let leadership = running.replica.leadership();
                if leadership.leader {
                    let leader = leaders.entry(leadership.term).or_insert(*raft_id);
                    prop_assert_eq!(*leader, *raft_id, "two leaders in term {}", leadership.term);
                }
                let state = running.state();
                let known = states.entry(state.index()).or_insert_with(|| state.clone());
                prop_assert_eq!(&*known, &state);
            }
            waiting.retain_mut(|(leader, outcome)| {
                if let Ok(Ok(())) = outcome.try_recv() {
                    acknowledged = acknowledged.max(cluster.member(*leader).state().index());
                    return false;
                }
                true
            });
        }
        // Once everything works again, those that take part agree, with all that was acknowledged.
        cluster.cut.clear();
        cluster.loss = None;
        cluster.tick(4 * ELECTION);
        let leader = cluster.leader();
        prop_assert!(leader.is_some(), "no leader");
        let leader = leader.unwrap();
        let state = cluster.member(leader).state();
        prop_assert!(state.index() >= acknowledged);
        for raft_id in voters(&mut cluster, leader) {
            prop_assert_eq!(&cluster.member(raft_id).state(), &state, "member {}", raft_id);
        }
    }
}

/// Found by the simulation: the leader knew of the commit in memory alone, and came back as one of
/// two members, the other of which was gone for good.
#[test]
fn who_acknowledged_that_the_other_left_can_do_without_it() {
    let mut cluster = Cluster::lone();
    cluster.start(2);
    assert_eq!(change(&mut cluster, 2, MemberChange::Add(2)), Some(Ok(())));
    cluster.tick(10);
    assert_eq!(voters(&mut cluster, 1), [1, 2]);
    let removed = change(&mut cluster, 3, MemberChange::Remove(2));
    assert_eq!(removed, Some(Ok(())));
    cluster.members.remove(&2);
    cluster.restart(1);
    cluster.tick(ELECTION);
    assert_eq!(cluster.leader(), Some(1));
}
