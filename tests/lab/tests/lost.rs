//! Nothing is lost: clients ask without a pause while tasks and agents come and go.

use std::fs::File;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use swarm_lab::load::{Clients, Counts, Load};
use swarm_lab::services::registry;
use swarm_lab::{Host, Swarm, WebAnswer, swarm::SETTLE_DEADLINE, wait_until};

const PORT: u16 = 8080;
const UDP_PORT: u16 = 5353;

/// Between two datagrams of a flow.
const FLOW_INTERVAL: Duration = Duration::from_millis(50);

/// The swarm with service `web`, four tasks.
fn swarm() -> MutexGuard<'static, Swarm> {
    static SWARM: OnceLock<Mutex<Swarm>> = OnceLock::new();
    let swarm = SWARM.get_or_init(|| {
        let swarm = Swarm::fresh().expect("a swarm");
        let ports = ["-p", "8080:80", "-p", "5353:5353/udp"];
        swarm.create_web("web", 4, &ports).expect("service web");
        Mutex::new(swarm)
    });
    let swarm = swarm.lock().unwrap_or_else(PoisonError::into_inner);
    swarm.wait_ready().expect("every node ready");
    swarm.wait_running("web", 4).expect("four tasks");
    swarm
}

/// Clients of every kind, at one host: one client port through two hosts may meet at one task, and
/// such flows are not translated yet.
fn load(swarm: &Swarm) -> Load {
    let clients = Clients {
        at: vec![(swarm.lab.host(2).address(), PORT).into()],
        short: 4,
        keepalive: 4,
        download: 2,
        limit_ms: 5000,
    };
    Load::start(swarm.lab.client(), &clients).expect("clients")
}

fn nothing_failed(load: Load) -> Counts {
    let counts = load.finish().expect("the clients' counts");
    assert_eq!(counts.failed, 0, "{counts:#?}");
    counts
}

fn in_ingress(host: &Host, command: &[&str]) -> Result<String> {
    let net = format!("--net={}/netns/ingress", host.agent().run_dir().display());
    host.exec(&[&["nsenter", net.as_str(), "--"], command].concat())?
        .success()
}

#[test]
fn agents_and_managers_that_die_lose_no_request() {
    let swarm = swarm();
    let load = load(&swarm);
    for host in swarm.lab.hosts() {
        host.agent().kill().unwrap();
    }
    let before = load.counts().requests;
    wait_until(SETTLE_DEADLINE, "requests without agents", || {
        let now = load.counts().requests;
        ensure!(now > before + 500, "{now} after {before}");
        Ok(())
    })
    .unwrap();
    // The manager last: it replaces the tasks of whoever does not come back within 10 s.
    for host in swarm.lab.hosts().iter().rev() {
        host.agent().start().unwrap();
    }
    swarm.wait_ready().unwrap();
    swarm.wait_running("web", 4).unwrap();
    nothing_failed(load);
}

#[test]
fn a_drained_host_loses_no_request() {
    let swarm = swarm();
    // It goes on taking requests for tasks that are elsewhere.
    let drained = swarm.lab.host(2);
    assert!(swarm.hosts_of("web").unwrap().contains(drained.name()));
    let load = load(&swarm);
    let set = |availability| {
        let update = [
            "node",
            "update",
            "--availability",
            availability,
            drained.name(),
        ];
        let set = [&["swarmctl"], &update[..]].concat();
        let set = swarm.manager().exec_within(SETTLE_DEADLINE * 3, &set);
        set.unwrap().success().unwrap();
    };
    set("drain");
    let left = swarm.hosts_of("web").unwrap();
    assert!(!left.contains(drained.name()), "{left:?}");
    set("active");
    nothing_failed(load);
}

#[test]
fn a_connection_without_a_packet_is_remembered_for_longer_than_twenty_minutes() {
    let swarm = swarm();
    let clients = Clients {
        at: vec![(swarm.lab.host(1).address(), PORT).into()],
        short: 0,
        keepalive: 1,
        download: 0,
        limit_ms: 5000,
    };
    let load = Load::start(swarm.lab.client(), &clients).unwrap();
    let host = swarm.lab.host(1);
    let timeouts = in_ingress(host, &["ipvsadm", "-L", "--timeout"]).unwrap();
    assert!(timeouts.contains(": 9000 120 300"), "{timeouts}");
    // The table names the time that is left of each entry, as minutes and seconds.
    let table = in_ingress(host, &["ipvsadm", "-Lnc"]).unwrap();
    let mut left = table
        .lines()
        .filter(|line| line.starts_with("TCP") && line.contains(" ESTABLISHED "))
        .map(|line| -> u32 {
            let time = line.split_whitespace().nth(1).unwrap();
            time.split_once(':').unwrap().0.parse().unwrap()
        });
    assert!(left.any(|minutes| minutes > 120), "{table}");
    nothing_failed(load);
}

/// One UDP flow from the client: when it was answered, and by which task.
struct Flow {
    socket: UdpSocket,
    answers: Vec<(Instant, String)>,
}

impl Flow {
    fn open(client: &Host, to: SocketAddr) -> Result<Self> {
        let path = format!("/run/netns/{}", client.name());
        let socket = thread::spawn(move || -> Result<UdpSocket> {
            setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(FLOW_INTERVAL))?;
            Ok(socket)
        });
        let socket = socket.join().map_err(|_| anyhow::anyhow!("no socket"))??;
        Ok(Self {
            socket,
            answers: Vec::new(),
        })
    }

    /// Sends a datagram and takes the answers that are there.
    fn step(&mut self) -> Result<()> {
        self.socket.send(b"?\n").ok();
        let mut buffer = [0; 2048];
        let began = Instant::now();
        while began.elapsed() < FLOW_INTERVAL {
            match self.socket.recv(&mut buffer) {
                Ok(length) => {
                    let answer: WebAnswer = std::str::from_utf8(&buffer[..length])?.parse()?;
                    self.answers.push((Instant::now(), answer.task));
                }
                // A task that is gone refuses; the flow goes on.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error).context("the flow"),
            }
        }
        Ok(())
    }
}

#[test]
fn a_udp_flow_leaves_a_removed_task_within_a_second() {
    let swarm = swarm();
    let to = (swarm.lab.host(1).address(), UDP_PORT).into();
    let mut flow = Flow::open(swarm.lab.client(), to).unwrap();
    wait_until(SETTLE_DEADLINE, "the flow is answered", || {
        flow.step()?;
        ensure!(!flow.answers.is_empty(), "no answer");
        Ok(())
    })
    .unwrap();
    // All tasks are replaced, whichever answers.
    let first = flow.answers[0].1.clone();
    let manager = swarm.manager().clone();
    let updating = thread::spawn(move || {
        let image = format!("{}/web:1", registry());
        let update = [
            "swarmctl", "service", "update", "--image", &image, "--force", "web",
        ];
        manager.exec_within(SETTLE_DEADLINE * 3, &update)?.success()
    });
    while !updating.is_finished() {
        flow.step().unwrap();
    }
    updating.join().unwrap().unwrap();
    for _ in 0..20 {
        flow.step().unwrap();
    }
    let longest = flow.answers.windows(2).map(|two| two[1].0 - two[0].0).max();
    let longest = longest.expect("many answers");
    assert!(
        longest < Duration::from_secs(1),
        "without an answer for {longest:?}"
    );
    assert_ne!(flow.answers.last().unwrap().1, first);
}
