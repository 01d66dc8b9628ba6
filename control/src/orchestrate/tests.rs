//! Scripted scenarios.

mod drain;
mod invariants;
mod life;
mod update;
