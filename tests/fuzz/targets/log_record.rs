//! Records of the log, as they lie on a disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| swarm_control::fuzz::log_record(bytes));
