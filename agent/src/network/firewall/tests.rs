//! The table as data, and on this machine's kernel, checked with `nft`.

use std::thread::sleep;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::network::netns::Netns;
use crate::network::tests::world::{as_root, command, try_command};

fn firewalls() -> impl Strategy<Value = Firewall> {
    let egress = prop::collection::btree_set(any::<IpAddr>(), 0..6);
    let guarded = prop::collection::btree_set("[a-z]{1,11}[0-9.]{0,4}", 0..4);
    (egress, guarded, any::<bool>()).prop_map(|(egress, guarded, guarded6)| Firewall {
        egress,
        guarded,
        guarded6,
    })
}

proptest! {
    #[test]
    fn a_table_is_read_as_what_it_was_made_of(firewall in firewalls()) {
        prop_assert_eq!(read(&ruleset(&firewall)), Some(firewall));
    }

    #[test]
    fn a_table_that_lacks_a_rule_is_not_taken_for_ours(
        firewall in firewalls(),
        chain in any::<prop::sample::Index>(),
        rule in any::<prop::sample::Index>(),
    ) {
        let mut table = ruleset(&firewall);
        let chain = chain.get(&table.chains.keys().cloned().collect::<Vec<_>>()).clone();
        let rules = &mut table.chains.get_mut(&chain).unwrap().rules;
        let removed = rules.remove(rule.index(rules.len()));
        // Without a guard it is another firewall of ours.
        let mut expected = firewall.clone();
        if let Some(uplink) = guarded_by(&removed) {
            expected.guarded.remove(&uplink);
        } else if removed == guard6() {
            expected.guarded6 = false;
        }
        let known = (expected != firewall).then_some(expected);
        prop_assert_eq!(read(&table), known);
    }
}

fn firewall(egress: &[&str], guarded: &[&str]) -> Firewall {
    Firewall {
        egress: egress.iter().map(|text| text.parse().unwrap()).collect(),
        guarded: guarded.iter().map(|name| (*name).to_owned()).collect(),
        guarded6: !guarded.is_empty(),
    }
}

/// A namespace and its handle; nothing where these tests cannot run.
fn sandbox() -> Option<(Netns, FirewallHandle)> {
    as_root()?;
    let netns = Netns::anonymous().unwrap();
    let handle = netns.run(FirewallHandle::open).unwrap().unwrap();
    Some((netns, handle))
}

#[test]
fn nft_shows_the_table_that_was_made() {
    let Some((netns, mut handle)) = sandbox() else {
        return;
    };
    assert_eq!(handle.read().unwrap(), FirewallState::default());
    let wanted = firewall(&["10.255.1.1", "10.255.1.2", "fd00::a"], &["eth0"]);
    handle.set(&wanted).unwrap();
    assert_eq!(handle.read().unwrap().table, Some(wanted.clone()));
    // A handle that has not made it reads the same.
    let mut other = netns.run(FirewallHandle::open).unwrap().unwrap();
    assert_eq!(other.read().unwrap().table, Some(wanted));
    let Some(text) = try_command(&netns, "nft list ruleset") else {
        return;
    };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    assert_eq!(
        lines.join("\n").trim(),
        "\
table inet swarm {
set egress {
type ipv4_addr
elements = { 10.255.1.1, 10.255.1.2 }
}

set egress6 {
type ipv6_addr
elements = { fd00::a }
}

chain forward {
type filter hook forward priority filter; policy accept;
iifname \"sw-e1h\" udp dport 4789 drop
iifname \"sw-e1h\" ip saddr != @egress drop
iifname \"sw-e1h\" ip6 saddr != @egress6 drop
oifname \"sw-e1h\" ct state ! established,related drop
meta nfproto ipv4 iifname \"eth0\" oifname != \"sw-e1h\" drop
meta nfproto ipv6 iifname != \"sw-e1h\" oifname != \"sw-e1h\" drop
}

chain input {
type filter hook input priority filter; policy accept;
iifname != \"sw-e1h\" accept
iifname \"sw-e1h\" udp dport 4789 drop
iifname \"sw-e1h\" ip saddr != @egress ct state ! established,related drop
iifname \"sw-e1h\" ip6 saddr != @egress6 ct state ! established,related drop
}

chain output {
type filter hook output priority raw; policy accept;
udp dport 4789 notrack
}

chain postrouting {
type nat hook postrouting priority srcnat; policy accept;
ip saddr @egress oifname != \"sw-e1h\" masquerade
ip6 saddr @egress6 oifname != \"sw-e1h\" masquerade
}

chain prerouting {
type filter hook prerouting priority raw; policy accept;
udp dport 4789 notrack
}
}"
    );
}

#[test]
fn addresses_come_and_go_and_the_table_is_replaced_whole() {
    let Some((netns, mut handle)) = sandbox() else {
        return;
    };
    // Two handles: one sees what the other does.
    let mut other = netns.run(FirewallHandle::open).unwrap().unwrap();
    handle
        .set(&firewall(&["10.255.1.1", "fd00::a"], &[]))
        .unwrap();
    let addresses = |texts: &[&str]| firewall(texts, &[]).egress;
    handle
        .change_egress(
            &addresses(&["10.255.1.3", "10.255.1.2"]),
            &addresses(&["10.255.1.1", "fd00::a"]),
        )
        .unwrap();
    let expected = firewall(&["10.255.1.2", "10.255.1.3"], &[]);
    assert_eq!(other.read().unwrap().table, Some(expected));
    // More than go into one message.
    let many: BTreeSet<IpAddr> = (0..3000_u32)
        .map(|number| IpAddr::from((0x0aff_0000 + number).to_be_bytes()))
        .collect();
    let large = Firewall {
        egress: many,
        guarded: ["eth0".to_owned()].into(),
        guarded6: false,
    };
    other.set(&large).unwrap();
    // The kernel lets the set's hash table grow behind its back, and a walk meanwhile misses some.
    let deadline = Instant::now() + Duration::from_secs(10);
    while handle.read().unwrap().table.as_ref() != Some(&large) {
        assert!(Instant::now() < deadline, "not what was set");
        sleep(Duration::from_millis(20));
    }
    // A change of what is not there changes nothing at all, and says so.
    let refused = handle.change_egress(&addresses(&["10.9.9.9"]), &addresses(&["10.8.8.8"]));
    assert!(refused.is_err(), "{refused:?}");
    let table = other.read().unwrap().table.unwrap();
    assert!(
        !table
            .egress
            .contains(&"10.9.9.9".parse::<IpAddr>().unwrap())
    );

    other.remove().unwrap();
    other.remove().expect("repeatable");
    assert_eq!(other.read().unwrap(), FirewallState::default());
}

#[test]
fn what_somebody_changed_is_seen() {
    let Some((netns, mut handle)) = sandbox() else {
        return;
    };
    let wanted = firewall(&["10.255.1.1"], &["eth0"]);
    for line in [
        "nft flush ruleset",
        "nft delete table inet swarm",
        "nft flush chain inet swarm forward",
        "nft add rule inet swarm forward accept",
        "nft insert rule inet swarm input counter",
        "nft delete element inet swarm egress { 10.255.1.1 }",
        "nft add element inet swarm egress { 10.255.1.9 }",
        "nft add chain inet swarm mine",
        "nft add chain inet swarm forward { policy drop ; }",
        "nft add table inet swarm { flags dormant ; }",
    ] {
        handle.set(&wanted).unwrap();
        assert_eq!(handle.read().unwrap().table.as_ref(), Some(&wanted));
        if try_command(&netns, line).is_none() {
            eprintln!("SKIPPED: no nft, or none that takes {line}");
            continue;
        }
        let state = handle.read().unwrap();
        assert_ne!(state.table.as_ref(), Some(&wanted), "{line}");
        assert_eq!(state.guarded.as_ref(), Some(&wanted.guarded), "{line}");
    }
}

#[test]
fn a_chain_that_drops_is_an_obstacle_until_a_rule_names_our_link() {
    let Some((netns, mut handle)) = sandbox() else {
        return;
    };
    handle.set(&firewall(&[], &[])).unwrap();
    if try_command(&netns, "nft add table ip filter").is_none() {
        return;
    }
    let chain = "nft add chain ip filter FORWARD { type filter hook forward priority 0 ; policy";
    command(&netns, &format!("{chain} accept ; }}"));
    assert_eq!(handle.read().unwrap().obstacles, []);
    command(&netns, "nft add chain ip filter FORWARD { policy drop ; }");
    let obstacle = Obstacle {
        ipv6: false,
        table: "ip filter".to_owned(),
        chain: "FORWARD".to_owned(),
    };
    assert_eq!(handle.read().unwrap().obstacles, [obstacle]);
    command(
        &netns,
        "nft add rule ip filter FORWARD iifname sw-e1h accept",
    );
    assert_eq!(handle.read().unwrap().obstacles, []);
}
