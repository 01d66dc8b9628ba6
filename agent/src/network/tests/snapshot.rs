//! What `ip`, `bridge` and `tc` say of a node, as lines that do not depend on indexes or on chance.

use std::collections::BTreeSet;

use serde_json::Value;
use swarm_model::TaskId;

use super::world::{DEADLINE, Node, try_command, within};
use crate::network::netns::Netns;

/// Everything of ours in the host's, the ingress and the tasks' namespaces.
pub(super) fn snapshot(node: &Node, tasks: &[&TaskId]) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    read(&mut lines, "host", &node.host, |name| {
        name.starts_with("sw-") || name == "eth0"
    });
    if let Some(ingress) = node.try_ingress() {
        read(&mut lines, "ingress", &ingress, |_| true);
    }
    for number in 1..=2 {
        if let Some(overlay) = node.overlay(number) {
            read(&mut lines, &format!("network {number}"), &overlay, |_| true);
        }
    }
    for task in tasks {
        read(
            &mut lines,
            &format!("task {task}"),
            &node.task(task),
            |_| true,
        );
    }
    lines
}

/// The same once it says so twice in a row: a list that is read while links come up may lack one.
pub(super) fn settled(node: &Node, tasks: &[&TaskId]) -> BTreeSet<String> {
    let mut last = snapshot(node, tasks);
    let rests = within(DEADLINE, || {
        let now = snapshot(node, tasks);
        let same = now == last;
        last = now;
        same
    });
    assert!(rests, "the node does not come to rest");
    last
}

/// What is only in one of the two.
pub(super) fn differences(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Vec<String> {
    let lost = before.difference(after).map(|line| format!("- {line}"));
    lost.chain(after.difference(before).map(|line| format!("+ {line}")))
        .collect()
}

fn json(netns: &Netns, line: &str) -> Vec<Value> {
    let text = try_command(netns, line).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// What `ip` says of both IP versions.
fn both(netns: &Netns, line: &str) -> Vec<Value> {
    let of = |version: char| json(netns, &format!("ip -j -{version} {line}"));
    [of('4'), of('6')].concat()
}

fn read(lines: &mut BTreeSet<String>, place: &str, netns: &Netns, ours: impl Fn(&str) -> bool) {
    let mut add = |line: String| lines.insert(format!("{place}: {line}"));
    for link in json(netns, "ip -d -j link show") {
        let name = link["ifname"].as_str().unwrap_or_default();
        if !ours(name) {
            continue;
        }
        let up = link["flags"].to_string().contains("\"UP\"");
        let info = &link["linkinfo"];
        let mut parts = vec![format!(
            "up {up} mtu {} master {}",
            link["mtu"], link["master"]
        )];
        parts.push(format!("kind {}", info["info_kind"]));
        for key in ["id", "local", "port", "learning", "udp_csum"] {
            parts.push(format!("{key} {}", info["info_data"][key]));
        }
        for key in [
            "learning",
            "flood",
            "mcast_flood",
            "bcast_flood",
            "neigh_suppress",
        ] {
            parts.push(format!("port {key} {}", info["info_slave_data"][key]));
        }
        // Those of the ports are drawn by the kernel.
        if ["br0", "e1", "sw-e1h", "eth0"].contains(&name) {
            parts.push(format!("mac {}", link["address"]));
        }
        add(format!("link {name} {}", parts.join(" ")));
        for hook in hooks(name) {
            let filters = try_command(netns, &format!("tc filter show dev {name} {hook}"));
            for word in filters.unwrap_or_default().split_whitespace() {
                if ["mesh_", "flow_"]
                    .iter()
                    .any(|prefix| word.starts_with(prefix))
                {
                    add(format!("filter {name} {hook} {word}"));
                }
            }
        }
        for key in ["rp_filter", "send_redirects"] {
            let path = format!("/proc/sys/net/ipv4/conf/{name}/{key}");
            let value = netns
                .run(|| std::fs::read_to_string(path))
                .unwrap()
                .unwrap_or_default();
            if place == "ingress" && name != "lo" && name != "vx0" && !name.starts_with('t') {
                add(format!("{name} {key} {}", value.trim()));
            }
        }
    }
    for link in both(netns, "addr show scope global") {
        let name = link["ifname"].as_str().unwrap_or_default();
        // An interface's address in another scope leaves an empty entry.
        let addresses = link["addr_info"].as_array().into_iter().flatten();
        for address in addresses.filter(|address| address["local"].is_string()) {
            add(format!(
                "address {name} {}/{}",
                address["local"], address["prefixlen"]
            ));
        }
    }
    // Link-local addresses are the kernel's business.
    let routes = both(netns, "route show").into_iter();
    for route in routes.filter(|route| route["dst"] != "fe80::/64") {
        add(format!(
            "route {} via {} dev {} {}",
            route["dst"], route["gateway"], route["dev"], route["metrics"]
        ));
    }
    for entry in both(netns, "neigh show nud permanent") {
        add(format!(
            "neighbour {} {} {}",
            entry["dst"], entry["dev"], entry["lladdr"]
        ));
    }
    if place == "host" {
        for (number, line) in try_command(netns, "nft list ruleset")
            .iter()
            .flat_map(|text| text.lines())
            .enumerate()
        {
            add(format!("nft {number} {}", line.trim()));
        }
        for name in ["eth0", "sw-e1h"] {
            let path = format!("/proc/sys/net/ipv4/conf/{name}/forwarding");
            let value = netns.run(|| std::fs::read_to_string(path)).unwrap();
            add(format!(
                "{name} forwarding {}",
                value.unwrap_or_default().trim()
            ));
        }
    }
    if place == "ingress" || place.starts_with("network") {
        for entry in json(netns, "bridge -j fdb show") {
            let of_bridge = entry["master"].is_string() && entry["state"] == "static";
            if of_bridge || entry["dst"].is_string() {
                let (mac, name) = (&entry["mac"], &entry["ifname"]);
                add(format!(
                    "fdb {mac} {name} {} {}",
                    entry["dst"], entry["state"]
                ));
            }
        }
        let forward = netns.run(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward"));
        add(format!(
            "ip_forward {}",
            forward.unwrap().unwrap_or_default().trim()
        ));
        let path = "/proc/sys/net/ipv6/conf/all/forwarding";
        let forward = netns.run(|| std::fs::read_to_string(path)).unwrap();
        add(format!("ipv6 forwarding {}", forward.unwrap().trim()));
    }
}

/// Where our programs could be on a link.
fn hooks(name: &str) -> &'static [&'static str] {
    match name {
        "lo" | "br0" | "vx0" | "e1" => &[],
        "eth0" | "sw-e1h" => &["ingress"],
        _ => &["ingress", "egress"],
    }
}
