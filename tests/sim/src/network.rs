//! The network between managers: it loses, delays, repeats and reorders, and can be cut.

use std::collections::BTreeSet;

use rand::RngExt as _;
use rand_chacha::ChaCha12Rng;

/// How the network behaves while nothing is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    /// Delay of a message, in microseconds: at least, and most of the time at most.
    pub(crate) delay_us: (u64, u64),
    /// Messages out of a thousand that take up to twenty times as long, and so come out of order.
    pub(crate) late_permille: u32,
    /// Messages out of a thousand that are lost.
    pub(crate) lost_permille: u32,
    /// Messages out of a thousand that come twice.
    pub(crate) twice_permille: u32,
}

/// The network.
#[derive(Debug)]
pub(crate) struct Network {
    habits: Habits,
    /// Ways, by the numbers of both ends, that nothing gets through.
    cut: BTreeSet<(usize, usize)>,
    rng: ChaCha12Rng,
}

impl Network {
    /// A network without cuts.
    pub(crate) fn new(habits: Habits, rng: ChaCha12Rng) -> Self {
        Self {
            habits,
            cut: BTreeSet::new(),
            rng,
        }
    }

    /// The delays, in microseconds, of each copy of a message that arrives; none when it is lost.
    pub(crate) fn carry(&mut self, from: usize, to: usize) -> Vec<u64> {
        // Drawn in any case: what else happens must not depend on what is cut.
        let is_lost = self.happens(self.habits.lost_permille);
        let copies = 1 + usize::from(self.happens(self.habits.twice_permille));
        let delays = (0..copies).map(|_| self.delay()).collect();
        if is_lost || self.is_cut(from, to) {
            return Vec::new();
        }
        delays
    }

    /// The delay of a message on a stream, in microseconds.
    pub(crate) fn delay(&mut self) -> u64 {
        let (least, most) = self.habits.delay_us;
        let factor = if self.happens(self.habits.late_permille) {
            self.rng.random_range(2..20)
        } else {
            1
        };
        self.rng.random_range(least..=most) * factor
    }

    fn happens(&mut self, permille: u32) -> bool {
        self.rng.random_ratio(permille, 1000)
    }

    /// Whether nothing gets from `from` to `to`.
    pub(crate) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut.contains(&(from, to))
    }

    /// Cuts the way from `from` to `to`; the way back stays.
    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        self.cut.insert((from, to));
    }

    /// Cuts everything between the hosts for which `side` says true and the others, of `count`.
    pub(crate) fn part(&mut self, count: usize, side: impl Fn(usize) -> bool) {
        for from in 0..count {
            for to in 0..count {
                if side(from) != side(to) {
                    self.cut.insert((from, to));
                }
            }
        }
    }

    /// Mends everything.
    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    /// From now on nothing is lost either.
    pub(crate) fn calm(&mut self) {
        self.heal();
        self.habits.lost_permille = 0;
        self.habits.late_permille = 0;
    }
}
