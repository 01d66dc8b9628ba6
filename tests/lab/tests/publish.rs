//! The options of published ports on whole hosts: each is seen in IPVS's table and by real requests.
//! One swarm for all tests here; they run one after another, each with a service of its own.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use swarm_lab::swarm::{SETTLE_DEADLINE, TaskRow};
use swarm_lab::{Host, Swarm, wait_until};

fn swarm() -> MutexGuard<'static, Swarm> {
    static SWARM: OnceLock<Mutex<Swarm>> = OnceLock::new();
    let swarm = SWARM.get_or_init(|| Mutex::new(Swarm::fresh().expect("a swarm")));
    swarm.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A service of the test image on TCP port 80, removed at the end.
struct Web<'a> {
    swarm: &'a Swarm,
    name: &'static str,
}

impl<'a> Web<'a> {
    fn create(swarm: &'a Swarm, name: &'static str, replicas: u32, options: &[&str]) -> Self {
        let web = Self { swarm, name };
        swarm.create_web(name, replicas, options).expect("created");
        web
    }

    fn update(&self, options: &[&str]) {
        let arguments = [&["service", "update"], options, &[self.name]].concat();
        self.swarm.swarmctl(&arguments).expect("updated");
    }

    /// The hosts with a task of it, and those without.
    fn hosts(&self) -> (Vec<&Host>, Vec<&Host>) {
        let with = self.swarm.hosts_of(self.name).expect("listed");
        let hosts = self.swarm.lab.hosts().iter();
        hosts.partition(|host| with.contains(host.name()))
    }
}

impl Drop for Web<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.swarm.remove(self.name) {
            eprintln!("{} is left: {error:#}", self.name);
        }
    }
}

fn in_ingress(host: &Host, command: &[&str]) -> Result<String> {
    let net = format!("--net={}/netns/ingress", host.agent().run_dir().display());
    host.exec(&[&["nsenter", net.as_str(), "--"], command].concat())?
        .success()
}

/// The lines of `ipvsadm -Sn` about a port: its service, then its destinations.
fn table(host: &Host, port: u16) -> Result<Vec<String>> {
    let all = in_ingress(host, &["ipvsadm", "-Sn"])?;
    let service = format!(":{port} ");
    let lines = all.lines().filter(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let at = words.get(2).copied().unwrap_or_default();
        // IPv6 has a table like it.
        !at.starts_with('[') && format!("{at} ").ends_with(&service)
    });
    Ok(lines.map(str::to_owned).collect())
}

/// Waits until the table of a host is as wanted.
fn wait_table(host: &Host, port: u16, wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
    wait_until(SETTLE_DEADLINE, "IPVS's table", || {
        let lines = table(host, port)?;
        ensure!(wanted(&lines), "{}: {lines:#?}", host.name());
        Ok(lines)
    })
    .unwrap_or_else(|error| panic!("{error:#}"))
}

fn destinations(lines: &[String]) -> usize {
    lines.iter().filter(|line| line.starts_with("-a ")).count()
}

/// Whether a connection is refused, and within a time in which no segment is sent twice.
fn refuses(swarm: &Swarm, address: Ipv4Addr, port: u16) -> Result<()> {
    let url = format!("http://{address}:{port}/");
    let before = Instant::now();
    let answer = swarm
        .lab
        .client()
        .exec(&["curl", "-sS", "--max-time", "5", &url])?;
    let took = before.elapsed();
    let error = answer.stderr.trim().to_owned();
    ensure!(answer.code == 7, "{address}:{port}: {answer:?}");
    ensure!(
        error.contains("onnect") && took < Duration::from_secs(3),
        "{address}:{port}: {error} after {took:?}"
    );
    Ok(())
}

/// Who answers a client that asks that often.
fn answering(swarm: &Swarm, host: &Host, port: u16, times: usize) -> Result<BTreeSet<String>> {
    (0..times)
        .map(|_| Ok(swarm.lab.client().ask_web(host, port)?.task))
        .collect()
}

#[test]
fn mode_host_answers_where_the_task_is_and_the_next_task_waits_for_a_node() {
    let swarm = swarm();
    let web = Web::create(
        &swarm,
        "onhost",
        2,
        &["-p", "target=80,published=8081,mode=host"],
    );
    let (with, without) = web.hosts();
    assert_eq!((with.len(), without.len()), (2, 1));
    for host in &with {
        let lines = wait_table(host, 8081, |lines| destinations(lines) == 1);
        assert_eq!(lines.len(), 2, "{lines:#?}");
        let answer = swarm.wait_answers(host, 8081, 1).unwrap();
        assert_eq!(answer.client.ip(), swarm.lab.client().address());
        assert_eq!(answering(&swarm, host, 8081, 3).unwrap().len(), 1);
    }
    assert_eq!(table(without[0], 8081).unwrap(), [""; 0]);
    refuses(&swarm, without[0].address(), 8081).unwrap();

    // An ingress port of that number is refused by name.
    let taken = swarm
        .manager()
        .swarmctl(&["service", "create", "-p", "8081:80", "nginx"])
        .unwrap();
    assert_ne!(taken.code, 0);
    let told = "port 8081/tcp is already published by service onhost in mode host";
    assert!(taken.stderr.contains(told), "{}", taken.stderr);

    // One task more than there are nodes.
    web.update(&["--detach", "--replicas", "4"]);
    wait_until(SETTLE_DEADLINE, "the fourth task says why it waits", || {
        let tasks = swarm.tasks("onhost")?;
        let told = "3 nodes have host-mode port 8081/tcp in use already";
        ensure!(
            tasks.iter().any(|task| task.error.contains(told)),
            "{tasks:#?}"
        );
        Ok(())
    })
    .unwrap();
    swarm.wait_running("onhost", 3).unwrap();
}

#[test]
fn a_bound_port_answers_at_its_address_only() {
    let swarm = swarm();
    let first = swarm.lab.host(1);
    let bound = format!("{}:8082:80", first.address());
    let _web = Web::create(
        &swarm,
        "bound",
        1,
        &[
            "-p",
            &bound,
            "-p",
            "target=80,published=8083,iface=nothere0",
        ],
    );
    swarm.wait_answers(first, 8082, 1).unwrap();
    for host in &swarm.lab.hosts()[1..] {
        assert_eq!(table(host, 8082).unwrap(), [""; 0]);
        refuses(&swarm, host.address(), 8082).unwrap();
    }
    refuses(&swarm, first.address(), 8083).unwrap();
}

#[test]
fn policies_keep_connections_on_the_node() {
    let swarm = swarm();
    let web = Web::create(
        &swarm,
        "policy",
        1,
        &["-p", "target=80,published=8084,policy=local"],
    );
    let (with, without) = web.hosts();
    swarm.wait_answers(with[0], 8084, 1).unwrap();
    for host in &without {
        refuses(&swarm, host.address(), 8084).unwrap();
    }
    // Preferring is not insisting.
    web.update(&[
        "--publish-add",
        "target=80,published=8084,policy=prefer-local",
    ]);
    for host in with.iter().chain(&without) {
        swarm.wait_answers(host, 8084, 1).unwrap();
    }
    web.update(&["--replicas", "2"]);
    let (with, without) = web.hosts();
    for host in &with {
        wait_table(host, 8084, |lines| {
            let ready = lines.iter().filter(|line| line.ends_with("-w 1")).count();
            destinations(lines) == 2 && ready == 1
        });
        assert_eq!(answering(&swarm, host, 8084, 4).unwrap().len(), 1);
    }
    let lines = wait_table(without[0], 8084, |lines| destinations(lines) == 2);
    assert!(
        lines.iter().skip(1).all(|line| line.ends_with("-w 1")),
        "{lines:#?}"
    );
}

#[test]
fn every_scheduler_balances_and_maglev_chooses_alike_everywhere() {
    let swarm = swarm();
    let web = Web::create(&swarm, "sched", 3, &["-p", "8085:80"]);
    for (name, flags) in [
        ("rr", ""),
        ("wrr", ""),
        ("lc", ""),
        ("sh", "sh-fallback"),
        ("mh", "mh-fallback,mh-port"),
    ] {
        let option = format!("target=80,published=8085,sched={name}");
        web.update(&["--publish-add", &option]);
        for host in swarm.lab.hosts() {
            let scheduler = format!("-s {name}");
            let lines = wait_table(host, 8085, |lines| {
                lines.first().is_some_and(|line| line.contains(&scheduler))
            });
            assert!(lines[0].contains(flags), "{lines:#?}");
            assert_eq!(destinations(&lines), 3, "{lines:#?}");
            let tasks = answering(&swarm, host, 8085, 6).unwrap();
            match name {
                "sh" => assert_eq!(tasks.len(), 1, "one client, one task: {tasks:?}"),
                _ => assert!(tasks.len() > 1, "{name}: {tasks:?}"),
            }
        }
    }
    // From one client port, every node leads to the same task.
    for client_port in 40_001..40_007 {
        let tasks: BTreeSet<_> = swarm
            .lab
            .hosts()
            .iter()
            .map(|host| asked_from(&swarm, client_port, host, 8085).unwrap())
            .collect();
        assert_eq!(tasks.len(), 1, "from port {client_port}: {tasks:?}");
    }
}

/// The task that answers a client from this port of its own.
fn asked_from(swarm: &Swarm, client_port: u16, host: &Host, port: u16) -> Result<String> {
    // Reused: the connection before, to another host, is still being forgotten.
    let to = format!(
        "TCP:{}:{port},sourceport={client_port},reuseaddr",
        host.address()
    );
    let script = format!(
        "printf 'GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n' | socat -t 10 - {to}"
    );
    let answer = swarm.lab.client().exec(&["sh", "-c", &script])?.success()?;
    let last = answer.lines().last().context("no answer")?;
    Ok(last.parse::<swarm_lab::WebAnswer>()?.task)
}

#[test]
fn affinity_brings_a_client_back() {
    let swarm = swarm();
    let _web = Web::create(
        &swarm,
        "affine",
        3,
        &["-p", "target=80,published=8086,affinity=5m"],
    );
    for host in swarm.lab.hosts() {
        let lines = wait_table(host, 8086, |lines| destinations(lines) == 3);
        assert!(lines[0].contains("-p 300"), "{lines:#?}");
        assert_eq!(answering(&swarm, host, 8086, 5).unwrap().len(), 1);
    }
}

#[test]
fn clients_outside_the_source_ranges_are_dropped() {
    let swarm = swarm();
    let client = swarm.lab.client().address();
    let own = format!("target=80,published=8087,source={client}");
    let web = Web::create(&swarm, "ranges", 1, &["-p", &own]);
    for host in swarm.lab.hosts() {
        swarm.wait_answers(host, 8087, 1).unwrap();
    }
    web.update(&[
        "--publish-add",
        "target=80,published=8087,source=203.0.113.0/24",
    ]);
    for host in swarm.lab.hosts() {
        wait_until(SETTLE_DEADLINE, "dropped", || {
            let url = format!("http://{}:8087/", host.address());
            let curl = ["curl", "-sS", "--max-time", "2", &url];
            let answer = swarm.lab.client().exec(&curl)?;
            // 28: no answer in time.
            ensure!(answer.code == 28, "{answer:?}");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn a_port_without_a_task_refuses_at_once_however_often_it_is_asked() {
    let swarm = swarm();
    let web = Web::create(&swarm, "nobody", 1, &["-p", "8088:80"]);
    swarm.wait_answers(swarm.lab.host(1), 8088, 1).unwrap();
    web.update(&["--replicas", "0"]);
    for host in swarm.lab.hosts() {
        wait_table(host, 8088, <[String]>::is_empty);
        // More than an ICMP rate limit would let through.
        for _ in 0..8 {
            refuses(&swarm, host.address(), 8088).unwrap();
        }
    }
}

/// What a host has counted of a service (`Service`) or task (`Task`) of that name.
fn counted(host: &Host, kind: &str, name: &str) -> Result<Value> {
    let told = host.swarmctl(&["service", "stats", "--format", "json"])?;
    let rows: Vec<Value> = told
        .success()?
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let row = rows.into_iter().find(|row| row[kind] == name);
    row.with_context(|| format!("{} has no {kind} {name}", host.name()))
}

fn number(row: &Value, pointer: &str) -> u64 {
    row.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
}

#[test]
fn what_comes_in_is_counted_by_service_and_by_task() {
    const REQUESTS: u64 = 10;
    /// Of a request with an answer on a connection of its own, the least: begun, acknowledged, asked, ended.
    const PACKETS: u64 = 4;
    let swarm = swarm();
    let web = Web::create(&swarm, "counted", 1, &["-p", "8090:80"]);
    let task = swarm.wait_running("counted", 1).unwrap().remove(0);
    let (with, without) = web.hosts();
    let (there, asked) = (with[0], without[0]);
    swarm.wait_answers(asked, 8090, 1).unwrap();
    let of_service = || counted(asked, "Service", "counted").unwrap();
    let of_task = || counted(there, "Task", &task.name).unwrap();
    let (service_before, task_before) = (of_service(), of_task());
    for _ in 0..REQUESTS {
        swarm.lab.client().ask_web(asked, 8090).unwrap();
    }
    // A node may ask its own ports meanwhile, which is no packet of a client's.
    wait_until(SETTLE_DEADLINE, "counted", || {
        let more = |pointer| number(&of_service(), pointer) - number(&service_before, pointer);
        ensure!(more("/Connections") >= REQUESTS);
        ensure!(more("/InPackets") >= REQUESTS * PACKETS);
        ensure!(more("/InBytes") >= REQUESTS * PACKETS * 54);
        let more = |pointer| number(&of_task(), pointer) - number(&task_before, pointer);
        ensure!(more("/InPackets") >= REQUESTS * PACKETS);
        ensure!(more("/OutPackets") >= REQUESTS * PACKETS);
        Ok(())
    })
    .unwrap();
    let by_ipvs = in_ingress(asked, &["ipvsadm", "-Ln", "--stats", "--exact"]).unwrap();
    let lines = by_ipvs.lines().filter(|line| line.contains(":8090 "));
    let words = lines.map(|line| line.split_whitespace().nth(2).unwrap_or_default());
    let by_ipvs: u64 = words.map(|word| word.parse::<u64>().unwrap()).sum();
    assert!(by_ipvs >= REQUESTS);
    assert!(number(&of_service(), "/Connections") >= by_ipvs);
    assert_eq!(of_service()["DroppedPackets"]["no_task"], 0);
}

#[test]
fn what_is_dropped_is_counted_by_why() {
    let swarm = swarm();
    let web = Web::create(&swarm, "dropping", 2, &["-p", "8091:80"]);
    let tasks = swarm.wait_running("dropping", 2).unwrap();
    let host = |task: &TaskRow| {
        let hosts = swarm.lab.hosts();
        hosts.iter().find(|host| host.name() == task.node).unwrap()
    };
    let [bad, good] = &tasks[..] else {
        panic!("{tasks:?}")
    };
    let other = host(good).address_in_task(good, "eth0").unwrap();
    let isolated = |task: &TaskRow| {
        let row = counted(host(task), "Task", &task.name).unwrap();
        number(&row, "/DroppedPackets/isolated")
    };
    // Not nothing: a task's kernel tells its link of multicast groups.
    let before = isolated(bad);
    // Published is the target, and nothing else of a task.
    let url = format!("http://{other}:81/");
    let curl = ["curl", "-sS", "--max-time", "2", &url];
    let answer = host(bad).exec_in_task(bad, &curl);
    assert!(answer.is_err(), "{answer:?}");
    assert!(isolated(bad) > before);

    let asked = swarm.lab.host(1);
    let dropped = |why: &str| {
        let row = counted(asked, "Service", "dropping").unwrap();
        number(&row, &format!("/DroppedPackets/{why}"))
    };
    swarm.wait_answers(asked, 8091, 1).unwrap();
    assert_eq!((dropped("no_task"), dropped("source_refused")), (0, 0));
    web.update(&["--replicas", "0"]);
    wait_table(asked, 8091, <[String]>::is_empty);
    wait_until(SETTLE_DEADLINE, "counted", || {
        refuses(&swarm, asked.address(), 8091)?;
        ensure!(dropped("no_task") > 0);
        Ok(())
    })
    .unwrap();
    web.update(&[
        "--publish-add",
        "target=80,published=8091,source=203.0.113.0/24",
    ]);
    wait_until(SETTLE_DEADLINE, "counted", || {
        let url = format!("http://{}:8091/", asked.address());
        let curl = ["curl", "-sS", "--max-time", "1", &url];
        let answer = swarm.lab.client().exec(&curl)?;
        ensure!(answer.code == 28, "{answer:?}");
        ensure!(dropped("source_refused") > 0);
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_process_on_the_port_is_reported_in_service_ps() {
    let swarm = swarm();
    let host = swarm.lab.host(2);
    let listening = host.spawn(&["nc", "-lk", "8089"]).unwrap();
    let _web = Web::create(&swarm, "shadow", 1, &["-p", "8089:80"]);
    // The service is served all the same.
    swarm.wait_answers(host, 8089, 1).unwrap();
    let shown = || swarm.swarmctl(&["service", "ps", "shadow"]);
    let told = format!(
        "! {}: a process of this node listens on port 8089/tcp",
        host.name()
    );
    wait_until(SETTLE_DEADLINE, "the report", || {
        let text = shown()?;
        ensure!(text.contains(&told), "{text}");
        Ok(())
    })
    .unwrap();
    drop(listening);
    wait_until(SETTLE_DEADLINE, "the report is gone", || {
        let text = shown()?;
        ensure!(!text.contains("! "), "{text}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_range_is_published_and_withdrawn_port_by_port() {
    let swarm = swarm();
    let web = Web::create(&swarm, "range", 1, &["-p", "8090-8091:80"]);
    let host = swarm.lab.host(3);
    swarm.wait_answers(host, 8090, 1).unwrap();
    swarm.wait_answers(host, 8091, 1).unwrap();
    web.update(&["--publish-rm", "8091:80"]);
    wait_table(host, 8091, <[String]>::is_empty);
    refuses(&swarm, host.address(), 8091).unwrap();
    swarm.wait_answers(host, 8090, 1).unwrap();
}

/// Needs `sctp` in the kernel; a kernel without it has nothing to show.
#[test]
fn sctp_reaches_the_task() {
    let swarm = swarm();
    let sctp = swarm.lab.client().exec(&["modprobe", "sctp"]).unwrap();
    if sctp.code != 0 {
        eprintln!("SKIPPED: the kernel has no SCTP: {}", sctp.stderr);
        return;
    }
    let web = Web::create(&swarm, "sctp", 1, &["-p", "8092:9/sctp"]);
    let (with, _) = web.hosts();
    let task = swarm.tasks("sctp").unwrap();
    let task = task.iter().find(|task| task.is_running()).unwrap();
    let netns = format!(
        "--net={}/netns/task-{}",
        with[0].agent().run_dir().display(),
        task.id
    );
    let echo = [
        "nsenter",
        &netns,
        "--",
        "socat",
        "SCTP-LISTEN:9,fork,reuseaddr",
        "SYSTEM:echo here",
    ];
    let _echo = with[0].spawn(&echo).unwrap();
    for host in swarm.lab.hosts() {
        wait_table(host, 8092, |lines| destinations(lines) == 1);
        wait_until(SETTLE_DEADLINE, "an answer", || {
            let ask = format!(
                "socat -t 5 - SCTP:{}:8092,shut-none </dev/null",
                host.address()
            );
            let answer = swarm.lab.client().exec(&["sh", "-c", &ask])?.success()?;
            ensure!(answer.contains("here"), "{answer:?}");
            Ok(())
        })
        .with_context(|| format!("through {}", host.name()))
        .unwrap();
    }
}
