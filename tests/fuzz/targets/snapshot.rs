//! Whole states, as another manager sends them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| swarm_control::fuzz::snapshot(bytes));
