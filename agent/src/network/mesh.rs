//! The mesh's eBPF in the words of the model.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use swarm_model::Protocol;

use crate::ebpf::{
    self, Changed, Config, Counter, MapContents, Mesh, MeshError, PublishedKey, PublishedValue,
    ServiceStats, SocketChange, SocketError, SocketLinks, SocketService, SocketTables,
    SocketTarget, SourceKey, TaskPort, published_flag,
};
use crate::error_text::error_text;

use super::isolation::{Isolation, Targets};
use super::model::{
    Attached, Mac, MeshConfig, MeshMaps, Place, Program, Published, PublishedAs, SocketPrograms,
    Source,
};
use super::op::Changes;
use super::sockets::Sockets;

/// The loaded programs and what was last written into their maps.
///
/// The maps are pinned and outlive the agent; what an earlier agent left in them stays in force
/// until the first write.
pub(super) struct LoadedMesh {
    mesh: Mesh,
    written: Written,
}

/// What this process has written. Compared with the kernel at every pass: the kernel cannot tell
/// when a map changes.
#[derive(Clone, Debug, Default)]
struct Written {
    config: Option<Config>,
    node_addresses: Option<BTreeSet<IpAddr>>,
    ingress_macs: Option<BTreeMap<Mac, u32>>,
    published: Option<BTreeMap<Published, PublishedAs>>,
    sources: Option<BTreeSet<Source>>,
    isolation: Option<(BTreeMap<u32, TaskPort>, Targets)>,
    sockets: Option<SocketTables>,
}

impl fmt::Debug for LoadedMesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedMesh")
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

/// Pause after a failure to load: reading the kernel's types and verifying cost a tenth of a second
/// and more, and what is missing rarely comes by itself.
const LOAD_RETRY_PAUSE: Duration = Duration::from_secs(30);

/// The eBPF of this node, loaded or not.
#[derive(Debug)]
pub(super) struct MeshHandle {
    bpffs_dir: PathBuf,
    loaded: Option<LoadedMesh>,
    /// Why it could not be loaded, and when that was.
    failed: Option<(Instant, String)>,
}

impl MeshHandle {
    /// Nothing loaded yet.
    pub(super) fn new(bpffs_dir: PathBuf) -> Self {
        Self {
            bpffs_dir,
            loaded: None,
            failed: None,
        }
    }

    /// The loaded programs; loads them when they are not yet. The text of a failure names what is
    /// missing; it is repeated without another try for [`LOAD_RETRY_PAUSE`].
    pub(super) fn load(&mut self) -> Result<&mut LoadedMesh, String> {
        if self.loaded.is_none() {
            if let Some((at, text)) = &self.failed
                && at.elapsed() < LOAD_RETRY_PAUSE
            {
                return Err(text.clone());
            }
            let mesh = Mesh::load(&self.bpffs_dir).map_err(|error| {
                let text = error_text(&error);
                self.failed = Some((Instant::now(), text.clone()));
                text
            })?;
            self.failed = None;
            self.loaded = Some(LoadedMesh {
                mesh,
                written: Written::default(),
            });
        }
        Ok(self.loaded.as_mut().expect("loaded above"))
    }

    /// The programs, or why there are none; loads nothing.
    pub(super) fn look(&mut self) -> Result<&mut LoadedMesh, String> {
        let reason = match &self.failed {
            Some((_, text)) => text.clone(),
            None => "they are not loaded yet".to_owned(),
        };
        self.loaded.as_mut().ok_or(reason)
    }

    /// The programs, when they are loaded.
    pub(super) fn loaded(&mut self) -> Option<&mut LoadedMesh> {
        self.loaded.as_mut()
    }

    /// Removes the pinned maps and lets go of the programs.
    pub(super) fn remove_pins(&mut self) -> Result<(), MeshError> {
        self.loaded = None;
        Mesh::remove_pins(&self.bpffs_dir)
    }
}

impl LoadedMesh {
    /// What this process has written, after putting right what somebody else changed since.
    /// `link_name` gives the name of a link of the host by its index, `port_name` one of the ingress
    /// namespace, `places` the namespaces by their cookies.
    pub(super) fn maps(
        &mut self,
        link_name: impl Fn(u32) -> Option<String>,
        port_name: impl Fn(u32) -> Option<String>,
        places: &BTreeMap<u64, &Place>,
    ) -> Result<MeshMaps, MeshError> {
        let Written {
            config,
            node_addresses,
            ingress_macs,
            published,
            sources,
            isolation,
            sockets,
        } = self.written.clone();
        let mut changed = Changed::default();
        if let Some(config) = config {
            changed.written += usize::from(self.mesh.set_config(config)?);
        }
        if let Some(addresses) = &node_addresses {
            changed += self.mesh.set_node_addresses(addresses)?;
        }
        if let Some(macs) = &ingress_macs {
            changed += self.mesh.set_ingress_macs(&octets(macs))?;
        }
        if let Some(sources) = &sources {
            changed += self.mesh.set_sources(&source_keys(sources))?;
        }
        if let Some(published) = &published {
            changed += self.mesh.set_published(&entries(published))?;
        }
        if let Some((ports, targets)) = &isolation {
            changed += self.mesh.set_task_ports(ports)?;
            changed += self.mesh.set_targets(targets)?;
        }
        if let Some(sockets) = &sockets {
            changed += self.mesh.set_sockets(sockets)?;
        }
        if changed != Changed::default() {
            tracing::warn!(
                ?changed,
                "the mesh's maps were changed by somebody else; put right"
            );
        }
        Ok(MeshMaps {
            config: config.map(|config| named_config(config, link_name, &port_name)),
            node_addresses,
            ingress_macs,
            published,
            sources,
            isolation: isolation.and_then(|(ports, targets)| named(ports, targets, &port_name)),
            sockets: sockets.and_then(|tables| seen(tables, places)),
            socket_programs: self.socket_programs()?,
        })
    }

    /// What the maps hold in the kernel, whoever wrote it; changes nothing. The arguments are those
    /// of [`maps`](Self::maps). What cannot be said in words of the model is nothing.
    pub(super) fn held(
        &self,
        link_name: impl Fn(u32) -> Option<String>,
        port_name: impl Fn(u32) -> Option<String>,
        places: &BTreeMap<u64, &Place>,
    ) -> Result<MeshMaps, MeshError> {
        let MapContents {
            config,
            node_addresses,
            ingress_macs,
            published,
            sources,
            task_ports,
            targets,
            sockets,
        } = self.mesh.contents()?;
        let macs = ingress_macs.into_iter();
        Ok(MeshMaps {
            config: Some(named_config(config, link_name, &port_name)),
            node_addresses: Some(node_addresses),
            ingress_macs: Some(macs.map(|(mac, node)| (Mac(mac), node)).collect()),
            published: published.into_iter().map(held_port).collect(),
            sources: sources.into_iter().map(held_source).collect(),
            isolation: named(task_ports, targets.into(), &port_name),
            sockets: seen(sockets, places),
            socket_programs: self.socket_programs()?,
        })
    }

    fn socket_programs(&self) -> Result<SocketPrograms, MeshError> {
        match self.mesh.socket_links() {
            Ok(SocketLinks::Current) => Ok(SocketPrograms::Current),
            Ok(SocketLinks::Outdated | SocketLinks::Absent) => Ok(SocketPrograms::Outdated),
            Err(MeshError::Sockets(error @ SocketError::Cgroup(_))) => {
                Ok(SocketPrograms::Impossible(error_text(&error)))
            }
            Err(error) => Err(error),
        }
    }

    /// Says who is behind the ports of the ingress network's bridge, by index, and what tasks may
    /// reach of each other.
    pub(super) fn set_isolation(
        &mut self,
        ports: BTreeMap<u32, TaskPort>,
        targets: &Targets,
    ) -> Result<(), MeshError> {
        // Targets first: a task that is just described finds them open.
        self.mesh.set_targets(targets)?;
        self.mesh.set_task_ports(&ports)?;
        self.written.isolation = Some((ports, targets.clone()));
        Ok(())
    }

    /// What this process has published last; nothing before it has.
    pub(super) fn published(&self) -> BTreeMap<Published, PublishedAs> {
        self.written.published.clone().unwrap_or_default()
    }

    /// What was counted of services, by their index.
    pub(super) fn service_stats(&self) -> Result<BTreeMap<u32, ServiceStats>, MeshError> {
        self.mesh.service_stats()
    }

    /// Packets dropped or refused, by reason and by the service's index or the interface index of the
    /// task's port.
    pub(super) fn drops(&self) -> Result<BTreeMap<(Counter, u32), u64>, MeshError> {
        self.mesh.drops()
    }

    /// Who is behind the ports of the ingress network's bridge, by interface index, as this process has
    /// said last.
    pub(super) fn task_ports(&self) -> BTreeMap<u32, IpAddr> {
        let ports = self.written.isolation.iter().flat_map(|(ports, _)| ports);
        ports
            .map(|(index, port)| (*index, port.address.to_ip()))
            .collect()
    }

    /// What the programs have counted, by event.
    pub(super) fn events(&self) -> Result<BTreeMap<Counter, u64>, MeshError> {
        self.mesh.counters()
    }

    /// Tells the socket programs what to balance. Namespaces without a cookie are left out.
    pub(super) fn set_sockets(
        &mut self,
        sockets: &Sockets,
        cookies: &BTreeMap<Place, u64>,
    ) -> Result<(), MeshError> {
        let scopes = sockets.scopes.iter();
        let tables = SocketTables {
            scopes: scopes
                .filter_map(|(place, scope)| Some((*cookies.get(place)?, *scope)))
                .collect(),
            services: sockets.services.clone(),
            slots: sockets.slots.clone(),
        };
        self.mesh.set_sockets(&tables)?;
        self.written.sockets = Some(tables);
        Ok(())
    }

    /// Attaches the socket programs.
    pub(super) fn attach_sockets(&mut self) -> Result<(), MeshError> {
        self.mesh.attach_sockets()
    }

    /// Tells the programs about the host's links.
    pub(super) fn set_config(&mut self, config: Config) -> Result<(), MeshError> {
        self.mesh.set_config(config)?;
        self.written.config = Some(config);
        Ok(())
    }

    /// Tells the programs this node's addresses.
    pub(super) fn set_node_addresses(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<(), MeshError> {
        self.mesh.set_node_addresses(addresses)?;
        self.written.node_addresses = Some(addresses.clone());
        Ok(())
    }

    /// Tells the programs who the ingress nodes are.
    pub(super) fn set_ingress_macs(&mut self, macs: &BTreeMap<Mac, u32>) -> Result<(), MeshError> {
        self.mesh.set_ingress_macs(&octets(macs))?;
        self.written.ingress_macs = Some(macs.clone());
        Ok(())
    }

    /// Publishes exactly these ports.
    pub(super) fn set_published(
        &mut self,
        published: &BTreeMap<Published, PublishedAs>,
    ) -> Result<(), MeshError> {
        self.mesh.set_published(&entries(published))?;
        self.written.published = Some(published.clone());
        Ok(())
    }

    /// Lets exactly these clients use restricted ports.
    pub(super) fn set_sources(&mut self, sources: &BTreeSet<Source>) -> Result<(), MeshError> {
        self.mesh.set_sources(&source_keys(sources))?;
        self.written.sources = Some(sources.clone());
        Ok(())
    }

    /// Publishes some ports, and others no more. Only after [`set_published`](Self::set_published),
    /// as with those that follow.
    pub(super) fn change_published(
        &mut self,
        changes: &Changes<Published, PublishedAs>,
    ) -> Result<(), MeshError> {
        let remove = changes.remove.iter().map(key).collect();
        self.mesh
            .change_published(&entries(&changes.put), &remove)?;
        let mut gone = services(&self.written.published, &changes.remove);
        noted(&mut self.written.published, changes);
        if !gone.is_empty() {
            let published = self.written.published.iter().flat_map(BTreeMap::values);
            for published in published {
                gone.remove(&published.service);
            }
        }
        for service in gone {
            self.mesh.forget_service(service)?;
        }
        Ok(())
    }

    /// Lets some clients use restricted ports, and others no more.
    pub(super) fn change_sources(
        &mut self,
        changes: &Changes<Source, ()>,
    ) -> Result<(), MeshError> {
        let put = changes.put.keys().copied().collect();
        self.mesh
            .change_sources(&source_keys(&put), &source_keys(&changes.remove))?;
        if let Some(sources) = &mut self.written.sources {
            sources.retain(|source| !changes.remove.contains(source));
            sources.extend(put);
        }
        Ok(())
    }

    /// Opens some targets of tasks, and closes others.
    pub(super) fn change_targets(
        &mut self,
        changes: &Changes<PublishedKey, u32>,
    ) -> Result<(), MeshError> {
        self.mesh.change_targets(&changes.put, &changes.remove)?;
        if let Some((_, targets)) = &mut self.written.isolation {
            changes.make(Arc::make_mut(targets));
        }
        Ok(())
    }

    /// Balances sockets to some services otherwise, and to others no more.
    pub(super) fn change_sockets(
        &mut self,
        services: &Changes<SocketService, SocketTarget>,
        slots: &Changes<u64, BTreeSet<IpAddr>>,
    ) -> Result<(), MeshError> {
        self.mesh.change_sockets(&SocketChange {
            services: &services.put,
            remove_services: &services.remove,
            slots: &slots.put,
            remove_slots: &slots.remove,
        })?;
        if let Some(tables) = &mut self.written.sockets {
            services.make(Arc::make_mut(&mut tables.services));
            slots.make(Arc::make_mut(&mut tables.slots));
        }
        Ok(())
    }

    /// Attaches a program to a link of the calling thread's namespace.
    pub(super) fn attach(&self, program: Program, ifindex: u32) -> Result<(), MeshError> {
        self.mesh.attach(loaded_program(program), ifindex).map(drop)
    }

    /// What is in a program's place on a link of the calling thread's namespace.
    pub(super) fn attached(
        &self,
        program: Program,
        ifindex: u32,
    ) -> Result<Option<Attached>, MeshError> {
        let program = loaded_program(program);
        let own = self.mesh.program_id(program)?;
        Ok(
            Mesh::attached_program_id(program, ifindex)?.map(|id| match id == own {
                true => Attached::Current,
                false => Attached::Outdated,
            }),
        )
    }
}

/// Notes what was written.
fn noted<K: Ord + Clone, V: Clone + PartialEq>(
    written: &mut Option<BTreeMap<K, V>>,
    changes: &Changes<K, V>,
) {
    if let Some(written) = written {
        changes.make(written);
    }
}

/// The links by name: those of the host, and those of the ingress namespace.
fn named_config(
    config: Config,
    link_name: impl Fn(u32) -> Option<String>,
    port_name: impl Fn(u32) -> Option<String>,
) -> MeshConfig {
    MeshConfig {
        host_veth: link_name(config.e1h_ifindex),
        uplink: link_name(config.uplink_ifindex),
        vxlan: port_name(config.vxlan_ifindex),
        mac: Mac(config.mac.octets),
        tunnel: (config.vtep != 0).then(|| {
            let vtep = Ipv4Addr::from(config.vtep.to_ne_bytes());
            (vtep, u32::from_be(config.vni) >> 8)
        }),
    }
}

/// Who may talk to whom, in the words of the model; nothing when it speaks of a link that is gone.
fn named(
    ports: BTreeMap<u32, TaskPort>,
    targets: Targets,
    port_name: impl Fn(u32) -> Option<String>,
) -> Option<Isolation> {
    let ports = ports.into_iter();
    let named = ports.map(|(index, port)| Some((port_name(index)?, port)));
    Some(Isolation {
        ports: named.collect::<Option<_>>()?,
        targets,
    })
}

/// What was written, in the words of the model; nothing when it speaks of a namespace that is gone.
fn seen(tables: SocketTables, places: &BTreeMap<u64, &Place>) -> Option<Sockets> {
    let place = |cookie| places.get(&cookie).map(|place| Place::clone(place));
    let scopes = tables.scopes.into_iter();
    Some(Sockets {
        scopes: scopes
            .map(|(cookie, scope)| Some((place(cookie)?, scope)))
            .collect::<Option<_>>()?,
        services: tables.services,
        slots: tables.slots,
    })
}

fn octets(macs: &BTreeMap<Mac, u32>) -> BTreeMap<[u8; 6], u32> {
    macs.iter().map(|(mac, node)| (mac.0, *node)).collect()
}

fn protocol(protocol: Protocol) -> ebpf::Protocol {
    match protocol {
        Protocol::Tcp => ebpf::Protocol::Tcp,
        Protocol::Udp => ebpf::Protocol::Udp,
        Protocol::Sctp => ebpf::Protocol::Sctp,
    }
}

fn key(entry: &Published) -> PublishedKey {
    PublishedKey::new(entry.address, entry.port, protocol(entry.protocol))
}

/// The indexes of the services that some ports are published for.
fn services(
    published: &Option<BTreeMap<Published, PublishedAs>>,
    ports: &BTreeSet<Published>,
) -> BTreeSet<u32> {
    let published = published.iter();
    let found = published.flat_map(|published| ports.iter().filter_map(|port| published.get(port)));
    found.map(|published| published.service).collect()
}

fn entries(published: &BTreeMap<Published, PublishedAs>) -> BTreeMap<PublishedKey, PublishedValue> {
    let entry = |(entry, published): (&Published, &PublishedAs)| {
        let key = key(entry);
        let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
        let flags = flag(published.restricted, published_flag::SOURCES)
            | flag(!published.answered, published_flag::NO_TASK);
        let service = published.service;
        (key, PublishedValue { service, flags })
    };
    published.iter().map(entry).collect()
}

/// The other way round.
fn held_port((key, value): (PublishedKey, PublishedValue)) -> Option<(Published, PublishedAs)> {
    let (address, port, protocol) = key.parts();
    let port = Published {
        address,
        port,
        protocol: held_protocol(protocol?),
    };
    let published = PublishedAs {
        service: value.service,
        restricted: value.flags & published_flag::SOURCES != 0,
        answered: value.flags & published_flag::NO_TASK == 0,
    };
    Some((port, published))
}

fn held_source((bits, key): (u32, SourceKey)) -> Option<Source> {
    let (port, protocol, address, length) = key.parts(bits)?;
    Some(Source {
        port,
        protocol: held_protocol(protocol),
        net: IpNet::new(address, length).ok()?,
    })
}

fn held_protocol(protocol: ebpf::Protocol) -> Protocol {
    match protocol {
        ebpf::Protocol::Tcp => Protocol::Tcp,
        ebpf::Protocol::Udp => Protocol::Udp,
        ebpf::Protocol::Sctp => Protocol::Sctp,
    }
}

fn source_keys(sources: &BTreeSet<Source>) -> BTreeSet<(u32, SourceKey)> {
    let key = |source: &Source| {
        let Source {
            port,
            protocol: of,
            net,
        } = *source;
        let net = net.trunc();
        let (key, bits) = SourceKey::new(port, protocol(of), net.addr(), net.prefix_len());
        (bits, key)
    };
    sources.iter().map(key).collect()
}

/// Takes away what is in a program's place on a link of the calling thread's namespace.
pub(super) fn detach(program: Program, ifindex: u32) -> Result<(), MeshError> {
    Mesh::detach(loaded_program(program), ifindex).map(drop)
}

fn loaded_program(program: Program) -> ebpf::Program {
    match program {
        Program::MeshUplink => ebpf::Program::MeshUplink,
        Program::MeshOut => ebpf::Program::MeshOut,
        Program::FlowLearn => ebpf::Program::FlowLearn,
        Program::FlowReturn => ebpf::Program::FlowReturn,
        Program::ShortcutIn => ebpf::Program::ShortcutIn,
        Program::ShortcutLearn => ebpf::Program::ShortcutLearn,
        Program::ShortcutOut => ebpf::Program::ShortcutOut,
    }
}
