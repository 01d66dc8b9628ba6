//! A host with a manager on it.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

pub(crate) const NODE_ID: &str = "0123456789abcdefghijklmno";

/// Longest that anything here may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
pub(crate) const GLANCE: Duration = Duration::from_millis(20);

/// What a host offers a manager.
pub(crate) struct Host {
    directory: TempDir,
    pub(crate) address: SocketAddr,
}

impl Host {
    pub(crate) fn new() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        Self {
            directory: tempfile::tempdir().unwrap(),
            address: free.local_addr().unwrap(),
        }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    pub(crate) fn start(&self, more: &[&str]) -> Process {
        let mut child = Command::new(env!("CARGO_BIN_EXE_swarm-control"))
            .arg("run")
            .arg("--state-dir")
            .arg(self.state())
            .arg("--socket")
            .arg(self.socket())
            .arg("--listen-address")
            .arg(self.address.to_string())
            .arg("--advertise-address")
            .arg(self.address.to_string())
            .args(more)
            .env("SWARM_LOG", "debug")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = Arc::<Mutex<String>>::default();
        let reader = {
            let log = Arc::clone(&log);
            std::thread::spawn(move || collect(stderr, &log))
        };
        Process {
            child,
            log,
            reader: Some(reader),
        }
    }

    pub(crate) fn bootstrap(&self) -> Process {
        self.start(&["--bootstrap", "--node-id", NODE_ID])
    }

    /// A connection to the local socket, once the manager answers.
    pub(crate) async fn local(&self) -> Channel {
        let socket = self.socket();
        let connect = move |_: Uri| {
            let socket = socket.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let channel = Endpoint::from_static("http://local")
                .timeout(PATIENCE)
                .connect_with_connector(tower::service_fn(connect.clone()))
                .await;
            match channel {
                Ok(channel) => return channel,
                Err(error) => assert!(Instant::now() < deadline, "no manager: {error}"),
            }
            tokio::time::sleep(GLANCE).await;
        }
    }
}

fn collect(stderr: ChildStderr, log: &Mutex<String>) {
    for line in BufReader::new(stderr).lines() {
        let line = line.unwrap();
        *log.lock().unwrap() += &(line + "\n");
    }
}

/// A running manager; killed when dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Process {
    /// Waits until it has written `text` to stderr.
    pub(crate) fn says(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = self.log.lock().unwrap().clone();
            if log.contains(text) {
                return;
            }
            assert!(Instant::now() < deadline, "it says only: {log}");
            std::thread::sleep(GLANCE);
        }
    }

    /// Waits for its end; gives what it wrote to stderr, too.
    pub(crate) fn end(&mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(GLANCE);
        };
        self.reader.take().unwrap().join().unwrap();
        (status, self.log.lock().unwrap().clone())
    }

    /// Does what the end of the agent does.
    pub(crate) fn close_stdin(&mut self) -> (ExitStatus, String) {
        drop(self.child.stdin.take());
        self.end()
    }

    /// The code it ends with, and its last line.
    pub(crate) fn failure(&mut self) -> (Option<i32>, String) {
        let (status, log) = self.end();
        let last = log.lines().last().unwrap_or_default().to_owned();
        (status.code(), last)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
