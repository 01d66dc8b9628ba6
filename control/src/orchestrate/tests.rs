//! Scripted scenarios.

mod invariants;
mod life;
mod update;
