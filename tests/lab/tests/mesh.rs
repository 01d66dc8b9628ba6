//! The routing mesh on whole hosts. One swarm for all tests here; they run one after another.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use swarm_lab::{Host, Swarm, swarm::SETTLE_DEADLINE, wait_until};

const PORT: u16 = 8080;
const UDP_PORT: u16 = 5353;

/// Nothing listens there in the tasks.
const CLOSED_PORT: u16 = 5399;

const PORTS: [&str; 6] = [
    "-p",
    "8080:80",
    "-p",
    "5353:5353/udp",
    "-p",
    "5399:5399/udp",
];

/// What a person breaks by hand is back within this.
const REPAIR_DEADLINE: Duration = Duration::from_secs(5);

/// The swarm with service `web`: two tasks, so that one of three hosts has none.
fn swarm() -> MutexGuard<'static, Swarm> {
    static SWARM: OnceLock<Mutex<Swarm>> = OnceLock::new();
    let swarm = SWARM.get_or_init(|| {
        let swarm = Swarm::fresh().expect("a swarm");
        swarm.create_web("web", 2, &PORTS).expect("service web");
        Mutex::new(swarm)
    });
    let swarm = swarm.lock().unwrap_or_else(PoisonError::into_inner);
    swarm.wait_ready().expect("every node ready");
    swarm.wait_running("web", 2).expect("two tasks");
    swarm
}

/// The nsenter words for the ingress namespace of a host.
fn ingress(host: &Host) -> String {
    format!("--net={}/netns/ingress", host.agent().run_dir().display())
}

fn in_ingress(host: &Host, command: &[&str]) -> Result<String> {
    let net = ingress(host);
    host.exec(&[&["nsenter", net.as_str(), "--"], command].concat())?
        .success()
}

#[test]
fn every_host_answers_and_the_task_sees_the_client() {
    let swarm = swarm();
    let client = swarm.lab.client();
    let with_task = swarm.hosts_of("web").unwrap();
    assert_eq!(
        with_task.len(),
        2,
        "tasks spread over two hosts: {with_task:?}"
    );
    for host in swarm.lab.hosts() {
        let answer = swarm.wait_answers(host, PORT, 2).unwrap();
        assert_eq!(
            answer.client.ip(),
            client.address(),
            "TCP through {}",
            host.name()
        );
        let answer = client.ask_udp(host, UDP_PORT).unwrap();
        assert_eq!(
            answer.client.ip(),
            client.address(),
            "UDP through {}",
            host.name()
        );
    }
}

#[test]
fn every_host_answers_at_its_ipv6_address_and_the_task_sees_the_clients() {
    let swarm = swarm();
    let client = swarm.lab.client();
    for host in swarm.lab.hosts() {
        let at = (host.address6(), PORT).into();
        let mut tasks = BTreeSet::new();
        wait_until(SETTLE_DEADLINE, "both tasks answer over IPv6", || {
            let answer = client.ask_web_at(at)?;
            assert_eq!(
                answer.client.ip(),
                client.address6(),
                "through {}",
                host.name()
            );
            tasks.insert(answer.task);
            ensure!(tasks.len() == 2, "only {tasks:?}");
            Ok(())
        })
        .unwrap();
        let answer = client.ask_udp_at((host.address6(), UDP_PORT).into(), 2);
        assert_eq!(answer.unwrap().client.ip(), client.address6());
    }
}

/// Datagrams larger than any link on the way, there and back.
#[test]
fn datagrams_in_fragments_arrive_and_are_answered() {
    let swarm = swarm();
    let client = swarm.lab.client();
    for host in swarm.lab.hosts() {
        for (address, own) in host.addresses().into_iter().zip(client.addresses()) {
            // The first one over IPv6 may be lost to the discovery of the overlay's MTU.
            wait_until(SETTLE_DEADLINE, "an answer in fragments", || {
                let answer = client.ask_udp_at((address, UDP_PORT).into(), 4000)?;
                assert_eq!(answer.client.ip(), own, "through {}", host.name());
                Ok(())
            })
            .unwrap();
        }
    }
}

/// A task's refusal is the client's.
#[test]
fn a_closed_udp_port_of_a_task_refuses() {
    let swarm = swarm();
    for host in swarm.lab.hosts() {
        for address in host.addresses() {
            let version = if address.is_ipv4() { 4 } else { 6 };
            let at = SocketAddr::new(address, CLOSED_PORT);
            let ask = format!("echo ? | socat -t 5 - udp{version}:{at},shut-none");
            let outcome = swarm.lab.client().exec(&["sh", "-c", &ask]).unwrap();
            assert!(outcome.stderr.contains("refused"), "{at}: {outcome:?}");
        }
    }
}

/// A client behind a router with a narrow link: the router's errors reach the task that sends too
/// large packets. And a client that sends too large ones is told by the ingress node.
#[test]
fn the_path_mtu_is_discovered_both_ways() {
    let swarm = swarm();
    let narrow = NarrowPath::new(1300).unwrap();
    for host in swarm.lab.hosts() {
        for address in host.addresses() {
            let url = format!("http://{}/big", SocketAddr::new(address, PORT));
            let download = [
                "curl",
                "-sSf",
                "--max-time",
                "20",
                "-r",
                "0-999999",
                "-o",
                "/dev/null",
            ];
            narrow
                .exec(&[&download[..], &[&url]].concat())
                .unwrap_or_else(|error| panic!("{url}: {error:#}"));
        }
        // Not to be fragmented on the way: the overlay takes 1450 bytes.
        let client = swarm.lab.client();
        let at = SocketAddr::from((host.address(), UDP_PORT));
        let send = format!("head -c 1472 /dev/zero | socat -u -b 2000 - udp4:{at},mtudiscover=2");
        wait_until(
            SETTLE_DEADLINE,
            "the client knows the overlay's MTU",
            || {
                client.exec(&["sh", "-c", &send])?;
                let route = client
                    .exec(&["ip", "route", "get", &host.address().to_string()])?
                    .success()?;
                ensure!(route.contains("mtu 1450"), "{route}");
                Ok(())
            },
        )
        .unwrap();
    }
}

/// A host of its own behind the lab's first namespace, by a link that only the router knows to be
/// narrow.
struct NarrowPath;

impl NarrowPath {
    fn new(mtu: u16) -> Result<Self> {
        let plan = format!(
            "netns add narrow\n\
             link add u-narrow mtu {mtu} type veth peer name eth0 mtu 1500 netns narrow\n\
             addr add 10.98.0.254/24 dev u-narrow\n\
             addr add fd00:98::fe/64 dev u-narrow nodad\n\
             link set u-narrow up\n\
             -n narrow addr add 10.98.0.1/24 dev eth0\n\
             -n narrow addr add fd00:98::1/64 dev eth0 nodad\n\
             -n narrow link set eth0 up\n\
             -n narrow route add default via 10.98.0.254\n\
             -n narrow route add ::/0 via fd00:98::fe"
        );
        let path = Self;
        for line in plan.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            run(Command::new("ip").args(&words))?;
        }
        Ok(path)
    }

    fn exec(&self, words: &[&str]) -> Result<String> {
        let enter = ["--net=/run/netns/narrow", "--"];
        run(Command::new("nsenter").args(enter).args(words))
    }
}

impl Drop for NarrowPath {
    fn drop(&mut self) {
        for line in ["link del u-narrow", "netns del narrow"] {
            run(Command::new("ip").args(line.split(' '))).ok();
        }
    }
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn ipvs_has_what_the_plan_says() {
    let swarm = swarm();
    for host in swarm.lab.hosts() {
        let table = in_ingress(host, &["ipvsadm", "-Sn"]).unwrap();
        let tcp = format!("-A -t {}:{PORT} -s rr", host.address());
        let udp = format!("-A -u {}:{UDP_PORT} -s rr", host.address());
        assert!(
            table.contains(&tcp) && table.contains(&udp),
            "{}:\n{table}",
            host.name()
        );
        let destinations = table
            .lines()
            .filter(|line| line.starts_with("-a -t") && line.contains(":80 -m -w 1"));
        // At the IPv4 and at the IPv6 address.
        assert_eq!(destinations.count(), 4, "{}:\n{table}", host.name());
        let over_ipv6 = format!("-A -t [{}]:{PORT} -s rr", host.address6());
        assert!(table.contains(&over_ipv6), "{}:\n{table}", host.name());
    }
}

#[test]
fn a_download_survives_the_death_of_the_agent_and_of_the_manager() {
    let swarm = swarm();
    for host in swarm.lab.hosts() {
        let url = format!("http://{}:{PORT}/slow", host.address());
        let file = format!("/tmp/download-{}", host.name());
        // 256 kB/s: still running when everything below has happened. Unbuffered, to see it go on.
        let client = swarm.lab.client();
        let mut download = client.spawn(&["curl", "-sSfN", "-o", &file, &url]).unwrap();
        let received = |host: &Host| -> Result<u64> {
            let table = in_ingress(host, &["ipvsadm", "-Ln", "--connection"])?;
            Ok(table
                .lines()
                .filter(|line| line.contains("ESTABLISHED"))
                .count() as u64)
        };
        wait_until(REPAIR_DEADLINE, "the download is established", || {
            ensure!(received(host)? > 0, "no connection in IPVS");
            Ok(())
        })
        .unwrap();
        swarm.manager().agent().kill_control().unwrap();
        for other in swarm.lab.hosts() {
            other.agent().kill().unwrap();
            other.agent().start().unwrap();
        }
        swarm.wait_ready().unwrap();
        let bytes = || -> Result<u64> {
            let size = client.exec(&["stat", "-c", "%s", &file])?.success()?;
            Ok(size.trim().parse()?)
        };
        let before = bytes().unwrap();
        wait_until(REPAIR_DEADLINE, "the download goes on", || {
            ensure!(bytes()? > before, "no more bytes");
            Ok(())
        })
        .unwrap();
        assert!(
            download.is_running().unwrap(),
            "the download through {} broke",
            host.name()
        );
    }
}

/// Breaks something on every host in turn, and waits until requests and `check` are well again.
fn breaks_and_heals(
    what: &str,
    break_it: impl Fn(&Host) -> Result<()>,
    check: impl Fn(&Host) -> Result<()>,
) {
    let swarm = swarm();
    for host in swarm.lab.hosts() {
        check(host).unwrap_or_else(|error| panic!("before {what} on {}: {error:#}", host.name()));
        break_it(host).expect("the fault can be made");
        wait_until(REPAIR_DEADLINE, what, || {
            check(host)?;
            swarm.lab.client().ask_web(host, PORT).map(drop)
        })
        .unwrap_or_else(|error| panic!("{what} on {}: {error:#}", host.name()));
    }
}

#[test]
fn a_flushed_ipvs_table_is_back() {
    breaks_and_heals(
        "ipvsadm -C",
        |host| in_ingress(host, &["ipvsadm", "-C"]).map(drop),
        |host| {
            let table = in_ingress(host, &["ipvsadm", "-Sn"])?;
            ensure!(
                table.contains(&format!("{}:{PORT}", host.address())),
                "{table}"
            );
            Ok(())
        },
    );
}

#[test]
fn a_detached_program_is_back() {
    for (device, program) in [("eth0", "mesh_uplink"), ("sw-e1h", "mesh_out")] {
        breaks_and_heals(
            &format!("tc filter del dev {device}"),
            |host| {
                host.exec(&["tc", "filter", "del", "dev", device, "ingress"])?
                    .success()
                    .map(drop)
            },
            |host| {
                let filters = host
                    .exec(&["tc", "filter", "show", "dev", device, "ingress"])?
                    .success()?;
                ensure!(filters.contains(program), "{filters}");
                Ok(())
            },
        );
    }
}

#[test]
fn a_deleted_vxlan_device_is_back() {
    breaks_and_heals(
        "ip link del vx0",
        |host| in_ingress(host, &["ip", "link", "del", "vx0"]).map(drop),
        |host| {
            let link = in_ingress(host, &["ip", "-d", "link", "show", "vx0"])?;
            ensure!(
                link.contains("vxlan") && link.contains("master br0"),
                "{link}"
            );
            Ok(())
        },
    );
}

#[test]
fn a_removed_fdb_entry_is_back() {
    let entries = |host: &Host| -> Result<Vec<String>> {
        let text = in_ingress(host, &["bridge", "fdb", "show", "dev", "vx0"])?;
        Ok(text
            .lines()
            .filter(|line| line.contains(" dst "))
            .map(str::to_owned)
            .collect())
    };
    let swarm_size = swarm().lab.hosts().len();
    breaks_and_heals(
        "bridge fdb del",
        |host| {
            for entry in entries(host)? {
                let mac = entry.split_whitespace().next().unwrap_or_default();
                in_ingress(host, &["bridge", "fdb", "del", mac, "dev", "vx0", "self"])?;
            }
            Ok(())
        },
        |host| {
            let found = entries(host)?;
            // The other nodes at least.
            ensure!(found.len() + 1 >= swarm_size, "{found:?}");
            Ok(())
        },
    );
}

#[test]
fn a_deleted_ingress_end_is_back() {
    breaks_and_heals(
        "ip link del sw-e1h",
        |host| {
            host.exec(&["ip", "link", "del", "sw-e1h"])?
                .success()
                .map(drop)
        },
        |host| {
            host.exec(&["ip", "link", "show", "sw-e1h"])?
                .success()
                .map(drop)
        },
    );
}

#[test]
fn established_connections_leave_ipvs_alone() {
    let swarm = swarm();
    let with_task = swarm.hosts_of("web").unwrap();
    let hosts = swarm.lab.hosts();
    let host = hosts
        .iter()
        .find(|host| !with_task.contains(host.name()))
        .unwrap();
    swarm.wait_answers(host, PORT, 2).unwrap();
    let service = format!("{}:{PORT}", host.address());
    let packets = || -> u64 {
        let table = in_ingress(host, &["ipvsadm", "-Ln", "--stats", "--exact"]).unwrap();
        let line = table
            .lines()
            .find(|line| line.starts_with("TCP") && line.contains(&service))
            .unwrap();
        line.split_whitespace().nth(3).unwrap().parse().unwrap()
    };
    let before = packets();
    let url = format!("http://{service}/");
    let wrk = ["wrk", "-t", "1", "-c", "2", "-d", "2", &url];
    let said = swarm.lab.client().exec(&wrk).unwrap().success().unwrap();
    let requests: u64 = said
        .lines()
        .find_map(|line| line.trim().split_once(" requests in"))
        .and_then(|(count, _)| count.parse().ok())
        .unwrap();
    assert!(requests > 100, "{said}");
    // Handshakes, ends, and the packets that renew it.
    let through_ipvs = packets() - before;
    assert!(
        through_ipvs * 5 < requests,
        "{through_ipvs} packets of {requests} requests"
    );
}

/// Where a packet was, and what became of it there.
type Step = (String, String);

/// What traces of a client's packets to `at` tell on every host, while the client asks.
fn traced(swarm: &Swarm, own: IpAddr, at: SocketAddr) -> Result<Vec<Vec<Step>>> {
    let from = own.to_string();
    let port = at.port().to_string();
    let asked = ["--port", &port, "--from", &from, "--format", "json"];
    let arguments = [&["mesh", "trace"], &asked[..]].concat();
    let step = |line: &str| -> Result<Step> {
        let packet: serde_json::Value = serde_json::from_str(line)?;
        let text = |name: &str| packet[name].as_str().unwrap_or_default().to_owned();
        let parties = [text("Source"), text("Destination")];
        let is_ours = |party: &String| {
            let party = party.parse::<SocketAddr>();
            party.is_ok_and(|party| party.ip() == own)
        };
        let is_about_it = packet["Lost"].is_number() || parties.iter().any(is_ours);
        ensure!(is_about_it, "of another client: {line}");
        Ok((text("Step"), text("Verdict")))
    };
    thread::scope(|scope| {
        let trace = |host| {
            let arguments = &arguments;
            scope.spawn(move || Host::swarmctl(host, arguments)?.success())
        };
        let traces: Vec<_> = swarm.lab.hosts().iter().map(trace).collect();
        while traces.iter().any(|trace| !trace.is_finished()) {
            swarm.lab.client().ask_web_at(at)?;
        }
        let told = traces.into_iter().map(|trace| {
            let told = trace
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            told.lines().map(step).collect()
        });
        told.collect()
    })
}

#[test]
fn a_trace_shows_a_flow_step_by_step_where_it_is_asked_for_and_where_its_task_is() {
    let swarm = swarm();
    let with_task = swarm.hosts_of("web").unwrap();
    let hosts = swarm.lab.hosts();
    let asked = hosts.iter().find(|host| !with_task.contains(host.name()));
    let asked = asked.unwrap();
    swarm.wait_answers(asked, PORT, 2).unwrap();
    let clients = swarm.lab.client().addresses();
    for (address, own) in asked.addresses().into_iter().zip(clients) {
        let told = traced(&swarm, own, SocketAddr::new(address, PORT)).unwrap();
        for (host, steps) in hosts.iter().zip(told) {
            let shows = |step: &str, words: &str| {
                let found = steps
                    .iter()
                    .any(|(at, verdict)| at.starts_with(step) && verdict.contains(words));
                let different: BTreeSet<_> = steps.iter().collect();
                assert!(found, "no {words:?} on {}: {different:?}", host.name());
            };
            if host.name() == asked.name() {
                shows("uplink", "taken into the mesh");
                shows("ingress", "to IPVS");
                shows("tunnel-out", "balanced to web.");
                shows("out", "sent to the client");
                if address.is_ipv4() {
                    shows("ingress", "straight to web.");
                    shows("", "straight out, from the published address again");
                }
            } else {
                shows("", "handed to web.");
                shows("", "by way of node ");
                shows("from-task", "returned to node ");
                shows("tunnel-out", "back to node ");
            }
        }
    }
    let refused = asked.swarmctl(&["mesh", "trace", "--port", "8099"]);
    let words = refused.unwrap().failure().unwrap();
    assert!(words.contains("no service publishes port 8099"), "{words}");
}
