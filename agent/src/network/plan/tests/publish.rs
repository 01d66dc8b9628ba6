//! Ports with schedulers and source ranges, and processes that listen on them.

use super::*;

#[test]
fn a_process_that_listens_on_a_published_port_is_reported_and_changes_nothing() {
    let desired = desired(1, &[1], &[(8080, vec![0], false)]);
    let mut observed = host();
    settle(&mut observed, &desired);
    let listener = |protocol, port, address: &str| Listener {
        protocol,
        port,
        address: address.parse().unwrap(),
    };
    observed.listeners = BTreeSet::from([
        listener(Protocol::Tcp, 8080, "127.0.0.1"),
        listener(Protocol::Tcp, 80, "0.0.0.0"),
        listener(Protocol::Udp, 8080, "0.0.0.0"),
    ]);
    assert_eq!(plan(&observed, &desired).problems, []);
    observed
        .listeners
        .insert(listener(Protocol::Tcp, 8080, "0.0.0.0"));
    observed
        .listeners
        .insert(listener(Protocol::Tcp, 8080, "192.168.1.1"));
    let Plan { ops, problems } = plan(&observed, &desired);
    assert_eq!(texts(&ops), [""; 0]);
    let [problem] = &problems[..] else {
        panic!("{problems:?}")
    };
    assert_eq!(problem.service(), desired.services.keys().next());
    assert_eq!(
        problem.to_string(),
        "a process of this node listens on port 8080/tcp at every address, and gets no connections \
         from outside while the port is published: stop it (`ss -lntup 'sport = :8080'` names it) \
         or publish another port"
    );
}

#[test]
fn what_maglev_lacks_in_the_middle_moves_what_is_behind_it() {
    let members = |members: &[usize]| {
        by_maglev(
            desired(1, &[1, 1, 1], &[(8080, members.to_vec(), false)]),
            &[],
        )
    };
    let mut observed = host();
    settle(&mut observed, &members(&[0, 2]));
    let ops = mesh_texts(&settle(&mut observed, &members(&[0, 1, 2])));
    let at_first: Vec<_> = ops
        .iter()
        .filter(|op| op.ends_with("172.17.0.1:8080"))
        .collect();
    assert_eq!(
        at_first,
        [
            "ipvs: add destination 10.255.1.1:80 to service tcp 172.17.0.1:8080",
            "ipvs: delete destination 10.255.1.2:80 of service tcp 172.17.0.1:8080",
            "ipvs: add destination 10.255.1.2:80 to service tcp 172.17.0.1:8080",
        ]
    );
    // Nothing moves for what is added at the end, or goes.
    settle(&mut observed, &members(&[0, 1]));
    let ops = mesh_texts(&settle(&mut observed, &members(&[0, 1, 2])));
    assert!(
        ops.iter().all(|op| op.starts_with("ipvs: add destination")),
        "{ops:?}"
    );
    let ops = mesh_texts(&settle(&mut observed, &members(&[0, 2])));
    assert!(
        ops.iter()
            .all(|op| op.starts_with("ipvs: delete destination")),
        "{ops:?}"
    );
}

#[test]
fn a_restriction_is_written_before_its_port_and_goes_after_it() {
    let port = |sources: &[&str]| by_maglev(desired(1, &[1], &[(8080, vec![0], false)]), sources);
    let mut observed = host();
    settle(&mut observed, &port(&[]));
    let ops = mesh_texts(&settle(&mut observed, &port(&["10.0.0.0/8"])));
    assert_eq!(
        ops,
        [
            "write 1 source ranges of published ports",
            "publish 2 ports on the mesh"
        ]
    );
    let ops = mesh_texts(&settle(&mut observed, &port(&["192.0.2.0/24"])));
    assert_eq!(
        ops,
        [
            "write 2 source ranges of published ports",
            "write 1 source ranges of published ports"
        ]
    );
    let ops = mesh_texts(&settle(&mut observed, &port(&[])));
    assert_eq!(
        ops,
        [
            "publish 2 ports on the mesh",
            "write 0 source ranges of published ports"
        ]
    );
}
