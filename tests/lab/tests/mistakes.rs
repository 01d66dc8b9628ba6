//! The mistakes a person makes: each gets a clear error, and nothing changes.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use swarm_lab::services::registry;
use swarm_lab::swarm::MANAGER_PORT;
use swarm_lab::{Swarm, wait_until};

/// A swarm whose third host has left: it can try to join.
fn swarm() -> MutexGuard<'static, Swarm> {
    static SWARM: OnceLock<Mutex<Swarm>> = OnceLock::new();
    let swarm = SWARM.get_or_init(|| {
        let swarm = Swarm::fresh().expect("a swarm");
        let left = swarm
            .lab
            .host(3)
            .swarmctl(&["swarm", "leave"])
            .expect("swarmctl runs");
        left.success().expect("host 3 leaves");
        swarm
            .create_web("web", 1, &["-p", "8080:80"])
            .expect("service web");
        Mutex::new(swarm)
    });
    swarm.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs swarmctl on host `number`, which has to refuse with all of `words`.
fn refused(swarm: &Swarm, number: usize, arguments: &[&str], words: &[&str]) -> String {
    let output = swarm
        .lab
        .host(number)
        .swarmctl(arguments)
        .expect("swarmctl runs");
    let text = output.failure().expect("a refusal");
    for word in words {
        assert!(
            text.contains(word),
            "{arguments:?} says nothing of {word:?}: {text}"
        );
    }
    assert!(
        text.lines().count() <= 12,
        "{arguments:?} says too much: {text}"
    );
    text
}

fn join_refused(swarm: &Swarm, token: &str, words: &[&str]) {
    let manager = swarm.manager_address();
    refused(
        swarm,
        3,
        &["swarm", "join", "--token", token, &manager],
        words,
    );
    let status = swarm
        .lab
        .host(3)
        .swarmctl(&["swarm", "status"])
        .expect("swarmctl runs")
        .success()
        .expect("its status");
    assert!(status.contains("inactive"), "{status}");
}

#[test]
fn a_bad_token() {
    let swarm = swarm();
    let good = swarm.worker_token().unwrap();
    join_refused(&swarm, "nonsense", &["token is not valid", "join-token"]);
    // The right digest with another secret.
    let (front, _) = good.rsplit_once('-').unwrap();
    join_refused(&swarm, &format!("{front}-{}", "0".repeat(25)), &["token"]);
}

#[test]
fn a_tampered_digest() {
    let swarm = swarm();
    let good = swarm.worker_token().unwrap();
    let parts: Vec<_> = good.split('-').collect();
    let tampered = format!("SWMTKN-1-{}-{}", "0".repeat(50), parts[3]);
    join_refused(&swarm, &tampered, &["not of the swarm", "digest"]);
}

#[test]
fn a_rotated_token() {
    let swarm = swarm();
    let old = swarm.worker_token().unwrap();
    swarm
        .swarmctl(&["swarm", "join-token", "--rotate", "worker"])
        .unwrap();
    assert_ne!(old, swarm.worker_token().unwrap());
    join_refused(&swarm, &old, &["token"]);
}

#[test]
fn a_manager_that_is_not_there() {
    let swarm = swarm();
    let token = swarm.worker_token().unwrap();
    refused(
        &swarm,
        3,
        &["swarm", "join", "--token", &token, "10.99.0.2:2377"],
        &["cannot reach manager 10.99.0.2:2377"],
    );
}

#[test]
fn an_unknown_image() {
    let swarm = swarm();
    let image = format!("{}/nosuch:latest", registry());
    let create = [
        "service",
        "create",
        "--name",
        "nosuch",
        "--restart-delay",
        "0",
        &image,
    ];
    refused(&swarm, 1, &create, &["nosuch", "image"]);
    let tasks = swarm.tasks("nosuch").unwrap();
    assert!(
        tasks
            .iter()
            .any(|task| task.error.contains("nosuch:latest")),
        "{tasks:#?}"
    );
    swarm.remove("nosuch").unwrap();
}

#[test]
fn a_task_that_fails() {
    let swarm = swarm();
    let image = format!("{}/broken:latest", registry());
    let create = [
        "service",
        "create",
        "--name",
        "broken",
        "--restart-delay",
        "0",
        &image,
    ];
    refused(&swarm, 1, &create, &["non-zero exit (7)"]);
    swarm.remove("broken").unwrap();
}

#[test]
fn a_port_that_is_taken() {
    let swarm = swarm();
    let image = format!("{}/web:latest", registry());
    let create = [
        "service", "create", "--name", "second", "-p", "8080:80", &image,
    ];
    refused(&swarm, 1, &create, &["8080", "web"]);
    let services = swarm.swarmctl(&["service", "ls"]).unwrap();
    assert!(!services.contains("second"), "{services}");
}

#[test]
fn a_name_that_is_taken() {
    let swarm = swarm();
    let image = format!("{}/web:latest", registry());
    refused(
        &swarm,
        1,
        &["service", "create", "--name", "web", &image],
        &["web", "taken"],
    );
}

#[test]
fn a_worker_asked_to_do_a_managers_job() {
    let swarm = swarm();
    let text = refused(&swarm, 2, &["service", "ls"], &["worker", "manager"]);
    assert!(text.contains(&swarm.manager_address()), "{text}");
    refused(
        &swarm,
        3,
        &["node", "ls"],
        &["not part of a swarm", "swarm init"],
    );
}

#[test]
fn a_second_init() {
    let swarm = swarm();
    refused(
        &swarm,
        1,
        &["swarm", "init"],
        &["already part of a swarm", "leave"],
    );
    refused(&swarm, 1, &["swarm", "leave"], &["--force"]);
}

#[test]
fn an_unknown_flag_or_value() {
    let swarm = swarm();
    refused(
        &swarm,
        1,
        &["service", "create", "--nonsense", "web"],
        &["--nonsense"],
    );
    refused(
        &swarm,
        1,
        &["service", "create", "-p", "80000", "web"],
        &["80000", "65535"],
    );
    refused(&swarm, 1, &["service", "scale", "web=-1"], &["web=-1"]);
    refused(&swarm, 1, &["service", "scale", "nothere=2"], &["nothere"]);
    refused(
        &swarm,
        1,
        &[
            "service",
            "create",
            "--name",
            "x",
            "--constraint",
            "node.role=worker",
            "web",
        ],
        &["constraint"],
    );
}

#[test]
fn no_node_fits() {
    let swarm = swarm();
    let image = format!("{}/web:latest", registry());
    swarm
        .swarmctl(&[
            "service",
            "create",
            "-d",
            "--name",
            "nowhere",
            "--constraint",
            "node.labels.disk==ssd",
            &image,
        ])
        .unwrap();
    wait_until(Duration::from_secs(10), "the reason is shown", || {
        let tasks = swarm.tasks("nowhere")?;
        ensure!(
            tasks
                .iter()
                .any(|task| task.error.contains("node.labels.disk==ssd")),
            "{tasks:#?}"
        );
        Ok(())
    })
    .unwrap();
    swarm.remove("nowhere").unwrap();
}

#[test]
fn garbage_on_the_managers_port() {
    let swarm = swarm();
    let manager = swarm.manager().address();
    for script in [
        format!("head -c 100000 /dev/urandom | socat -t 2 - TCP:{manager}:{MANAGER_PORT}"),
        format!("printf 'GET / HTTP/1.1\\r\\n\\r\\n' | socat -t 2 - TCP:{manager}:{MANAGER_PORT}"),
        format!("curl -sk --max-time 5 --http2 https://{manager}:{MANAGER_PORT}/"),
    ] {
        swarm.lab.client().exec(&["sh", "-c", &script]).unwrap();
    }
    swarm.wait_running("web", 1).unwrap();
    let nodes = swarm.swarmctl(&["node", "ls"]).unwrap();
    assert!(nodes.contains("Ready"), "{nodes}");
}
