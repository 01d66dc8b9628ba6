//! What the tests against a real table need: root, a kernel with IPVS, and `ipvsadm`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::panic;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use swarm_ipvs::Ipvs;

/// Set to `1` where the environment is supposed to be complete: what is missing then is a failure.
const REQUIRE: &str = "SWARM_TEST_REQUIRE_IPVS";

/// Held by the test that runs: a change in any network namespace can disturb a dump in another.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs a test in a network namespace of its own, on a thread of its own; the namespace goes away
/// with both. Says so loudly when something is missing here, and returns without running the test.
pub(crate) fn in_fresh_netns(test: impl FnOnce(Ipvs) + Send + 'static) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let thread = thread::spawn(move || match enter() {
        Ok(ipvs) => test(ipvs),
        Err(reason) => skip(&reason),
    });
    if let Err(panic) = thread.join() {
        panic::resume_unwind(panic);
    }
}

/// Moves this thread into a new network namespace and opens its table, or says what is missing.
pub(crate) fn enter() -> Result<Ipvs, String> {
    Command::new("ipvsadm")
        .arg("--help")
        .output()
        .map_err(|e| format!("no ipvsadm: {e}"))?;
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|errno| format!("no new network namespace, is this root?: {errno}"))?;
    let ipvs = Ipvs::open().map_err(|error| error.to_string())?;
    // Without an address in the namespace, no IPv4 address counts as unicast to the kernel.
    run("ip", &["link", "set", "lo", "up"]);
    Ok(ipvs)
}

fn skip(reason: &str) {
    if std::env::var(REQUIRE).is_ok_and(|value| value == "1") {
        panic!("{REQUIRE}=1, but: {reason}");
    }
    // Past the test harness, which keeps the output of tests that pass to itself.
    writeln!(std::io::stderr(), "SKIP: {reason}").expect("standard error is open");
}

/// Runs a tool in this thread's network namespace and returns what it printed.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .expect("tool starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    String::from_utf8(output.stdout).expect("tool prints UTF-8")
}

/// One line of `ipvsadm -S`: its options with their values, whatever their order.
pub(crate) type Rule = BTreeMap<String, String>;

/// Takes a line of `ipvsadm -S` apart. Values never start with a dash.
pub(crate) fn rule(line: &str) -> Rule {
    let mut rule = Rule::new();
    let mut option = String::new();
    for word in line.split_whitespace() {
        if word.starts_with('-') {
            option = word.to_owned();
            rule.insert(option.clone(), String::new());
        } else {
            rule.insert(option.clone(), word.to_owned());
        }
    }
    rule
}

/// What `ipvsadm -Sn` says, sorted.
pub(crate) fn rules() -> Vec<Rule> {
    sorted(&run("ipvsadm", &["-S", "-n"]))
}

/// The lines of a text as sorted rules.
pub(crate) fn sorted(lines: &str) -> Vec<Rule> {
    let lines = lines.lines().filter(|line| !line.trim().is_empty());
    let mut rules: Vec<_> = lines.map(rule).collect();
    rules.sort();
    rules
}

/// The lines `ipvsadm -Ln` prints with further options, words parted by single spaces.
pub(crate) fn listing(options: &[&str]) -> Vec<String> {
    let args = [&["-L", "-n"], options].concat();
    run("ipvsadm", &args)
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}
