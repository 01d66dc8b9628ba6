//! Reading a whole hash map by few system calls. aya has one for each key and one for each value,
//! which for the maps of thousands of services is most of what a look at the node costs.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::Pod;
use aya::maps::{HashMap, IterableMap as _, MapData, MapError};
use aya::sys::SyscallError;
use nix::libc;

/// `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd` (linux/bpf.h), since Linux 5.6.
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

/// Entries asked for at once at first. A bucket comes whole; where one has more, more are asked for.
const ENTRIES: usize = 4096;

/// More than a bucket of any map of ours can have.
const ENTRIES_MAX: usize = 1 << 20;

/// The arguments of `BPF_MAP_LOOKUP_BATCH`, the member `batch` of `union bpf_attr`.
#[repr(C)]
struct Arguments {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// All that a map holds. An entry that is put in or taken out meanwhile may be in it or not.
#[allow(unsafe_code, reason = "aya does not read in batches")]
pub(super) fn entries<K: Ord + Pod, V: Pod>(
    map: &HashMap<MapData, K, V>,
) -> Result<BTreeMap<K, V>, MapError> {
    let map_fd = map.map().fd().as_fd().as_raw_fd();
    let mut found = BTreeMap::new();
    let mut size = ENTRIES;
    // Where a batch ends: of a hash map, the number of a bucket.
    let mut begin: Option<u32> = None;
    loop {
        let mut keys: Vec<K> = Vec::with_capacity(size);
        let mut values: Vec<V> = Vec::with_capacity(size);
        let mut end = 0_u32;
        let mut arguments = Arguments {
            in_batch: begin.as_ref().map_or(0, |begin| &raw const *begin as u64),
            out_batch: &raw mut end as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(size).unwrap_or(u32::MAX),
            map_fd: map_fd.cast_unsigned(),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the arguments are a structure of the size given. Keys and values are of the map's
        // sizes, which aya has compared when it made the map, and there is room for as many as are
        // asked for; both batches are numbers of four bytes, as hash maps have them. All of it
        // outlives the call.
        let outcome = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_LOOKUP_BATCH,
                &raw mut arguments,
                size_of::<Arguments>(),
            )
        };
        let error = (outcome < 0).then(io::Error::last_os_error);
        let errno = error.as_ref().and_then(io::Error::raw_os_error);
        if errno == Some(libc::ENOSPC) && size < ENTRIES_MAX {
            size *= 2;
            continue;
        }
        // At the end of the map, with what was read up to there.
        let is_last = errno == Some(libc::ENOENT);
        if let Some(io_error) = error.filter(|_| !is_last) {
            let call = "bpf_map_lookup_batch";
            return Err(SyscallError { call, io_error }.into());
        }
        let count = size.min(arguments.count as usize);
        // SAFETY: the kernel has written as many, and any bytes are a value.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        found.extend(keys.into_iter().zip(values));
        if is_last {
            return Ok(found);
        }
        begin = Some(end);
    }
}
