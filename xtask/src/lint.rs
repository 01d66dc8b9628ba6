//! `cargo xtask lint`: formatter, compiler and clippy with warnings denied, licences and bans.

use anyhow::{Result, bail};

use crate::process::{find_program, shown};
use crate::workspace::Workspace;

/// Runs `cargo xtask lint`: every check, even after one has failed.
///
/// # Errors
/// When a check fails; what each found is above.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    crate::product::build_ebpf(workspace, true)?;
    let ebpf = [
        "fmt",
        "--manifest-path",
        "agent-ebpf/Cargo.toml",
        "--all",
        "--check",
    ];
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ];
    let mut checks: Vec<(&str, Vec<&str>)> = vec![
        ("format", vec!["fmt", "--all", "--check"]),
        ("format of the eBPF programs", ebpf.to_vec()),
        ("clippy", clippy.to_vec()),
        (
            "documentation",
            vec![
                "doc",
                "--workspace",
                "--no-deps",
                "--document-private-items",
            ],
        ),
    ];
    if find_program("cargo-deny").is_some() {
        checks.push((
            "licences and bans",
            vec!["deny", "check", "licenses", "bans", "sources"],
        ));
    } else {
        println!("skipped: licences and bans (cargo install cargo-deny)");
    }
    let mut failed = Vec::new();
    for (what, arguments) in checks {
        println!("==> {what}");
        let mut command = workspace.cargo(&arguments);
        command.env("RUSTDOCFLAGS", "--deny warnings");
        if let Err(error) = shown(&mut command) {
            println!("{error:#}");
            failed.push(what);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}
