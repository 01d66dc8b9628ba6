//! The way out, and what of the host stands in it.

use super::*;

#[test]
fn a_link_forwards_for_our_tasks_alone_unless_the_host_is_a_router() {
    let desired = desired(1, &[1, 1, 1], &[]);
    let guarded = |observed: &Observed| {
        let table = observed.firewall.as_ref().unwrap().table.clone();
        table.unwrap().guarded.into_iter().collect::<Vec<_>>()
    };
    let set = |observed: &mut Observed, key: &str, value: &str| {
        let host = observed.namespaces.get_mut(&Place::Host).unwrap();
        host.sysctls.insert(key.to_owned(), Some(value.to_owned()));
    };
    let forwarding = |observed: &Observed, name: &str| {
        let host = &observed.namespaces[&Place::Host];
        host.sysctls[&format!("ipv4/conf/{name}/forwarding")].clone()
    };
    // A link that somebody lets forward is not guarded.
    let mut observed = host();
    set(&mut observed, "ipv4/conf/docker0/forwarding", "1");
    settle(&mut observed, &desired);
    assert_eq!(guarded(&observed), ["eth0"]);
    assert_eq!(forwarding(&observed, "eth0").as_deref(), Some("1"));

    // The table flushed by hand: this process knows what it has guarded.
    observed.firewall.as_mut().unwrap().table = None;
    let ops = settle(&mut observed, &desired);
    let expected = "make nf_tables table inet swarm: 2 addresses have egress, 1 links are guarded";
    assert_eq!(texts(&ops), [expected]);

    // The table flushed while no agent ran: rather too much is guarded.
    let state = observed.firewall.as_mut().unwrap();
    (state.table, state.guarded) = (None, None);
    settle(&mut observed, &desired);
    assert_eq!(guarded(&observed), ["docker0", "eth0"]);

    // The host becomes a router.
    set(&mut observed, "ipv4/ip_forward", "1");
    settle(&mut observed, &desired);
    assert_eq!(guarded(&observed), Vec::<String>::new());

    // And is none any more: the kernel has closed all its links.
    for key in [
        "ipv4/ip_forward",
        "ipv4/conf/eth0/forwarding",
        "ipv4/conf/docker0/forwarding",
    ] {
        set(&mut observed, key, "0");
    }
    let ops = texts(&settle(&mut observed, &desired));
    assert_eq!(guarded(&observed), ["docker0", "eth0"]);
    let position = |text: &str| ops.iter().position(|op| op.starts_with(text));
    let (guard, forward) = (
        position("make nf_tables table").unwrap(),
        position("set net/ipv4/conf/eth0/forwarding to 1").unwrap(),
    );
    assert!(guard < forward, "{ops:?}");

    // A link that is no uplink any more is closed before its guard goes.
    let host = observed.namespaces.get_mut(&Place::Host).unwrap();
    host.addresses.retain(|(name, _)| name != "docker0");
    let ops = texts(&settle(&mut observed, &desired));
    assert_eq!(ops[0], "set net/ipv4/conf/docker0/forwarding to 0 in host");
    assert!(ops[1].starts_with("make nf_tables table"), "{ops:?}");
}

#[test]
fn the_host_forwards_ipv6_for_our_tasks_alone_unless_it_is_a_router() {
    let desired = over_ipv6(desired(1, &[1], &[]));
    let guarded = |observed: &Observed| {
        let table = observed.firewall.as_ref().unwrap().table.clone();
        table.unwrap().guarded6
    };
    let set = |observed: &mut Observed, key: &str, value: &str| {
        let host = observed.namespaces.get_mut(&Place::Host).unwrap();
        host.sysctls.insert(key.to_owned(), Some(value.to_owned()));
    };
    let forwarding = |observed: &Observed| {
        let sysctls = &observed.namespaces[&Place::Host].sysctls;
        let value = |of: &str| sysctls[&format!("ipv6/conf/{of}/forwarding")].clone();
        ["all", "default"].map(|of| value(of).unwrap())
    };
    let on = ["1", "0"].map(str::to_owned);
    let mut observed = host();
    for (name, value) in [("eth0", "1"), ("docker0", "0")] {
        set(&mut observed, &format!("ipv6/conf/{name}/accept_ra"), value);
    }
    let ops = texts(&settle(&mut observed, &desired));
    assert!(guarded(&observed));
    assert_eq!(forwarding(&observed), on);
    let steps = [
        "make nf_tables table inet swarm: 2 addresses have egress, 2 links are guarded",
        "set net/ipv6/conf/eth0/accept_ra to 2 in host",
        "set net/ipv6/conf/all/forwarding to 1 in host",
        "set net/ipv6/conf/default/forwarding to 0 in host",
    ];
    let of_steps = ops.iter().filter(|op| steps.contains(&op.as_str()));
    assert_eq!(of_steps.collect::<Vec<_>>(), steps, "{ops:#?}");
    assert!(!ops.iter().any(|op| op.contains("docker0/accept_ra")));
    let table = observed.firewall.as_ref().unwrap().table.clone().unwrap();
    assert!(table.egress.contains(&"fd00:a::aff:100".parse().unwrap()));

    // The table flushed while no agent ran: who forwards on whose account is not forgotten.
    let state = observed.firewall.as_mut().unwrap();
    (state.table, state.guarded) = (None, None);
    settle(&mut observed, &desired);
    assert!(guarded(&observed));

    // Its owner makes it a router: the kernel sets both.
    for of in ["all", "default"] {
        set(&mut observed, &format!("ipv6/conf/{of}/forwarding"), "1");
    }
    settle(&mut observed, &desired);
    assert!(!guarded(&observed));
    teardown(&observed).iter().for_each(|op| observed.apply(op));
    assert_eq!(forwarding(&observed), ["1", "1"]);

    // And none any more; then it loses its address outside.
    for of in ["all", "default"] {
        set(&mut observed, &format!("ipv6/conf/{of}/forwarding"), "0");
    }
    settle(&mut observed, &desired);
    assert_eq!((guarded(&observed), forwarding(&observed)), (true, on));
    let host = observed.namespaces.get_mut(&Place::Host).unwrap();
    host.addresses.retain(|(_, net)| net.addr().is_ipv4());
    let ops = texts(&settle(&mut observed, &desired));
    let position = |text: &str| ops.iter().position(|op| op.starts_with(text));
    let closed = position("set net/ipv6/conf/all/forwarding to 0 in host").unwrap();
    assert!(
        closed < position("make nf_tables table").unwrap(),
        "{ops:?}"
    );
    assert!(!guarded(&observed));
    let table = observed.firewall.as_ref().unwrap().table.clone().unwrap();
    assert!(table.egress.iter().all(IpAddr::is_ipv4));
}

#[test]
fn a_subnet_that_the_host_has_elsewhere_is_left_alone_and_reported() {
    let mut observed = host();
    let route = Route {
        via: None,
        device: "docker0".to_owned(),
        mtu: None,
    };
    let host = observed.namespaces.get_mut(&Place::Host).unwrap();
    let subnet = "10.255.0.0/16".parse().unwrap();
    host.routes.insert(subnet, route.clone());
    let Plan { ops, problems } = plan(&observed, &desired(1, &[1], &[]));
    let [Problem::SubnetTaken { device, .. }] = &problems[..] else {
        panic!("{problems:?}")
    };
    assert_eq!(device, "docker0");
    ops.iter().for_each(|op| observed.apply(op));
    assert_eq!(observed.namespaces[&Place::Host].routes[&subnet], route);
}

#[test]
fn a_firewall_that_drops_is_reported_with_the_remedy() {
    let mut observed = host();
    let obstacle = Obstacle {
        ipv6: false,
        table: "ip filter".to_owned(),
        chain: "FORWARD".to_owned(),
    };
    observed.firewall.as_mut().unwrap().obstacles = vec![obstacle];
    let problems = plan(&observed, &desired(1, &[], &[])).problems;
    let [problem @ Problem::EgressBlocked(_)] = &problems[..] else {
        panic!("{problems:?}")
    };
    let text = problem.to_string();
    assert!(
        text.contains("chain FORWARD of the host's nf_tables table ip filter"),
        "{text}"
    );
    assert!(
        text.contains("iptables -I DOCKER-USER -i sw-e1h -j ACCEPT"),
        "{text}"
    );

    observed.firewall = Err("no such protocol".to_owned());
    let Plan { ops, problems } = plan(&observed, &desired(1, &[1], &[]));
    assert!(
        matches!(problems[..], [Problem::NoFirewall { .. }]),
        "{problems:?}"
    );
    let forwards = |op: &Op| op.to_string().contains("conf/eth0/forwarding");
    assert!(!ops.iter().any(forwards), "unguarded: {ops:?}");
}
