//! Join tokens and unlock keys, as people paste them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| swarm_control::fuzz::join_token(bytes));
