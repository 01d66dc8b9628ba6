//! Tracing of sampled packets: what is asked for, and what is told.

use crate::{Address, Counter};

/// Value of `trace`: which packets are told of. All zero tells of none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceFilter {
    /// `CLOCK_MONOTONIC` in nanoseconds until which packets are told of; zero is off. It ends a trace
    /// whose agent was killed.
    pub until_ns: u64,
    /// The client; `::` for any.
    pub client: Address,
    /// Ports in wire order, of which one has to be the packet's source or destination; zero stands
    /// for none.
    pub ports_be: [u16; Self::PORTS],
    /// Flows are told of whose hash of the client's port has none of these bits.
    pub sample_mask: u32,
    zero: u32,
}

impl TraceFilter {
    /// Ports that can be looked for: a published one and its targets.
    pub const PORTS: usize = 8;

    /// Nothing is told of.
    pub const OFF: Self = Self::new(0, Address::UNSPECIFIED_V6, [0; Self::PORTS], 0);

    /// See the fields.
    pub const fn new(
        until_ns: u64,
        client: Address,
        ports_be: [u16; Self::PORTS],
        sample_mask: u32,
    ) -> Self {
        Self {
            until_ns,
            client,
            ports_be,
            sample_mask,
            zero: 0,
        }
    }

    /// Whether a port is one of those looked for.
    #[inline(always)]
    pub fn has_port(&self, port_be: u16) -> bool {
        port_be != 0 && self.ports_be.contains(&port_be)
    }

    /// Whether the flows of this port of a client are in the sample. Clients' ports are handed out in
    /// order, and often only the even ones, so that they are hashed first (Fibonacci hashing).
    #[inline(always)]
    pub const fn has_in_sample(&self, client_port_be: u16) -> bool {
        let hash = (client_port_be as u32).wrapping_mul(0x9e37_79b1) >> 16;
        hash & self.sample_mask == 0
    }
}

/// Value of `trace_cpu`, of each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceCpu {
    /// Packets that were to be told of while nobody had read enough of the ones before.
    pub lost: u64,
    /// Why the last packet was dropped: one more than the [`Counter`], or zero where there is none.
    pub reason: u32,
    zero: u32,
}

/// The program that tells of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum TraceStep {
    /// `mesh_uplink`.
    Uplink = 1,
    /// `shortcut_in`.
    ShortcutIn = 2,
    /// `shortcut_learn`.
    Tunnel = 3,
    /// `shortcut_out`.
    ShortcutOut = 4,
    /// `flow_learn`.
    ToTask = 5,
    /// `flow_return`.
    FromTask = 6,
    /// `mesh_out`.
    Out = 7,
}

impl TraceStep {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Uplink,
        Self::ShortcutIn,
        Self::Tunnel,
        Self::ShortcutOut,
        Self::ToTask,
        Self::FromTask,
        Self::Out,
    ];

    fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step as u8 == number)
    }
}

/// What is told of a packet, as it was when the program was done with it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub time_ns: u64,
    /// Source address. A client's own, even where the task sees another one in its place.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Ports in wire order. A client's own, too.
    pub source_port_be: u16,
    /// The same.
    pub destination_port_be: u16,
    /// Port in wire order that the task sees as the client's, where it is shown another one or another
    /// address; zero elsewhere.
    pub seen_port_be: u16,
    /// `IPPROTO_*`.
    pub protocol: u8,
    /// TCP's flags.
    pub tcp_flags: u8,
    /// Address that goes with `seen_port_be`.
    pub seen: Address,
    /// Bytes, Ethernet header included.
    pub len: u32,
    /// The program's verdict, `TC_ACT_*`: -1 to go on, 2 dropped, 7 redirected.
    pub verdict: i32,
    /// Ethernet addresses.
    pub source_mac: [u8; 6],
    /// The same.
    pub destination_mac: [u8; 6],
    /// [`TraceStep`].
    pub step: u8,
    /// Of a packet that was dropped, why: as [`TraceCpu::reason`].
    pub reason: u8,
    /// Zero.
    pub zero: u16,
}

impl TraceEvent {
    /// Length in bytes.
    pub const LEN: usize = size_of::<Self>();

    /// The event in these bytes, as the ring buffer gives them; nothing when they are not as many
    /// as an event has.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut bytes = Bytes(bytes);
        let event = Self {
            time_ns: u64::from_ne_bytes(bytes.take()?),
            source: bytes.address()?,
            destination: bytes.address()?,
            source_port_be: u16::from_ne_bytes(bytes.take()?),
            destination_port_be: u16::from_ne_bytes(bytes.take()?),
            seen_port_be: u16::from_ne_bytes(bytes.take()?),
            protocol: bytes.byte()?,
            tcp_flags: bytes.byte()?,
            seen: bytes.address()?,
            len: u32::from_ne_bytes(bytes.take()?),
            verdict: i32::from_ne_bytes(bytes.take()?),
            source_mac: bytes.take()?,
            destination_mac: bytes.take()?,
            step: bytes.byte()?,
            reason: bytes.byte()?,
            zero: u16::from_ne_bytes(bytes.take()?),
        };
        bytes.0.is_empty().then_some(event)
    }

    /// The program; nothing when it is another agent's.
    pub fn step(&self) -> Option<TraceStep> {
        TraceStep::of(self.step)
    }

    /// Why it was dropped.
    pub fn reason(&self) -> Option<Counter> {
        let index = usize::from(self.reason).checked_sub(1)?;
        Counter::ALL.get(index).copied()
    }
}

/// What is left to be read.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, left) = self.0.split_first_chunk()?;
        self.0 = left;
        Some(*taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take().map(|[byte]| byte)
    }

    fn address(&mut self) -> Option<Address> {
        let mut words = [0; 4];
        for word in &mut words {
            *word = u32::from_ne_bytes(self.take()?);
        }
        Some(Address::from_words(words))
    }
}

const _: () = assert!(size_of::<TraceFilter>() == 48);
const _: () = assert!(size_of::<TraceCpu>() == 16);
const _: () = assert!(size_of::<TraceEvent>() == 88);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, 8 + 16 + 16 + 4 + 4 bytes, no padding; every bit pattern is a value.
    unsafe impl aya::Pod for super::TraceFilter {}
    // SAFETY: `repr(C)`, 8 + 4 + 4 bytes, no padding; every bit pattern is a value.
    unsafe impl aya::Pod for super::TraceCpu {}
}
