//! What requests of people and messages of agents hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| swarm_control::fuzz::api(bytes));
