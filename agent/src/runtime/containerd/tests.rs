//! The driver against a real containerd. Needs root, busybox (static) and `ip`, and in the
//! environment
//! * `SWARM_TEST_CONTAINERD`: path of containerd's socket;
//! * `SWARM_TEST_REGISTRY_CA`: directory with `ca.pem` and `ca-key.pem` of an authority that this
//!   containerd trusts (as by `SSL_CERT_FILE` in its environment). containerd from 2.0 on can do
//!   without, as it can be allowed plain HTTP.
//!
//! Where something is missing each test says loudly that it skips.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use self::registry::{Content, Registry, Tar};
use super::*;

mod registry;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Runs until SIGTERM, which it answers with exit code 3.
const SERVE: &str = "trap 'echo stopped; exit 3' TERM; echo up; while :; do sleep 0.05; done";

struct Lab {
    config: ContainerdConfig,
    runtime: ContainerdRuntime,
    registry: Registry,
    netns: PathBuf,
    _dir: TempDir,
}

impl Lab {
    /// A namespace of its own in the given containerd, a registry with images, and a network
    /// namespace. None, after saying why, when something is missing.
    async fn new(name: &str) -> Option<Self> {
        let Some(socket) = std::env::var_os("SWARM_TEST_CONTAINERD") else {
            eprintln!("SKIP {name}: SWARM_TEST_CONTAINERD does not name containerd's socket");
            return None;
        };
        let Some(busybox) = busybox() else {
            eprintln!("SKIP {name}: no busybox; install busybox-static");
            return None;
        };
        let name = format!("swarm-test-{name}-{}", std::process::id());
        let dir = tempfile::tempdir().unwrap();
        let config = ContainerdConfig {
            socket: socket.into(),
            namespace: name.clone(),
            // The shim takes paths for URIs first.
            tasks_dir: dir.path().join("all tasks#?"),
            registry_hosts_dir: dir.path().join("certs.d"),
        };
        let runtime = ContainerdRuntime::connect(config.clone()).await.unwrap();
        let authority = std::env::var_os("SWARM_TEST_REGISTRY_CA").map(PathBuf::from);
        if authority.is_none() && !runtime.reads_registry_hosts {
            eprintln!(
                "SKIP {name}: this containerd pulls over HTTPS only, and SWARM_TEST_REGISTRY_CA \
                 names no authority that it trusts"
            );
            return None;
        }
        let registry = content(&busybox)
            .serve(LOCALHOST, authority.as_deref())
            .await;
        let status = Command::new("ip")
            .args(["netns", "add", &name])
            .status()
            .unwrap();
        assert!(status.success(), "ip netns add {name}");
        let netns = Path::new("/run/netns").join(&name);
        Some(Self {
            config,
            runtime,
            registry,
            netns,
            _dir: dir,
        })
    }

    fn image(&self, tag: &str) -> String {
        format!("{}/app:{tag}", self.registry.address)
    }

    fn task(&self, tag: &str, script: &str) -> TaskContainer {
        TaskContainer {
            task_id: TaskId::random(&mut rand::rng()),
            image: self.image(tag),
            command: Vec::new(),
            args: vec![script.to_owned()],
            env: vec!["FROM_TASK=yes".to_owned()],
            hostname: "box".to_owned(),
            working_dir: None,
            user: None,
            stop_signal: None,
            labels: BTreeMap::new(),
            memory_limit_bytes: None,
            cpu_limit_nanos: None,
            netns_path: self.netns.clone(),
            resolv_conf: "nameserver 192.0.2.53\n".to_owned(),
            hosts: "192.0.2.1 box\n".to_owned(),
        }
    }

    /// Pulls, creates and starts.
    async fn run(&self, task: &TaskContainer) -> Result<u32, RuntimeError> {
        self.runtime.pull(&task.image).await?;
        self.runtime.create(task).await?;
        self.runtime.start(&task.task_id).await
    }

    async fn output(&self, task: &TaskContainer) -> String {
        let path = self.runtime.task_dir(&task.task_id).join(files::LOG);
        tokio::fs::read_to_string(path).await.unwrap_or_default()
    }

    /// Waits until the log has this content. The shim writes it in its own time, also after the
    /// process has ended.
    async fn has_output(&self, task: &TaskContainer, expected: &str) {
        until(expected, || async { self.output(task).await == expected }).await;
    }

    async fn states(&self) -> Vec<(TaskId, ContainerState)> {
        let list = self.runtime.list().await.unwrap();
        list.into_iter()
            .map(|container| (container.task_id, container.state))
            .collect()
    }

    /// Removes what the test made, and checks that removing tasks left nothing.
    async fn clean(self) {
        for (task_id, _) in self.states().await {
            self.runtime.remove(&task_id).await.unwrap();
        }
        assert_eq!(self.states().await, []);
        let left = std::fs::read_dir(&self.config.tasks_dir).map_or(0, Iterator::count);
        assert_eq!(left, 0, "directories of tasks are left");
        let connection = &self.runtime.connection;
        let leases = connection
            .call(QUICK, containerd::ListRequest::default(), |request| {
                let mut client = connection.leases();
                async move { client.list(request).await }
            })
            .await
            .unwrap();
        assert_eq!(leases.leases, [], "leases are left");
        let images = connection
            .call(QUICK, containerd::ListImagesRequest::default(), |request| {
                let mut client = connection.images();
                async move { client.list(request).await }
            })
            .await
            .unwrap();
        for image in images.images {
            let name = image.name;
            let request = containerd::DeleteImageRequest {
                name,
                ..Default::default()
            };
            let result = connection.call(PATIENCE, request, |request| {
                let mut client = connection.images();
                async move { client.delete(request).await }
            });
            result.await.unwrap();
        }
        // Ending a lease with a wait runs the garbage collection.
        let lease = containerd::CreateRequest {
            id: "collect".to_owned(),
            ..Default::default()
        };
        let result = connection.call(QUICK, lease, |request| {
            let mut client = connection.leases();
            async move { client.create(request).await }
        });
        result.await.unwrap();
        let lease = containerd::DeleteRequest {
            id: "collect".to_owned(),
            sync: true,
        };
        let result = connection.call(PATIENCE, lease, |request| {
            let mut client = connection.leases();
            async move { client.delete(request).await }
        });
        result.await.unwrap();
        let name = self.config.namespace.clone();
        let request = containerd::DeleteNamespaceRequest { name: name.clone() };
        let result = connection.call(QUICK, request, |request| {
            let mut client = connection.namespaces();
            async move { client.delete(request).await }
        });
        result.await.expect("a snapshot or blob is left");
        let status = Command::new("ip")
            .args(["netns", "del", &name])
            .status()
            .unwrap();
        assert!(status.success(), "ip netns del {name}");
    }
}

fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
}

fn content(busybox: &Path) -> Content {
    let mut content = Content::default();
    let base = Tar::busybox(busybox);
    let mut second = Tar::default();
    second.file("srv/second", "two layers\n");
    let arch = Platform::host().architecture;
    let config = json!({
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": [SERVE],
        "Env": ["FROM_IMAGE=yes", "FROM_TASK=no"],
        "WorkingDir": "/srv",
    });
    let ours = content.image("plain", &arch, &[&base, &second], config);
    let config = json!({"Entrypoint": ["/bin/sh", "-c"], "User": "web", "StopSignal": "SIGINT"});
    content.image("web", &arch, &[&base], config);
    let foreign = content.image("foreign", "s390x", &[&second], json!({}));
    content.index("index", &[foreign.clone(), ours]);
    content.index("foreign-index", &[foreign]);
    content.image("empty", &arch, &[&base], json!(null));
    content
}

async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let poll = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, poll)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

async fn wait(runtime: &ContainerdRuntime, task: &TaskContainer) -> ExitStatus {
    let status = tokio::time::timeout(PATIENCE, runtime.wait(&task.task_id)).await;
    status.expect("the process never ended").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_life() {
    let Some(lab) = Lab::new("life").await else {
        return;
    };
    let task = lab.task("index", "");
    let task = TaskContainer {
        args: Vec::new(),
        ..task
    };
    let id = &task.task_id;

    let pulled = lab.runtime.pull(&task.image).await.unwrap();
    assert_eq!(pulled.name.to_string(), task.image);
    assert!(pulled.digest.starts_with("sha256:"), "{}", pulled.digest);
    assert_eq!(pulled.stale, None);
    assert_eq!(lab.runtime.pull(&task.image).await.unwrap(), pulled);

    lab.runtime.create(&task).await.unwrap();
    lab.runtime.create(&task).await.unwrap();
    assert_eq!(lab.states().await, [(id.clone(), ContainerState::Created)]);

    let pid = lab.runtime.start(id).await.unwrap();
    assert_eq!(lab.runtime.start(id).await.unwrap(), pid);
    assert_eq!(
        lab.states().await,
        [(id.clone(), ContainerState::Running { pid })]
    );
    lab.has_output(&task, "up\n").await;
    let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
    let process = PathBuf::from(format!("/proc/{pid}/ns/net"));
    assert_eq!(
        inode(&process),
        inode(&lab.netns),
        "not in its network namespace"
    );

    // The agent restarts: another driver finds the process and its end.
    let restarted = ContainerdRuntime::connect(lab.config.clone())
        .await
        .unwrap();
    let waiter = tokio::spawn({
        let (restarted, task) = (restarted.clone(), task.clone());
        async move { wait(&restarted, &task).await }
    });
    restarted.signal(id, Signal::Stop).await.unwrap();
    let status = waiter.await.unwrap();
    assert_eq!((status.code, status.oom_killed), (3, false));
    lab.has_output(&task, "up\nstopped\n").await;
    assert_eq!(
        lab.states().await,
        [(id.clone(), ContainerState::Stopped(status))]
    );
    assert_eq!(wait(&lab.runtime, &task).await, status, "a second wait");
    lab.runtime.signal(id, Signal::Kill).await.unwrap();
    lab.runtime.start(id).await.unwrap();
    assert_eq!(
        lab.states().await,
        [(id.clone(), ContainerState::Stopped(status))],
        "ran again"
    );

    lab.runtime.remove(id).await.unwrap();
    lab.runtime.remove(id).await.unwrap();
    lab.runtime.signal(id, Signal::Stop).await.unwrap();
    let lost = RuntimeError::ProcessLost {
        task_id: id.clone(),
    };
    assert_eq!(lab.runtime.wait(id).await, Err(lost));
    assert!(
        lab.runtime.start(id).await.is_err(),
        "started what is not there"
    );
    lab.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_process_sees() {
    let Some(lab) = Lab::new("sees").await else {
        return;
    };
    let script = "pwd; hostname; cat second /etc/resolv.conf /etc/hosts /etc/hostname; id; \
                  echo $FROM_IMAGE $FROM_TASK $HOME $HOSTNAME; \
                  cat /proc/sys/net/ipv4/ip_unprivileged_port_start; \
                  grep -E 'CapEff|NoNewPrivs' /proc/self/status; \
                  (echo x > /proc/sys/kernel/hostname) 2>/dev/null || echo read-only";
    let task = lab.task("plain", script);
    lab.run(&task).await.unwrap();
    assert_eq!(wait(&lab.runtime, &task).await.code, 0);
    until("the log is complete", || async {
        lab.output(&task).await.ends_with("read-only\n")
    })
    .await;
    let output = lab.output(&task).await;
    let expected = "/srv\nbox\ntwo layers\nnameserver 192.0.2.53\n192.0.2.1 box\nbox\n\
                    uid=0(root) gid=0(root) groups=0(root)\nyes yes / box\n0\n";
    assert!(output.starts_with(expected), "{output}");
    assert!(output.contains("CapEff:\t00000000a80425fb\n"), "{output}");

    let task = TaskContainer {
        user: None,
        ..lab.task("web", "id; exec sleep 1000")
    };
    lab.run(&task).await.unwrap();
    lab.has_output(&task, "uid=101(web) gid=102(web) groups=4(log),102(web)\n")
        .await;
    let container = lab.runtime.container(&task.task_id).await.unwrap().unwrap();
    assert_eq!(
        container.labels[LABEL_STOP_SIGNAL], "2",
        "the image's stop signal"
    );
    assert_eq!(container.labels[LABEL_TASK_ID], task.task_id.as_str());
    // Process 1 of a pid namespace gets no signal it has no handler for, but for SIGKILL.
    lab.runtime
        .signal(&task.task_id, Signal::Stop)
        .await
        .unwrap();
    lab.runtime
        .signal(&task.task_id, Signal::Kill)
        .await
        .unwrap();
    assert_eq!(wait(&lab.runtime, &task).await.code, 137);

    // Standard error outlives standard output.
    let task = TaskContainer {
        user: Some("12345:web".to_owned()),
        ..lab.task("plain", "exec >&-; sleep 0.2; id >&2")
    };
    lab.run(&task).await.unwrap();
    wait(&lab.runtime, &task).await;
    lab.has_output(&task, "uid=12345 gid=102(web) groups=102(web)\n")
        .await;
    lab.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_and_removal_while_running() {
    let Some(lab) = Lab::new("many").await else {
        return;
    };
    let tasks: Vec<_> = (0..6).map(|_| lab.task("plain", SERVE)).collect();
    let runs = tasks.iter().map(|task| lab.run(task));
    for result in futures_util::future::join_all(runs).await {
        result.unwrap();
    }
    let states = lab.states().await;
    assert_eq!(states.len(), tasks.len());
    assert!(
        states.windows(2).all(|pair| pair[0].0 < pair[1].0),
        "not in order"
    );
    let running = |state: &ContainerState| matches!(state, ContainerState::Running { .. });
    assert!(states.iter().all(|(_, state)| running(state)), "{states:?}");
    let removals = tasks.iter().map(|task| lab.runtime.remove(&task.task_id));
    for result in futures_util::future::join_all(removals).await {
        result.unwrap();
    }
    lab.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_processes_are_not_run_again() {
    let Some(lab) = Lab::new("lost").await else {
        return;
    };
    let task = lab.task("plain", SERVE);
    lab.run(&task).await.unwrap();
    // As a restart of the host leaves it: the container, but no process.
    lab.runtime.remove_process(&task.task_id).await.unwrap();
    assert_eq!(
        lab.states().await,
        [(task.task_id.clone(), ContainerState::Lost)]
    );
    let lost = RuntimeError::ProcessLost {
        task_id: task.task_id.clone(),
    };
    assert_eq!(lab.runtime.start(&task.task_id).await, Err(lost));
    lab.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_copy_serves_while_the_registry_is_down() {
    let Some(mut lab) = Lab::new("stale").await else {
        return;
    };
    let task = lab.task("plain", "exit 5");
    lab.runtime.pull(&task.image).await.unwrap();
    lab.registry = Content::default().serve(LOCALHOST, None).await;
    let pulled = lab.runtime.pull(&task.image).await.unwrap();
    assert!(
        matches!(pulled.stale, Some(RuntimeError::RegistryUnreachable { .. })),
        "{:?}",
        pulled.stale
    );
    lab.run(&task).await.unwrap();
    assert_eq!(wait(&lab.runtime, &task).await.code, 5);
    lab.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_pulls_say_why_and_leave_nothing() {
    let Some(lab) = Lab::new("pulls").await else {
        return;
    };
    let address = lab.registry.address.clone();
    let pull = async |image: String| lab.runtime.pull(&image).await.expect_err(&image);

    let error = pull(format!("{address}/app:none")).await;
    assert!(
        matches!(error, RuntimeError::ImageNotFound { .. }),
        "{error:?}"
    );
    assert_eq!(
        error.to_string(),
        format!("no such image {address}/app:none, or pulling it is denied")
    );
    let error = pull(format!("{address}/denied/app")).await;
    assert!(
        matches!(error, RuntimeError::ImageNotFound { .. }),
        "{error:?}"
    );
    for tag in ["foreign", "foreign-index"] {
        let error = pull(lab.image(tag)).await;
        assert!(
            matches!(error, RuntimeError::WrongPlatform { .. }),
            "{tag}: {error:?}"
        );
    }
    let error = pull("127.0.0.1:1/app".to_owned()).await;
    assert!(
        matches!(error, RuntimeError::RegistryUnreachable { .. }),
        "{error:?}"
    );
    let error = pull("registry.invalid/app".to_owned()).await;
    assert!(
        matches!(error, RuntimeError::RegistryUnreachable { .. }),
        "{error:?}"
    );
    let error = pull("Nonsense".to_owned()).await;
    assert!(matches!(error, RuntimeError::ImageName(_)), "{error:?}");
    lab.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_needs_permission() {
    let Some(lab) = Lab::new("http").await else {
        return;
    };
    if lab.runtime.reads_registry_hosts {
        // A name that only `hosts.toml` can resolve.
        let dir = lab.config.registry_hosts_dir.join("registry.invalid");
        std::fs::create_dir_all(&dir).unwrap();
        let plain = content(&busybox().unwrap()).serve(LOCALHOST, None).await;
        let hosts_toml = format!("[host.\"http://{}\"]\n", plain.address);
        std::fs::write(dir.join("hosts.toml"), hosts_toml).unwrap();
        lab.runtime
            .pull("registry.invalid/app:plain")
            .await
            .unwrap();
    }
    // For localhost containerd 2.0 takes plain HTTP unasked: it must be another address of ours.
    match own_address() {
        Some(address) => {
            let registry = Content::default().serve(address, None).await;
            let image = format!("{}/app:plain", registry.address);
            let error = lab.runtime.pull(&image).await.expect_err("not allowed");
            assert!(
                matches!(error, RuntimeError::RegistryInsecure { .. }),
                "{error:?}"
            );
        }
        None => eprintln!("SKIP http: this machine has no address but localhost"),
    }
    lab.clean().await;
}

/// The address packets to the outside would come from. None is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback())
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_that_cannot_be_say_why() {
    let Some(lab) = Lab::new("cannot").await else {
        return;
    };
    let fails = async |task: TaskContainer| lab.run(&task).await.expect_err("it ran");
    let cause = |error: &RuntimeError| std::error::Error::source(error).unwrap().to_string();

    let base = lab.task("plain", "");
    let command = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let runs = |words: &[&str]| TaskContainer {
        task_id: TaskId::random(&mut rand::rng()),
        command: command(words),
        args: Vec::new(),
        ..base.clone()
    };
    let table = [
        (
            "nosuch",
            "exec: \"nosuch\": executable file not found in $PATH",
        ),
        (
            "/no/such",
            "exec: \"/no/such\": stat /no/such: no such file or directory",
        ),
        ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
    ];
    for (word, expected) in table {
        let error = fails(runs(&[word])).await;
        assert!(
            matches!(error, RuntimeError::CommandNotRunnable { .. }),
            "{error:?}"
        );
        assert_eq!(cause(&error), expected);
    }
    let error = fails(TaskContainer {
        user: Some("nobody".to_owned()),
        ..runs(&["id"])
    })
    .await;
    assert!(
        matches!(error, RuntimeError::InvalidContainer { .. }),
        "{error:?}"
    );
    assert_eq!(
        cause(&error),
        "user \"nobody\" is not in the image's /etc/passwd"
    );
    let error = fails(TaskContainer {
        args: Vec::new(),
        ..lab.task("empty", "")
    })
    .await;
    assert_eq!(
        cause(&error),
        "the image has no command and the service gives none"
    );
    let error = lab
        .runtime
        .create(&lab.task("web", ""))
        .await
        .expect_err("never pulled");
    assert!(
        matches!(error, RuntimeError::ImageNotFound { .. }),
        "{error:?}"
    );
    let no_netns = TaskContainer {
        netns_path: "/run/netns/none".into(),
        ..runs(&["id"])
    };
    let error = fails(no_netns).await;
    assert!(
        cause(&error).contains("/run/netns/none"),
        "{error:?} {}",
        cause(&error)
    );
    lab.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exceeding_the_memory_limit_is_reported() {
    let Some(lab) = Lab::new("oom").await else {
        return;
    };
    if !Path::new(CGROUP_ROOT).join("cgroup.controllers").exists() {
        eprintln!("SKIP oom: no cgroup v2 hierarchy at {CGROUP_ROOT}");
        return lab.clean().await;
    }
    // tail keeps its whole input, which has no line, in memory.
    let task = lab.task("plain", "exec tail /dev/zero");
    let task = TaskContainer {
        memory_limit_bytes: Some(16 << 20),
        ..task
    };
    lab.run(&task).await.unwrap();
    let status = wait(&lab.runtime, &task).await;
    assert_eq!((status.code, status.oom_killed), (137, true));
    lab.clean().await;
}

#[tokio::test]
async fn no_containerd_is_said_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let config = ContainerdConfig {
        socket: dir.path().join("none.sock"),
        namespace: "swarm".to_owned(),
        tasks_dir: dir.path().to_owned(),
        registry_hosts_dir: dir.path().to_owned(),
    };
    let error = ContainerdRuntime::connect(config)
        .await
        .expect_err("there is none");
    assert!(error.is_temporary());
    assert!(
        error.to_string().contains("systemctl start containerd"),
        "{error}"
    );
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("No such file or directory"), "{cause}");
}

#[test]
fn unusable_directories_are_refused() {
    assert_eq!(check_tasks_dir(Path::new("/var/lib/swarm/tasks")), Ok(()));
    for dir in ["var/lib", "/50% of tasks"] {
        assert!(check_tasks_dir(Path::new(dir)).is_err(), "{dir}");
    }
}

#[test]
fn versions_are_read() {
    for (version, expected) in [
        ("1.6.20~ds1", (1, 6)),
        ("v1.7.9", (1, 7)),
        ("1.7", (1, 7)),
        ("v2.0.0-rc.1", (2, 0)),
        ("1.10.0", (1, 10)),
        ("unknown", NEWEST),
        ("2", NEWEST),
        ("", NEWEST),
    ] {
        assert_eq!(parse_version(version), expected, "{version}");
    }
}

#[test]
fn oom_kills_are_counted() {
    assert_eq!(oom_kills("low 0\noom 3\noom_kill 2\noom_group_kill 0\n"), 2);
    assert_eq!(oom_kills("oom_kill 0\n"), 0);
    assert_eq!(oom_kills(""), 0);
}
