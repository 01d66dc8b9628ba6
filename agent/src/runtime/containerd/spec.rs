//! The OCI runtime specification of a task's container: what runc is told.
//!
//! The defaults are Docker's: an image that runs under Docker finds the same capabilities and
//! mounts here. Resource limits (`ulimit`) are left alone, as there: they are containerd's own.
//! Field names are those of the OCI runtime specification 1.0, `config.md` and `config-linux.md`.

use std::path::Path;

use serde_json::{Value, json};

use super::image::ImageConfig;
use super::user::User;
use crate::runtime::TaskContainer;

/// Version of the OCI runtime specification that is written; every runc since 1.0 reads it.
const OCI_VERSION: &str = "1.0.2";
/// Docker's `PATH` for images that set none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Scheduling period a processor limit is enforced over, in microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses a smaller quota (`min_cfs_quota_period`).
const CPU_QUOTA_MIN_US: u64 = 1_000;
/// Longest host name (`__NEW_UTS_LEN`, `linux/utsname.h`).
const HOSTNAME_LEN_MAX: usize = 64;

/// What Docker lets a container's root do.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Parts of /proc and /sys that tell about the host or reach into it.
const MASKED_PATHS: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
];

const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What cannot be turned into a container.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidSpec {
    /// Neither the image nor the service says what to run.
    #[error("the image has no command and the service gives none")]
    NoCommand,
    /// Host name too long or empty.
    #[error("host name {0:?} is not 1 to {HOSTNAME_LEN_MAX} bytes")]
    Hostname(String),
    /// Environment entry without a name.
    #[error("environment entry {0:?} is not NAME=VALUE")]
    Env(String),
    /// A working directory that depends on where one is.
    #[error("working directory {0:?} is not an absolute path")]
    WorkingDir(String),
    /// runc takes text only.
    #[error("path {0:?} is not UTF-8")]
    Path(std::path::PathBuf),
}

/// Writes the specification.
///
/// `files` is the directory that holds the task's generated `resolv.conf`, `hosts` and `hostname`;
/// `cgroup` the container's cgroup below the hierarchy's root.
pub(super) fn runtime_spec(
    task: &TaskContainer,
    image: &ImageConfig,
    user: &User,
    files: &Path,
    cgroup: &str,
) -> Result<Value, InvalidSpec> {
    if task.hostname.is_empty() || task.hostname.len() > HOSTNAME_LEN_MAX {
        return Err(InvalidSpec::Hostname(task.hostname.clone()));
    }
    Ok(json!({
        "ociVersion": OCI_VERSION,
        "hostname": task.hostname,
        "root": {"path": "rootfs"},
        "process": {
            "args": command(task, image)?,
            "cwd": working_dir(task, image)?,
            "env": environment(task, image)?,
            "user": {
                "uid": user.uid,
                "gid": user.gid,
                "additionalGids": user.additional_gids,
            },
            // Inheritable and ambient stay empty: a program run by an unprivileged user gains
            // nothing (CVE-2022-24769).
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
            "noNewPrivileges": false,
            // The shim protects itself from the OOM killer; its children must not inherit that.
            "oomScoreAdj": 0,
        },
        "mounts": mounts(files)?,
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [
                {"type": "pid"},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "mount"},
                {"type": "cgroup"},
                {"type": "network", "path": text(&task.netns_path)?},
            ],
            "resources": resources(task),
            // As Docker: within its own network namespace every user may bind low ports and ping.
            "sysctl": {
                "net.ipv4.ip_unprivileged_port_start": "0",
                "net.ipv4.ping_group_range": "0 2147483647",
            },
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READONLY_PATHS,
        },
    }))
}

/// Docker's rule: the service's command replaces the entrypoint and drops the image's command,
/// which would mean nothing to another entrypoint; its args replace the image's command.
fn command(task: &TaskContainer, image: &ImageConfig) -> Result<Vec<String>, InvalidSpec> {
    let (entrypoint, image_args) = if task.command.is_empty() {
        (&image.entrypoint, image.cmd.as_slice())
    } else {
        (&task.command, [].as_slice())
    };
    let args = if task.args.is_empty() {
        image_args
    } else {
        &task.args
    };
    let command: Vec<String> = entrypoint.iter().chain(args).cloned().collect();
    if command.is_empty() {
        Err(InvalidSpec::NoCommand)
    } else {
        Ok(command)
    }
}

fn working_dir<'a>(
    task: &'a TaskContainer,
    image: &'a ImageConfig,
) -> Result<&'a str, InvalidSpec> {
    let dir = match task.working_dir.as_deref() {
        Some(dir) => dir,
        None if image.working_dir.is_empty() => "/",
        None => &image.working_dir,
    };
    if dir.starts_with('/') {
        Ok(dir)
    } else {
        Err(InvalidSpec::WorkingDir(dir.to_owned()))
    }
}

/// Later entries replace earlier ones of the same name, in place.
fn environment(task: &TaskContainer, image: &ImageConfig) -> Result<Vec<String>, InvalidSpec> {
    let hostname = format!("HOSTNAME={}", task.hostname);
    let defaults = [DEFAULT_PATH, &hostname];
    let given = image.env.iter().chain(&task.env).map(String::as_str);
    let mut environment: Vec<(&str, &str)> = Vec::new();
    for entry in defaults.into_iter().chain(given) {
        let name = match entry.split_once('=') {
            Some((name, _)) if !name.is_empty() && !entry.contains('\0') => name,
            _ => return Err(InvalidSpec::Env(entry.to_owned())),
        };
        match environment.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = entry,
            None => environment.push((name, entry)),
        }
    }
    Ok(environment
        .into_iter()
        .map(|(_, entry)| entry.to_owned())
        .collect())
}

fn mounts(files: &Path) -> Result<Value, InvalidSpec> {
    let mount = |target: &str, kind: &str, source: &str, options: &[&str]| {
        let mut mount = json!({"destination": target, "type": kind, "source": source});
        mount["options"] = json!(options);
        mount
    };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            // Group 5 is tty in every distribution.
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
    ];
    for file in GENERATED_FILES {
        let source = files.join(file);
        mounts.push(mount(
            &format!("/etc/{file}"),
            "bind",
            text(&source)?,
            &["rbind", "rprivate"],
        ));
    }
    Ok(Value::Array(mounts))
}

/// Files of /etc that the node writes for each task.
pub(super) const GENERATED_FILES: [&str; 3] = ["resolv.conf", "hosts", "hostname"];

fn resources(task: &TaskContainer) -> Value {
    // runc adds the harmless devices every container has (null, zero, random, tty, pts).
    let mut resources = json!({"devices": [{"allow": false, "access": "rwm"}]});
    if let Some(bytes) = task.memory_limit_bytes {
        resources["memory"] = json!({"limit": i64::try_from(bytes).unwrap_or(i64::MAX)});
    }
    if let Some(nanos) = task.cpu_limit_nanos {
        let quota_us = (nanos / (1_000_000_000 / CPU_PERIOD_US)).max(CPU_QUOTA_MIN_US);
        let quota_us = i64::try_from(quota_us).unwrap_or(i64::MAX);
        resources["cpu"] = json!({"period": CPU_PERIOD_US, "quota": quota_us});
    }
    resources
}

fn text(path: &Path) -> Result<&str, InvalidSpec> {
    path.to_str()
        .ok_or_else(|| InvalidSpec::Path(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> TaskContainer {
        TaskContainer {
            task_id: "a".repeat(25).parse().unwrap(),
            image: "app".to_owned(),
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            hostname: "box".to_owned(),
            working_dir: None,
            user: None,
            stop_signal: None,
            labels: Default::default(),
            memory_limit_bytes: None,
            cpu_limit_nanos: None,
            netns_path: "/run/swarm/netns/task-a".into(),
            resolv_conf: String::new(),
            hosts: String::new(),
        }
    }

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/entry".to_owned()],
            cmd: vec!["serve".to_owned(), "--all".to_owned()],
            ..ImageConfig::default()
        }
    }

    fn write(task: &TaskContainer, image: &ImageConfig) -> Result<Value, InvalidSpec> {
        let user = User {
            uid: 1000,
            gid: 100,
            additional_gids: vec![10, 20, 100],
        };
        runtime_spec(task, image, &user, Path::new("/state/a"), "/swarm/swarm/a")
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    /// The golden file is what the code gave when containers were last seen to work with it. After
    /// a change that is meant, print the new value and compare by eye.
    #[test]
    fn whole_specification() {
        let task = TaskContainer {
            args: strings(&["serve", "80"]),
            env: strings(&["MODE=fast"]),
            memory_limit_bytes: Some(64 << 20),
            cpu_limit_nanos: Some(1_500_000_000),
            ..task()
        };
        let image = ImageConfig {
            env: strings(&["MODE=slow", "PATH=/bin"]),
            ..image()
        };
        let spec = write(&task, &image).unwrap();
        let golden: Value = serde_json::from_str(include_str!("spec_golden.json")).unwrap();
        assert_eq!(spec, golden, "{spec:#}");
    }

    #[test]
    fn command_follows_docker() {
        let table: [(&[&str], &[&str], &[&str]); 4] = [
            (&[], &[], &["/entry", "serve", "--all"]),
            (&[], &["other"], &["/entry", "other"]),
            (&["sh"], &[], &["sh"]),
            (&["sh"], &["-c", "true"], &["sh", "-c", "true"]),
        ];
        for (given_command, args, expected) in table {
            let task = TaskContainer {
                command: strings(given_command),
                args: strings(args),
                ..task()
            };
            assert_eq!(command(&task, &image()), Ok(strings(expected)));
        }
        assert_eq!(
            command(&task(), &ImageConfig::default()),
            Err(InvalidSpec::NoCommand)
        );
    }

    #[test]
    fn working_dir_falls_back() {
        let image = ImageConfig {
            working_dir: "/srv".to_owned(),
            ..image()
        };
        assert_eq!(working_dir(&task(), &ImageConfig::default()), Ok("/"));
        assert_eq!(working_dir(&task(), &image), Ok("/srv"));
        let task = TaskContainer {
            working_dir: Some("/w".to_owned()),
            ..task()
        };
        assert_eq!(working_dir(&task, &image), Ok("/w"));
        let task = TaskContainer {
            working_dir: Some("w".to_owned()),
            ..task
        };
        assert!(working_dir(&task, &image).is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        for env in ["", "=x", "NAME", "A=\0"] {
            let task = TaskContainer {
                env: strings(&[env]),
                ..task()
            };
            assert_eq!(
                write(&task, &image()),
                Err(InvalidSpec::Env(env.to_owned()))
            );
        }
        for hostname in ["".to_owned(), "h".repeat(65)] {
            let task = TaskContainer {
                hostname: hostname.clone(),
                ..task()
            };
            assert_eq!(write(&task, &image()), Err(InvalidSpec::Hostname(hostname)));
        }
    }

    #[test]
    fn small_processor_limits_are_raised_to_the_kernels_least() {
        let limited = |nanos| {
            let task = TaskContainer {
                cpu_limit_nanos: Some(nanos),
                ..task()
            };
            resources(&task)["cpu"]["quota"].clone()
        };
        assert_eq!(limited(1), 1_000);
        assert_eq!(limited(250_000_000), 25_000);
    }
}
