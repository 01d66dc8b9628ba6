//! Programs real tables and asks another tool, `ipvsadm`, what is in them.
//!
//! Needs root, a kernel with IPVS and `ipvsadm` 1.31; prints `SKIP: reason` where one is missing,
//! or fails with `SWARM_TEST_REQUIRE_IPVS=1`.
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod environment;

use std::net::{IpAddr, UdpSocket};
use std::num::NonZeroU32;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use environment::{enter, in_fresh_netns, listing, rules, run, sorted};
use swarm_ipvs::{
    Destination, DestinationConfig, DestinationEntry, DestinationKey, Family, Forward, Ipvs,
    IpvsError, Name, Netmask, Op, Protocol, Refusal, Service, ServiceConfig, ServiceFlags,
    ServiceKey, Timeouts, Tunnel, TunnelKind,
};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn key(protocol: Protocol, at: &str, port: u16) -> ServiceKey {
    ServiceKey::Address {
        protocol,
        address: address(at),
        port,
    }
}

fn fwmark(family: Family, mark: u32) -> ServiceKey {
    ServiceKey::Fwmark {
        family,
        mark: NonZeroU32::new(mark).unwrap(),
    }
}

fn with_flags(key: ServiceKey, scheduler: Name, flags: ServiceFlags) -> Service {
    let mut service = Service::new(key, scheduler);
    service.config.flags = flags;
    service
}

fn persistent(service: Service, timeout_s: u32, netmask: Netmask) -> Service {
    let flags = service.config.flags | ServiceFlags::PERSISTENT;
    Service {
        config: ServiceConfig {
            flags,
            timeout_s,
            netmask,
            ..service.config
        },
        ..service
    }
}

fn to(at: &str, port: u16) -> DestinationKey {
    DestinationKey {
        address: address(at),
        port,
    }
}

fn destination(key: DestinationKey, forward: Forward, weight: u32) -> Destination {
    Destination {
        key,
        config: DestinationConfig {
            forward,
            weight,
            ..Default::default()
        },
    }
}

fn tunnel(kind: TunnelKind, port: u16, flags: u16) -> Forward {
    Forward::Tunnel(Tunnel { kind, port, flags })
}

fn apply(ipvs: &mut Ipvs, ops: &[Op]) {
    for outcome in ipvs.apply(ops) {
        outcome.unwrap();
    }
}

fn refusal(result: Result<(), IpvsError>) -> Refusal {
    let error = result.unwrap_err();
    error.refusal().unwrap_or_else(|| panic!("{error:?}"))
}

/// The services of the kernel, sorted by key.
fn services(ipvs: &mut Ipvs) -> Vec<Service> {
    ipvs.services()
        .unwrap()
        .into_iter()
        .map(|entry| entry.service)
        .collect()
}

/// The destinations of a service in the kernel, sorted by key.
fn destinations(ipvs: &mut Ipvs, service: &ServiceKey) -> Vec<Destination> {
    let entries = ipvs.destinations(service).unwrap();
    let mut destinations: Vec<_> = entries.into_iter().map(|entry| entry.destination).collect();
    destinations.sort_by_key(|destination| destination.key);
    destinations
}

#[test]
fn services_of_every_kind() {
    in_fresh_netns(|mut ipvs| {
        let sched_1_2 = ServiceFlags::SCHED_1 | ServiceFlags::SCHED_2;
        let web = Service::new(key(Protocol::TCP, "10.0.0.1", 80), Name::RR);
        let sticky = persistent(
            with_flags(key(Protocol::TCP, "10.0.0.2", 443), Name::SH, sched_1_2),
            600,
            Netmask::V4([255, 255, 255, 0].into()),
        );
        let dns_key = key(Protocol::UDP, "10.0.0.1", 53);
        let calls_key = key(Protocol::UDP, "10.0.0.3", 5060);
        let mut calls = persistent(
            Service::new(calls_key, Name::RR),
            60,
            Netmask::full(Family::V4),
        );
        calls.config.persistence_engine = Some(Name::new("sip").unwrap());
        let mut wanted = vec![
            web,
            with_flags(dns_key, Name::WRR, ServiceFlags::ONE_PACKET),
            Service::new(key(Protocol::SCTP, "10.0.0.1", 132), Name::LC),
            sticky,
            persistent(
                with_flags(
                    key(Protocol::TCP, "2001:db8::1", 80),
                    Name::MH,
                    ServiceFlags::SCHED_2,
                ),
                60,
                Netmask::V6(64),
            ),
            calls,
            Service::new(fwmark(Family::V4, 7), Name::WLC),
            with_flags(
                fwmark(Family::V6, 7),
                Name::RR,
                sched_1_2 | ServiceFlags::SCHED_3,
            ),
        ];
        wanted.sort_by_key(|service| service.key);
        for service in &wanted {
            ipvs.add_service(service).unwrap();
        }
        assert_eq!(services(&mut ipvs), wanted);
        assert_eq!(
            rules(),
            sorted(
                "-A -t 10.0.0.1:80 -s rr
                 -A -u 10.0.0.1:53 -s wrr -o
                 -A --sctp-service 10.0.0.1:132 -s lc
                 -A -t 10.0.0.2:443 -s sh -p 600 -M 255.255.255.0 -b sh-fallback,sh-port
                 -A -t [2001:db8::1]:80 -s mh -p 60 -M 64 -b mh-port
                 -A -u 10.0.0.3:5060 -s rr -p 60 --pe sip
                 -A -f 7 -s wlc
                 -A -f 7 -6 -s rr -b flag-1,flag-2,flag-3"
            )
        );
        let info = ipvs.info().unwrap();
        let listed = listing(&[]);
        let size = info.connection_table_size;
        let first = format!("IP Virtual Server version {} (size={size})", info.version);
        assert_eq!(listed[0], first);
        assert!(
            listed.contains(&"TCP 10.0.0.1:80 rr".to_owned()),
            "{listed:?}"
        );

        // Editing reaches everything there is to edit, and clears flags as well as it sets them.
        let edited = persistent(
            Service::new(web.key, Name::WRR),
            30,
            Netmask::V4([255, 255, 0, 0].into()),
        );
        ipvs.update_service(&edited).unwrap();
        ipvs.update_service(&Service::new(sticky.key, Name::SH))
            .unwrap();
        assert_eq!(ipvs.service(&web.key).unwrap().unwrap().service, edited);
        for gone in &wanted {
            if ![web.key, sticky.key].contains(&gone.key) {
                ipvs.delete_service(&gone.key).unwrap();
            }
        }
        assert_eq!(
            rules(),
            sorted(
                "-A -t 10.0.0.1:80 -s wrr -p 30 -M 255.255.0.0
                 -A -t 10.0.0.2:443 -s sh"
            )
        );

        ipvs.flush().unwrap();
        assert_eq!(rules(), []);
        assert_eq!(ipvs.services().unwrap(), []);
    });
}

#[test]
fn destinations_of_every_kind() {
    in_fresh_netns(|mut ipvs| {
        let web = key(Protocol::TCP, "10.0.0.1", 80);
        let dns = key(Protocol::UDP, "2001:db8::1", 53);
        let marked = fwmark(Family::V4, 7);
        for key in [web, dns, marked] {
            ipvs.add_service(&Service::new(key, Name::WRR)).unwrap();
        }
        let limited = Destination {
            key: to("10.1.0.3", 8081),
            config: DestinationConfig {
                weight: 65_535,
                upper_threshold: 100,
                lower_threshold: 50,
                ..Default::default()
            },
        };
        let of_web = [
            destination(to("10.1.0.2", 8080), Forward::Masquerade, 1),
            limited,
            destination(to("10.1.0.4", 80), Forward::Route, 5),
            destination(to("10.1.0.5", 80), tunnel(TunnelKind::Ipip, 0, 0), 2),
            destination(to("10.1.0.6", 80), tunnel(TunnelKind::Gue, 5555, 1), 3),
            destination(to("10.1.0.7", 80), tunnel(TunnelKind::Gre, 0, 1), 4),
            destination(to("2001:db8::9", 80), tunnel(TunnelKind::Ipip, 0, 0), 6),
        ];
        let of_dns = [
            destination(to("2001:db8::2", 5353), Forward::Masquerade, 0),
            destination(to("2001:db8::3", 53), Forward::Local, 1),
        ];
        let of_marked = [destination(to("10.1.0.2", 0), Forward::Masquerade, 1)];
        for (service, wanted) in [(web, &of_web[..]), (dns, &of_dns), (marked, &of_marked)] {
            for destination in wanted {
                ipvs.add_destination(&service, destination).unwrap();
            }
            assert_eq!(destinations(&mut ipvs, &service), wanted);
        }
        // `ipvsadm -S` has no word for a local destination and writes `-g`.
        assert_eq!(
            rules(),
            sorted(
                "-A -t 10.0.0.1:80 -s wrr
                 -a -t 10.0.0.1:80 -r 10.1.0.2:8080 -m -w 1
                 -a -t 10.0.0.1:80 -r 10.1.0.3:8081 -m -w 65535
                 -a -t 10.0.0.1:80 -r 10.1.0.4:80 -g -w 5
                 -a -t 10.0.0.1:80 -r 10.1.0.5:80 -i -w 2 --tun-type ipip
                 -a -t 10.0.0.1:80 -r 10.1.0.6:80 -i -w 3 --tun-type gue --tun-port 5555 --tun-csum
                 -a -t 10.0.0.1:80 -r 10.1.0.7:80 -i -w 4 --tun-type gre --tun-csum
                 -a -t 10.0.0.1:80 -r [2001:db8::9]:80 -i -w 6 --tun-type ipip
                 -A -u [2001:db8::1]:53 -s wrr
                 -a -u [2001:db8::1]:53 -r [2001:db8::2]:5353 -m -w 0
                 -a -u [2001:db8::1]:53 -r [2001:db8::3]:53 -g -w 1
                 -A -f 7 -s wrr
                 -a -f 7 -r 10.1.0.2:0 -m -w 1"
            )
        );
        let listed = listing(&[]);
        for line in [
            "-> 10.1.0.2:8080 Masq 1 0 0",
            "-> [2001:db8::3]:53 Local 1 0 0",
        ] {
            assert!(listed.contains(&line.to_owned()), "{line} in {listed:?}");
        }
        let thresholds = listing(&["--thresholds"]);
        assert!(
            thresholds.contains(&"-> 10.1.0.3:8081 100 50 0 0".to_owned()),
            "{thresholds:?}"
        );

        let drained = destination(of_web[0].key, Forward::Masquerade, 0);
        ipvs.update_destination(&web, &drained).unwrap();
        for gone in &of_web[2..] {
            ipvs.delete_destination(&web, &gone.key).unwrap();
        }
        ipvs.delete_service(&dns).unwrap();
        assert_eq!(
            rules(),
            sorted(
                "-A -t 10.0.0.1:80 -s wrr
                 -a -t 10.0.0.1:80 -r 10.1.0.2:8080 -m -w 0
                 -a -t 10.0.0.1:80 -r 10.1.0.3:8081 -m -w 65535
                 -A -f 7 -s wrr
                 -a -f 7 -r 10.1.0.2:0 -m -w 1"
            )
        );
        assert_eq!(ipvs.destinations(&dns).unwrap(), []);
    });
}

#[test]
fn what_ipvsadm_made_reads_as_what_it_meant() {
    in_fresh_netns(|mut ipvs| {
        run(
            "ipvsadm",
            &[
                "-A",
                "-t",
                "10.0.0.1:80",
                "-s",
                "rr",
                "-p",
                "120",
                "-M",
                "255.255.0.0",
            ],
        );
        run(
            "ipvsadm",
            &[
                "-a",
                "-t",
                "10.0.0.1:80",
                "-r",
                "10.1.0.2:8080",
                "-m",
                "-w",
                "3",
                "-x",
                "9",
            ],
        );
        let key = key(Protocol::TCP, "10.0.0.1", 80);
        let mask = Netmask::V4([255, 255, 0, 0].into());
        assert_eq!(
            services(&mut ipvs),
            [persistent(Service::new(key, Name::RR), 120, mask)]
        );
        let mut wanted = destination(to("10.1.0.2", 8080), Forward::Masquerade, 3);
        wanted.config.upper_threshold = 9;
        assert_eq!(destinations(&mut ipvs, &key), [wanted]);
    });
}

#[test]
fn refusals_say_why_and_change_nothing() {
    in_fresh_netns(|mut ipvs| {
        let web = Service::new(key(Protocol::TCP, "10.0.0.1", 80), Name::RR);
        let none = key(Protocol::TCP, "10.0.0.1", 81);
        let task = Destination::new(to("10.1.0.2", 8080));
        ipvs.add_service(&web).unwrap();
        ipvs.add_destination(&web.key, &task).unwrap();
        let before = rules();

        let error = ipvs.add_service(&web).unwrap_err();
        assert_eq!(
            error.to_string(),
            "add service tcp 10.0.0.1:80: file exists"
        );
        let unknown = Service::new(none, Name::new("no_such_sched").unwrap());
        assert_eq!(refusal(ipvs.add_service(&unknown)), Refusal::NoSuchModule);
        assert_eq!(refusal(ipvs.delete_service(&none)), Refusal::NoSuchService);
        assert_eq!(
            refusal(ipvs.add_destination(&none, &task)),
            Refusal::NoSuchService
        );
        assert_eq!(
            refusal(ipvs.add_destination(&web.key, &task)),
            Refusal::Exists
        );
        let other = to("10.1.0.3", 8080);
        assert_eq!(
            refusal(ipvs.delete_destination(&web.key, &other)),
            Refusal::NoSuchDestination
        );
        assert_eq!(
            refusal(ipvs.update_destination(&web.key, &Destination::new(other))),
            Refusal::NoSuchDestination
        );
        let mut wrong = web;
        wrong.config.netmask = Netmask::V6(64);
        let error = ipvs.update_service(&wrong).unwrap_err();
        assert!(matches!(error, IpvsError::Invalid { .. }), "{error:?}");
        assert_eq!(ipvs.service(&none).unwrap(), None);
        assert_eq!(rules(), before);
    });
}

/// Longest wait for counters: the kernel sums them up every two seconds, and takes its time to
/// start.
const COUNTERS_DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn counters_are_those_of_ipvsadm() {
    in_fresh_netns(|mut ipvs| {
        for address in ["10.9.0.1/32", "10.9.0.2/32"] {
            run("ip", &["address", "add", address, "dev", "lo"]);
        }
        let service = Service::new(key(Protocol::UDP, "10.9.0.1", 5000), Name::RR);
        let server = Destination::new(to("10.9.0.2", 5001));
        apply(
            &mut ipvs,
            &[
                Op::AddService(service),
                Op::AddDestination(service.key, server),
            ],
        );
        let _server = UdpSocket::bind("10.9.0.2:5001").unwrap();
        let client = UdpSocket::bind("10.9.0.1:0").unwrap();
        for _ in 0..3 {
            client.send_to(b"hello", "10.9.0.1:5000").unwrap();
        }
        let deadline = Instant::now() + COUNTERS_DEADLINE;
        let entry: DestinationEntry = loop {
            let entry = ipvs.destinations(&service.key).unwrap()[0];
            if entry.stats.in_packets == 3 {
                break entry;
            }
            assert!(Instant::now() < deadline, "{entry:?}");
            thread::sleep(Duration::from_millis(100));
        };
        // 20 bytes of IPv4 header, 8 of UDP.
        let bytes = 3 * (20 + 8 + 5);
        assert_eq!((entry.stats.connections, entry.stats.in_bytes), (1, bytes));
        assert_eq!(entry.active_connections + entry.inactive_connections, 1);
        let stats = listing(&["--stats", "--exact"]);
        let line = format!("-> 10.9.0.2:5001 1 3 0 {bytes} 0");
        assert!(stats.contains(&line), "{line} in {stats:?}");
    });
}

#[test]
fn a_handle_keeps_to_its_namespace() {
    in_fresh_netns(|mut ipvs| {
        let web = Service::new(key(Protocol::TCP, "10.0.0.1", 80), Name::RR);
        let (sender, receiver) = mpsc::channel();
        // Another thread, in another namespace: it uses our handle, and one of its own.
        thread::spawn(move || {
            let mut elsewhere = enter().unwrap();
            ipvs.add_service(&web).unwrap();
            assert_eq!(elsewhere.services().unwrap(), []);
            sender.send(ipvs).unwrap();
        })
        .join()
        .unwrap();
        let mut ipvs = receiver.recv().unwrap();
        assert_eq!(rules(), sorted("-A -t 10.0.0.1:80 -s rr"));
        assert_eq!(services(&mut ipvs), [web]);
    });
}

/// A large host: every port published on it.
const MANY_SERVICES: u16 = 5_000;

#[test]
fn many_at_once() {
    in_fresh_netns(|mut ipvs| {
        let key = |at: u16| key(Protocol::TCP, "10.0.0.1", 10_000 + at);
        let mut ops = Vec::new();
        for at in 0..MANY_SERVICES {
            ops.push(Op::AddService(Service::new(key(at), Name::RR)));
            for host in 1..=4 {
                let task = DestinationKey {
                    address: [10, 1, 0, host].into(),
                    port: at + 1,
                };
                ops.push(Op::AddDestination(key(at), Destination::new(task)));
            }
        }
        let start = Instant::now();
        apply(&mut ipvs, &ops);
        println!("{} changes in {:?}", ops.len(), start.elapsed());
        assert_eq!(ipvs.services().unwrap().len(), usize::from(MANY_SERVICES));
        for at in [0, 17, MANY_SERVICES - 1] {
            assert_eq!(ipvs.destinations(&key(at)).unwrap().len(), 4);
        }
        assert_eq!(rules().len(), ops.len());
        // All again: every one refused, none lost.
        for outcome in ipvs.apply(&ops) {
            assert_eq!(refusal(outcome), Refusal::Exists);
        }
    });
}

#[test]
fn timeouts_are_those_that_ipvsadm_shows() {
    in_fresh_netns(|mut ipvs| {
        let shown = || run("ipvsadm", &["-L", "--timeout"]);
        let first = Timeouts {
            tcp_s: 900,
            tcp_fin_s: 120,
            udp_s: 300,
        };
        assert_eq!(ipvs.timeouts().unwrap(), first, "{}", shown());
        let longer = Timeouts {
            tcp_s: 9000,
            tcp_fin_s: 100,
            udp_s: 30,
        };
        ipvs.set_timeouts(&longer).unwrap();
        assert!(shown().contains(": 9000 100 30"), "{}", shown());
        assert_eq!(ipvs.timeouts().unwrap(), longer);
        // 0 leaves one as it is; what the kernel's clock cannot hold is refused.
        let udp = Timeouts {
            tcp_s: 0,
            tcp_fin_s: 0,
            udp_s: 31,
        };
        ipvs.set_timeouts(&udp).unwrap();
        assert!(shown().contains(": 9000 100 31"), "{}", shown());
        let endless = Timeouts {
            tcp_s: u32::MAX,
            ..udp
        };
        assert!(ipvs.set_timeouts(&endless).is_err());
    });
}
