//! The rules on a state made by hand.

use swarm_model::NodeState;

use super::*;
use crate::store::testing;

const NOW: Timestamp = Timestamp(1);

fn id(number: u8) -> NodeId {
    testing::node_id(number)
}

fn address(number: u8) -> SocketAddr {
    ([10, 0, 0, number], 2377).into()
}

/// Managers `1..=count`, members by the same numbers, and the worker 9. `reachable` are heard.
fn swarm(count: u8, reachable: &[u64]) -> (State, Members) {
    let mut changes: Vec<Change> = vec![testing::cluster(1).into()];
    for number in (1..=count).chain([9]) {
        let mut node = testing::node(number);
        node.description.hostname = format!("h{number}");
        node.status.state = NodeState::Ready;
        if number != 9 {
            node.role = Role::Manager;
            node.manager = Some(ManagerStatus {
                raft_id: number.into(),
                address: address(number),
                leader: number == 1,
                certificate_issuer: String::new(),
            });
        }
        changes.push(node.into());
    }
    let mut state = State::default();
    state.apply(1, changes);
    let members = Members {
        voters: (1..=count.into()).collect(),
        learners: BTreeSet::new(),
        reachable: reachable.iter().copied().collect(),
        unheard: BTreeSet::new(),
    };
    (state, members)
}

fn demote(count: u8, reachable: &[u64], number: u8) -> Result<Decision, String> {
    let (state, members) = swarm(count, reachable);
    let name = format!("h{number}");
    let decided = set_role(&state, &members, &name, Role::Worker, (&id(1), &id(1)), NOW);
    decided.map_err(|refusal| refusal.to_string())
}

#[test]
fn a_manager_is_demoted_when_the_others_can_go_on() {
    let (changes, member, outcome) = demote(3, &[1, 2, 3], 3).unwrap();
    assert_eq!(member, Some(MemberChange::Remove(3)));
    assert_eq!(outcome, RoleOutcome::Changed(id(3)));
    let [Change::Put(crate::store::Object::Node(node))] = &changes[..] else {
        panic!("{changes:?}");
    };
    assert_eq!((node.role, &node.manager), (Role::Worker, &None));
    // One that is down may go, those that are needed may not.
    assert!(demote(3, &[1, 2], 3).is_ok());
    assert_eq!(
        demote(3, &[1, 2], 2).unwrap_err(),
        "manager h2 cannot be demoted: of the 2 managers that would be left 2 are needed, and 1 can \
         be reached; bring others back, or promote more, first"
    );
    assert_eq!(
        demote(1, &[1], 1).unwrap_err(),
        "node h1 is the last manager of the swarm: promote another node first with `swarmctl node \
         promote`"
    );
}

#[test]
fn a_new_leader_that_has_not_heard_the_others_yet_refuses_for_now_only() {
    let (state, mut members) = swarm(3, &[1, 2]);
    let demote = |members: &Members| {
        let node = (&id(1), &id(1));
        let decided = set_role(&state, members, "h2", Role::Worker, node, NOW);
        decided.unwrap_err()
    };
    members.unheard.insert(3);
    assert!(matches!(demote(&members), Refusal::NotHeardYet));
    // The one that is to go does not count.
    members.unheard = BTreeSet::from([2]);
    assert!(matches!(demote(&members), Refusal::QuorumLoss { .. }));
}

#[test]
fn a_leader_hands_over_first_and_a_worker_stays_one() {
    let handed = demote(3, &[1, 2, 3], 1).unwrap();
    assert_eq!(handed, (Vec::new(), None, RoleOutcome::HandOver));
    let unchanged = demote(3, &[1, 2, 3], 9).unwrap();
    assert_eq!(unchanged, (Vec::new(), None, RoleOutcome::Unchanged(id(9))));
}

#[test]
fn a_worker_is_promoted_while_there_is_room() {
    let promote = |count: u8, reference: &str| {
        let (state, members) = swarm(count, &[1]);
        set_role(
            &state,
            &members,
            reference,
            Role::Manager,
            (&id(1), &id(1)),
            NOW,
        )
        .map_err(|refusal| refusal.to_string())
    };
    let (changes, member, outcome) = promote(3, "h9").unwrap();
    assert_eq!((changes.len(), member), (1, None));
    assert_eq!(outcome, RoleOutcome::Changed(id(9)));
    assert_eq!(promote(3, "self").unwrap().2, RoleOutcome::Unchanged(id(1)));
    assert!(
        promote(7, "h9")
            .unwrap_err()
            .starts_with("the swarm has 7 managers")
    );
}

#[test]
fn a_manager_joins_once_and_again_when_its_log_is_lost() {
    let (mut state, members) = swarm(3, &[1, 2, 3]);
    let mut node = testing::node(4);
    node.role = Role::Manager;
    state.apply(2, vec![node.into()]);
    let ask_with = |state: &State, members: &Members, number, raft_id, at, issuer| {
        let member = (raft_id, address(at), issuer);
        join(state, members, &id(number), member, NOW)
            .map(|(changes, member, done)| (changes.len(), member, done))
            .map_err(|refusal| refusal.to_string())
    };
    let ask = |state: &State, members: &Members, number, raft_id, at| {
        ask_with(state, members, number, raft_id, at, "")
    };
    // With a certificate of another root.
    assert_eq!(
        ask_with(&state, &members, 3, 3, 3, "0a"),
        Ok((1, None, true))
    );
    assert_eq!(
        ask(&state, &members, 4, 44, 4),
        Ok((1, Some(MemberChange::Add(44)), true))
    );
    // Asked again, moved, with another log, of which the old one goes first.
    assert_eq!(ask(&state, &members, 3, 3, 3), Ok((0, None, true)));
    assert_eq!(ask(&state, &members, 3, 3, 5), Ok((1, None, true)));
    assert_eq!(
        ask(&state, &members, 3, 33, 3),
        Ok((1, Some(MemberChange::Remove(3)), false))
    );
    let alone = Members {
        reachable: BTreeSet::from([1]),
        ..members.clone()
    };
    assert!(ask(&state, &alone, 3, 33, 3).is_err());
    // A number that is another's, or none; a worker.
    assert!(ask(&state, &members, 4, 2, 4).is_err());
    assert!(ask(&state, &members, 4, 0, 4).is_err());
    assert!(
        ask(&state, &members, 9, 99, 9)
            .unwrap_err()
            .starts_with("node h9 is not a manager")
    );
}

#[test]
fn lost_quorum_is_told_with_names() {
    let (state, members) = swarm(3, &[2]);
    assert_eq!(
        no_leader(&state, &members).to_string(),
        "the swarm has lost its quorum: 2 of its 3 managers are needed and 1 can be reached; not \
         reached: h1 (10.0.0.1:2377), h3 (10.0.0.3:2377); what runs goes on running, and nothing can \
         be changed until they are back; if they are lost for good, `swarmctl swarm init \
         --force-new-cluster` goes on with this manager alone and keeps everything else"
    );
    let (state, members) = swarm(3, &[2, 3]);
    assert!(matches!(no_leader(&state, &members), Refusal::Electing));
}
