//! The benchmark in small, so that it works when somebody wants it.
#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::process::Command;

#[test]
fn everything_is_measured_in_small() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("figures.json");
    let output = Command::new(env!("CARGO_BIN_EXE_swarm-bench"))
        .args([
            "--agents",
            "10",
            "--tasks",
            "2",
            "--scale",
            "50",
            "--managers",
            "3",
        ])
        .args([
            "--seconds",
            "1",
            "--nodes",
            "100",
            "--writers",
            "2",
            "--brief",
            "--json",
        ])
        .arg(&json)
        // Where the managers keep their files: all of it is gone afterwards.
        .env("TMPDIR", directory.path())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let figures: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let figures = figures["figures"].as_array().unwrap();
    let value = |name: &str| {
        let mut found = figures.iter().filter(|it| it["name"] == name);
        found.next().map(|it| it["value"].as_f64().unwrap())
    };
    assert_eq!(value("sessions lost while scaling"), Some(0.0), "{errors}");
    assert_eq!(
        value("leader killed: tasks replaced"),
        Some(0.0),
        "{errors}"
    );
    assert!(
        value("leader killed, 70 tasks: first write").is_some(),
        "{errors}"
    );
    assert!(
        value("50 tasks of one service: all at their agents").is_some(),
        "{errors}"
    );
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
