//! What a kernel without IPVS is told as.

use std::io::Write as _;

use swarm_ipvs::{Ipvs, IpvsError};

#[test]
fn a_kernel_without_ipvs_is_named_with_the_remedy() {
    match Ipvs::open() {
        Err(error @ IpvsError::Unsupported) => {
            assert!(error.to_string().contains("modprobe ip_vs"), "{error}");
        }
        Err(other) => panic!("expected IpvsError::Unsupported, got {other:?}"),
        Ok(_) => {
            // Past the test harness, which keeps the output of tests that pass to itself.
            let reason = "SKIP: this kernel has IPVS, so its absence cannot be tested";
            writeln!(std::io::stderr(), "{reason}").unwrap();
        }
    }
}
