//! Messages of other managers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| swarm_control::fuzz::raft_message(bytes));
