//! The node's tasks: each assigned task is brought from *assigned* to *running* and, when asked or
//! when its process ends, to its end.
//!
//! [`step`] is the pure part: it looks at one task and says what to do next. [`runner`] does it,
//! one asynchronous task for each task of the swarm. [`Worker`] owns the runners, collects what they
//! report, and derives from it and from the assignments what the network has to look like.
//!
//! Invariants:
//! * A container is started at most once; a task that ended stays ended.
//! * A task's network is ready before its container starts, and goes after its container did.
//! * What runs when the agent starts is adopted, not restarted.

mod clock;
mod desired_network;
mod feed;
mod runner;
mod step;
#[cfg(test)]
mod tests;
mod work;

pub(crate) use desired_network::local_task;
pub(crate) use feed::NetworkFeed;
pub(crate) use runner::TaskNetwork;
pub(crate) use work::Worker;
