//! The loaded object: programs and maps, typed.

mod contents;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap};
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfError, EbpfLoader};
#[cfg(test)]
use swarm_ebpf_common::Endpoint;
use swarm_ebpf_common::{Address, Mac, map};

use super::reconcile::{Changed, change, reconcile, reconcile_trie, removed};
use super::sockets::{self, SocketMaps};
use super::{
    Attached, Config, Counter, DropKey, FlowKey, FlowValue, Program, PublishedKey, PublishedValue,
    ServiceStats, SocketError, SourceKey, TaskPort, TcError, bpffs, layout, program, tc,
};

pub(crate) use contents::MapContents;

/// Why the mesh's eBPF could not be loaded, changed or attached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeshError {
    /// The usual place for pinned maps is not there and could not be made.
    #[error("cannot mount the BPF file system on {}", path.display())]
    MountBpffs {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: nix::Error,
    },
    /// The directory was given outside a BPF file system.
    #[error("{} is not on a BPF file system: `mount -t bpf bpf` above it", path.display())]
    NotBpffs {
        /// Which.
        path: PathBuf,
    },
    /// No directory to pin maps in.
    #[error("cannot create the directory {}", path.display())]
    CreatePinDirectory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that should be a pinned map cannot be looked at.
    #[error("cannot look at the pinned map {}", path.display())]
    InspectPin {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: MapError,
    },
    /// A pinned map is in the way.
    #[error("cannot remove the pinned map {}", path.display())]
    RemovePin {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The maps could not be made.
    #[error("cannot load the eBPF object's maps")]
    LoadObject(#[source] EbpfError),
    /// The verifier's log is in the cause.
    #[error("cannot load the eBPF program {program}")]
    LoadProgram {
        /// Which.
        program: Program,
        /// Why.
        #[source]
        source: ProgramError,
    },
    /// The object is not the one this agent was written for.
    #[error("the eBPF object has no {what}")]
    Incomplete {
        /// A program's or a map's name.
        what: &'static str,
    },
    /// A map in the kernel could not be read or changed.
    #[error("cannot use the eBPF map {map}")]
    UseMap {
        /// Which.
        map: &'static str,
        /// Why.
        #[source]
        source: MapError,
    },
    /// A program could not be attached.
    #[error("cannot attach {program} to interface {ifindex}")]
    Attach {
        /// Which.
        program: Program,
        /// Where.
        ifindex: u32,
        /// Why.
        #[source]
        source: TcError,
    },
    /// A program could not be detached.
    #[error("cannot detach {program} from interface {ifindex}")]
    Detach {
        /// Which.
        program: Program,
        /// Where.
        ifindex: u32,
        /// Why.
        #[source]
        source: TcError,
    },
    /// What is attached could not be found out.
    #[error("cannot find out whether {program} is on interface {ifindex}")]
    Query {
        /// Which.
        program: Program,
        /// Where.
        ifindex: u32,
        /// Why.
        #[source]
        source: TcError,
    },
    /// The socket programs.
    #[error(transparent)]
    Sockets(#[from] SocketError),
}

/// The programs, loaded and verified, and the maps they share with the agent. Dropping it changes
/// nothing in the kernel beyond closing descriptors.
pub(crate) struct Mesh {
    /// Holds the programs; the maps are taken out.
    pub(super) object: Ebpf,
    /// Under which everything is pinned.
    pub(super) bpffs_dir: PathBuf,
    pub(super) sockets: SocketMaps,
    config: Array<MapData, Config>,
    published: HashMap<MapData, PublishedKey, PublishedValue>,
    sources: LpmTrie<MapData, SourceKey, u32>,
    node_addrs: HashMap<MapData, Address, u32>,
    ingress_macs: HashMap<MapData, Mac, u32>,
    task_ports: HashMap<MapData, u32, TaskPort>,
    task_macs: HashMap<MapData, Mac, u32>,
    targets: HashMap<MapData, PublishedKey, u32>,
    flow: HashMap<MapData, FlowKey, FlowValue>,
    service_stats: PerCpuHashMap<MapData, u32, ServiceStats>,
    counters: PerCpuArray<MapData, u64>,
    drops: PerCpuHashMap<MapData, DropKey, u64>,
}

impl Mesh {
    /// Loads every program. The maps are pinned under `<bpffs_dir>/maps`; those of an earlier agent
    /// are taken over with their content, and one whose shape has changed since is made anew with
    /// a warning in the log.
    pub(crate) fn load(bpffs_dir: &Path) -> Result<Self, MeshError> {
        Self::load_object(bpffs_dir, program::object())
    }

    /// The same with the programs of `bytes`, another build's.
    pub(super) fn load_object(bpffs_dir: &Path, bytes: &[u8]) -> Result<Self, MeshError> {
        let pins = bpffs::prepare(bpffs_dir)?;
        layout::discard_misfits(&pins)?;
        let mut object = EbpfLoader::new()
            .default_map_pin_directory(&pins)
            .load(bytes)
            .map_err(MeshError::LoadObject)?;
        for program in Program::ALL {
            classifier_mut(&mut object, program)?
                .load()
                .map_err(|source| MeshError::LoadProgram { program, source })?;
        }
        sockets::load(&mut object)?;
        Ok(Self {
            bpffs_dir: bpffs_dir.to_owned(),
            sockets: SocketMaps::take(&mut object)?,
            config: take(&mut object, map::CONFIG)?,
            published: take(&mut object, map::PUBLISHED)?,
            sources: take(&mut object, map::SOURCES)?,
            node_addrs: take(&mut object, map::NODE_ADDRS)?,
            ingress_macs: take(&mut object, map::INGRESS_MACS)?,
            task_ports: take(&mut object, map::TASK_PORTS)?,
            task_macs: take(&mut object, map::TASK_MACS)?,
            targets: take(&mut object, map::TARGETS)?,
            flow: take(&mut object, map::FLOW)?,
            service_stats: take(&mut object, map::SERVICE_STATS)?,
            counters: take(&mut object, map::COUNTERS)?,
            drops: take(&mut object, map::DROPS)?,
            object,
        })
    }

    /// Detaches the socket programs and unpins the maps, for a node that has left the swarm. The
    /// maps are freed once nothing attached uses them.
    pub(crate) fn remove_pins(bpffs_dir: &Path) -> Result<(), MeshError> {
        sockets::remove_pins(bpffs_dir)?;
        let pins = bpffs_dir.join("maps");
        for layout in layout::LAYOUTS {
            gone(fs::remove_file(pins.join(layout.name)), &pins)?;
        }
        gone(fs::remove_dir(&pins), &pins)?;
        // Stays when somebody else has pinned something there.
        let _ = fs::remove_dir(bpffs_dir);
        Ok(())
    }

    /// Tells the programs about the host's links. True when that was news.
    pub(crate) fn set_config(&mut self, config: Config) -> Result<bool, MeshError> {
        let used = |source| MeshError::UseMap {
            map: map::CONFIG,
            source,
        };
        if self.config.get(&0, 0).map_err(used)? == config {
            return Ok(false);
        }
        self.config.set(0, config, 0).map_err(used)?;
        Ok(true)
    }

    /// Makes exactly these ports published. Drops the counters of services that no longer have any.
    pub(crate) fn set_published(
        &mut self,
        desired: &BTreeMap<PublishedKey, PublishedValue>,
    ) -> Result<Changed, MeshError> {
        let changed =
            reconcile(&mut self.published, desired).map_err(|source| MeshError::UseMap {
                map: map::PUBLISHED,
                source,
            })?;
        self.forget_services(desired)?;
        Ok(changed)
    }

    /// Makes exactly these the clients that may use ports published with source ranges. Each with
    /// the number of bits of the key that count.
    pub(crate) fn set_sources(
        &mut self,
        desired: &BTreeSet<(u32, SourceKey)>,
    ) -> Result<Changed, MeshError> {
        let desired = desired.iter().map(|source| (*source, 1)).collect();
        reconcile_trie(&mut self.sources, &desired).map_err(|source| MeshError::UseMap {
            map: map::SOURCES,
            source,
        })
    }

    /// Publishes some ports, and others no more, without a look at the rest. Of a service that has none left
    /// the caller knows: see [`forget_service`](Self::forget_service).
    pub(crate) fn change_published(
        &mut self,
        put: &BTreeMap<PublishedKey, PublishedValue>,
        remove: &BTreeSet<PublishedKey>,
    ) -> Result<(), MeshError> {
        change(&mut self.published, put, remove).map_err(|source| MeshError::UseMap {
            map: map::PUBLISHED,
            source,
        })
    }

    /// Lets some clients use ports published with source ranges, and others no more; likewise.
    pub(crate) fn change_sources(
        &mut self,
        put: &BTreeSet<(u32, SourceKey)>,
        remove: &BTreeSet<(u32, SourceKey)>,
    ) -> Result<(), MeshError> {
        let used = |source| MeshError::UseMap {
            map: map::SOURCES,
            source,
        };
        for (bits, key) in remove {
            removed(self.sources.remove(&Key::new(*bits, *key))).map_err(used)?;
        }
        for (bits, key) in put {
            let written = self.sources.insert(&Key::new(*bits, *key), 1, 0);
            written.map_err(used)?;
        }
        Ok(())
    }

    fn forget_services(
        &mut self,
        published: &BTreeMap<PublishedKey, PublishedValue>,
    ) -> Result<(), MeshError> {
        let kept: BTreeSet<u32> = published.values().map(|value| value.service).collect();
        let counted: Result<BTreeSet<u32>, MapError> = self.service_stats.keys().collect();
        let mut counted = counted.map_err(|source| MeshError::UseMap {
            map: map::SERVICE_STATS,
            source,
        })?;
        let dropped = self.drops()?.into_keys();
        let dropped = dropped.filter(|(counter, _)| Counter::OF_SERVICES.contains(counter));
        counted.extend(dropped.map(|(_, service)| service));
        for service in counted.difference(&kept) {
            self.forget_service(*service)?;
        }
        Ok(())
    }

    /// Forgets what was counted of a service, whose index another one may have next.
    pub(crate) fn forget_service(&mut self, service: u32) -> Result<(), MeshError> {
        let used = |map| move |source| MeshError::UseMap { map, source };
        removed(self.service_stats.remove(&service)).map_err(used(map::SERVICE_STATS))?;
        for counter in Counter::OF_SERVICES {
            let key = DropKey::new(counter, service);
            removed(self.drops.remove(&key)).map_err(used(map::DROPS))?;
        }
        Ok(())
    }

    /// Makes exactly these the node's own addresses, whose replies `mesh_out` sends out.
    pub(crate) fn set_node_addresses(
        &mut self,
        desired: &BTreeSet<IpAddr>,
    ) -> Result<Changed, MeshError> {
        let desired = desired
            .iter()
            .map(|address| (Address::from(*address), 1))
            .collect();
        reconcile(&mut self.node_addrs, &desired).map_err(|source| MeshError::UseMap {
            map: map::NODE_ADDRS,
            source,
        })
    }

    /// Makes exactly these the ingress nodes: overlay MAC address to an index of the agent's
    /// choice, which shows in the flow table.
    pub(crate) fn set_ingress_macs(
        &mut self,
        desired: &BTreeMap<[u8; 6], u32>,
    ) -> Result<Changed, MeshError> {
        let desired = desired
            .iter()
            .map(|(mac, node)| (Mac::new(*mac), *node))
            .collect();
        reconcile(&mut self.ingress_macs, &desired).map_err(|source| MeshError::UseMap {
            map: map::INGRESS_MACS,
            source,
        })
    }

    /// Says who is behind the ports of the ingress network's bridge, by interface index. What comes
    /// in by others is not looked at.
    pub(crate) fn set_task_ports(
        &mut self,
        desired: &BTreeMap<u32, TaskPort>,
    ) -> Result<Changed, MeshError> {
        let macs = desired
            .iter()
            .map(|(ifindex, port)| (port.mac, *ifindex))
            .collect();
        let used = |map| move |source| MeshError::UseMap { map, source };
        // What a task may do is known before anything is delivered to it past the bridge.
        let mut changed =
            reconcile(&mut self.task_ports, desired).map_err(used(map::TASK_PORTS))?;
        changed += reconcile(&mut self.task_macs, &macs).map_err(used(map::TASK_MACS))?;
        Ok(changed)
    }

    /// Makes exactly these, by task address and target port, what tasks may reach of each other on
    /// the ingress network, each with its bits of [`target_flag`](super::target_flag).
    pub(crate) fn set_targets(
        &mut self,
        desired: &BTreeMap<PublishedKey, u32>,
    ) -> Result<Changed, MeshError> {
        reconcile(&mut self.targets, desired).map_err(|source| MeshError::UseMap {
            map: map::TARGETS,
            source,
        })
    }

    /// Opens some targets, and closes others, without a look at the rest.
    pub(crate) fn change_targets(
        &mut self,
        put: &BTreeMap<PublishedKey, u32>,
        remove: &BTreeSet<PublishedKey>,
    ) -> Result<(), MeshError> {
        change(&mut self.targets, put, remove).map_err(|source| MeshError::UseMap {
            map: map::TARGETS,
            source,
        })
    }

    /// How many flows are remembered; near the map's size, the oldest are forgotten.
    pub(crate) fn flow_count(&self) -> usize {
        self.flow.keys().filter(Result::is_ok).count()
    }

    /// Where answers of that flow go; nothing when it is not known.
    #[cfg(test)]
    pub(crate) fn flow(&self, key: &FlowKey) -> Result<Option<FlowValue>, MeshError> {
        match self.flow.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(MeshError::UseMap {
                map: map::FLOW,
                source,
            }),
        }
    }

    /// Empties the table of clients that tasks see as somebody else, as an LRU may.
    #[cfg(test)]
    pub(crate) fn forget_translations(&self) {
        let pin = self.bpffs_dir.join("maps").join(map::XLAT_OUT);
        let data = MapData::from_pin(pin).unwrap();
        let mut table: HashMap<MapData, FlowKey, Endpoint> =
            HashMap::try_from(Map::LruHashMap(data)).unwrap();
        for key in table.keys().map(Result::unwrap).collect::<Vec<_>>() {
            table.remove(&key).unwrap();
        }
    }

    /// Requests taken in so far, by service index.
    pub(crate) fn service_stats(&self) -> Result<BTreeMap<u32, ServiceStats>, MeshError> {
        let mut stats = BTreeMap::new();
        for entry in self.service_stats.iter() {
            let (service, values) = entry.map_err(|source| MeshError::UseMap {
                map: map::SERVICE_STATS,
                source,
            })?;
            let total = values
                .iter()
                .fold(ServiceStats::default(), |sum, value| ServiceStats {
                    packets: sum.packets + value.packets,
                    bytes: sum.bytes + value.bytes,
                });
            stats.insert(service, total);
        }
        Ok(stats)
    }

    /// Packets dropped or refused so far, by reason and by the service's index or the interface index of
    /// the task's port.
    pub(crate) fn drops(&self) -> Result<BTreeMap<(Counter, u32), u64>, MeshError> {
        let mut drops = BTreeMap::new();
        for entry in self.drops.iter() {
            let (key, values) = entry.map_err(|source| MeshError::UseMap {
                map: map::DROPS,
                source,
            })?;
            if let Some(parts) = key.parts() {
                drops.insert(parts, values.iter().sum());
            }
        }
        Ok(drops)
    }

    /// All counters, also those at zero.
    pub(crate) fn counters(&self) -> Result<BTreeMap<Counter, u64>, MeshError> {
        let read = |counter: Counter| {
            let values =
                self.counters
                    .get(&(counter as u32), 0)
                    .map_err(|source| MeshError::UseMap {
                        map: map::COUNTERS,
                        source,
                    })?;
            Ok((counter, values.iter().sum()))
        };
        Counter::ALL.into_iter().map(read).collect()
    }

    /// Puts a program at its hook of an interface of the calling thread's network namespace. Does
    /// nothing when it is there, replaces an earlier agent's without a gap.
    pub(crate) fn attach(&self, program: Program, ifindex: u32) -> Result<Attached, MeshError> {
        let loaded = |source| MeshError::LoadProgram { program, source };
        let classifier = self.classifier(program)?;
        let fd = classifier.fd().map_err(loaded)?.as_fd();
        let id = classifier.info().map_err(loaded)?.id();
        tc::attach(program, fd, id, ifindex).map_err(|source| MeshError::Attach {
            program,
            ifindex,
            source,
        })
    }

    #[cfg(test)]
    /// Whether this very program is at its hook, and not an earlier agent's or none.
    pub(crate) fn is_attached(&self, program: Program, ifindex: u32) -> Result<bool, MeshError> {
        Ok(Self::attached_program_id(program, ifindex)? == Some(self.program_id(program)?))
    }

    /// The kernel's number of a program, as `bpftool prog` and `tc filter show` print it.
    pub(crate) fn program_id(&self, program: Program) -> Result<u32, MeshError> {
        let info = self.classifier(program)?.info();
        Ok(info
            .map_err(|source| MeshError::LoadProgram { program, source })?
            .id())
    }

    /// The number of whatever is at that program's place of its hook.
    pub(crate) fn attached_program_id(
        program: Program,
        ifindex: u32,
    ) -> Result<Option<u32>, MeshError> {
        tc::program_id(ifindex, program.direction()).map_err(|source| MeshError::Query {
            program,
            ifindex,
            source,
        })
    }

    /// Takes away whatever is at that program's place of its hook. False when nothing was.
    pub(crate) fn detach(program: Program, ifindex: u32) -> Result<bool, MeshError> {
        tc::detach(ifindex, program.direction()).map_err(|source| MeshError::Detach {
            program,
            ifindex,
            source,
        })
    }

    /// The loaded program.
    pub(super) fn classifier(&self, program: Program) -> Result<&SchedClassifier, MeshError> {
        let missing = MeshError::Incomplete {
            what: program.name(),
        };
        let Some(found) = self.object.program(program.name()) else {
            return Err(missing);
        };
        found
            .try_into()
            .map_err(|source| MeshError::LoadProgram { program, source })
    }
}

fn classifier_mut(object: &mut Ebpf, program: Program) -> Result<&mut SchedClassifier, MeshError> {
    object
        .program_mut(program.name())
        .ok_or(MeshError::Incomplete {
            what: program.name(),
        })?
        .try_into()
        .map_err(|source| MeshError::LoadProgram { program, source })
}

/// Takes a map out of the object.
pub(super) fn take<T: TryFrom<Map, Error = MapError>>(
    object: &mut Ebpf,
    name: &'static str,
) -> Result<T, MeshError> {
    let map = object
        .take_map(name)
        .ok_or(MeshError::Incomplete { what: name })?;
    map.try_into()
        .map_err(|source| MeshError::UseMap { map: name, source })
}

/// The outcome of removing a pin, which may have been gone already.
pub(super) fn gone(result: io::Result<()>, path: &Path) -> Result<(), MeshError> {
    match result {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(MeshError::RemovePin {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
