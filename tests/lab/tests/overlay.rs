//! Networks of users on whole hosts, and the way out.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use swarm_lab::services::registry;
use swarm_lab::swarm::TaskRow;
use swarm_lab::topology::GATEWAY;
use swarm_lab::{Host, Swarm, WebAnswer, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

/// Names of the namespaces of a host that begin so.
fn namespaces(host: &Host, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(host.agent().run_dir().join("netns"))
        .into_iter()
        .flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// The one running task of a service, and its host.
fn only_task<'a>(swarm: &'a Swarm, service: &str) -> (TaskRow, &'a Host) {
    let task = swarm.wait_running(service, 1).expect("it runs").remove(0);
    let host = swarm
        .lab
        .hosts()
        .iter()
        .find(|host| host.name() == task.node);
    let host = host.expect("a host of the lab");
    (task, host)
}

/// Runs a command in the network namespace of a task.
fn within(host: &Host, task: &TaskRow, argv: &[&str]) -> Result<String> {
    let all = namespaces(host, &format!("task-{}", task.id));
    let name = all.first().context("the task has no namespace")?;
    let netns = host.agent().run_dir().join("netns").join(name);
    let enter = format!("--net={}", netns.display());
    host.exec(&[&["nsenter", &enter], argv].concat())?.success()
}

/// A task's address on an interface.
fn address(host: &Host, task: &TaskRow, interface: &str) -> String {
    let text =
        within(host, task, &["ip", "-4", "-o", "addr", "show", interface]).expect("an address");
    let mut words = text.split_whitespace().skip_while(|word| *word != "inet");
    let net = words.nth(1).unwrap_or_default();
    net.split('/').next().unwrap_or_default().to_owned()
}

#[test]
fn services_on_a_users_network_talk_by_address_and_leave_nothing() {
    let swarm = Swarm::fresh().unwrap();
    swarm
        .swarmctl(&["network", "create", "--subnet", "10.77.0.0/24", "app"])
        .unwrap();
    for (name, host) in [("one", "h1"), ("two", "h2")] {
        let constraint = format!("node.hostname=={host}");
        let options = ["--network", "app", "--constraint", &constraint];
        swarm.create_web(name, 1, &options).unwrap();
    }
    let ((one, h1), (two, h2)) = (only_task(&swarm, "one"), only_task(&swarm, "two"));
    let (from, to) = (address(h1, &one, "eth1"), address(h2, &two, "eth1"));
    assert!(
        from.starts_with("10.77.0.") && to.starts_with("10.77.0."),
        "{from} {to}"
    );
    let url = format!("http://{to}/");
    let answer: WebAnswer = wait_until(DEADLINE, "the task on the other host", || {
        within(h1, &one, &["curl", "-sSf", "--max-time", "5", &url])?.parse()
    })
    .unwrap();
    assert_eq!(answer.client.ip().to_string(), from);

    // Only where it has a task.
    let on = |host: &Host| namespaces(host, "net-").len();
    assert_eq!(
        swarm.lab.hosts().iter().map(on).collect::<Vec<_>>(),
        [1, 1, 0]
    );
    swarm.remove("two").unwrap();
    wait_until(DEADLINE, "the network leaves h2", || {
        ensure!(on(h2) == 0, "{:?}", namespaces(h2, "net-"));
        Ok(())
    })
    .unwrap();
    assert_eq!(on(h1), 1);
    swarm.remove("one").unwrap();
    wait_until(DEADLINE, "the network leaves h1", || {
        ensure!(on(h1) == 0, "{:?}", namespaces(h1, "net-"));
        Ok(())
    })
    .unwrap();
    swarm.swarmctl(&["network", "rm", "app"]).unwrap();
}

#[test]
fn a_task_reaches_the_outside_masqueraded_and_one_on_an_internal_network_does_not() {
    let swarm = Swarm::fresh().unwrap();
    swarm
        .swarmctl(&["network", "create", "--internal", "inside"])
        .unwrap();
    swarm.create_web("free", 1, &[]).unwrap();
    swarm
        .create_web("kept", 1, &["--network", "inside"])
        .unwrap();
    let url = format!("https://{}/v2/", registry());
    let curl = ["curl", "-sSkf", "--max-time", "5", &url];
    let (task, host) = only_task(&swarm, "free");
    wait_until(DEADLINE, "the registry", || within(host, &task, &curl)).unwrap();
    // The registry has answered to the host.
    let source = address(host, &task, "eth0");
    let gateway = GATEWAY.to_string();
    let list = ["conntrack", "-L", "-s", &source, "-d", &gateway];
    let tracked = host.exec(&list).unwrap().success().unwrap();
    assert!(
        tracked.contains(&format!("dst={} ", host.address())),
        "{tracked}"
    );

    // Flushed, the table is back, and so is the way out.
    host.exec(&["nft", "flush", "ruleset"])
        .unwrap()
        .success()
        .unwrap();
    wait_until(Duration::from_secs(10), "the table", || {
        let text = host.exec(&["nft", "list", "ruleset"])?.success()?;
        ensure!(text.contains("masquerade"), "{text}");
        Ok(())
    })
    .unwrap();
    within(host, &task, &curl).unwrap();

    let (task, host) = only_task(&swarm, "kept");
    assert!(
        within(host, &task, &curl).is_err(),
        "an internal network leads outside"
    );
}
