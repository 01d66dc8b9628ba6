//! How long a connection may live.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use swarm_model::Timestamp;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::rate::TokenBucket;

/// Certificates that one connection may ask for: one every half minute, and a few at once. A node
/// needs one in a quarter of an hour at most; each costs a signature.
const RENEWALS_BURST: u64 = 4;
const RENEWALS_INTERVAL_MS: u64 = 30_000;

/// The right of one connection to be open: until a moment that may be moved, or until it is revoked.
/// Copies are of the same right.
#[derive(Clone, Debug)]
pub(super) struct Lease(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    end: Mutex<Option<Instant>>,
    revoked: CancellationToken,
    renewals: Mutex<TokenBucket>,
}

impl Lease {
    /// Until `life` is over; for ever when there is none.
    pub(super) fn new(life: Option<Duration>) -> Self {
        // What no clock reaches is for ever.
        let end = life.and_then(|life| Instant::now().checked_add(life));
        Self(Arc::new(Shared {
            end: Mutex::new(end),
            revoked: CancellationToken::new(),
            renewals: Mutex::new(TokenBucket::new(RENEWALS_BURST, RENEWALS_INTERVAL_MS)),
        }))
    }

    /// Moves the end to `life` from now, if that is later: the other end has been given a new
    /// certificate.
    pub(super) fn extend(&self, life: Duration) {
        let mut end = self.end();
        if let Some(before) = *end {
            *end = Instant::now().checked_add(life).map(|end| end.max(before));
        }
    }

    /// Ends it now.
    pub(super) fn revoke(&self) {
        self.0.revoked.cancel();
    }

    /// Whether one more certificate may be asked for at `now`.
    pub(super) fn may_renew(&self, now: Timestamp) -> bool {
        let renewals = self.0.renewals.lock();
        renewals.unwrap_or_else(PoisonError::into_inner).take(now)
    }

    fn end(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notices when a lease is over.
pub(super) struct LeaseWatch {
    lease: Lease,
    revoked: Pin<Box<WaitForCancellationFutureOwned>>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl LeaseWatch {
    pub(super) fn new(lease: &Lease) -> Self {
        Self {
            lease: lease.clone(),
            revoked: Box::pin(lease.0.revoked.clone().cancelled_owned()),
            timer: lease.end().map(|end| Box::pin(sleep_until(end))),
        }
    }

    /// Ready once it is over; then not to be asked again.
    pub(super) fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.revoked.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        while let Some(timer) = &mut self.timer {
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            match *self.lease.end() {
                Some(end) if end <= timer.deadline() => return Poll::Ready(()),
                // It was extended meanwhile.
                Some(end) => timer.as_mut().reset(end),
                None => self.timer = None,
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::timeout;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// When the lease is over, from now; none within the hour.
    async fn over(watch: &mut LeaseWatch) -> Option<Duration> {
        let before = Instant::now();
        let over = poll_fn(|context| watch.poll_over(context));
        timeout(60 * MINUTE, over).await.ok()?;
        Some(before.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_it_was_to() {
        let lease = Lease::new(Some(MINUTE));
        let took = over(&mut LeaseWatch::new(&lease)).await.unwrap();
        assert!(
            took >= MINUTE && took < MINUTE + Duration::from_secs(1),
            "{took:?}"
        );
        for endless in [None, Some(Duration::MAX)] {
            assert_eq!(over(&mut LeaseWatch::new(&Lease::new(endless))).await, None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_extended_under_way_and_never_shortened() {
        let lease = Lease::new(Some(MINUTE));
        let mut watch = LeaseWatch::new(&lease);
        assert!(timeout(MINUTE / 2, over(&mut watch)).await.is_err());
        lease.extend(2 * MINUTE);
        lease.extend(MINUTE);
        let took = over(&mut watch).await.unwrap();
        assert!(took >= 2 * MINUTE && took < 3 * MINUTE, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_at_once_when_it_is_revoked() {
        for life in [None, Some(MINUTE)] {
            let lease = Lease::new(life);
            let mut watch = LeaseWatch::new(&lease);
            assert!(timeout(MINUTE / 2, over(&mut watch)).await.is_err());
            lease.clone().revoke();
            lease.extend(MINUTE);
            assert_eq!(over(&mut watch).await, Some(Duration::ZERO));
        }
    }

    #[test]
    fn certificates_are_limited_in_number() {
        let lease = Lease::new(None);
        let now = Timestamp(1_000_000_000);
        assert_eq!((0..100).filter(|_| lease.may_renew(now)).count(), 4);
        assert!(lease.may_renew(now.after(Duration::from_secs(30))));
        assert!(!lease.may_renew(now.after(Duration::from_secs(30))));
    }
}
