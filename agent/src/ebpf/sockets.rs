//! The socket programs: their tables, and their links to the cgroup root.
//!
//! The links are pinned under `<bpffs_dir>/links`, so that they outlive the agent. The next one
//! attaches its own program beside the old one and then renames its pin over the old pin, which
//! frees the old link: at every moment at least one of them is attached. For that moment both are,
//! which does no harm: what the first has translated is none of the second's business.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError};
use aya::pin::PinError;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, ProgramError};
use swarm_ebpf_common::{Address, SocketBackend, SocketScope, SocketService, SocketTarget, map};

use super::cgroup::{self, CgroupError};
use super::mesh::{gone, take};
use super::reconcile::{self, Changed, reconcile, removed};
use super::slots::{self, SlotPlan};
use super::{Mesh, MeshError, batch, link};

/// Why the socket programs could not be loaded or attached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// Nowhere to attach them.
    #[error("cannot find where to attach the socket programs")]
    Cgroup(#[from] CgroupError),
    /// The verifier's log is in the cause.
    #[error("cannot load the eBPF program {program}")]
    Load {
        /// Which.
        program: SocketProgram,
        /// Why.
        #[source]
        source: ProgramError,
    },
    /// The cgroup root did not take it.
    #[error("cannot attach {program} to the cgroup root")]
    Attach {
        /// Which.
        program: SocketProgram,
        /// Why.
        #[source]
        source: ProgramError,
    },
    /// The kernel attaches without a link, which cannot be pinned.
    #[error("this kernel is older than 5.7 and has no links to cgroups; use a newer one")]
    NoLinks,
    /// The link could not be pinned.
    #[error("cannot pin the link {}", path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: PinError,
    },
    /// The link's pin, or the directory of the pins, could not be made, looked at or removed.
    #[error("cannot use the pinned link {}", path.display())]
    UsePin {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A program at a socket hook. See the files `sock_*` in `agent-ebpf/src`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketProgram {
    /// `connect(2)`, IPv4.
    Connect4,
    /// `connect(2)`, IPv6.
    Connect6,
    /// `sendmsg(2)` with a destination, IPv4.
    Sendmsg4,
    /// `sendmsg(2)` with a destination, IPv6.
    Sendmsg6,
    /// `recvmsg(2)`, IPv4.
    Recvmsg4,
    /// `recvmsg(2)`, IPv6.
    Recvmsg6,
    /// `getpeername(2)`, IPv4.
    Peername4,
    /// `getpeername(2)`, IPv6.
    Peername6,
}

impl SocketProgram {
    /// All of them, in the order in which they are attached: answers are translated back before the
    /// first question is translated.
    pub(crate) const ALL: [Self; 8] = [
        Self::Recvmsg4,
        Self::Recvmsg6,
        Self::Peername4,
        Self::Peername6,
        Self::Sendmsg4,
        Self::Sendmsg6,
        Self::Connect4,
        Self::Connect6,
    ];

    /// Its name in the object, in the kernel and among the pinned links. At most 15 bytes.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Connect4 => "sock_connect4",
            Self::Connect6 => "sock_connect6",
            Self::Sendmsg4 => "sock_sendmsg4",
            Self::Sendmsg6 => "sock_sendmsg6",
            Self::Recvmsg4 => "sock_recvmsg4",
            Self::Recvmsg6 => "sock_recvmsg6",
            Self::Peername4 => "sock_peername4",
            Self::Peername6 => "sock_peername6",
        }
    }
}

impl std::fmt::Display for SocketProgram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What is in the socket programs' places at the cgroup root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketLinks {
    /// The programs themselves, all of them.
    Current,
    /// Some are missing, or others, such as an earlier agent's.
    Outdated,
    /// Nothing.
    Absent,
}

/// All that the socket programs know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SocketTables {
    /// What the sockets of a network namespace are balanced to, by the namespace's cookie.
    pub(crate) scopes: BTreeMap<u64, SocketScope>,
    /// Where services are found. Each slot named here is in `slots`.
    pub(crate) services: Arc<BTreeMap<SocketService, SocketTarget>>,
    /// The ready tasks behind them. Without any, sockets are refused.
    pub(crate) slots: Arc<BTreeMap<u64, BTreeSet<IpAddr>>>,
}

/// A change of a part of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SocketChange<'a> {
    /// Where services are found from now on.
    pub(crate) services: &'a BTreeMap<SocketService, SocketTarget>,
    /// Where none are any more.
    pub(crate) remove_services: &'a BTreeSet<SocketService>,
    /// The ready tasks behind these slots from now on.
    pub(crate) slots: &'a BTreeMap<u64, BTreeSet<IpAddr>>,
    /// Slots that no service leads to any more.
    pub(crate) remove_slots: &'a BTreeSet<u64>,
}

/// The maps of the socket programs.
pub(super) struct SocketMaps {
    scopes: HashMap<MapData, u64, SocketScope>,
    services: HashMap<MapData, SocketService, SocketTarget>,
    slots: HashMap<MapData, u64, u32>,
    backends: HashMap<MapData, SocketBackend, Address>,
}

impl SocketMaps {
    /// Takes them out of the loaded object.
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, MeshError> {
        Ok(Self {
            scopes: take(object, map::SOCK_SCOPE)?,
            services: take(object, map::SOCK_SERVICE)?,
            slots: take(object, map::SOCK_SLOT)?,
            backends: take(object, map::SOCK_BACKEND)?,
        })
    }

    /// What they hold, whoever wrote it.
    pub(super) fn read(&self) -> Result<SocketTables, MeshError> {
        let used = |map| move |source| MeshError::UseMap { map, source };
        let lengths = batch::entries(&self.slots).map_err(used(map::SOCK_SLOT))?;
        let mut slots: BTreeMap<u64, BTreeSet<IpAddr>> = lengths
            .keys()
            .map(|slot| (*slot, BTreeSet::new()))
            .collect();
        for (place, address) in batch::entries(&self.backends).map_err(used(map::SOCK_BACKEND))? {
            let (slot, index) = place.parts();
            // One behind the end is not chosen.
            if lengths.get(&slot).is_some_and(|length| index < *length) {
                slots.entry(slot).or_default().insert(address.to_ip());
            }
        }
        Ok(SocketTables {
            scopes: batch::entries(&self.scopes).map_err(used(map::SOCK_SCOPE))?,
            services: batch::entries(&self.services)
                .map_err(used(map::SOCK_SERVICE))?
                .into(),
            slots: slots.into(),
        })
    }

    fn set(&mut self, desired: &SocketTables) -> Result<Changed, MeshError> {
        let used = |map| move |source| MeshError::UseMap { map, source };
        let lengths = batch::entries(&self.slots);
        let places = batch::entries(&self.backends);
        let lengths = lengths.map_err(used(map::SOCK_SLOT))?;
        let places = places.map_err(used(map::SOCK_BACKEND))?;
        let plan = slots::plan(&lengths, &places, &as_addresses(&desired.slots));
        let mut changed = self.fill(&plan)?;
        changed +=
            reconcile(&mut self.services, &desired.services).map_err(used(map::SOCK_SERVICE))?;
        self.clear(&plan)?;
        changed += reconcile(&mut self.scopes, &desired.scopes).map_err(used(map::SOCK_SCOPE))?;
        Ok(changed)
    }

    /// Puts some services and slots in the place of what there is, and takes others out, without a
    /// look at the rest.
    fn change(&mut self, change: &SocketChange<'_>) -> Result<(), MeshError> {
        let used = |map| move |source| MeshError::UseMap { map, source };
        let (mut lengths, mut places) = (BTreeMap::new(), BTreeMap::new());
        for &slot in change.slots.keys().chain(change.remove_slots) {
            let Some(length) = found(self.slots.get(&slot, 0)).map_err(used(map::SOCK_SLOT))?
            else {
                continue;
            };
            lengths.insert(slot, length);
            for index in 0..length {
                let place = SocketBackend::new(slot, index);
                let address = found(self.backends.get(&place, 0));
                let address = address.map_err(used(map::SOCK_BACKEND))?;
                places.extend(address.map(|address| (place, address)));
            }
        }
        let plan = slots::plan(&lengths, &places, &as_addresses(change.slots));
        self.fill(&plan)?;
        reconcile::change(&mut self.services, change.services, change.remove_services)
            .map_err(used(map::SOCK_SERVICE))?;
        self.clear(&plan)
    }

    /// What a plan puts in: before services lead there.
    fn fill(&mut self, plan: &SlotPlan) -> Result<Changed, MeshError> {
        let used = |map| move |source| MeshError::UseMap { map, source };
        for (place, address) in &plan.place {
            let written = self.backends.insert(place, address, 0);
            written.map_err(used(map::SOCK_BACKEND))?;
        }
        for (slot, length) in &plan.resize {
            let written = self.slots.insert(slot, length, 0);
            written.map_err(used(map::SOCK_SLOT))?;
        }
        Ok(Changed {
            written: plan.place.len() + plan.resize.len(),
            removed: plan.remove.len() + plan.clear.len(),
        })
    }

    /// What it takes out: when no service leads there any more.
    fn clear(&mut self, plan: &SlotPlan) -> Result<(), MeshError> {
        let used = |map| move |source| MeshError::UseMap { map, source };
        for slot in &plan.remove {
            removed(self.slots.remove(slot)).map_err(used(map::SOCK_SLOT))?;
        }
        for place in &plan.clear {
            removed(self.backends.remove(place)).map_err(used(map::SOCK_BACKEND))?;
        }
        Ok(())
    }
}

/// The tasks behind each slot as the map has them.
fn as_addresses(slots: &BTreeMap<u64, BTreeSet<IpAddr>>) -> BTreeMap<u64, BTreeSet<Address>> {
    let addresses = |tasks: &BTreeSet<IpAddr>| tasks.iter().map(|it| Address::from(*it)).collect();
    let slots = slots.iter();
    slots
        .map(|(slot, tasks)| (*slot, addresses(tasks)))
        .collect()
}

fn found<T>(outcome: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match outcome {
        Err(MapError::KeyNotFound) => Ok(None),
        outcome => outcome.map(Some),
    }
}

/// Loads the socket programs of the object.
pub(super) fn load(object: &mut Ebpf) -> Result<(), MeshError> {
    for program in SocketProgram::ALL {
        let loaded = loaded_mut(object, program)?.load();
        loaded.map_err(|source| SocketError::Load { program, source })?;
    }
    Ok(())
}

/// Unpins, and so detaches, what is at the socket hooks for the agent that has its pins there.
pub(super) fn remove_pins(bpffs_dir: &Path) -> Result<(), MeshError> {
    let links = links_dir(bpffs_dir);
    // The other way round: no question is translated whose answer is not.
    for program in SocketProgram::ALL.into_iter().rev() {
        gone(fs::remove_file(links.join(fresh_name(program))), &links)?;
        gone(fs::remove_file(links.join(program.name())), &links)?;
    }
    gone(fs::remove_dir(&links), &links)
}

fn links_dir(bpffs_dir: &Path) -> PathBuf {
    bpffs_dir.join("links")
}

/// Where a new link is pinned at first. The BPF file system allows no dots.
fn fresh_name(program: SocketProgram) -> String {
    format!("{program}_new")
}

impl Mesh {
    /// Makes exactly these the services that sockets are balanced to. At every moment a socket
    /// finds a service as it was or as it will be.
    pub(crate) fn set_sockets(&mut self, desired: &SocketTables) -> Result<Changed, MeshError> {
        self.sockets.set(desired)
    }

    /// Makes some services what they are to be, without a look at the others. As safe as
    /// [`set_sockets`](Self::set_sockets).
    pub(crate) fn change_sockets(&mut self, change: &SocketChange<'_>) -> Result<(), MeshError> {
        self.sockets.change(change)
    }

    /// What is in the socket programs' places.
    pub(crate) fn socket_links(&self) -> Result<SocketLinks, MeshError> {
        // Nowhere to attach to is the same answer for all.
        cgroup::open_root().map_err(SocketError::from)?;
        let (mut current, mut there) = (0, 0);
        for program in SocketProgram::ALL {
            let path = links_dir(&self.bpffs_dir).join(program.name());
            let held = link::program_id(&path);
            match held.map_err(|source| SocketError::UsePin { path, source })? {
                Some(id) if id == self.socket_program_id(program)? => current += 1,
                Some(_) => there += 1,
                None => {}
            }
        }
        Ok(match (current, there) {
            (0, 0) => SocketLinks::Absent,
            (count, _) if count == SocketProgram::ALL.len() => SocketLinks::Current,
            _ => SocketLinks::Outdated,
        })
    }

    /// Attaches the socket programs that are not attached, in the place of an earlier agent's.
    pub(crate) fn attach_sockets(&mut self) -> Result<(), MeshError> {
        let root = cgroup::open_root().map_err(SocketError::from)?;
        let links = links_dir(&self.bpffs_dir);
        let used = |path: &Path| {
            let path = path.to_owned();
            move |source| SocketError::UsePin { path, source }
        };
        fs::create_dir_all(&links).map_err(used(&links))?;
        for program in SocketProgram::ALL {
            let path = links.join(program.name());
            let id = self.socket_program_id(program)?;
            if link::program_id(&path).map_err(used(&path))? == Some(id) {
                continue;
            }
            let fresh = links.join(fresh_name(program));
            gone(fs::remove_file(&fresh), &fresh)?;
            let link = self.attach_socket(program, &root)?;
            link.pin(&fresh).map_err(|source| SocketError::Pin {
                path: fresh.clone(),
                source,
            })?;
            fs::rename(&fresh, &path).map_err(used(&path))?;
        }
        Ok(())
    }

    fn attach_socket(&mut self, program: SocketProgram, root: &File) -> Result<FdLink, MeshError> {
        let failed = |source| SocketError::Attach { program, source };
        let loaded = loaded_mut(&mut self.object, program)?;
        // Links always allow several programs; the kernel refuses to be told so (`EINVAL`).
        let id = loaded.attach(root, CgroupAttachMode::Single);
        let link = loaded.take_link(id.map_err(failed)?).map_err(failed)?;
        Ok(FdLink::try_from(link).map_err(|_| SocketError::NoLinks)?)
    }

    /// The kernel's number of a socket program.
    pub(crate) fn socket_program_id(&self, program: SocketProgram) -> Result<u32, MeshError> {
        let info = self.socket_program(program)?.info();
        Ok(info
            .map_err(|source| SocketError::Load { program, source })?
            .id())
    }

    /// The loaded program.
    pub(super) fn socket_program(
        &self,
        program: SocketProgram,
    ) -> Result<&CgroupSockAddr, MeshError> {
        let missing = MeshError::Incomplete {
            what: program.name(),
        };
        let found: Result<&CgroupSockAddr, ProgramError> = self
            .object
            .program(program.name())
            .ok_or(missing)?
            .try_into();
        Ok(found.map_err(|source| SocketError::Load { program, source })?)
    }
}

fn loaded_mut(object: &mut Ebpf, program: SocketProgram) -> Result<&mut CgroupSockAddr, MeshError> {
    let missing = MeshError::Incomplete {
        what: program.name(),
    };
    let found: Result<&mut CgroupSockAddr, ProgramError> = object
        .program_mut(program.name())
        .ok_or(missing)?
        .try_into();
    Ok(found.map_err(|source| SocketError::Load { program, source })?)
}
