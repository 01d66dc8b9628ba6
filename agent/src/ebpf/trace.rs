//! Tracing of sampled packets: switched on, read, and switched off again.
//!
//! A ring buffer has one reader: of the traces of a node there is one at a time, which their owner
//! sees to.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, RingBuf};
use nix::time::{ClockId, clock_gettime};
use swarm_ebpf_common::{Address, TraceCpu, TraceEvent, TraceFilter, capacity, map};

use super::MeshError;

/// Packets read at a time: as many as the ring buffer holds, so that a reader cannot be kept busy by
/// what goes on meanwhile.
const READ_MAX: usize = capacity::TRACE_EVENTS as usize / TraceEvent::LEN;

/// Which packets are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceRequest {
    /// One of these is the packet's source or destination port; zero stands for none.
    pub(crate) ports: [u16; TraceFilter::PORTS],
    /// The client, or any.
    pub(crate) client: Option<IpAddr>,
    /// One in this many flows, rounded up to a power of two.
    pub(crate) one_in: u16,
}

/// What was told since the last time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traced {
    /// Packets, in the order of time.
    pub(crate) events: Vec<TraceEvent>,
    /// Packets that were not told of, because too many others were.
    pub(crate) lost: u64,
}

/// A trace under way. Ends when it is dropped, and by itself after its time.
pub(crate) struct Tracer {
    filter: Array<MapData, TraceFilter>,
    cpus: PerCpuArray<MapData, TraceCpu>,
    events: RingBuf<MapData>,
    /// `CLOCK_MONOTONIC`.
    until_ns: u64,
    /// What the programs had counted as lost when it was looked at last.
    lost: u64,
}

impl Tracer {
    /// Makes the programs whose maps are pinned under `bpffs_dir` tell of packets for `lasting` from
    /// now on. Whatever an earlier trace has left unread is forgotten.
    pub(crate) fn start(
        bpffs_dir: &Path,
        request: &TraceRequest,
        lasting: Duration,
    ) -> Result<Self, MeshError> {
        let pins = bpffs_dir.join("maps");
        let open = |map: &'static str| {
            let pinned = MapData::from_pin(pins.join(map));
            pinned.map_err(|source| MeshError::UseMap { map, source })
        };
        let lasting_ns = u64::try_from(lasting.as_nanos()).unwrap_or(u64::MAX);
        let mut tracer = Self {
            filter: Map::Array(open(map::TRACE)?)
                .try_into()
                .map_err(used(map::TRACE))?,
            cpus: Map::PerCpuArray(open(map::TRACE_CPU)?)
                .try_into()
                .map_err(used(map::TRACE_CPU))?,
            events: Map::RingBuf(open(map::TRACE_EVENTS)?)
                .try_into()
                .map_err(used(map::TRACE_EVENTS))?,
            until_ns: monotonic_ns().saturating_add(lasting_ns),
            lost: 0,
        };
        tracer.read()?;
        tracer.ask(request)?;
        Ok(tracer)
    }

    /// Asks for other packets from now on, as long as was asked for first.
    pub(crate) fn ask(&mut self, request: &TraceRequest) -> Result<(), MeshError> {
        let filter = TraceFilter::new(
            self.until_ns,
            request
                .client
                .map_or(Address::UNSPECIFIED_V6, Address::from),
            request.ports.map(u16::to_be),
            u32::from(request.one_in.max(1)).next_power_of_two() - 1,
        );
        let written = self.filter.set(0, filter, 0);
        written.map_err(used(map::TRACE))
    }

    /// What was told since the last call.
    pub(crate) fn read(&mut self) -> Result<Traced, MeshError> {
        let mut events = Vec::new();
        while events.len() < READ_MAX
            && let Some(item) = self.events.next()
        {
            events.extend(TraceEvent::from_bytes(&item));
        }
        events.sort_by_key(|event| event.time_ns);
        let cpus = self.cpus.get(&0, 0).map_err(used(map::TRACE_CPU))?;
        let lost = cpus.iter().map(|cpu| cpu.lost).sum();
        let before = std::mem::replace(&mut self.lost, lost);
        Ok(Traced {
            events,
            lost: lost.saturating_sub(before),
        })
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if let Err(error) = self.filter.set(0, TraceFilter::OFF, 0) {
            // It ends by its time.
            tracing::warn!(%error, "a trace of the mesh was not switched off");
        }
    }
}

fn used(map: &'static str) -> impl FnOnce(MapError) -> MeshError {
    move |source| MeshError::UseMap { map, source }
}

/// The clock of the programs; zero, by which no packet is told of, where there is none.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}
