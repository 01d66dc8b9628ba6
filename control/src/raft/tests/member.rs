use proptest::collection::vec;
use proptest::prelude::*;

use super::super::log::{Log, LogError};
use super::super::member::bootstrap;
use super::*;
use crate::store::testing::{changes, node, node_id};

#[test]
fn a_restart_gives_the_same_state_at_the_same_index() {
    let mut running = Running::lead(bootstrapped(7)).unwrap();
    for number in 0..3 {
        running.update(&[node(number).into()]);
    }
    let state = running.state();
    assert_eq!(state.nodes().count(), 3);
    running.member.close().unwrap();

    let again = Running::open(running.disk).unwrap();
    assert_eq!(again.state(), state);
    assert!(!again.replica.leadership().leader);
}

#[test]
fn the_first_state_is_there_at_once_and_survives() {
    let disk = Disk::default();
    let log = Log::with_backend(disk.clone()).unwrap();
    bootstrap(&log, 7, vec![node(1).into()]).unwrap();
    drop(log);
    let running = Running::open(disk).unwrap();
    let state = running.state();
    assert_eq!(state.node(&node_id(1)).unwrap().meta.version, 1);
    assert_eq!(state.index(), 1);
}

#[test]
fn an_update_is_synced_once_before_it_is_acknowledged() {
    let mut running = Running::lead(bootstrapped(7)).unwrap();
    let syncs = running.disk.syncs();
    running.update(&[node(1).into()]);
    assert_eq!(running.disk.syncs(), syncs + 1);
    let state = running.state();

    let crashed = running.disk.after_crash(|| false);
    let again = Running::lead(crashed).unwrap();
    assert!(again.state().nodes().eq(state.nodes()));
}

#[test]
fn a_failed_write_stops_the_member_and_acknowledges_nothing() {
    let mut running = Running::lead(bootstrapped(7)).unwrap();
    let state = running.state();
    running.disk.fail_after(0);
    let (acknowledged, run) = running.try_update(&[node(1).into()]);
    assert!(!acknowledged);
    assert!(
        matches!(run, Err(NodeError::Log(LogError::Io { .. }))),
        "{run:?}"
    );
    assert_eq!(running.state(), state, "applied without being on disk");
}

#[test]
fn entries_before_a_snapshot_are_forgotten_but_for_a_margin() {
    let updates = 2_000;
    let mut running = Running::lead(bootstrapped(7)).unwrap();
    for number in 0..updates {
        let number = u8::try_from(number % 4).unwrap();
        running.update(&[node(number).into()]);
    }
    let state = running.state();
    running.member.close().unwrap();

    let recovered = Log::with_backend(running.disk.clone())
        .unwrap()
        .recover()
        .unwrap();
    assert!(state.index() - recovered.snapshot.index < SNAPSHOT_INTERVAL);
    let kept = u64::try_from(recovered.entries.len()).unwrap();
    assert!((500..500 + SNAPSHOT_INTERVAL).contains(&kept), "{kept}");
    let again = Running::open(running.disk).unwrap();
    assert_eq!(again.state(), state);
}

#[test]
fn a_proposal_of_an_older_term_is_refused() {
    let mut running = Running::lead(bootstrapped(7)).unwrap();
    let mut stale = running.replica.leadership();
    stale.term -= 1;
    running.replica.set_leadership(stale);
    let mut outcome = running.propose(&[node(1).into()]);
    let refused = Err(ProposeError::NotLeader { leader: Some(7) });
    assert_eq!(outcome.try_recv(), Ok(refused));
}

#[derive(Clone, Debug)]
enum Step {
    Update(Vec<Change>),
    Restart,
    /// Power is lost `after` disk operations of an update.
    Crash {
        changes: Vec<Change>,
        after: usize,
        survivors: Vec<bool>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => changes().prop_map(Step::Update),
        1 => Just(Step::Restart),
        2 => (changes(), 0..12usize, vec(any::<bool>(), 1..16)).prop_map(
            |(changes, after, survivors)| Step::Crash { changes, after, survivors }
        ),
    ]
}

/// Everything but the index, which elections move on.
fn assert_same(found: &State, expected: &State) {
    let mut expected = expected.clone();
    expected.apply(found.index(), Vec::new());
    assert_eq!(*found, expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// What was acknowledged is there after any number of restarts and losses of power, at the
    /// version it had; what was under way is there whole or not at all.
    #[test]
    fn acknowledged_updates_survive(steps in vec(step(), 1..24)) {
        let mut running = Running::lead(bootstrapped(7)).unwrap();
        let mut model = running.state();
        for step in steps {
            match step {
                Step::Update(changes) => {
                    running.update(&changes);
                    model.apply(running.state().index(), changes);
                }
                Step::Restart => {
                    running.member.close().unwrap();
                    running = Running::lead(running.disk).unwrap();
                }
                Step::Crash { changes, after, survivors } => {
                    let before = running.state();
                    let mut with_changes = model.clone();
                    with_changes.apply(before.index() + 1, changes.clone());
                    running.disk.fail_after(after);
                    let (acknowledged, _run) = running.try_update(&changes);
                    let mut survivors = survivors.into_iter().cycle();
                    let disk = running.disk.after_crash(|| survivors.next().unwrap());
                    running = Running::lead(disk).unwrap();
                    let found = running.state();
                    let mut whole = with_changes.clone();
                    whole.apply(found.index(), Vec::new());
                    if acknowledged || found == whole {
                        model = with_changes;
                    }
                }
            }
            assert_same(&running.state(), &model);
        }
    }
}
