//! What a seed stands for: the size of the swarm, and how badly it is treated.

use rand::RngExt as _;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng as _;

use crate::{disk, network};

/// Microseconds of a second.
pub(crate) const SECOND: u64 = 1_000_000;
/// Microseconds of a millisecond.
pub(crate) const MILLISECOND: u64 = 1_000;

/// A lie in what the cores are built on, or in what is made of their answers: the checks must find
/// it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sabotage {
    /// Nothing.
    #[default]
    None,
    /// Disks say that they synced and did not.
    LyingDisks,
    /// Managers are told that calls are done that are only proposed.
    EarlyAnswers,
    /// Managers answer reads from memory, without asking the others.
    MemoryReads,
}

/// What a seed stands for.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Managers.
    pub(crate) managers: usize,
    /// Nodes with agents.
    pub(crate) agents: usize,
    /// How long it is made difficult, in microseconds; then all is mended, and must come to rest.
    pub(crate) storm_us: u64,
    /// Mean time between two faults, in microseconds.
    pub(crate) fault_every_us: u64,
    /// Mean time between two calls of users, in microseconds.
    pub(crate) call_every_us: u64,
    /// Entries after which a snapshot is taken.
    pub(crate) snapshot_interval: u64,
    /// How disks behave.
    pub(crate) disk: disk::Habits,
    /// How the network behaves.
    pub(crate) network: network::Habits,
    /// What is wrong underneath.
    pub(crate) sabotage: Sabotage,
}

/// Randomness for one purpose, so that drawing more for one changes nothing for another.
pub(crate) fn stream(seed: u64, purpose: u64) -> ChaCha12Rng {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    rng.set_stream(purpose);
    rng
}

impl Plan {
    /// The plan of `seed`.
    pub(crate) fn new(seed: u64, sabotage: Sabotage) -> Self {
        let mut rng = stream(seed, 0);
        let mut pick = |choices: &[u64]| choices[rng.random_range(0..choices.len())];
        let managers = pick(&[3, 3, 3, 5, 5, 1]);
        let slow_sync_ms = pick(&[2, 2, 10, 60]);
        let delay_ms = pick(&[1, 1, 5, 30]);
        let lies_ppm = match sabotage {
            Sabotage::LyingDisks => 300_000,
            _ => 0,
        };
        Self {
            managers: managers as usize,
            agents: pick(&[0, 0, 0, 0, 2, 4]) as usize,
            storm_us: pick(&[5, 5, 8, 15]) * SECOND,
            fault_every_us: pick(&[300, 700, 1500, 4000]) * MILLISECOND,
            call_every_us: pick(&[100, 200, 400]) * MILLISECOND,
            snapshot_interval: pick(&[5, 20, 100, 10_000]),
            disk: disk::Habits {
                sync_us: (100, slow_sync_ms * MILLISECOND),
                lies_ppm,
            },
            network: network::Habits {
                delay_us: (100, delay_ms * MILLISECOND),
                late_permille: pick(&[0, 5, 50]) as u32,
                lost_permille: pick(&[0, 1, 10, 80]) as u32,
                twice_permille: pick(&[0, 2, 20]) as u32,
            },
            sabotage,
        }
    }
}
