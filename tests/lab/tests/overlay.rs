//! Networks of users on whole hosts, and the way out.

use std::time::Duration;

use anyhow::ensure;
use swarm_lab::services::registry;
use swarm_lab::swarm::TaskRow;
use swarm_lab::topology::GATEWAY;
use swarm_lab::{Host, Swarm, WebAnswer, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

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
    let (from, to) = (
        h1.address_in_task(&one, "eth1").unwrap(),
        h2.address_in_task(&two, "eth1").unwrap(),
    );
    assert!(
        [from, to]
            .iter()
            .all(|at| at.octets().starts_with(&[10, 77, 0])),
        "{from} {to}"
    );
    let url = format!("http://{to}/");
    let answer: WebAnswer = wait_until(DEADLINE, "the task on the other host", || {
        h1.exec_in_task(&one, &["curl", "-sSf", "--max-time", "5", &url])?
            .parse()
    })
    .unwrap();
    assert_eq!(answer.client.ip(), from);

    // Only where it has a task.
    let on = |host: &Host| host.namespaces("net-").len();
    assert_eq!(
        swarm.lab.hosts().iter().map(on).collect::<Vec<_>>(),
        [1, 1, 0]
    );
    swarm.remove("two").unwrap();
    wait_until(DEADLINE, "the network leaves h2", || {
        ensure!(on(h2) == 0, "{:?}", h2.namespaces("net-"));
        Ok(())
    })
    .unwrap();
    assert_eq!(on(h1), 1);
    swarm.remove("one").unwrap();
    wait_until(DEADLINE, "the network leaves h1", || {
        ensure!(on(h1) == 0, "{:?}", h1.namespaces("net-"));
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
    wait_until(DEADLINE, "the registry", || host.exec_in_task(&task, &curl)).unwrap();
    // The registry has answered to the host.
    let source = host.address_in_task(&task, "eth0").unwrap().to_string();
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
    host.exec_in_task(&task, &curl).unwrap();

    let (task, host) = only_task(&swarm, "kept");
    assert!(
        host.exec_in_task(&task, &curl).is_err(),
        "an internal network leads outside"
    );
}
