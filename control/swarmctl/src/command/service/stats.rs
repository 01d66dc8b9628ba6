//! `swarmctl service stats`.

use std::collections::BTreeMap;

use serde_json::json;
use swarm_api::v1;

use crate::connect::{Sockets, answer, request};
use crate::table::{Format, ListOptions, Table};

/// Shows what this node has counted of services and their tasks: what came in here for published
/// ports, the connections balanced here, and the traffic of the tasks that run here.
#[derive(Debug, clap::Args)]
pub(crate) struct Stats {
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Print what is counted now and end; so it is also without this
    #[arg(long)]
    no_stream: bool,
    /// Names, ids or beginnings of ids of services (all by default)
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

impl Stats {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<()> {
        let message = request(v1::GetStatsRequest {});
        let mut agent = sockets.agent().await?;
        let mut found = answer(agent.get_stats(message).await)?;
        select(&mut found, &self.services)?;
        print!("{}", render(&found, self.format));
        Ok(())
    }
}

/// Leaves what is of the services that are asked for; all of them when none is.
fn select(found: &mut v1::GetStatsResponse, references: &[String]) -> anyhow::Result<()> {
    if references.is_empty() {
        return Ok(());
    }
    let mut ids = Vec::new();
    for reference in references {
        let all = &found.services;
        let exact = all
            .iter()
            .filter(|service| service.name == *reference || service.id == *reference);
        let mut fitting: Vec<_> = exact.collect();
        if fitting.is_empty() {
            let begins = all
                .iter()
                .filter(|service| service.id.starts_with(reference));
            fitting = begins.collect();
        }
        match fitting.as_slice() {
            [service] => ids.push(service.id.clone()),
            [] => anyhow::bail!(
                "service {reference} has no published port and no task on this node: nothing is \
                 counted of it here"
            ),
            _ => anyhow::bail!("several ids of services begin with {reference}: give more of it"),
        }
    }
    found.services.retain(|service| ids.contains(&service.id));
    found.tasks.retain(|task| ids.contains(&task.service_id));
    Ok(())
}

fn render(found: &v1::GetStatsResponse, format: Format) -> String {
    match format {
        Format::Table => render_table(found),
        Format::Json => render_json(found),
    }
}

/// A row for each service, and under it one for each of its tasks.
fn render_table(found: &v1::GetStatsResponse) -> String {
    const NOT_KNOWN: &str = "-";
    let mut rows = Vec::new();
    for service in &found.services {
        rows.push([
            service.name.clone(),
            service.connections.to_string(),
            NOT_KNOWN.to_owned(),
            format!("{} / {NOT_KNOWN}", service.packets),
            format!("{} / {NOT_KNOWN}", size(service.bytes)),
            dropped(&service.drops),
        ]);
        let tasks = found.tasks.iter();
        for task in tasks.filter(|task| task.service_id == service.id) {
            let (packets, bytes) = match &task.traffic {
                Some(traffic) => (
                    format!("{} / {}", traffic.in_packets, traffic.out_packets),
                    format!("{} / {}", size(traffic.in_bytes), size(traffic.out_bytes)),
                ),
                None => (NOT_KNOWN.to_owned(), NOT_KNOWN.to_owned()),
            };
            rows.push([
                format!(" \\_ {}", task.name),
                task.connections.to_string(),
                task.active.to_string(),
                packets,
                bytes,
                match task.traffic {
                    Some(_) => dropped(&task.drops),
                    None => NOT_KNOWN.to_owned(),
                },
            ]);
        }
    }
    let table = Table {
        columns: [
            ("NAME", "Name"),
            ("CONNECTIONS", "Connections"),
            ("ACTIVE", "Active"),
            ("PACKETS I/O", "Packets"),
            ("NET I/O", "Net"),
            ("DROPPED", "Dropped"),
        ],
        rows,
    };
    let mut text = table.render(ListOptions {
        format: Format::Table,
        quiet: false,
    });
    let events = found.events.iter().filter(|event| event.count > 0);
    let events: Vec<_> = events
        .map(|event| format!("{} {}", event.name, event.count))
        .collect();
    if !events.is_empty() {
        text.push_str(&format!("Events on this node: {}\n", events.join(", ")));
    }
    text
}

/// One object a line: services, then tasks, then the node's events.
fn render_json(found: &v1::GetStatsResponse) -> String {
    let services = found.services.iter().map(|service| {
        json!({
            "ServiceID": service.id,
            "Service": service.name,
            "Connections": service.connections,
            "InPackets": service.packets,
            "InBytes": service.bytes,
            "DroppedPackets": by_name(&service.drops),
        })
    });
    let tasks = found.tasks.iter().map(|task| {
        json!({
            "TaskID": task.id,
            "Task": task.name,
            "ServiceID": task.service_id,
            "Connections": task.connections,
            "ActiveConnections": task.active,
            "InPackets": task.traffic.as_ref().map(|traffic| traffic.in_packets),
            "InBytes": task.traffic.as_ref().map(|traffic| traffic.in_bytes),
            "OutPackets": task.traffic.as_ref().map(|traffic| traffic.out_packets),
            "OutBytes": task.traffic.as_ref().map(|traffic| traffic.out_bytes),
            "DroppedPackets": by_name(&task.drops),
        })
    });
    let events = found.events.iter();
    let events = events.map(|event| json!({ "Event": event.name, "Count": event.count }));
    let lines = services.chain(tasks).chain(events);
    lines.map(|line| format!("{line}\n")).collect()
}

/// Packets by why, those at zero left out: `3 isolated, 1 spoofed`.
fn dropped(drops: &[v1::EventCount]) -> String {
    let some = drops.iter().filter(|drop| drop.count > 0);
    let some: Vec<_> = some
        .map(|drop| format!("{} {}", drop.count, drop.name))
        .collect();
    if some.is_empty() {
        "0".to_owned()
    } else {
        some.join(", ")
    }
}

fn by_name(drops: &[v1::EventCount]) -> BTreeMap<&str, u64> {
    let drops = drops.iter();
    drops.map(|drop| (drop.name.as_str(), drop.count)).collect()
}

/// Bytes as Docker shows them: thousands, one decimal.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes}B");
    }
    let (mut unit, mut whole) = (0, bytes);
    while whole >= 1_000_000 && unit + 1 < UNITS.len() {
        whole /= 1000;
        unit += 1;
    }
    format!("{}.{}{}", whole / 1000, whole % 1000 / 100, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(name: &str, count: u64) -> v1::EventCount {
        let name = name.to_owned();
        v1::EventCount { name, count }
    }

    fn found() -> v1::GetStatsResponse {
        let service = |id: &str, name: &str| v1::ServiceStats {
            id: id.to_owned(),
            name: name.to_owned(),
            connections: 30,
            packets: 400,
            bytes: 35_250,
            drops: vec![count("no_task", 0), count("source_refused", 2)],
        };
        let task = |id: &str, traffic| v1::TaskStats {
            id: id.to_owned(),
            name: format!("web.{id}"),
            service_id: "abc1".to_owned(),
            connections: 15,
            active: 3,
            traffic,
            drops: match traffic {
                Some(_) => vec![count("isolated", 4), count("spoofed", 1)],
                None => Vec::new(),
            },
        };
        let traffic = v1::TaskTraffic {
            in_packets: 200,
            in_bytes: 999,
            out_packets: 180,
            out_bytes: 1_234_567,
        };
        v1::GetStatsResponse {
            services: vec![service("abc1", "web"), service("abd2", "api")],
            tasks: vec![task("1", Some(traffic)), task("2", None)],
            events: vec![count("isolated", 4), count("spoofed", 0)],
        }
    }

    #[test]
    fn tasks_are_under_their_service() {
        let mut found = found();
        select(&mut found, &["web".to_owned()]).expect("web is there");
        let expected = "\
NAME        CONNECTIONS   ACTIVE   PACKETS I/O   NET I/O        DROPPED
web         30            -        400 / -       35.2kB / -     2 source_refused
 \\_ web.1   15            3        200 / 180     999B / 1.2MB   4 isolated, 1 spoofed
 \\_ web.2   15            3        -             -              -
Events on this node: isolated 4
";
        assert_eq!(render(&found, Format::Table), expected);
    }

    #[test]
    fn programs_get_numbers() {
        let json = render(&found(), Format::Json);
        let lines: Vec<serde_json::Value> = json
            .lines()
            .map(|line| serde_json::from_str(line).expect("a line is JSON"))
            .collect();
        assert_eq!(lines.len(), 6);
        assert_eq!(lines[0]["InBytes"], 35_250);
        assert_eq!(lines[2]["OutBytes"], 1_234_567);
        assert_eq!(lines[3]["OutBytes"], serde_json::Value::Null);
        assert_eq!(lines[4]["Count"], 4);
        assert_eq!(lines[0]["DroppedPackets"]["source_refused"], 2);
        assert_eq!(lines[2]["DroppedPackets"]["spoofed"], 1);
    }

    #[test]
    fn services_are_found_by_name_id_and_beginning_of_an_id() {
        for (reference, left) in [("web", 1), ("abd2", 1), ("abd", 1)] {
            let mut found = found();
            select(&mut found, &[reference.to_owned()]).expect(reference);
            assert_eq!(found.services.len(), left);
        }
        let refused = |reference: &str| select(&mut found(), &[reference.to_owned()]).unwrap_err();
        assert!(refused("ab").to_string().contains("several"));
        assert!(refused("x").to_string().contains("no published port"));
    }

    #[test]
    fn sizes_are_dockers() {
        for (bytes, shown) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.0kB"),
            (999_999, "999.9kB"),
            (1_000_000, "1.0MB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(size(bytes), shown);
        }
    }
}
