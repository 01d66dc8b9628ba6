//! The node's test of itself: do its published ports answer?
//!
//! The comparison of plan and kernel ([`crate::network`]) sees what is not as planned. This sees what
//! is as planned and does not work all the same: a link between nodes that loses packets, a firewall
//! on the underlay, a server that has stopped listening.
//!
//! * **What**: every published TCP port with a task that takes connections, at one address of the
//!   node for each IP version, by a SYN out of the ingress namespace ([`crate::network::probe`]): IPVS,
//!   overlay, the task's kernel. A task's server never sees it, for no connection comes of it.
//! * **When**: 5 s after a port, or its tasks, or anything that was put right by the agent, has
//!   changed; and every five minutes. At most 32 a second.
//! * **What follows**: nothing but words. A port that fails twice in a row is told by
//!   `swarmctl mesh check`, in the log and as a metric, until it answers.
//!
//! Invariants: [`schedule`] has no clock and no IO. A port is never asked more often than every 2 s.
//!
//! Deliberately absent: UDP and SCTP, whose servers owe nobody an answer; the step from the uplink to
//! the ingress namespace, which is two map entries and a program that `mesh check` compares.

mod report;
mod run;
mod schedule;

pub(crate) use report::Found;
pub(crate) use run::SelfTest;
