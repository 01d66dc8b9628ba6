//! Pinned links: what they hold in place. aya tells the program of a link, but not whether somebody
//! has detached it by force; the kernel tells in the link's `fdinfo`.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::libc;

/// `BPF_OBJ_GET` of `enum bpf_cmd` (linux/bpf.h).
const BPF_OBJ_GET: libc::c_int = 7;

/// The arguments of `BPF_OBJ_GET`, the first members of `union bpf_attr`.
#[repr(C)]
struct GetArguments {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The program that the link pinned at `path` holds at a cgroup; nothing when no link is pinned
/// there, or when it has been detached.
pub(super) fn program_id(path: &Path) -> io::Result<Option<u32>> {
    let link = match open(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let info = fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", link.as_raw_fd()))?;
    Ok(held(&info))
}

/// What `bpf_cgroup_link_show_fdinfo` and `bpf_link_show_fdinfo` have written.
fn held(info: &str) -> Option<u32> {
    let field = |name: &str| -> Option<u64> {
        info.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            (found == name).then(|| value.trim().parse().ok())?
        })
    };
    // A detached link belongs to no cgroup.
    field("cgroup_id").filter(|id| *id != 0)?;
    field("prog_id")?.try_into().ok()
}

#[allow(unsafe_code, reason = "no library opens a pinned link as a file")]
fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let arguments = GetArguments {
        pathname: path.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    // SAFETY: the arguments are a structure of the size given; the path is terminated and outlives
    // the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET,
            &raw const arguments,
            size_of::<GetArguments>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_holds_its_program_until_it_is_detached() {
        let attached = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t10\nlink_type:\tcgroup\n\
                        link_id:\t4\nprog_tag:\t70a8f2a0\nprog_id:\t35\ncgroup_id:\t1\n\
                        attach_type:\t10\n";
        assert_eq!(held(attached), Some(35));
        let detached = attached.replace("cgroup_id:\t1\n", "cgroup_id:\t0\n");
        assert_eq!(held(&detached), None);
        assert_eq!(held("pos:\t0\n"), None);
    }
}
