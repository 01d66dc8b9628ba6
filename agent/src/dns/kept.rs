//! Sockets that outlive the agent: kept by systemd in its file descriptor store, handed to the next
//! agent (`FDSTORE=1` in sd_notify(3); `FileDescriptorStoreMax=` in systemd.service(5)).
//!
//! While no agent runs, queries then wait in the sockets instead of being refused, and the next
//! agent answers them: a restart is over before the C libraries repeat a query (5 s). Where nobody
//! keeps sockets, the next agent opens new ones.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use listenfd::ListenFd;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use swarm_model::TaskId;

use super::socket::Sockets;

/// Before the task's id in the name of its sockets.
const NAME_PREFIX: &str = "dns-";

/// How long systemd may take to make room for a message: it reads them as they come.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

static OF_PROCESS: LazyLock<Arc<SocketStore>> = LazyLock::new(|| {
    Arc::new(SocketStore {
        notify: env::var_os("NOTIFY_SOCKET").and_then(|address| notify_address(&address).ok()),
        kept: Mutex::new(handed_over()),
    })
});

/// Where a task's sockets are kept between two agents.
#[derive(Debug, Default)]
pub(crate) struct SocketStore {
    /// Whom to give them to.
    notify: Option<SocketAddr>,
    /// What the agent before this one gave, by task, until it is taken.
    kept: Mutex<BTreeMap<TaskId, Sockets>>,
}

impl SocketStore {
    /// The store of this process. It is to be asked for the first time before there is a second
    /// thread: it changes the environment.
    pub(crate) fn of_process() -> Arc<Self> {
        OF_PROCESS.clone()
    }

    /// A store that hands these over and gives to `notify`.
    #[cfg(test)]
    pub(super) fn with(notify: Option<SocketAddr>, kept: BTreeMap<TaskId, Sockets>) -> Self {
        Self {
            notify,
            kept: Mutex::new(kept),
        }
    }

    /// The sockets of a task, once.
    pub(super) fn take(&self, task: &TaskId) -> Option<Sockets> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.remove(task)
    }

    /// Has the sockets of a task kept. Repeatable. May wait for a moment.
    pub(super) fn keep(&self, task: &TaskId, sockets: &Sockets) {
        let fds = [sockets.udp.as_raw_fd(), sockets.tcp.as_raw_fd()];
        // Without FDPOLL=0 they would be dropped when an error waits in one of them.
        let text = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={NAME_PREFIX}{task}");
        self.tell(task, &text, &[ControlMessage::ScmRights(&fds)]);
    }

    /// Has them kept no longer: they would keep the task's namespace. May wait for a moment.
    pub(super) fn forget(&self, task: &TaskId) {
        drop(self.take(task));
        let text = format!("FDSTOREREMOVE=1\nFDNAME={NAME_PREFIX}{task}");
        self.tell(task, &text, &[]);
    }

    /// The tasks whose sockets nobody has taken.
    pub(super) fn left(&self) -> Vec<TaskId> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.keys().cloned().collect()
    }

    fn tell(&self, task: &TaskId, text: &str, control: &[ControlMessage<'_>]) {
        let Some(address) = &self.notify else { return };
        let send = || -> io::Result<()> {
            // A new one each time: systemd's end is another one after it was upgraded.
            let socket = UnixDatagram::unbound()?;
            socket.set_write_timeout(Some(SEND_TIMEOUT))?;
            socket.connect_addr(address)?;
            let text = [IoSlice::new(text.as_bytes())];
            sendmsg::<()>(socket.as_raw_fd(), &text, control, MsgFlags::empty(), None)?;
            Ok(())
        };
        if let Err(error) = send() {
            // The next agent opens new ones.
            tracing::warn!(%task, %error, "the service manager does not keep a name server's sockets");
        }
    }
}

/// An address as sd_notify(3) takes it: a path, or a name in the abstract namespace after `@`.
fn notify_address(address: &OsStr) -> io::Result<SocketAddr> {
    match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(address),
    }
}

/// What was handed to this process, by task. Sockets with other names are left alone.
fn handed_over() -> BTreeMap<TaskId, Sockets> {
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut sockets = ListenFd::from_env();
    let mut udp = BTreeMap::new();
    let mut tcp = BTreeMap::new();
    for (index, name) in names.split(':').enumerate() {
        let task = name.strip_prefix(NAME_PREFIX);
        let Some(task) = task.and_then(|id| id.parse::<TaskId>().ok()) else {
            continue;
        };
        if let Ok(Some(socket)) = sockets.take_udp_socket(index) {
            udp.insert(task, socket);
        } else if let Ok(Some(socket)) = sockets.take_tcp_listener(index) {
            tcp.insert(task, socket);
        }
    }
    let pairs = udp.into_iter().filter_map(|(task, udp)| {
        let tcp = tcp.remove(&task)?;
        Some((task, Sockets { udp, tcp }))
    });
    pairs.collect()
}
