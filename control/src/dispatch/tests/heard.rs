//! What follows from silence.

use std::time::Duration;

use swarm_model::{NodeState, Timestamp};

use crate::clock;
use crate::dispatch::liveness::Liveness;
use crate::dispatch::observe::judge;
use crate::orchestrate::scenario::Scenario;

struct Case {
    swarm: Scenario,
    liveness: Liveness,
    now: Timestamp,
}

impl Case {
    fn new(state: NodeState) -> Self {
        let mut swarm = Scenario::with_nodes(&["h1"]);
        swarm.set_node_state("h1", state);
        let id = swarm.node_id("h1");
        let mut node = swarm_model::Node::clone(swarm.state.node(&id).expect("added"));
        node.meta.created_at = Timestamp(0);
        swarm.put(node);
        let now = Timestamp(50_000);
        Self {
            swarm,
            liveness: Liveness::new(now),
            now,
        }
    }

    fn hear(&mut self) {
        let node = self.swarm.node_id("h1");
        self.liveness.heard(&node, self.now);
    }

    /// Lets time pass as it does for a leader that checks all the time.
    fn wait(&mut self, by: Duration) -> NodeState {
        let end = self.now.after(by);
        loop {
            let verdicts = self.liveness.check(&self.swarm.state, self.now);
            for change in judge(&self.swarm.state, verdicts, clock::now()) {
                if let crate::store::Change::Put(object) = change {
                    self.swarm.put(object);
                }
            }
            if self.now >= end {
                break;
            }
            self.now = self.now.after(Duration::from_millis(100)).min(end);
        }
        let node = self.swarm.node_id("h1");
        self.swarm.state.node(&node).expect("added").status.state
    }
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn silence_makes_a_node_suspect_and_then_down() {
    let mut case = Case::new(NodeState::Ready);
    case.hear();
    assert_eq!(case.wait(ms(1_499)), NodeState::Ready);
    assert_eq!(case.wait(ms(1)), NodeState::Suspect);
    assert_eq!(case.wait(ms(8_499)), NodeState::Suspect);
    assert_eq!(case.wait(ms(1)), NodeState::Down);
    assert_eq!(case.wait(ms(60_000)), NodeState::Down);
    case.hear();
    assert_eq!(case.wait(ms(0)), NodeState::Ready);
}

#[test]
fn one_heartbeat_ends_suspicion() {
    let mut case = Case::new(NodeState::Ready);
    case.hear();
    assert_eq!(case.wait(ms(5_000)), NodeState::Suspect);
    case.hear();
    assert_eq!(case.wait(ms(1_000)), NodeState::Ready);
}

#[test]
fn a_new_leader_gives_everyone_time_to_come_back() {
    let mut case = Case::new(NodeState::Unknown);
    assert_eq!(case.wait(ms(9_999)), NodeState::Unknown);
    assert_eq!(case.wait(ms(1)), NodeState::Down);

    let mut case = Case::new(NodeState::Unknown);
    assert_eq!(case.wait(ms(9_000)), NodeState::Unknown);
    case.hear();
    assert_eq!(case.wait(ms(100)), NodeState::Ready);

    let mut case = Case::new(NodeState::Down);
    assert_eq!(
        case.wait(ms(9_000)),
        NodeState::Down,
        "nothing new of one that was down"
    );
}

#[test]
fn a_node_has_time_to_be_heard_after_it_was_admitted() {
    let mut case = Case::new(NodeState::Unknown);
    assert_eq!(case.wait(ms(60_000)), NodeState::Down);
    let id = case.swarm.node_id("h1");
    let mut node = swarm_model::Node::clone(case.swarm.state.node(&id).expect("added"));
    node.status.state = NodeState::Unknown;
    node.meta.created_at = case.now;
    case.swarm.put(node);
    assert_eq!(case.wait(ms(9_999)), NodeState::Unknown);
    assert_eq!(case.wait(ms(1)), NodeState::Down);
}

#[test]
fn a_leader_that_stood_still_blames_nobody() {
    let mut case = Case::new(NodeState::Ready);
    case.hear();
    assert_eq!(case.wait(ms(500)), NodeState::Ready);
    case.now = case.now.after(ms(30_000));
    assert_eq!(case.wait(ms(900)), NodeState::Ready);
    assert_eq!(
        case.wait(ms(200)),
        NodeState::Suspect,
        "the silence before and after counts"
    );
}
