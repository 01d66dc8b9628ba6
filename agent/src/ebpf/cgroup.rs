//! The root of the cgroup tree, where the socket programs are attached.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

/// Mounts of this process. See `proc_pid_mountinfo(5)`.
const MOUNTS: &str = "/proc/thread-self/mountinfo";

/// Why the root could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// The mounts could not be read.
    #[error("cannot read {MOUNTS}")]
    Mounts(#[source] io::Error),
    /// There is no version 2 tree.
    #[error(
        "no cgroup version 2 file system is mounted: `mount -t cgroup2 cgroup2 /sys/fs/cgroup`, or \
         `/sys/fs/cgroup/unified` beside version 1"
    )]
    NotMounted,
    /// The root could not be opened.
    #[error("cannot open the cgroup root {}", path.display())]
    Open {
        /// Where it is mounted.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Opens the root of the version 2 tree. Every process of the machine is below it, also where
/// version 1 is in use beside it.
pub(super) fn open_root() -> Result<File, CgroupError> {
    let mounts = fs::read_to_string(MOUNTS).map_err(CgroupError::Mounts)?;
    let path = root_of(&mounts).ok_or(CgroupError::NotMounted)?;
    File::open(&path).map_err(|source| CgroupError::Open { path, source })
}

/// Where `mounts` has the root of a version 2 tree.
fn root_of(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, path) = (fields.next()?, fields.next()?);
        let version_2 = source.split(' ').next() == Some("cgroup2");
        (version_2 && root == "/").then(|| PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_found_among_other_mounts() {
        let hybrid = "\
25 1 0:22 / /sys rw,nosuid - sysfs sysfs rw
30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
32 30 0:28 /docker/1 /mnt/container rw - cgroup2 cgroup2 rw
33 30 0:28 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw,nsdelegate
";
        let unified = "33 30 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(root_of(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(root_of(unified), Some("/sys/fs/cgroup".into()));
        assert_eq!(root_of("25 1 0:22 / /sys rw - sysfs sysfs rw\n"), None);
        assert_eq!(root_of("nonsense\n\n - cgroup2\n"), None);
    }
}
