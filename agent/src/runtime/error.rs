//! What can go wrong with a container, in words for the person who made the service.

use std::time::Duration;

use swarm_model::TaskId;

use super::InvalidImageName;

/// A failure of the container runtime.
///
/// The text names the action, its object and, where there is one, the remedy; the technical cause
/// is the error's source. Values are comparable and cloneable, so that a fake can be told to
/// fail in exactly this way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RuntimeError {
    /// The containerd socket does not answer.
    #[error(
        "containerd is not reachable at {socket}; is it running? try: systemctl start containerd"
    )]
    Unreachable {
        /// Path of the socket.
        socket: String,
        /// What connecting gave.
        #[source]
        cause: Cause,
    },
    /// containerd has no Transfer service.
    #[error("containerd {version} at {socket} is too old; version 1.7 or newer is needed")]
    TooOld {
        /// Path of the socket.
        socket: String,
        /// What it says it is.
        version: String,
    },
    /// The image's name cannot be one.
    #[error(transparent)]
    ImageName(#[from] InvalidImageName),
    /// The registry does not have the image, or not for us.
    #[error("no such image {image}, or pulling it is denied")]
    ImageNotFound {
        /// Full name of the image.
        image: String,
        /// The registry's answer.
        #[source]
        cause: Cause,
    },
    /// The registry could not be asked.
    #[error("registry {registry} of image {image} is not reachable from this node")]
    RegistryUnreachable {
        /// The registry's host.
        registry: String,
        /// Full name of the image.
        image: String,
        /// What connecting gave.
        #[source]
        cause: Cause,
    },
    /// The registry does not speak TLS and nobody said that it need not.
    #[error(
        "registry {registry} of image {image} speaks plain HTTP, not HTTPS; {}",
        match hosts_toml {
            Some(path) => format!("if that is meant, allow it in {path} on this node"),
            None => "containerd before 2.0 cannot pull from it".to_owned(),
        }
    )]
    RegistryInsecure {
        /// The registry's host.
        registry: String,
        /// Full name of the image.
        image: String,
        /// The file that describes the registry, for a containerd that reads it.
        hosts_toml: Option<String>,
    },
    /// The image exists, but not for this kind of machine.
    #[error("image {image} is not made for this node's platform {platform}")]
    WrongPlatform {
        /// Full name of the image.
        image: String,
        /// This node's platform, such as `linux/amd64`.
        platform: String,
    },
    /// Something in the image cannot be used.
    #[error("image {image} cannot be used")]
    ImageUnusable {
        /// Full name of the image.
        image: String,
        /// What is wrong with it.
        #[source]
        cause: Cause,
    },
    /// What to run is neither in the image nor executable there.
    #[error("task {task_id} cannot run its command")]
    CommandNotRunnable {
        /// The task.
        task_id: TaskId,
        /// What the low-level runtime said, without its wrapping.
        #[source]
        cause: Cause,
    },
    /// The task's definition is at fault.
    #[error("container of task {task_id} cannot be made")]
    InvalidContainer {
        /// The task.
        task_id: TaskId,
        /// What is wrong with it.
        #[source]
        cause: Cause,
    },
    /// The process and its exit status are gone, as after a restart of the host.
    #[error(
        "process of task {task_id} is gone and its exit status with it; was the host restarted?"
    )]
    ProcessLost {
        /// The task.
        task_id: TaskId,
    },
    /// The disk is full.
    #[error("cannot {action} {subject}: no space left on this node's disk")]
    DiskFull {
        /// What was tried, such as `pull image`.
        action: &'static str,
        /// On what.
        subject: String,
    },
    /// No answer in time.
    #[error("cannot {action} {subject}: no answer within {} s", after.as_secs())]
    Deadline {
        /// What was tried.
        action: &'static str,
        /// On what.
        subject: String,
        /// The bound.
        after: Duration,
    },
    /// Anything else.
    #[error("cannot {action} {subject}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// On what.
        subject: String,
        /// What the runtime said.
        #[source]
        cause: Cause,
    },
}

impl RuntimeError {
    /// Whether the same call may well succeed soon, without anybody changing the service: then the
    /// task is not at fault, and the worker tries again.
    pub(crate) fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Deadline { .. } => true,
            Self::TooOld { .. }
            | Self::ImageName(_)
            | Self::ImageNotFound { .. }
            | Self::RegistryUnreachable { .. }
            | Self::RegistryInsecure { .. }
            | Self::WrongPlatform { .. }
            | Self::ImageUnusable { .. }
            | Self::CommandNotRunnable { .. }
            | Self::InvalidContainer { .. }
            | Self::ProcessLost { .. }
            | Self::DiskFull { .. }
            | Self::Failed { .. } => false,
        }
    }
}

/// The technical cause of a [`RuntimeError`]: one line in somebody else's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Cause(String);

impl Cause {
    /// Most bytes of a cause. It ends up in a task's status in the Raft store, of which there may
    /// be thousands.
    pub(crate) const MAX_LEN: usize = 400;

    /// `text` on one line, cut at [`Cause::MAX_LEN`].
    pub(crate) fn new(text: impl AsRef<str>) -> Self {
        let mut line = text
            .as_ref()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        if line.len() > Self::MAX_LEN {
            line.truncate(line.floor_char_boundary(Self::MAX_LEN));
            line.push('…');
        }
        Self(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_one_bounded_line() {
        assert_eq!(Cause::new("a\n b\tc ").to_string(), "a b c");
        let long = Cause::new("é".repeat(1000)).to_string();
        assert!(
            long.len() <= Cause::MAX_LEN + '…'.len_utf8(),
            "{}",
            long.len()
        );
        assert!(long.ends_with("é…"));
    }
}
