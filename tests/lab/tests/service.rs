//! Services on whole hosts: scaling, updates, lost hosts, removal.

use std::time::Duration;

use anyhow::ensure;
use swarm_lab::services::registry;
use swarm_lab::{Swarm, wait_until};

const PORT: u16 = 8080;

fn refuses(swarm: &Swarm, port: u16) {
    for host in swarm.lab.hosts() {
        wait_until(Duration::from_secs(5), "the port refuses", || {
            let url = format!("http://{}:{port}/", host.address());
            let output = swarm
                .lab
                .client()
                .exec(&["curl", "-sS", "--max-time", "5", &url])?;
            // curl's code for a refused connection; a dropped one would be 28.
            ensure!(output.code == 7, "curl: {} {}", output.code, output.stderr);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{}: {error:#}", host.name()));
    }
}

#[test]
fn a_service_from_create_to_rm() {
    let swarm = Swarm::fresh().unwrap();
    swarm.create_web("web", 1, &["-p", "8080:80"]).unwrap();
    swarm.wait_answers(swarm.lab.host(2), PORT, 1).unwrap();

    swarm.swarmctl(&["service", "scale", "web=6"]).unwrap();
    swarm.wait_running("web", 6).unwrap();
    assert_eq!(
        swarm.hosts_of("web").unwrap().len(),
        3,
        "spread over all hosts"
    );
    for host in swarm.lab.hosts() {
        swarm.wait_answers(host, PORT, 6).unwrap();
    }
    swarm.swarmctl(&["service", "scale", "web=2"]).unwrap();
    swarm.wait_running("web", 2).unwrap();

    let image = format!("{}/web:2", registry());
    swarm
        .swarmctl(&["service", "update", "--image", &image, "web"])
        .unwrap();
    for _ in 0..4 {
        let answer = swarm.lab.client().ask_web(swarm.lab.host(1), PORT).unwrap();
        assert_eq!(answer.release, "2");
    }

    // A port that the swarm chooses.
    swarm.create_web("auto", 1, &["-p", "80"]).unwrap();
    let inspected = swarm.swarmctl(&["service", "inspect", "auto"]).unwrap();
    assert!(inspected.contains(r#""published": 30000"#), "{inspected}");
    swarm.wait_answers(swarm.lab.host(3), 30000, 1).unwrap();

    swarm.remove("auto").unwrap();
    swarm.remove("web").unwrap();
    refuses(&swarm, PORT);
    refuses(&swarm, 30000);
    for host in swarm.lab.hosts() {
        wait_until(Duration::from_secs(30), "no container is left", || {
            let namespace = host.agent().containerd_namespace();
            let left = host
                .exec(&["ctr", "-n", &namespace, "containers", "ls", "-q"])?
                .success()?;
            ensure!(left.trim().is_empty(), "{left}");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn a_lost_host_is_replaced_and_comes_back() {
    let swarm = Swarm::fresh().unwrap();
    swarm.create_web("web", 6, &["-p", "8080:80"]).unwrap();
    let lost = swarm.lab.host(3);
    lost.set_link(false).unwrap();
    wait_until(
        Duration::from_secs(90),
        "six tasks on the hosts that are left",
        || {
            let tasks = swarm.tasks("web")?;
            let running = tasks
                .iter()
                .filter(|task| task.is_running() && task.node != lost.name())
                .count();
            ensure!(running == 6, "{running} of 6: {tasks:#?}");
            Ok(())
        },
    )
    .unwrap();
    for host in &swarm.lab.hosts()[..2] {
        swarm.wait_answers(host, PORT, 6).unwrap();
    }
    lost.set_link(true).unwrap();
    swarm.wait_ready().unwrap();
    swarm.wait_answers(lost, PORT, 6).unwrap();
    wait_until(Duration::from_secs(30), "its old tasks are gone", || {
        let namespace = lost.agent().containerd_namespace();
        let left = lost
            .exec(&["ctr", "-n", &namespace, "tasks", "ls", "-q"])?
            .success()?;
        ensure!(left.trim().is_empty(), "{left}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_restarted_manager_knows_everything() {
    let swarm = Swarm::fresh().unwrap();
    swarm.create_web("web", 3, &["-p", "8080:80"]).unwrap();
    let token = swarm.worker_token().unwrap();
    let before = swarm.wait_running("web", 3).unwrap();
    swarm.manager().agent().kill().unwrap();
    swarm.manager().agent().start().unwrap();
    swarm.wait_ready().unwrap();
    let after = swarm.wait_running("web", 3).unwrap();
    let ids = |tasks: &[swarm_lab::swarm::TaskRow]| {
        let mut ids: Vec<_> = tasks.iter().map(|task| task.id.clone()).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&before), ids(&after), "the same tasks run");
    assert_eq!(token, swarm.worker_token().unwrap());
    swarm.wait_answers(swarm.lab.host(2), PORT, 3).unwrap();
}

#[test]
fn who_leaves_leaves_nothing_behind() {
    let swarm = Swarm::fresh().unwrap();
    swarm.create_web("web", 3, &["-p", "8080:80"]).unwrap();
    let host = swarm.lab.host(3);
    host.swarmctl(&["swarm", "leave"])
        .unwrap()
        .success()
        .unwrap();
    let namespace = host.agent().containerd_namespace();
    let left = host
        .exec(&["ctr", "-n", &namespace, "containers", "ls", "-q"])
        .unwrap();
    assert_eq!(left.stdout.trim(), "");
    let links = host
        .exec(&["ip", "-br", "link"])
        .unwrap()
        .success()
        .unwrap();
    assert!(!links.contains("sw-"), "{links}");
    let filters = host
        .exec(&["tc", "filter", "show", "dev", "eth0", "ingress"])
        .unwrap();
    assert!(
        !filters.stdout.contains("mesh_uplink"),
        "{}",
        filters.stdout
    );
    let status = host
        .swarmctl(&["swarm", "status"])
        .unwrap()
        .success()
        .unwrap();
    assert!(status.contains("inactive"), "{status}");
    // And it may come back.
    let token = swarm.worker_token().unwrap();
    let manager = swarm.manager_address();
    host.swarmctl(&["swarm", "join", "--token", &token, &manager])
        .unwrap()
        .success()
        .unwrap();
}
