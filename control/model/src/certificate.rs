//! The life of a node's certificate: when it is good, and when it is to be replaced. Pure: the moment
//! and the source of randomness are given.

use std::time::Duration;

use rand::{Rng, RngExt as _};

use crate::Timestamp;

/// How far `notBefore` lies before the moment of issue, for hosts whose clocks are behind (swarmkit
/// `ca/config.go`). No part of a certificate's life.
pub const CERTIFICATE_BACKDATE: Duration = Duration::from_secs(3600);

/// Shortest life that a swarm may give its nodes' certificates: a node must be able to sit out a
/// manager's absence of some minutes.
pub const MIN_CERTIFICATE_EXPIRY: Duration = Duration::from_secs(30 * 60);

/// Longest: half the life of the root, under which every certificate ends.
pub const MAX_CERTIFICATE_EXPIRY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The part of its life after which a certificate is replaced: anywhere between the two, so that
/// nodes that joined together do not all come back together (swarmkit `CertLowerRotationRange`).
const RENEWAL: std::ops::Range<f64> = 0.5..0.8;

/// Longest pause before the clock is looked at again: it may be set meanwhile.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Pause after the first failure, and after many: it doubles from the first to the second. The
/// shortest life leaves six minutes for tries.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// When a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From then on; [`CERTIFICATE_BACKDATE`] before it was issued.
    pub not_before: Timestamp,
    /// Until then.
    pub not_after: Timestamp,
}

impl Validity {
    /// How long it is still good at `now`.
    pub fn left(&self, now: Timestamp) -> Duration {
        self.not_after.since(now)
    }

    /// When it was issued: its life runs from there.
    pub fn issued_at(&self) -> Timestamp {
        self.not_before
            .after(CERTIFICATE_BACKDATE)
            .min(self.not_after)
    }
}

/// When a certificate is to be replaced.
///
/// | at | what | next |
/// |---|---|---|
/// | a random point of 50 to 80 % of its life | a renewal is tried | on success: [`Renewal::of`] the new one |
/// | 1 s, 2 s, 4 s ... 60 s after a failure, less up to half of it | it is tried again | as above |
/// | the moment of [`Renewal::hasten`] | a renewal is tried | as above |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    due: Timestamp,
    failures: u32,
}

impl Renewal {
    /// That of a certificate that is good for `validity`; `rng` draws the moment.
    pub fn of(validity: &Validity, rng: &mut impl Rng) -> Self {
        let issued = validity.issued_at();
        let life = validity.not_after.since(issued);
        Self {
            due: issued.after(life.mul_f64(rng.random_range(RENEWAL))),
            failures: 0,
        }
    }

    /// When it is to be tried.
    pub fn due(&self) -> Timestamp {
        self.due
    }

    /// How long to wait before asking again; zero when it is to be tried now.
    pub fn wait(&self, now: Timestamp) -> Duration {
        self.due.since(now).min(WAIT_MAX)
    }

    /// Has it tried at `at`, if that is sooner.
    pub fn hasten(&mut self, at: Timestamp) {
        self.due = self.due.min(at);
    }

    /// Notes that a try failed at `now`; `rng` spreads the next ones of many nodes.
    pub fn failed(&mut self, now: Timestamp, rng: &mut impl Rng) {
        let pause = RETRY_MIN
            .saturating_mul(1 << self.failures.min(16))
            .min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        self.due = now.after(pause.mul_f64(rng.random_range(0.5..=1.0)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    const ISSUED: Timestamp = Timestamp(1_800_000_000_000);

    fn validity(life: Duration) -> Validity {
        Validity {
            not_before: Timestamp(ISSUED.0 - 3_600_000),
            not_after: ISSUED.after(life),
        }
    }

    proptest! {
        #[test]
        fn it_is_due_between_half_and_four_fifths_of_its_life(
            seed: u64,
            life in MIN_CERTIFICATE_EXPIRY.as_secs()..=MAX_CERTIFICATE_EXPIRY.as_secs(),
        ) {
            let life = Duration::from_secs(life);
            let renewal = Renewal::of(&validity(life), &mut StdRng::seed_from_u64(seed));
            let after = renewal.due().since(ISSUED);
            prop_assert!(life / 2 <= after && after <= life * 4 / 5, "{after:?} of {life:?}");
            prop_assert_eq!(renewal.wait(renewal.due()), Duration::ZERO);
            prop_assert!(renewal.wait(ISSUED) > Duration::ZERO);
        }
    }

    #[test]
    fn moments_are_spread_over_the_whole_range() {
        let life = Duration::from_secs(1000);
        let mut rng = StdRng::seed_from_u64(1);
        let mut draw = || Renewal::of(&validity(life), &mut rng).due().since(ISSUED);
        let drawn: Vec<_> = (0..1000).map(|_| draw().as_secs()).collect();
        for tenth in 0_u64..10 {
            let range = 500 + tenth * 30..530 + tenth * 30;
            let count = drawn.iter().filter(|at| range.contains(*at)).count();
            assert!((50..150).contains(&count), "{count} in {range:?}");
        }
    }

    #[test]
    fn failures_are_spaced_further_and_further_and_not_too_far() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut renewal = Renewal::of(&validity(Duration::from_secs(3600)), &mut rng);
        let now = renewal.due();
        for longest in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            renewal.failed(now, &mut rng);
            let wait = renewal.wait(now);
            let longest = Duration::from_secs(longest);
            assert!(longest / 2 <= wait && wait <= longest, "{wait:?}");
        }
        for _ in 0..100 {
            renewal.failed(now, &mut rng);
        }
        assert!(renewal.wait(now) <= RETRY_MAX);
    }

    #[test]
    fn it_can_be_hastened_and_not_put_off() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut renewal = Renewal::of(&validity(Duration::from_secs(3600)), &mut rng);
        renewal.hasten(ISSUED);
        assert_eq!(renewal.due(), ISSUED);
        renewal.hasten(ISSUED.after(Duration::from_secs(1)));
        assert_eq!(renewal.due(), ISSUED);
    }

    #[test]
    fn odd_certificates_and_clocks_do_no_harm() {
        let mut rng = StdRng::seed_from_u64(1);
        // Backwards, and over before its life began: due at once, whatever the clock says.
        for (not_before, not_after) in [(10, 5), (0, 0), (u64::MAX, u64::MAX)] {
            let validity = Validity {
                not_before: Timestamp(not_before),
                not_after: Timestamp(not_after),
            };
            let renewal = Renewal::of(&validity, &mut rng);
            assert!(renewal.due() <= validity.not_after);
        }
        // A clock that is far behind is looked at again soon.
        let renewal = Renewal::of(&validity(MAX_CERTIFICATE_EXPIRY), &mut rng);
        assert_eq!(renewal.wait(Timestamp(0)), WAIT_MAX);
    }
}
