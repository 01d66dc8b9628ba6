//! Requests for a certificate, as a node that joins sends them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| swarm_control::fuzz::certificate_request(bytes));
