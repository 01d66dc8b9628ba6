//! The measurement runs each program where it says it does.

use super::sandbox::sandboxed;
use super::verdicts::NEXT;
use crate::ebpf::bench::{Row, measure, prepared};

const REDIRECT: i32 = 7;

#[test]
fn every_program_is_measured_on_the_path_of_established_flows() {
    sandboxed(|sandbox| {
        // One processor, because a shortcut is learned on the one that saw both packets.
        let mut one = nix::sched::CpuSet::new();
        one.set(0).unwrap();
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one).unwrap();
        let mesh = prepared(&sandbox.bpffs_dir()).unwrap();
        let rows = measure(&mesh, 1).unwrap();
        let verdicts: Vec<_> = rows
            .iter()
            .map(
                |Row {
                     program, verdict, ..
                 }| (*program, *verdict),
            )
            .collect();
        let expected = [
            ("mesh_uplink", REDIRECT),
            ("mesh_uplink", NEXT),
            ("mesh_out", REDIRECT),
            ("mesh_out", NEXT),
            ("flow_learn", NEXT),
            ("flow_return", REDIRECT),
            ("shortcut_in", REDIRECT),
            ("shortcut_out", REDIRECT),
            ("shortcut_learn", NEXT),
        ];
        assert_eq!(verdicts, expected);
        assert!(rows.iter().all(|row| row.median_ns > 0));
        let counters = mesh.counters().unwrap();
        assert_eq!(counters[&crate::ebpf::Counter::Spoofed], 0);
        assert_eq!(mesh.flow_count(), 1);
    });
}
