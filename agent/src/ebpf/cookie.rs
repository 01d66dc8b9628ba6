//! Network namespace cookies: what the socket programs tell namespaces apart by.

use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

/// The cookie of the namespace that a socket belongs to (`SO_NETNS_COOKIE`, from Linux 5.14): never
/// 0, and never given twice while the machine is up.
#[allow(unsafe_code, reason = "no library has this socket option")]
pub(crate) fn netns_cookie(socket: &impl AsRawFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the pointers are to a value of the length given and to that length, and outlive the
    // call.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if outcome == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}
