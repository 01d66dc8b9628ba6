//! Clients that ask without a pause while something happens to the service, and count every
//! request that was not answered.
//!
//! `lab-guest load` is the client process, in the client's network namespace ([`drive()`]); [`Load`]
//! starts it from a test or a benchmark and reads its counts.
//!
//! # What is counted
//!
//! A request has failed when its connection was refused, reset or cut, when nothing came for the
//! time limit, or when the answer was not whole. Three kinds of clients ask:
//!
//! * *short*: a connection for each request;
//! * *keep-alive*: one connection that stays, a request every 20 ms. A server may close it between
//!   two requests, and the client then opens another, as HTTP clients do. Where the close and the
//!   next request cross on the wire the request may be sent again (RFC 9112, 9.3.1): once, on a new
//!   connection, only if the connection had been used before and not one byte of an answer had
//!   come. Those are counted as `retried` and are no failures if the second try is answered;
//! * *download*: one megabyte at 256 kB/s, four seconds each.

mod drive;
mod http;

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

pub use drive::drive;

use crate::{Host, wait_until};

/// Failures that are told one by one; the rest is only counted.
pub const FAILURES_TOLD: usize = 20;

/// How long the client may take to end: the last download of a client, and emulation.
const END_DEADLINE: Duration = Duration::from_secs(60);

/// Who asks, and whom.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Clients {
    /// Addresses (`ip:port`) of the service, asked in turn.
    #[arg(long, value_delimiter = ',', required = true)]
    pub at: Vec<std::net::SocketAddr>,
    /// Clients with a connection for each request.
    #[arg(long, default_value_t = 0)]
    pub short: u32,
    /// Clients with a connection that stays.
    #[arg(long, default_value_t = 0)]
    pub keepalive: u32,
    /// Clients that download slowly.
    #[arg(long, default_value_t = 0)]
    pub download: u32,
    /// Time limit of connecting, and of each piece of an answer, in milliseconds.
    #[arg(long, default_value_t = 5000)]
    pub limit_ms: u64,
}

/// A request that was not answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Kind of client.
    pub client: String,
    /// When the request began, in microseconds since the Unix epoch.
    pub began_us: u64,
    /// How long it took to fail, in microseconds.
    pub took_us: u64,
    /// What went wrong.
    pub error: String,
}

/// What the clients have counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests that have ended, well or not.
    pub requests: u64,
    /// Those that were not answered.
    pub failed: u64,
    /// Requests sent twice, by the rules of HTTP.
    pub retried: u64,
    /// Connections of keep-alive clients that the server closed between two requests.
    pub reopened: u64,
    /// Downloads that have ended; they are among the requests.
    pub downloads: u64,
    /// When the first request that failed had begun, in microseconds since the Unix epoch.
    pub first_failed_us: Option<u64>,
    /// When the last one had.
    pub last_failed_us: Option<u64>,
    /// The first failures.
    pub failures: Vec<Failure>,
}

/// Clients at work. Dropped, they end.
#[derive(Debug)]
pub struct Load {
    child: Child,
    /// Closed to end the clients.
    stdin: Option<ChildStdin>,
    latest: Arc<Mutex<Option<Counts>>>,
    reader: Option<JoinHandle<()>>,
}

impl Load {
    /// Starts clients on `host` and waits until one request has been answered.
    ///
    /// # Errors
    /// When they cannot be started, or nothing is answered.
    pub fn start(host: &Host, clients: &Clients) -> Result<Self> {
        let at: Vec<String> = clients.at.iter().map(ToString::to_string).collect();
        let number = |value: u32| value.to_string();
        let argv = [
            "lab-guest",
            "load",
            "--at",
            &at.join(","),
            "--short",
            &number(clients.short),
            "--keepalive",
            &number(clients.keepalive),
            "--download",
            &number(clients.download),
            "--limit-ms",
            &clients.limit_ms.to_string(),
        ];
        let mut command = host.command(&argv)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the clients")?;
        let latest = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&latest);
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("clients without output")?;
        let reader = thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Ok(counts) = serde_json::from_str::<Counts>(&line) {
                    *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(counts);
                }
            }
        });
        let load = Self {
            child,
            stdin,
            latest,
            reader: Some(reader),
        };
        wait_until(END_DEADLINE, "a request is answered", || {
            let counts = load.counts();
            ensure!(counts.requests > counts.failed, "{counts:?}");
            Ok(())
        })?;
        Ok(load)
    }

    /// The counts, at most half a second old.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.clone().unwrap_or_default()
    }

    /// Lets every client end the request it is at; gives the last counts.
    ///
    /// # Errors
    /// When they do not end, or not well.
    pub fn finish(mut self) -> Result<Counts> {
        drop(self.stdin.take());
        let code = wait_until(END_DEADLINE, "the clients end", || {
            self.child.try_wait()?.context("they still ask")
        })?;
        ensure!(code.success(), "the clients ended with {code}");
        if let Some(reader) = self.reader.take() {
            reader.join().ok();
        }
        Ok(self.counts())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
