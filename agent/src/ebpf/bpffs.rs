//! The BPF file system that the maps are pinned in.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::MeshError;

/// Where every distribution mounts it.
const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Makes `<directory>/maps`, mounting the BPF file system at its usual place if nobody has.
pub(super) fn prepare(directory: &Path) -> Result<PathBuf, MeshError> {
    if directory.starts_with(MOUNT_POINT) && !is_bpffs(Path::new(MOUNT_POINT)) {
        mount(
            Some("bpf"),
            MOUNT_POINT,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .map_err(|source| MeshError::MountBpffs {
            path: MOUNT_POINT.into(),
            source,
        })?;
    }
    let maps = directory.join("maps");
    fs::create_dir_all(&maps).map_err(|source| MeshError::CreatePinDirectory {
        path: maps.clone(),
        source,
    })?;
    if !is_bpffs(&maps) {
        return Err(MeshError::NotBpffs { path: maps });
    }
    Ok(maps)
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}
