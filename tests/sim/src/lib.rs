//! Whole clusters of the managers' cores, on virtual time, from a seed.
//!
//! A seed stands for a swarm, for everything that people ask of it and for everything that goes
//! wrong: lost, late, repeated and reordered messages, cut and half-cut networks, processes that are
//! killed, hosts that lose their power, stand still or have slow and failing disks. [`run`] lets it
//! happen and checks after every step what must never be otherwise; in the end all is mended, and
//! the swarm must come to rest.
//!
//! * `world`: what happens, in order of virtual time.
//! * `disk`, `network`: what the managers stand on.
//! * `agents`: nodes that run what they are told to.
//! * `users`: what people ask for, and what they may rely on afterwards.
//! * `check`: what must hold.
//! * `plan`: what a seed stands for. `trace`: what happened.
//!
//! Invariants:
//! * The same seed gives the same run, to the last event: there is no other randomness, no other
//!   clock, no threads within a run.
//! * The managers are those of the product (`swarm_control::simulation`).
//!
//! Run it with `cargo xtask sim`.

mod agents;
mod check;
mod disk;
mod network;
mod plan;
mod trace;
mod users;
mod world;

pub use plan::Sabotage;
pub use world::{Failure, Summary};

use std::panic::{AssertUnwindSafe, catch_unwind};

use plan::Plan;
use world::World;

/// Runs `seed`, printing what happens when it `is_shown`.
///
/// # Errors
/// When a promise is broken, or a core panics.
pub fn run(seed: u64, sabotage: Sabotage, is_shown: bool) -> Result<Summary, Failure> {
    let failed = |violation| Failure {
        violation,
        trace: Vec::new(),
    };
    let plan = Plan::new(seed, sabotage);
    if is_shown {
        println!("{plan:#?}");
    }
    let run = || World::new(seed, plan, is_shown).map_err(failed)?.run();
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(failed(format!(
            "a panic: {}",
            text.unwrap_or("of no words")
        )))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first of these seeds that shows what is wrong.
    fn found_within(seeds: u64, sabotage: Sabotage) -> Option<String> {
        let mut found = (1..=seeds).filter_map(|seed| run(seed, sabotage, false).err());
        found.next().map(|failure| failure.violation)
    }

    #[test]
    fn a_seed_gives_the_same_run_again() {
        let mut digests = std::collections::BTreeSet::new();
        for seed in 1..=6 {
            let first = run(seed, Sabotage::None, false).expect("nothing is broken");
            let again = run(seed, Sabotage::None, false).expect("nothing is broken");
            assert_eq!(first, again, "seed {seed}");
            assert!(first.reads > 0, "seed {seed}: nothing was read");
            digests.insert(first.digest);
        }
        assert_eq!(digests.len(), 6, "all seeds give the same run");
    }

    #[test]
    fn a_seed_that_fails_fails_again_in_the_same_way() {
        let failing = (1..=40).find_map(|seed| {
            let failure = run(seed, Sabotage::EarlyAnswers, false).err()?;
            Some((seed, failure))
        });
        let (seed, first) = failing.expect("one of them");
        let again = run(seed, Sabotage::EarlyAnswers, false).expect_err("it did before");
        assert_eq!(first.violation, again.violation);
        assert_eq!(first.trace, again.trace);
    }

    #[test]
    fn disks_that_lie_about_syncs_are_found() {
        assert!(found_within(60, Sabotage::LyingDisks).is_some());
    }

    #[test]
    fn reads_that_ask_nobody_are_found() {
        let found = found_within(40, Sabotage::MemoryReads).expect("found");
        assert!(found.ends_with("which does not see it"), "{found}");
    }

    #[test]
    fn answers_before_the_majority_has_it_are_found() {
        let found = found_within(40, Sabotage::EarlyAnswers).expect("found");
        assert!(found.ends_with("was acknowledged, and is lost"), "{found}");
    }
}
