//! Changing much at once.

use super::Ipvs;
use crate::codec::IpvsMessage;
use crate::error::IpvsError;
use crate::op::Op;

impl Ipvs {
    /// Makes many changes, in order, and returns the outcome of each, in the same order.
    ///
    /// At most [`MAX_IN_FLIGHT`](crate::MAX_IN_FLIGHT) changes await their acknowledgement at a
    /// time. A refused change does not stop those after it (a destination of a service that could
    /// not be added is then refused in its turn). A failing socket does: see
    /// [`IpvsError::Unconfirmed`] and [`IpvsError::NotSent`].
    pub fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), IpvsError>> {
        let sendable = ops
            .iter()
            .filter(|op| op.objection().is_none())
            .map(IpvsMessage::from);
        let mut outcomes = self.exchange.pipeline(sendable, self.family_id).into_iter();
        ops.iter()
            .map(|op| match op.objection() {
                Some(reason) => Err(IpvsError::Invalid {
                    action: op.to_string(),
                    reason,
                }),
                None => outcomes
                    .next()
                    .expect("the pipeline returns an outcome for every request")
                    .map_err(|fault| IpvsError::of_op(op, fault)),
            })
            .collect()
    }

    /// Makes one change.
    pub(super) fn change(&mut self, op: &Op) -> Result<(), IpvsError> {
        self.apply(std::slice::from_ref(op))
            .pop()
            .expect("one change, one outcome")
    }
}
