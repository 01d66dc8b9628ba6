//! What an external CA answers that is asked to sign.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| swarm_control::fuzz::external_ca_answer(bytes));
