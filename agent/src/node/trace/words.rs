//! What the programs say of a packet, in words. Pure.

use std::net::{IpAddr, SocketAddr};

use swarm_api::v1;

use super::place::{Place, Who};
use crate::ebpf::{Counter, Protocol, TraceEvent, TraceStep};

/// Verdicts of tc (`linux/pkt_cls.h`).
const NEXT: i32 = -1;
const DROPPED: i32 = 2;
const REDIRECTED: i32 = 7;

/// The packet in words; nothing when it is of another service with the same target port.
pub(super) fn packet(event: &TraceEvent, place: &Place) -> Option<v1::TracedPacket> {
    let seen = Seen::of(event, place)?;
    let step = event.step()?;
    let name = match step {
        TraceStep::Uplink => "uplink",
        TraceStep::ShortcutIn => "ingress",
        TraceStep::Tunnel => "tunnel-out",
        TraceStep::ShortcutOut => "tunnel-in",
        TraceStep::ToTask => "to-task",
        TraceStep::FromTask => "from-task",
        TraceStep::Out => "out",
    };
    let verdict = match event.verdict {
        DROPPED => dropped(event.reason()),
        REDIRECTED => seen.redirected(step),
        NEXT => seen.went_on(step),
        other => format!("verdict {other}"),
    };
    Some(v1::TracedPacket {
        time_ns: event.time_ns,
        step: name.to_owned(),
        source: SocketAddr::from(seen.source).to_string(),
        destination: SocketAddr::from(seen.destination).to_string(),
        protocol: match Protocol::from_number(event.protocol) {
            Some(Protocol::Tcp) => "tcp".to_owned(),
            Some(Protocol::Udp) => "udp".to_owned(),
            Some(Protocol::Sctp) => "sctp".to_owned(),
            None => event.protocol.to_string(),
        },
        tcp_flags: tcp_flags(event.tcp_flags),
        bytes: event.len,
        verdict,
        dropped: event.verdict == DROPPED,
    })
}

/// What is known of a packet.
struct Seen<'a> {
    place: &'a Place,
    event: &'a TraceEvent,
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
    /// The task that it is for.
    to: Option<&'a Who>,
    /// The task that it is from.
    from: Option<&'a Who>,
}

impl<'a> Seen<'a> {
    /// Nothing where it is not about the published port.
    fn of(event: &'a TraceEvent, place: &'a Place) -> Option<Self> {
        let source = (event.source.to_ip(), u16::from_be(event.source_port_be));
        let destination = (
            event.destination.to_ip(),
            u16::from_be(event.destination_port_be),
        );
        let seen = Self {
            place,
            event,
            source,
            destination,
            to: place.task(event.protocol, destination),
            from: place.task(event.protocol, source),
        };
        // Elsewhere the same number is somebody else's port.
        let (asks, answers) = match event.step()? {
            TraceStep::Uplink => (true, false),
            TraceStep::ShortcutIn => (true, true),
            TraceStep::ShortcutOut | TraceStep::Out => (false, true),
            TraceStep::Tunnel | TraceStep::ToTask | TraceStep::FromTask => (false, false),
        };
        let published = |port| place.is_published(event.protocol, port);
        let is_ours = seen.to.is_some()
            || seen.from.is_some()
            || asks && published(destination.1)
            || answers && published(source.1);
        is_ours.then_some(seen)
    }

    fn redirected(&self, step: TraceStep) -> String {
        match (step, self.to) {
            (TraceStep::Uplink, None) if self.from.is_none() => "taken into the mesh".to_owned(),
            (TraceStep::Uplink, _) => "unpacked from the tunnel".to_owned(),
            // It has come by the tunnel.
            (TraceStep::ShortcutIn, Some(task)) if self.is_of_another_node() => {
                self.handed_to(task)
            }
            (TraceStep::ShortcutIn, Some(task)) => format!("straight to {}", at(task)),
            (TraceStep::ShortcutOut, Some(task)) => self.handed_to(task),
            (TraceStep::ShortcutIn | TraceStep::ShortcutOut, None) => {
                "straight out, from the published address again".to_owned()
            }
            (TraceStep::Out, _) => "sent to the client".to_owned(),
            (TraceStep::FromTask, _) => {
                format!("returned to {}", self.node(self.event.destination_mac))
            }
            (TraceStep::ToTask | TraceStep::Tunnel, _) => "redirected".to_owned(),
        }
    }

    fn went_on(&self, step: TraceStep) -> String {
        match (step, self.to, self.from) {
            (TraceStep::Uplink, None, None) => {
                "left to the host: not published at this address".to_owned()
            }
            (TraceStep::Uplink, ..) => "left to the host".to_owned(),
            (TraceStep::ShortcutIn, None, None) => {
                "to IPVS, which chooses the task or remembers it".to_owned()
            }
            (TraceStep::ShortcutIn | TraceStep::ShortcutOut, None, Some(_)) => {
                "to IPVS, which restores the published address".to_owned()
            }
            (TraceStep::ShortcutIn | TraceStep::ShortcutOut, ..) => "to the bridge".to_owned(),
            (TraceStep::Tunnel, Some(task), _) => format!("balanced to {}", at(task)),
            (TraceStep::Tunnel, None, _) => {
                format!("back to {}", self.node(self.event.destination_mac))
            }
            (TraceStep::ToTask, Some(task), _) => self.handed_to(task),
            (TraceStep::ToTask, None, _) => "handed to the task".to_owned(),
            (TraceStep::FromTask, Some(task), _) => format!("asks {}", at(task)),
            // A task's gateway is its own node: that is where answers go that nobody has asked for, too.
            (TraceStep::FromTask, None, _) => match self.place.node(self.event.destination_mac) {
                Some((node, false)) => format!("returned to {node}"),
                _ => "to this node's ingress namespace: IPVS, or the ordinary way out".to_owned(),
            },
            (TraceStep::Out, ..) => "left to the host: not from an address of this node".to_owned(),
        }
    }

    fn is_of_another_node(&self) -> bool {
        let sender = self.place.node(self.event.source_mac);
        sender.is_some_and(|(_, is_own)| !is_own)
    }

    fn handed_to(&self, task: &Who) -> String {
        let mut text = format!("handed to {}", task.name);
        if let Some((node, _)) = self.place.node(self.event.source_mac) {
            text += &format!(", by way of {node}");
        } else if let Some(asker) = self.from {
            text += &format!(", asked by {}", asker.name);
        }
        if self.event.seen_port_be != 0 {
            let port = u16::from_be(self.event.seen_port_be);
            let seen = SocketAddr::from((self.event.seen.to_ip(), port));
            text += &format!(", which sees {seen} for the client");
        }
        text
    }

    fn node(&self, mac: [u8; 6]) -> String {
        match self.place.node(mac) {
            Some((node, _)) => node.to_owned(),
            None => "the ingress node".to_owned(),
        }
    }
}

/// A task and where it is.
fn at(task: &Who) -> String {
    format!("{} on {}", task.name, task.node)
}

fn dropped(reason: Option<Counter>) -> String {
    let Some(reason) = reason else {
        return "dropped".to_owned();
    };
    let words = match reason {
        Counter::SourceRefused => "the client is outside the port's source ranges",
        Counter::Isolated => "a task asks for what is not published, or not of this network",
        Counter::Spoofed => "the task sends under another address than its own",
        Counter::TranslationFailed => "no port was free for a client that has to be translated",
        Counter::OutUnroutable => "the host has no route to the client",
        Counter::ReturnFailed => "the packet could not be changed",
        _ => return format!("dropped ({})", reason.name()),
    };
    format!("dropped ({}): {words}", reason.name())
}

/// The flags by their letters: SYN, FIN, RST, PSH and ACK, in tcpdump's order.
fn tcp_flags(flags: u8) -> String {
    let letters = [
        (0x02, 'S'),
        (0x01, 'F'),
        (0x04, 'R'),
        (0x08, 'P'),
        (0x10, '.'),
    ];
    let set = letters.iter().filter(|(bit, _)| flags & bit != 0);
    set.map(|(_, letter)| letter).collect()
}
