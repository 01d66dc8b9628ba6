//! `swarmctl mesh trace`.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use swarm_api::v1;
use tonic::Request;

use crate::connect::{Sockets, answer};
use crate::table::Format;
use crate::time::{milliseconds, parse_duration};

/// What to trace. The help is the verb's.
#[derive(Debug, clap::Args)]
pub(crate) struct Trace {
    /// The published port
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Only packets from and to this client
    #[arg(long, value_name = "IP")]
    from: Option<IpAddr>,
    /// For how long, at most 10m
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    duration: Duration,
    /// Only one flow in this many, rounded up to a power of two
    #[arg(long, value_name = "FLOWS", default_value_t = 1)]
    one_in: u16,
    /// How to print the packets
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Trace {
    pub(super) async fn run(self, sockets: &Sockets) -> anyhow::Result<ExitCode> {
        // Without a time limit of our own: it lasts as long as was asked for.
        let message = Request::new(v1::TraceMeshRequest {
            port: self.port.into(),
            client: self.from.map(|from| from.to_string()).unwrap_or_default(),
            duration_ms: milliseconds(self.duration).max(1),
            one_in: self.one_in.into(),
        });
        let mut looks = answer(sockets.agent().await?.trace_mesh(message).await)?;
        let mut start_ns = None;
        let mut lost = 0;
        loop {
            match looks.message().await {
                Ok(Some(look)) => {
                    let mut lines = String::new();
                    for packet in &look.packets {
                        let start_ns = *start_ns.get_or_insert(packet.time_ns);
                        lines += &line(packet, start_ns, self.format);
                    }
                    lost += look.lost;
                    // A reader that has gone away ends the trace.
                    let mut out = std::io::stdout().lock();
                    out.write_all(lines.as_bytes())?;
                    out.flush()?;
                }
                Ok(None) => break,
                Err(status) => anyhow::bail!("the trace has ended: {}", status.message()),
            }
        }
        print!("{}", last_line(start_ns.is_some(), lost, self.format));
        Ok(ExitCode::SUCCESS)
    }
}

/// A packet, with the time since the first one.
fn line(packet: &v1::TracedPacket, start_ns: u64, format: Format) -> String {
    let v1::TracedPacket {
        time_ns,
        step,
        source,
        destination,
        protocol,
        tcp_flags,
        bytes,
        verdict,
        dropped,
    } = packet;
    match format {
        Format::Table => {
            let since_us = time_ns.saturating_sub(start_ns) / 1_000;
            let (seconds, rest) = (since_us / 1_000_000, since_us % 1_000_000);
            let flags = match tcp_flags.as_str() {
                "" => String::new(),
                flags => format!(" [{flags}]"),
            };
            format!(
                "{seconds}.{rest:06} {step:<10} {source} > {destination} {protocol}{flags} {bytes}B: \
                 {verdict}\n"
            )
        }
        Format::Json => {
            let line = json!({
                "TimeNs": time_ns,
                "Step": step,
                "Source": source,
                "Destination": destination,
                "Protocol": protocol,
                "TcpFlags": tcp_flags,
                "Bytes": bytes,
                "Verdict": verdict,
                "Dropped": dropped,
            });
            format!("{line}\n")
        }
    }
}

/// What is left to be said at the end.
fn last_line(any: bool, lost: u64, format: Format) -> String {
    match format {
        Format::Table if lost > 0 => format!(
            "... and {lost} more packets, too many to be told of: ask for one client (--from) or \
             fewer flows (--one-in)\n"
        ),
        Format::Table if !any => {
            "no packet of that port has come by this node; the nodes that a client may ask, and \
             those of the tasks, each show their own part\n"
                .to_owned()
        }
        Format::Json if lost > 0 => format!("{}\n", json!({ "Lost": lost })),
        Format::Table | Format::Json => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> v1::TracedPacket {
        v1::TracedPacket {
            time_ns: 5_001_500_000,
            step: "uplink".to_owned(),
            source: "203.0.113.9:4444".to_owned(),
            destination: "192.0.2.1:8080".to_owned(),
            protocol: "tcp".to_owned(),
            tcp_flags: "S".to_owned(),
            bytes: 74,
            verdict: "taken into the mesh".to_owned(),
            dropped: false,
        }
    }

    #[test]
    fn a_packet_is_a_line() {
        assert_eq!(
            line(&packet(), 5_000_000_000, Format::Table),
            "0.001500 uplink     203.0.113.9:4444 > 192.0.2.1:8080 tcp [S] 74B: taken into the mesh\n"
        );
        let datagram = v1::TracedPacket {
            protocol: "udp".to_owned(),
            tcp_flags: String::new(),
            ..packet()
        };
        assert!(line(&datagram, 0, Format::Table).contains(" udp 74B: "));
        let json: serde_json::Value =
            serde_json::from_str(&line(&packet(), 0, Format::Json)).expect("a line is JSON");
        assert_eq!(json["Bytes"], 74);
        assert_eq!(json["Verdict"], "taken into the mesh");
        assert_eq!(json["Dropped"], false);
    }

    #[test]
    fn what_is_lost_is_said_with_the_remedy_and_so_is_nothing() {
        assert!(last_line(true, 7, Format::Table).contains("7 more packets"));
        assert!(last_line(true, 7, Format::Table).contains("--one-in"));
        assert_eq!(last_line(true, 7, Format::Json), "{\"Lost\":7}\n");
        assert!(last_line(false, 0, Format::Table).starts_with("no packet"));
        assert_eq!(last_line(true, 0, Format::Table), "");
        assert_eq!(last_line(false, 0, Format::Json), "");
    }
}
