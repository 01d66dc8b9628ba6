//! `cargo xtask fuzz`: what reads bytes from outside, under a fuzzer that follows the branches taken.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::process::{find_program, shown};
use crate::workspace::Workspace;

/// Where the targets are, below the top of the checkout: one file each in `targets`.
const DIRECTORY: &str = "tests/fuzz";

/// Where each target's first inputs are. The unit tests keep them up to date.
const SEEDS: &str = "control/src/fuzz/seeds";

/// `cargo xtask fuzz ...`.
#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// Only this one of the targets.
    #[arg(long)]
    target: Option<String>,
    /// How long to try each, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Runs `cargo xtask fuzz`: each target in turn. What was found on the way is kept for the next time.
///
/// # Errors
/// When cargo-fuzz is missing, a target is unknown, or one has a finding: its input is in a file that is
/// named above.
pub(crate) fn run(workspace: &Workspace, args: &FuzzArgs) -> Result<()> {
    ensure!(
        find_program("cargo-fuzz").is_some(),
        "cargo-fuzz is missing: cargo install cargo-fuzz --locked"
    );
    let mut targets = targets(workspace.root())?;
    if let Some(wanted) = &args.target {
        let all = targets.join(", ");
        targets.retain(|target| target == wanted);
        ensure!(!targets.is_empty(), "no target {wanted}; there are: {all}");
    }
    let mut failed = Vec::new();
    for target in targets {
        println!("==> {target}, for {} s", args.seconds);
        if let Err(error) = one(workspace, &target, args.seconds) {
            println!("{error:#}");
            failed.push(target);
        }
    }
    if !failed.is_empty() {
        bail!("findings in: {}", failed.join(", "));
    }
    Ok(())
}

fn one(workspace: &Workspace, target: &str, seconds: u32) -> Result<()> {
    let kept = workspace.target_dir().join("fuzz");
    let (corpus, findings) = (
        kept.join("corpus").join(target),
        kept.join("findings").join(target),
    );
    for directory in [&corpus, &findings] {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    // There is no unsafe code of ours here to sanitize, and without it no nightly is needed.
    let mut command = workspace.cargo(&["fuzz", "run", "--sanitizer", "none", "--fuzz-dir"]);
    command
        .arg(DIRECTORY)
        .arg("--target-dir")
        .arg(kept.join("build"))
        .arg(target)
        .arg(corpus)
        .arg(workspace.root().join(SEEDS).join(target))
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", findings.display()))
        // Longer inputs are slower and reach nothing else: all that repeats is there at this length.
        .args(["-max_len=65536", "-timeout=10", "-print_final_stats=1"])
        .env("RUSTC_BOOTSTRAP", "1");
    shown(&mut command)
}

/// The names of the files, sorted.
fn targets(root: &Path) -> Result<Vec<String>> {
    let directory = root.join(DIRECTORY).join("targets");
    let entries =
        fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut targets: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_suffix(".rs").map(str::to_owned)
        })
        .collect();
    targets.sort();
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_seeds() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let targets = targets(&root).unwrap();
        assert!(!targets.is_empty());
        for target in targets {
            assert!(root.join(SEEDS).join(&target).is_dir(), "{target}");
        }
    }
}
