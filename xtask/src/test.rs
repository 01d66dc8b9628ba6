//! `cargo xtask test`: everything, or one part of it.
//!
//! * `unit`: what needs nothing but this machine.
//! * `sim`: whole clusters on virtual time, a few thousand seeds of them.
//! * `kernel`: the tests of the packages that talk to the kernel, run as root in the lab's first
//!   namespace, where they make namespaces of their own. Natively those that find no root or no
//!   IPVS skip themselves; here a skip is a failure.
//! * `lab`: whole clusters, `tests/lab/tests/*.rs`, run inside the lab.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use swarm_lab::services;

use crate::lab::{ExecOptions, Lab, UpOptions, replace};
use crate::process::{create_log, describe, shown};
use crate::progress::{step, tail};
use crate::setup::{self, Scope};
use crate::sim::{self, SimArgs};
use crate::workspace::Workspace;

/// Makes a test fail that would skip itself for want of root or of something in the kernel.
const REQUIRE: [&str; 2] = ["SWARM_TEST_REQUIRE_KERNEL", "SWARM_TEST_REQUIRE_IPVS"];

/// Packages with tests that need a kernel with everything, where they are, and which of their tests
/// do: emulation is too slow to run the others a second time.
const KERNEL_TESTS: [(&str, &str, &[&str]); 2] = [
    (
        "swarm-agent",
        "agent",
        &[
            "ebpf::tests::",
            "network::tests::",
            "network::probe::tests::",
            "runtime::containerd::tests::",
        ],
    ),
    ("swarm-ipvs", "agent/ipvs", &[]),
];

/// Tests that damage everything there is, piece by piece: a quarter of an hour each when emulated;
/// and groups that need nothing of this kernel. They run outside with the unit tests; what only
/// this kernel has, IPVS, is damaged by the tests of whole clusters.
const SLOW_IN_THE_LAB: [&str; 6] = [
    "whatever_breaks_while_no_agent_runs_is_put_right_by_the_next",
    "whatever_is_broken_by_hand",
    "whatever_is_broken_in_a_users_network_is_put_right",
    "ebpf::tests::sockets::",
    "network::tests::egress::",
    "network::tests::overlay::",
];

/// Package with the tests of whole clusters.
const LAB_PACKAGE: &str = "swarm-lab";

/// Where that package is.
const LAB_DIR: &str = "tests/lab";

/// `cargo xtask test ...`.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Which part; all of them when absent.
    #[arg(value_enum)]
    part: Option<Part>,
    /// Only tests whose name contains this.
    #[arg(long)]
    filter: Option<String>,
    /// Leave the lab up afterwards.
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    lab: UpOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// What needs nothing but this machine.
    Unit,
    /// Whole clusters on virtual time.
    Sim,
    /// What needs a kernel with everything, in the lab.
    Kernel,
    /// Whole clusters, in the lab.
    Lab,
}

/// How one test program ended.
#[derive(Debug)]
struct Verdict {
    name: String,
    passed: u32,
    failed: u32,
    is_ok: bool,
}

/// A test program that cargo built.
#[derive(Debug)]
struct Program {
    /// Where its package is, below the top of the checkout.
    directory: String,
    /// Package and target: `lab/mesh`.
    name: String,
    path: PathBuf,
    is_integration: bool,
}

/// Runs `cargo xtask test`.
///
/// # Errors
/// When a part cannot be run, or a test fails; the lab's logs are named then.
pub(crate) fn run(workspace: &Workspace, args: &TestArgs) -> Result<()> {
    let wants = |part| args.part.is_none_or(|wanted| wanted == part);
    let scope = if matches!(args.part, Some(Part::Unit | Part::Sim)) {
        Scope::TEST
    } else {
        Scope::ALL
    };
    setup::ensure(scope)?;
    let mut verdicts = Vec::new();
    if wants(Part::Unit) {
        crate::product::build_ebpf(workspace, true)?;
        verdicts.push(unit(workspace, args.filter.as_deref()));
    }
    // A seed has no name that a filter could be about.
    if wants(Part::Sim) && args.filter.is_none() {
        verdicts.push(simulation(workspace));
    }
    if wants(Part::Kernel) || wants(Part::Lab) {
        let options = UpOptions {
            no_agents: args.lab.no_agents || !wants(Part::Lab),
            ..args.lab.clone()
        };
        if wants(Part::Kernel) {
            crate::product::build_ebpf(workspace, true)?;
        }
        let programs = build_tests(workspace, wants(Part::Kernel), wants(Part::Lab))?;
        let mut lab = Lab::borrow(workspace, &options, args.keep)?;
        let mut is_first_lab = true;
        for program in &programs {
            let own = KERNEL_TESTS
                .iter()
                .find(|(_, directory, _)| *directory == program.directory);
            let own = own.map_or([].as_slice(), |(_, _, tests)| *tests);
            let filters = args
                .filter
                .as_deref()
                .map_or(own.to_vec(), |filter| vec![filter]);
            let mut verdict = match in_lab(workspace, &lab, program, &filters) {
                // Seen twice under an older QEMU, with all there was to know lost. Until a console says
                // why, one loss costs a second try and is told; another one ends the run.
                Err(error) if is_first_lab && lab.is_gone() => {
                    println!("{error:#}\n==> once more, in another lab");
                    is_first_lab = false;
                    drop(lab);
                    lab = Lab::borrow(workspace, &options, args.keep)?;
                    let again = in_lab(workspace, &lab, program, &filters)?;
                    Verdict {
                        name: format!("{} (2nd lab, see above)", again.name),
                        ..again
                    }
                }
                result => result?,
            };
            // A filter of ours that matches nothing is out of date; one of the caller's may.
            verdict.is_ok &= args.filter.is_some() || verdict.passed > 0;
            verdicts.push(verdict);
        }
    }
    summary(&verdicts)
}

/// Everything that runs here. The lab's own package has its library and program tested only: its
/// other tests need the lab.
fn unit(workspace: &Workspace, filter: Option<&str>) -> Verdict {
    println!("==> unit tests");
    let everything: &[&str] = &[
        "test",
        "--workspace",
        "--no-fail-fast",
        "--exclude",
        LAB_PACKAGE,
    ];
    let lab: &[&str] = &["test", "--package", LAB_PACKAGE, "--lib", "--bins"];
    let is_ok = [everything, lab]
        .into_iter()
        .fold(true, |is_ok, arguments| {
            let result = shown(workspace.cargo(arguments).args(filter));
            if let Err(error) = &result {
                println!("{error:#}");
            }
            is_ok && result.is_ok()
        });
    Verdict {
        name: "unit".into(),
        passed: 0,
        failed: 0,
        is_ok,
    }
}

/// The usual seeds.
fn simulation(workspace: &Workspace) -> Verdict {
    println!("==> simulation");
    let result = sim::run(workspace, &SimArgs::default());
    if let Err(error) = &result {
        println!("{error:#}");
    }
    Verdict {
        name: "sim".into(),
        passed: 0,
        failed: 0,
        is_ok: result.is_ok(),
    }
}

/// Builds the tests that run in the lab, in one go: cargo then compiles what they share once.
fn build_tests(workspace: &Workspace, kernel: bool, lab: bool) -> Result<Vec<Program>> {
    let mut packages = Vec::new();
    packages.extend(
        KERNEL_TESTS
            .iter()
            .filter(|_| kernel)
            .map(|(package, ..)| *package),
    );
    packages.extend(lab.then_some(LAB_PACKAGE));
    let log = workspace.log("build-tests");
    let mut command = workspace.cargo(&["test", "--release", "--no-run"]);
    command.arg("--message-format=json-render-diagnostics");
    command.args(packages.iter().flat_map(|package| ["--package", package]));
    let title = format!("building the tests of {}", packages.join(", "));
    step(&title, Some(&log), || {
        let output = command
            .stdin(Stdio::null())
            .stderr(create_log(&log)?)
            .output()
            .context("cannot run cargo")?;
        ensure!(
            output.status.success(),
            "`{}` failed; the end of its log {}:\n{}",
            describe(&command),
            log.display(),
            tail(&log, 25).join("\n")
        );
        let text = String::from_utf8_lossy(&output.stdout);
        let programs = text
            .lines()
            .filter_map(|line| test_program(workspace.root(), line));
        // What of the lab's own package needs no lab was run on this machine, as unit tests.
        Ok(programs
            .filter(|program| program.is_integration || program.directory != LAB_DIR)
            .collect())
    })
}

/// Reads one line of what cargo says about what it built.
fn test_program(root: &Path, line: &str) -> Option<Program> {
    #[derive(Deserialize)]
    struct Message {
        reason: String,
        executable: Option<PathBuf>,
        profile: Option<Profile>,
        target: Option<Target>,
        manifest_path: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Profile {
        test: bool,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: Vec<String>,
    }
    let message: Message = serde_json::from_str(line).ok()?;
    let is_test = message.reason == "compiler-artifact" && message.profile?.test;
    let target = message.target.filter(|_| is_test)?;
    let manifest = message.manifest_path?;
    let directory = manifest.parent()?.strip_prefix(root).ok()?;
    let package = directory.file_name()?.to_string_lossy();
    Some(Program {
        directory: directory.to_string_lossy().into_owned(),
        name: format!("{package}/{}", target.name),
        path: message.executable?,
        is_integration: target.kind.iter().any(|kind| kind == "test"),
    })
}

/// Runs a test program in the lab, its output shown as it comes.
fn in_lab(
    workspace: &Workspace,
    lab: &Lab,
    program: &Program,
    filters: &[&str],
) -> Result<Verdict> {
    println!("==> {} (in the lab)", program.name);
    let name = program.name.replace('/', "-");
    let tests = workspace.lab_dir().join("share/tests");
    replace(&program.path, &tests.join(&name))?;
    let inside = format!("{}/tests/{name}", swarm_lab::SHARE_DIR);
    let mut argv = vec![inside.as_str(), "--test-threads=1", "--color=never"];
    argv.extend(SLOW_IN_THE_LAB.iter().flat_map(|name| ["--skip", name]));
    argv.extend(filters);
    let mut text = Vec::new();
    let options = ExecOptions {
        env: environment(),
        ..ExecOptions::default()
    };
    let code = lab.stream(None, &argv, options, |_, bytes| {
        print!("{}", String::from_utf8_lossy(bytes));
        text.extend_from_slice(bytes);
    })?;
    fs::remove_file(tests.join(&name)).ok();
    let (passed, failed) = counts(&String::from_utf8_lossy(&text));
    if code != 0 {
        println!(
            "the lab's logs are in {}",
            kept_logs(workspace, lab, &name)?.display()
        );
    }
    Ok(Verdict {
        name: program.name.clone(),
        passed,
        failed,
        is_ok: code == 0,
    })
}

/// What tests in the lab are told about it.
fn environment() -> Vec<(String, String)> {
    let mut environment = vec![
        ("RUST_BACKTRACE", "1"),
        ("SWARM_TEST_CONTAINERD", services::CONTAINERD_SOCKET),
        ("SWARM_TEST_REGISTRY_CA", services::AUTHORITY_DIR),
    ];
    environment.extend(REQUIRE.map(|name| (name, "1")));
    environment
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

/// Copies the lab's logs to where the next boot leaves them alone.
fn kept_logs(workspace: &Workspace, lab: &Lab, name: &str) -> Result<PathBuf> {
    let kept = workspace.lab_dir().join("failed").join(name);
    fs::remove_dir_all(&kept).ok();
    fs::create_dir_all(&kept)?;
    for entry in fs::read_dir(lab.log_dir())? {
        let entry = entry?;
        fs::copy(entry.path(), kept.join(entry.file_name()))?;
    }
    let console = workspace.log("console");
    fs::copy(&console, kept.join("console.log")).ok();
    Ok(kept)
}

/// Passed and failed, summed over libtest's closing lines.
fn counts(text: &str) -> (u32, u32) {
    let number = |line: &str, what: &str| -> u32 {
        let part = line
            .split([';', '.'])
            .find_map(|part| part.trim().strip_suffix(what));
        part.and_then(|part| part.trim().parse().ok()).unwrap_or(0)
    };
    text.lines()
        .filter(|line| line.starts_with("test result:"))
        .fold((0, 0), |sum, line| {
            (
                sum.0 + number(line, "passed"),
                sum.1 + number(line, "failed"),
            )
        })
}

fn summary(verdicts: &[Verdict]) -> Result<()> {
    println!("\nsummary");
    for verdict in verdicts {
        let word = if verdict.is_ok { "ok" } else { "FAILED" };
        let counts = match (verdict.passed, verdict.failed) {
            (0, 0) => String::new(),
            (passed, failed) => format!("{passed} passed, {failed} failed"),
        };
        println!("  {:<32} {word:<8} {counts}", verdict.name);
    }
    if verdicts.iter().any(|verdict| !verdict.is_ok) {
        bail!("tests failed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_counted_over_several_programs() {
        let text = "test a ... ok\n\
                    test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
                    test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured\n";
        assert_eq!(counts(text), (5, 4));
        assert_eq!(counts("killed"), (0, 0));
    }

    #[test]
    fn only_test_programs_are_taken_from_what_cargo_says() {
        let line = r#"{"reason":"compiler-artifact","package_id":"x",
            "manifest_path":"/w/tests/lab/Cargo.toml",
            "target":{"kind":["test"],"crate_types":["bin"],"name":"mesh","src_path":"x"},
            "profile":{"opt_level":"3","test":true},"executable":"/w/target/mesh-1"}"#;
        let root = Path::new("/w");
        let program = test_program(root, line).unwrap();
        assert_eq!(program.directory, LAB_DIR);
        assert_eq!(program.name, "lab/mesh");
        assert!(program.is_integration);
        assert!(program.path.ends_with("mesh-1"));
        assert!(test_program(root, &line.replace("true", "false")).is_none());
        assert!(test_program(root, r#"{"reason":"build-finished","success":true}"#).is_none());
    }
}
